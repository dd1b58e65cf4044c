//! Pages that come in parts, with pauses between them: their checksums begin before they are whole.

use crate::fake::{Act, Fake};
use crate::{connect, get, keys, page, space_description};
use memkv_client::PageOutcome;
use memkv_transport::frame::HEADER_BYTES;

const LEN: usize = 200_000;
/// Where the bytes of the first page begin.
const BODY: usize = HEADER_BYTES + 3 * 16;

fn holding_three() -> Fake {
    let fake = Fake::start();
    for i in 0..3 {
        fake.store(&space_description(), &format!("key-{i}"), &page(i, LEN));
    }
    fake
}

#[test]
fn pages_that_come_in_parts_are_whole() {
    let fake = holding_three();
    let (client, space) = connect(&[&fake]);
    for part in [9_999, 33_000, 70_001, LEN / 2, LEN, LEN + 40_000, BODY + LEN] {
        fake.script(move |_, reply| Act::SendParts(reply, part));
        let (out, pages) = get(&space, &keys(3), LEN);
        assert_eq!(out, [PageOutcome::Hit; 3], "parts of {part}");
        assert!((0..3).all(|i| pages[i] == page(i, LEN)), "parts of {part}");
    }
    client.close();
}

#[test]
fn a_bit_that_is_altered_in_any_part_is_noticed() {
    let fake = holding_three();
    for at in [0, 1, 32_767, 32_768, 65_000, LEN / 2, LEN - 33_000, LEN - 1] {
        for part in [33_000, LEN + 40_000] {
            // A server that sends altered pages again and again is given up.
            let (client, space) = connect(&[&fake]);
            fake.script(move |_, mut reply| {
                reply[BODY + LEN + at] ^= 16;
                Act::SendParts(reply, part)
            });
            let (out, pages) = get(&space, &keys(3), LEN);
            let expected = [PageOutcome::Hit, PageOutcome::Corrupt, PageOutcome::Hit];
            assert_eq!(out, expected, "byte {at}, parts of {part}");
            assert_eq!((&pages[0], &pages[2]), (&page(0, LEN), &page(2, LEN)));
            client.close();
        }
    }
}
