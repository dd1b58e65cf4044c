//! Pages that lie in no region, or not whole: they are copied, and what does not fit goes in frames.

use crate::rig::{Memory, Pieces, client, server, space};
use memkv_client::PageOutcome;
use memkv_rdma::fake::Fabric;
use memkv_tests::pages::{keys, pages};

/// Pages of pieces that lie in turn in a region and outside, of more bytes than the bounce buffer has.
#[test]
fn pages_of_mixed_memory_arrive() {
    const PIECE: usize = 10_007;
    const PER_PAGE: usize = 6;
    const PAGES: usize = 60;
    let fabric = Fabric::new(2);
    let server = server(&fabric);
    let client = client(&fabric, &[&server]);
    let space = space(&client);
    let (inside, outside) =
        (Memory::registered(&client, PIECE * PER_PAGE * PAGES), Memory::new(PIECE * PER_PAGE * PAGES));
    let names = keys("mixed", PAGES);
    let bytes = pages(&names, PIECE * PER_PAGE);
    // Every third page lies in the region, every third outside, every third half and half.
    let is_inside =
        |page: usize, piece: usize| page.is_multiple_of(3) || (page % 3 == 1 && piece.is_multiple_of(2));
    let place = |page: usize, piece: usize| (page * PER_PAGE + piece) * PIECE;
    let memory = |page, piece| if is_inside(page, piece) { &inside } else { &outside };
    let each = || (0..PAGES).flat_map(|page| (0..PER_PAGE).map(move |piece| (page, piece)));
    let pieces = Pieces {
        ptrs: each().map(|(page, piece)| memory(page, piece).at(place(page, piece))).collect(),
        lens: vec![PIECE; PAGES * PER_PAGE],
        per_page: PER_PAGE,
    };
    for (page, piece) in each() {
        memory(page, piece).fill(place(page, piece), &bytes[page][piece * PIECE..(piece + 1) * PIECE]);
    }
    assert_eq!(pieces.put(&space, &names), [PageOutcome::Stored; PAGES]);
    for (page, piece) in each() {
        memory(page, piece).fill(place(page, piece), &[0; PIECE]);
    }
    let missing = [&names[..PAGES - 1], &keys("absent", 1)[..]].concat();
    let got = pieces.get(&space, &missing);
    assert_eq!(got[..PAGES - 1], [PageOutcome::Hit; PAGES - 1]);
    assert_eq!(got[PAGES - 1], PageOutcome::Miss);
    for (page, piece) in each().filter(|(page, _)| *page < PAGES - 1) {
        let read = memory(page, piece).read(place(page, piece), PIECE);
        assert!(read == bytes[page][piece * PIECE..(piece + 1) * PIECE], "page {page}, piece {piece}");
    }
    let stats = client.stats().rdma;
    assert_eq!(stats.direct_pages, 20 + 20);
    assert_eq!(stats.bounced_pages + stats.framed_pages, 40 + 40 - 1 + u64::from(stats.framed_pages > 0));
    assert!(stats.bounced_pages > 0);
}

#[test]
fn a_page_that_is_larger_than_the_buffer_goes_in_frames() {
    const LEN: usize = 2 << 20;
    let fabric = Fabric::new(1);
    let server = server(&fabric);
    let client = client(&fabric, &[&server]);
    let space = space(&client);
    let memory = Memory::new(2 * LEN);
    let names = keys("large", 2);
    let bytes = pages(&names, LEN).concat();
    memory.fill(0, &bytes);
    let pieces = Pieces::pages(&memory, 2, LEN);
    assert_eq!(pieces.put(&space, &names), [PageOutcome::Stored; 2]);
    memory.fill(0, &vec![0; bytes.len()]);
    assert_eq!(pieces.get(&space, &names), [PageOutcome::Hit; 2]);
    assert!(memory.read(0, bytes.len()) == bytes);
    let stats = client.stats().rdma;
    assert_eq!((stats.framed_pages, stats.bounced_pages, stats.direct_pages), (4, 0, 0));
}

#[test]
fn what_is_no_longer_registered_is_copied() {
    const LEN: usize = 50_000;
    let fabric = Fabric::new(1);
    let server = server(&fabric);
    let client = client(&fabric, &[&server]);
    let space = space(&client);
    let mut memory = Memory::registered(&client, LEN);
    let name = keys("forgotten", 1);
    let bytes = pages(&name, LEN).concat();
    memory.fill(0, &bytes);
    let pieces = Pieces::pages(&memory, 1, LEN);
    assert_eq!(pieces.put(&space, &name), [PageOutcome::Stored]);
    assert_eq!(client.stats().rdma.direct_pages, 1);
    let regions = fabric.counts().regions;
    memory.forget();
    assert_eq!(fabric.counts().regions, regions - 1, "it is deregistered when the drop returns");
    memory.fill(0, &vec![0; LEN]);
    assert_eq!(pieces.get(&space, &name), [PageOutcome::Hit]);
    assert!(memory.read(0, LEN) == bytes);
    assert_eq!(client.stats().rdma.bounced_pages, 1);
}
