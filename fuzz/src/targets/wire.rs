//! Frames and the lists in them.

use crate::bytes::Bytes;
use memkv_core::{Key, PageMeta, SpaceId};
use memkv_transport::frame::{Code, HEADER_BYTES, Header, Mover, Op};
use memkv_transport::records::{self, Span};

/// A header, and after it a meta section.
pub(super) fn frame(input: &[u8]) {
    let mut bytes = Bytes::new(input);
    let head: [u8; HEADER_BYTES] = bytes.array();
    let meta = bytes.rest();
    let Ok(header) = Header::decode(&head) else { return };
    let claimed = header.verify(&head, meta).is_ok() && header.meta_len as usize == meta.len();
    let written = header.encode(meta);
    let again = Header::decode(&written).expect("a header that was understood can be written");
    again.verify(&written, meta).expect("what was written checks out");
    assert_eq!((again.op, again.flags, again.count), (header.op, header.flags, header.count));
    assert_eq!(again.status, header.status);
    // The bytes are as they were written, or else something was changed on the way.
    assert!(!claimed || written == head, "two headers mean the same and both check out");
}

pub(super) fn frame_seeds() -> Vec<Vec<u8>> {
    let mut meta = Vec::new();
    records::push_key(&mut meta, Key::new(b"some key").expect("eight bytes are a key"));
    let mut request = Header::request(Op::Exists, 7, SpaceId([9; 16]), 1);
    request.deadline_ms = 100;
    let reply = Header::reply_to(&request, Code::Busy, 0);
    let mut put = Header::request(Op::PutData, 8, SpaceId([9; 16]), 1);
    put.body_len = 80;
    let with = |header: &Header, meta: &[u8]| [&header.encode(meta)[..], meta].concat();
    vec![with(&request, &meta), with(&reply, b"full"), with(&put, b"")]
}

/// A count, and a meta section that is read as each of the lists.
pub(super) fn records(input: &[u8]) {
    let mut bytes = Bytes::new(input);
    let count = u32::from(u16::from_le_bytes(bytes.array()));
    let which = bytes.byte();
    let meta = bytes.rest();
    match which % 8 {
        0 => keys(meta, count),
        1 => wanted(meta, count),
        2 => offered(meta, count),
        3 => remote_wanted(meta, count),
        4 => remote_offered(meta, count),
        5 => page_record(meta),
        6 => bitmap(meta, count),
        _ => binds(meta),
    }
}

fn keys(meta: &[u8], count: u32) {
    let read: Result<Vec<Key<'_>>, _> = records::keys(meta, count).collect();
    let Ok(read) = read else { return };
    assert_eq!(read.len(), count as usize);
    let mut again = Vec::new();
    read.iter().for_each(|key| records::push_key(&mut again, *key));
    assert_eq!(again, meta, "keys read as they were written");
}

fn wanted(meta: &[u8], count: u32) {
    let read: Result<Vec<_>, _> = records::wanted(meta, count).collect();
    let Ok(read) = read else { return };
    let mut again = Vec::new();
    read.iter().for_each(|wanted| records::push_wanted(&mut again, wanted.dst_len, wanted.key));
    assert_eq!((again.as_slice(), read.len()), (meta, count as usize));
}

fn offered(meta: &[u8], count: u32) {
    let read: Result<Vec<_>, _> = records::offered(meta, count).collect();
    let Ok(read) = read else { return };
    let mut again = Vec::new();
    read.iter().for_each(|page| records::push_offered(&mut again, page.len, page.position, page.key));
    assert_eq!((again.as_slice(), read.len()), (meta, count as usize));
}

fn remote_wanted(meta: &[u8], count: u32) {
    let read: Result<Vec<_>, _> = records::remote_wanted(meta, count).collect();
    let Ok(read) = read else { return };
    assert_eq!(read.len(), count as usize);
    for page in read {
        assert_eq!(page.spans.bytes(), u64::from(page.page.dst_len), "spans are as long as the page");
    }
}

fn remote_offered(meta: &[u8], count: u32) {
    let read: Result<Vec<_>, _> = records::remote_offered(meta, count).collect();
    let Ok(read) = read else { return };
    assert_eq!(read.len(), count as usize);
    for page in read {
        assert_eq!(page.spans.bytes(), u64::from(page.page.len), "spans are as long as the page");
        assert_eq!(page.spans.iter().count(), page.spans.len());
    }
}

fn page_record(meta: &[u8]) {
    let record = Bytes::new(meta).array();
    if let Ok((code, page)) = records::read_page_record(&record) {
        assert_eq!(records::page_record(code, page), record, "a record reads as it was written");
    }
}

fn bitmap(meta: &[u8], count: u32) {
    let mut bits = vec![false; count as usize];
    if records::read_bitmap(meta, &mut bits).is_ok() {
        let mut again = Vec::new();
        records::push_bitmap(&mut again, &bits);
        assert_eq!(again, meta, "a bitmap reads as it was written");
    }
}

fn binds(meta: &[u8]) {
    if let Ok((mover, token)) = records::read_bind(meta) {
        assert_eq!(records::bind(mover, &token).as_slice(), meta);
        let (address, content) = records::trial_of(&token);
        assert_eq!(records::trial(address, content), token);
    }
    if let Ok(bound) = records::read_shm_bound(meta) {
        assert_eq!(records::shm_bound(bound).as_slice(), meta);
    }
}

pub(super) fn record_seeds() -> Vec<Vec<u8>> {
    let key = |text: &'static [u8]| Key::new(text).expect("a short text is a key");
    let input = |which: u8, count: u16, meta: &[u8]| {
        let mut input = count.to_le_bytes().to_vec();
        input.push(which);
        input.extend_from_slice(meta);
        input
    };
    let mut keys = Vec::new();
    records::push_key(&mut keys, key(b"a"));
    records::push_key(&mut keys, key(b"another one"));
    let mut wanted = Vec::new();
    records::push_wanted(&mut wanted, 4096, key(b"k1"));
    let mut offered = Vec::new();
    records::push_offered(&mut offered, 4096, 3, key(b"k1"));
    let spans = [Span { region: 1, len: 4000, offset: 0 }, Span { region: 2, len: 96, offset: 64 }];
    let mut remote = wanted.clone();
    records::push_spans(&mut remote, spans.into_iter());
    let record = records::page_record(Code::Ok, PageMeta { len: 4096, codec: 0, flags: 0, checksum: 77 });
    let mut put = offered.clone();
    put.extend_from_slice(&record);
    records::push_spans(&mut put, spans.into_iter());
    let mut bits = Vec::new();
    records::push_bitmap(&mut bits, &[true, false, true, true, false, true, false, true, true]);
    vec![
        input(0, 2, &keys),
        input(1, 1, &wanted),
        input(2, 1, &offered),
        input(3, 1, &remote),
        input(4, 1, &put),
        input(5, 1, &record),
        input(6, 9, &bits),
        input(7, 1, &records::bind(Mover::Shm, &records::trial(0x1000, [5; 8]))),
    ]
}
