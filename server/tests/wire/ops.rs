//! What each op of the data plane means.

use crate::harness::{Fixture, direct_put, frame, meta_of, page, put_data, split_pages};
use memkv_core::{SpaceDescription, SpaceId};
use memkv_transport::frame::{Code, FLAG_EXACT, FLAG_PREFIX, Header, Op};

#[test]
fn pages_come_back_byte_for_byte() {
    let fixture = Fixture::with_key(&[]);
    let space = fixture.open_space("ops");
    let (_session, mut wire) = fixture.wire();
    // From one byte over several pieces of one read to pages that take many reads.
    let lens = [1, 15, 4096, 4097, 65_536, 1 << 20, (3 << 20) + 7];
    let pages: Vec<_> = lens.iter().map(|len| (format!("page of {len}"), page(*len as u64, *len))).collect();
    let offered: Vec<_> = pages.iter().map(|(key, bytes)| (key.as_bytes(), &bytes[..])).collect();
    assert_eq!(wire.put(space, &offered), [Code::Ok; 7]);
    assert_eq!(wire.put(space, &offered), [Code::Exists; 7]);

    let mut wanted: Vec<_> = offered.iter().map(|(key, bytes)| (*key, bytes.len() as u32)).collect();
    wanted.insert(3, (b"absent", 10));
    let got = wire.get(space, 0, &wanted);
    assert_eq!(got.len(), 8);
    assert_eq!(got[3].0, Code::Miss);
    for ((key, bytes), (code, meta, read)) in
        offered.iter().zip(got.iter().filter(|page| page.0 != Code::Miss))
    {
        assert_eq!((*code, *meta), (Code::Ok, meta_of(space, key, bytes)));
        assert!(read == bytes, "{} differs", String::from_utf8_lossy(key));
    }
    assert_eq!(fixture.status().ops.unwrap().put_stored, 7);
}

#[test]
fn a_put_may_bring_its_pages_along() {
    let fixture = Fixture::open(&["--page-max", "1MiB"]);
    let space = fixture.open_space("ops");
    let (_session, mut wire) = fixture.wire();
    assert_eq!(wire.put(space, &[(b"there", b"first")]), [Code::Ok]);
    let (large, over) = (page(3, 900_000), page(4, (1 << 20) + 1));
    // Unwanted pages at the beginning, in the middle and at the end, one of them larger than any buffer.
    let pages: [(&[u8], &[u8]); 6] = [
        (b"over", &over),
        (b"a", b"1"),
        (b"there", b"second"),
        (b"b", &large),
        (b"c", b"3"),
        (b"over2", &over),
    ];
    let (header, meta, mut body) = direct_put(space, 7, &pages);
    // One bit of the page before the last.
    let at = body.len() - over.len() - 16 - 1;
    body[at] ^= 1;
    wire.send(&header, &meta, &body);
    let reply = wire.receive();
    let verdicts = [Code::TooLarge, Code::Ok, Code::Exists, Code::Ok, Code::Corrupt, Code::TooLarge];
    assert_eq!((reply.header.op, reply.header.status), (Op::Put, Code::Ok));
    assert_eq!(reply.meta, verdicts.map(|code| code as u8));
    assert_eq!(wire.get(space, 0, &[(b"there", 10)])[0].2, b"first", "the first writer wins");
    assert!(wire.get(space, 0, &[(b"b", 1 << 20)])[0].2 == large);
    assert!(!wire.exists(space, b"c") && !wire.exists(space, b"over"));

    // In a space that nobody opened, the pages are read over and the connection goes on.
    let (header, meta, body) = direct_put(SpaceId([9; 16]), 8, &pages);
    wire.send(&header, &meta, &body);
    assert_eq!(wire.receive().header.status, Code::UnknownSpace);
    assert!(wire.exists(space, b"a"));
    let ops = fixture.status().ops.unwrap();
    assert_eq!((ops.put_stored, ops.put_existing), (3, 1));
}

#[test]
fn a_batch_of_many_small_pages() {
    let fixture = Fixture::open(&[]);
    let space = fixture.open_space("ops");
    let (_session, mut wire) = fixture.wire();
    let pages: Vec<_> = (0..1000_u64).map(|i| (i.to_le_bytes(), page(i, 500 + i as usize % 7))).collect();
    let offered: Vec<_> = pages.iter().map(|(key, bytes)| (&key[..], &bytes[..])).collect();
    assert_eq!(wire.put(space, &offered), vec![Code::Ok; 1000]);
    let wanted: Vec<_> = offered.iter().map(|(key, _)| (*key, 600)).collect();
    for ((_, bytes), (code, _, read)) in offered.iter().zip(wire.get(space, 0, &wanted)) {
        assert_eq!((code, &read[..]), (Code::Ok, *bytes));
    }
}

