//! Pages move, and without a copy where they lie in a region.

use crate::rig::{Memory, Pieces, client, metric, server, space};
use memkv_client::PageOutcome;
use memkv_rdma::fake::Fabric;
use memkv_tests::pages::{keys, page};

#[test]
fn one_page_is_put_and_got_without_a_copy() {
    let fabric = Fabric::new(1);
    let server = server(&fabric);
    let client = client(&fabric, &[&server]);
    let space = space(&client);
    let memory = Memory::registered(&client, 2 << 20);
    let (key, len) = (keys("one", 1), 100_000);
    let bytes = page(&key[0], len);
    memory.fill(0, &bytes);
    assert_eq!(Pieces::pages(&memory, 1, len).put(&space, &key), [PageOutcome::Stored]);
    memory.fill(0, &vec![0; len]);
    assert_eq!(Pieces::pages(&memory, 1, len).get(&space, &key), [PageOutcome::Hit]);
    assert_eq!(memory.read(0, len), bytes);
    let stats = client.stats().rdma;
    assert_eq!((stats.direct_pages, stats.direct_bytes), (2, 2 * len as u64));
    assert_eq!((stats.bounced_pages, stats.framed_pages), (0, 0));
    assert_eq!(metric(&server, "memkv_rdma_read_bytes_total"), len as u64);
    assert_eq!(metric(&server, "memkv_rdma_write_bytes_total"), len as u64);
}
