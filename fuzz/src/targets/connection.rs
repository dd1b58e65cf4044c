//! The state machine of a server's data connection. Whatever a client says, the connection ends when the client leaves, nothing stays
//! held, and all that the server said before are whole frames.

use super::script::Script;
use crate::bytes::Bytes;
use memkv_core::PageMeta;
use memkv_server::fuzzing::Stand;
use memkv_transport::frame::{Code, HEADER_BYTES, Header, Op};
use memkv_transport::records::{self, PAGE_RECORD_BYTES};
use std::cell::RefCell;
use std::sync::OnceLock;

thread_local! {
    /// Starting a server takes longer than thousands of talks.
    static STAND: RefCell<Option<Stand>> = const { RefCell::new(None) };
}

/// Memory that spans may name.
fn memory() -> &'static [u8] {
    static MEMORY: OnceLock<Vec<u8>> = OnceLock::new();
    MEMORY.get_or_init(|| vec![7; 256 << 10])
}

pub(super) fn run(input: &[u8]) {
    STAND.with_borrow_mut(|stand| {
        let stand = stand.get_or_insert_with(Stand::new);
        let mut bytes = Bytes::new(input);
        let attached = bytes.byte() != 0xff;
        let said = if attached {
            let pieces = Script::new(bytes, stand.space(), memory()).write();
            stand.talk(&pieces, true)
        } else {
            stand.talk(&[bytes.rest().to_vec()], false)
        };
        if attached {
            judge(&said);
        }
    });
}

/// Everything that the server said is a row of whole replies.
fn judge(mut said: &[u8]) {
    while let Some((head, rest)) = said.split_first_chunk::<HEADER_BYTES>() {
        let reply = Header::decode(head).expect("the server writes headers that can be read");
        assert!(reply.reply, "the server only replies");
        let (meta_len, body_len) =
            (reply.meta_len as usize, usize::try_from(reply.body_len).unwrap_or(usize::MAX));
        let (meta, rest) = rest.split_at_checked(meta_len).expect("a reply's records are whole");
        reply.verify(head, meta).expect("a reply's check is right");
        let (_body, rest) = rest.split_at_checked(body_len).expect("a reply's pages are whole");
        if reply.status != Code::Ok {
            assert_eq!(reply.body_len, 0, "a refusal has no pages");
            assert!(std::str::from_utf8(meta).is_ok(), "a refusal is a text");
        } else if reply.op == Op::Get {
            get(&reply, meta);
        }
        said = rest;
    }
    assert_eq!(said, b"", "the last reply is whole");
}

fn get(reply: &Header, meta: &[u8]) {
    let mut bytes = 0;
    for record in meta.as_chunks::<PAGE_RECORD_BYTES>().0.iter().take(reply.count as usize) {
        let (code, page): (Code, PageMeta) = records::read_page_record(record).expect("a record can be read");
        bytes += if code == Code::Ok { u64::from(page.len) } else { 0 };
    }
    // Pages through shared memory are not in the body.
    assert!(reply.body_len == bytes || reply.body_len == 0, "the body is as long as its pages");
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    // First the way in, then steps: see the script.
    let offer_and_data = [0, 2, 2, 0, 0, 1, 2, 1, 1, 3, 1, 0, 0, 3, 0, 0, 0, 0, 1, 2, 0, 0, 0, 2, 0, 2, 1];
    let presence = [0, 0, 0, 3, 1, 0, 2, 0, 1, 2, 0, 2, 2, 1, 0, 0];
    let direct = [0, 5, 1, 0, 2, 0, 0, 0, 9, 0, 1, 1, 0, 0, 0, 2, 0, 0, 0];
    let shared = [0, 6, 0, 1, 0, 0, 7, 1, 1, 0, 0, 0, 2, 0, 9, 2, 0, 0, 0];
    let rdma = [0, 6, 1, 1, 0, 0, 7, 0, 1, 0, 0, 0, 2, 1, 9, 2];
    let cut = [0, 0, 0, 1, 1, 0, 0, 0, 10, 20, 0, 1, 9, 5, 1, 2, 3, 4, 5];
    let anything = [0, 8, 1, 0, 0, 0, 0, 2, 3, 1, 2, 3, 8, 6, 0, 0, 0, 0, 2, 0];
    let glued = [0, 1, 1, 0, 0, 0, 2, 0, 0, 1, 1, 0, 0, 0, 2, 0, 11, 3, 0, 11, 3, 1];
    let hello = [0xff, 1, 0, 0, 0, 0, 0, 0, 0, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5];
    let mut long_hello = hello.to_vec();
    long_hello.resize(120, 3);
    [&offer_and_data[..], &presence, &direct, &shared, &rdma, &cut, &anything, &glued, &hello]
        .into_iter()
        .map(<[u8]>::to_vec)
        .chain([long_hello])
        .collect()
}