#[test]
fn presence_ops() {
    let fixture = Fixture::open(&[]);
    let space = fixture.open_space("ops");
    let (_session, mut wire) = fixture.wire();
    wire.put(space, &[(b"a", b"1"), (b"c", b"3")]);
    let keys: [&[u8]; 3] = [b"a", b"b", b"c"];
    assert_eq!(wire.presence(Op::Exists, 0, space, &keys), [true, false, true]);
    assert_eq!(wire.presence(Op::Exists, FLAG_PREFIX, space, &keys), [true, false, false]);
    assert_eq!(wire.presence(Op::Touch, 0, space, &keys), [true, false, true]);
    assert_eq!(wire.presence(Op::Delete, 0, space, &keys), [true, false, true]);
    assert_eq!(wire.presence(Op::Delete, 0, space, &keys), [false; 3]);
    assert_eq!(wire.presence(Op::Exists, 0, space, &[]), [] as [bool; 0]);
    let ping = Header::request(Op::Ping, 77, Default::default(), 0);
    assert_eq!(wire.ask(&ping, b"").header.status, Code::Ok);
}

#[test]
fn a_page_of_another_length_is_not_sent() {
    let fixture = Fixture::open(&[]);
    let space = fixture.open_space("ops");
    let (_session, mut wire) = fixture.wire();
    wire.put(space, &[(b"k", &[7; 100])]);
    for (flags, room, expected) in [
        (0, 99, Code::SizeMismatch),
        (0, 100, Code::Ok),
        (0, 101, Code::Ok),
        (FLAG_EXACT, 99, Code::SizeMismatch),
        (FLAG_EXACT, 100, Code::Ok),
        (FLAG_EXACT, 101, Code::SizeMismatch),
    ] {
        let (code, meta, _) = wire.get(space, flags, &[(b"k", room)]).remove(0);
        assert_eq!((code, meta.len), (expected, 100), "flags {flags}, room {room}");
    }
}

#[test]
fn an_unknown_space_has_no_pages_and_takes_none() {
    let fixture = Fixture::open(&[]);
    let space = SpaceDescription::named("never opened").unwrap().id();
    let (_session, mut wire) = fixture.wire();
    assert!(!wire.exists(space, b"k"));
    assert_eq!(wire.get(space, 0, &[(b"k", 5)])[0].0, Code::Miss);
    let (header, meta) = wire.offer(space, &[(b"k", b"page")]);
    let reply = wire.ask(&header, &meta);
    assert_eq!(reply.header.status, Code::UnknownSpace);
    assert!(String::from_utf8(reply.meta).unwrap().contains("Kv.OpenSpace"));
    assert!(!wire.exists(space, b"k"), "the connection goes on");
}

#[test]
fn pages_that_are_too_large_or_empty_are_refused_one_by_one() {
    let fixture = Fixture::open(&["--page-max", "64KiB"]);
    let space = fixture.open_space("ops");
    let (_session, mut wire) = fixture.wire();
    let (large, largest) = (vec![1; (64 << 10) + 1], vec![2; 64 << 10]);
    let codes =
        wire.put(space, &[(b"large", &large), (b"largest", &largest), (b"empty", b""), (b"small", b"x")]);
    assert_eq!(codes, [Code::TooLarge, Code::Ok, Code::TooLarge, Code::Ok]);
}

#[test]
fn bytes_that_do_not_match_are_never_stored() {
    let fixture = Fixture::open(&[]);
    let space = fixture.open_space("ops");
    let (_session, mut wire) = fixture.wire();
    let pages: [(&[u8], &[u8]); 3] = [(b"a", &[1; 5000]), (b"b", &[2; 5000]), (b"c", &[3; 5000])];
    let (header, meta) = wire.offer(space, &pages);
    wire.ask(&header, &meta);
    let (header, mut body) = put_data(space, header.request_id, &pages);
    body[(16 + 5000) + 16 + 4999] ^= 1;
    wire.send(&header, b"", &body);
    let verdicts = wire.receive().meta;
    assert_eq!(verdicts, [Code::Ok as u8, Code::Corrupt as u8, Code::Ok as u8]);
    assert_eq!(wire.presence(Op::Exists, 0, space, &[b"a", b"b", b"c"]), [true, false, true]);
    assert_eq!(fixture.status().ops.unwrap().corrupt, 1);
}

#[test]
fn the_first_of_two_writers_wins() {
    let fixture = Fixture::open(&[]);
    let space = fixture.open_space("ops");
    let (session, mut first) = fixture.wire();
    let mut second = fixture.attach(&session).unwrap();
    let (header1, meta1) = first.offer(space, &[(b"k", b"first")]);
    let (header2, meta2) = second.offer(space, &[(b"k", b"other")]);
    assert_eq!(first.ask(&header1, &meta1).meta, [Code::Want as u8]);
    assert_eq!(second.ask(&header2, &meta2).meta, [Code::Want as u8]);
    let (header, body) = put_data(space, header2.request_id, &[(b"k", b"other")]);
    second.send(&header, b"", &body);
    assert_eq!(second.receive().meta, [Code::Ok as u8]);
    let (header, body) = put_data(space, header1.request_id, &[(b"k", b"first")]);
    first.send(&header, b"", &body);
    assert_eq!(first.receive().meta, [Code::Exists as u8]);
    assert_eq!(first.get(space, 0, &[(b"k", 9)])[0].2, b"other");
}

#[test]
fn requests_may_follow_each_other_without_waiting() {
    let fixture = Fixture::open(&[]);
    let space = fixture.open_space("ops");
    let (_session, mut wire) = fixture.wire();
    let bytes = page(1, 200_000);
    assert_eq!(wire.put(space, &[(b"k", &bytes)]), [Code::Ok]);
    // Two puts, a get and pings in one write; then the pages of the second put before those of the first.
    let (put1, meta1) = wire.offer(space, &[(b"p1", &bytes[..1000])]);
    let (put2, meta2) = wire.offer(space, &[(b"p2", &bytes[..70_000])]);
    let (get, wanted) = wire.get_request(space, 0, &[(b"k", 200_000)]);
    let ping = Header::request(Op::Ping, 1000, Default::default(), 0);
    let all = [
        frame(&put1, &meta1, b""),
        frame(&ping, b"", b""),
        frame(&put2, &meta2, b""),
        frame(&get, &wanted, b""),
        frame(&ping, b"", b""),
    ];
    std::io::Write::write_all(&mut wire.stream, &all.concat()).unwrap();
    assert_eq!(wire.receive().meta, [Code::Want as u8]);
    assert_eq!(wire.receive().header.request_id, 1000);
    assert_eq!(wire.receive().meta, [Code::Want as u8]);
    assert!(split_pages(&wire.receive())[0].2 == bytes);
    assert_eq!(wire.receive().header.request_id, 1000);
    let (data2, body2) = put_data(space, put2.request_id, &[(b"p2", &bytes[..70_000])]);
    let (data1, body1) = put_data(space, put1.request_id, &[(b"p1", &bytes[..1000])]);
    let all = [
        frame(&data2, b"", &body2),
        frame(&ping, b"", b""),
        frame(&data1, b"", &body1),
        frame(&ping, b"", b""),
    ];
    std::io::Write::write_all(&mut wire.stream, &all.concat()).unwrap();
    for expected in [put2.request_id, 1000, put1.request_id, 1000] {
        let reply = wire.receive();
        assert_eq!((reply.header.request_id, reply.header.status), (expected, Code::Ok));
    }
    assert!(wire.get(space, 0, &[(b"p2", 70_000)])[0].2 == bytes[..70_000]);
    assert!(wire.get(space, 0, &[(b"p1", 1000)])[0].2 == bytes[..1000]);
}

#[test]
fn a_request_whose_deadline_passed_in_the_queue_is_not_carried_out() {
    let fixture = Fixture::open(&["--dram", "1GiB"]);
    let space = fixture.open_space("ops");
    let (_session, mut wire) = fixture.wire();
    // More than socket buffers take, so that the delete waits behind it until we read.
    let bytes = page(1, 20 << 20);
    assert_eq!(wire.put(space, &[(b"k", &bytes)]), [Code::Ok]);
    let (get, wanted) = wire.get_request(space, 0, &[(b"k", 20 << 20)]);
    let mut delete = Header::request(Op::Delete, 500, space, 1);
    delete.deadline_ms = 1;
    let mut key = Vec::new();
    memkv_transport::records::push_key(&mut key, memkv_core::Key::new(b"k").unwrap());
    let both = [frame(&get, &wanted, b""), frame(&delete, &key, b"")].concat();
    std::io::Write::write_all(&mut wire.stream, &both).unwrap();
    let queued = std::time::Instant::now();
    while queued.elapsed() < std::time::Duration::from_millis(30) {
        std::thread::yield_now();
    }
    assert!(split_pages(&wire.receive())[0].2 == bytes);
    assert_eq!(wire.receive().header.status, Code::Expired);
    assert!(wire.exists(space, b"k"));
}
