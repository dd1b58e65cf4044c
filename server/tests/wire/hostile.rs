//! Peers that break the rules, stall, or vanish. Each is told, dropped, and takes nothing with it.

use crate::harness::{Fixture, LONG, Wire, direct_put, frame, page, put_data};
use memkv_core::SpaceId;
use memkv_transport::frame::{Code, Header, Op};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

fn raw(fixture: &Fixture, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(fixture.address).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    stream.write_all(bytes).unwrap();
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "not closed"),
    }
    answer
}

#[test]
fn garbage_on_the_port_is_closed_and_counted() {
    let fixture = Fixture::open(&["--limits-handshake-time-max", "300ms"]);
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"MEMKV\0D2", b"PRI * XXXXXXXX", &[0; 100]] {
        let answer = String::from_utf8(raw(&fixture, garbage)).unwrap();
        assert!(answer.starts_with("HTTP/1.1 400 "), "{} got {answer:?}", garbage.escape_ascii());
        assert!(answer.contains("admin port"), "{answer}");
    }
    // These might still become something; they run into the time limit.
    for prefix in [&b"MEMKV"[..], b"PRI", b"\x16\x03\x01\x02\x00", b""] {
        assert_eq!(raw(&fixture, prefix), b"");
    }
    // The right first eight bytes, and then nonsense or nothing.
    let mut attach = b"MEMKV\0D1".to_vec();
    assert_eq!(raw(&fixture, &attach), b"");
    attach.resize(64, 0xff);
    attach[8..10].copy_from_slice(&1_u16.to_le_bytes());
    assert_eq!(raw(&fixture, &attach), b"");
    assert_eq!(fixture.status().ops.unwrap().protocol_errors, 10);
    fixture.session();
}

#[test]
fn keys_of_0_or_513_bytes_close_the_connection() {
    let fixture = Fixture::open(&[]);
    let space = fixture.open_space("hostile");
    let session = fixture.session();
    for len in [0_u16, 513] {
        let mut key = len.to_le_bytes().to_vec();
        key.resize(2 + usize::from(len), b'x');
        let cases = [
            (Op::Exists, key.clone()),
            (Op::Delete, key.clone()),
            (Op::Get, [&[0; 4][..], &key].concat()),
            (Op::Put, [&[0; 8][..], &key].concat()),
        ];
        for (op, meta) in cases {
            let mut wire = fixture.attach(&session).unwrap();
            wire.send(&Header::request(op, 1, space, 1), &meta, b"");
            let text = wire.expect_refused(Code::Malformed);
            assert!(text.contains("a key has 1 to 512 bytes"), "{op:?}: {text}");
        }
    }
}

#[test]
fn frames_over_a_limit_are_refused_before_they_are_read() {
    let fixture = Fixture::open(&["--limits-batch-keys-max", "10"]);
    let session = fixture.session();
    let mut wire = fixture.attach(&session).unwrap();
    wire.send(&Header::request(Op::Exists, 1, SpaceId::default(), 11), b"", b"");
    assert!(wire.expect_refused(Code::OverLimit).contains("keys in a request"));

    let mut wire = fixture.attach(&session).unwrap();
    let mut header = Header::request(Op::Exists, 1, SpaceId::default(), 1).encode(b"");
    header[36..40].copy_from_slice(&u32::MAX.to_le_bytes());
    wire.stream.write_all(&header).unwrap();
    assert!(wire.expect_refused(Code::OverLimit).contains("bytes of keys"));
}

#[test]
fn frames_that_make_no_sense_close_the_connection() {
    let fixture = Fixture::open(&[]);
    let space = fixture.open_space("hostile");
    let session = fixture.session();
    let ping = Header::request(Op::Ping, 1, space, 0);
    let spoiled = |at: usize, value: u8| {
        let mut bytes = frame(&ping, b"", b"");
        bytes[at] = value;
        bytes
    };
    let reply = Header::reply_to(&ping, Code::Ok, 0);
    let cases = [
        spoiled(0, b'X'),
        spoiled(4, 9),
        spoiled(5, 99),
        spoiled(8, 99),
        spoiled(55, 1),
        frame(&reply, b"", b""),
        frame(&ping, b"", b"a body where there is none"),
        frame(&Header::request(Op::Exists, 1, space, 2), &[1, 0, b'k'], b""),
        frame(&Header::request(Op::PutData, 1, space, 1), b"", &[0; 20]),
        vec![0xab; 300],
    ];
    for bytes in cases {
        let mut wire = fixture.attach(&session).unwrap();
        wire.stream.write_all(&bytes).unwrap();
        wire.expect_refused(Code::Malformed);
    }
}

#[test]
fn pages_that_were_not_offered_like_this_close_the_connection() {
    let fixture = Fixture::open(&[]);
    let space = fixture.open_space("hostile");
    let session = fixture.session();
    let offered: [(&[u8], &[u8]); 2] = [(b"a", &[1; 50]), (b"b", &[2; 60])];
    let spoil: [fn(&mut Header, &mut Vec<u8>); 6] = [
        |header, _| header.request_id += 1,
        |header, _| header.count = 1,
        |_, body| body.truncate(body.len() - 1),
        // A record that says another length, a code that is no page, and one that is unknown.
        |_, body| body[4] = 49,
        |_, body| body[0] = Code::Miss as u8,
        |_, body| body[16 + 50] = 200,
    ];
    for (case, spoil) in spoil.iter().enumerate() {
        let mut wire = fixture.attach(&session).unwrap();
        let (header, meta) = wire.offer(space, &offered);
        assert_eq!(wire.ask(&header, &meta).meta, [Code::Want as u8; 2]);
        let (mut header, mut body) = put_data(space, header.request_id, &offered);
        spoil(&mut header, &mut body);
        wire.send(&header, b"", &body);
        wire.expect_refused(Code::Malformed);
        let mut other = fixture.attach(&session).unwrap();
        // The first page of the last case was whole and right.
        let found = other.presence(Op::Delete, 0, space, &[b"a", b"b"]);
        assert_eq!(found, [case == 5, false], "case {case}");
    }
    let mut wire = fixture.attach(&session).unwrap();
    let (header, meta) = wire.offer(space, &offered);
    wire.send(&header, &meta, b"");
    wire.receive();
    wire.send(&header, &meta, b"");
    wire.expect_refused(Code::Malformed);
    fixture.wait_status("all slots free", |status| status.dram.as_ref().unwrap().used_bytes == 0);
}

#[test]
fn a_put_whose_pages_do_not_fit_its_records_closes_the_connection() {
    let fixture = Fixture::open(&[]);
    let space = fixture.open_space("hostile");
    let session = fixture.session();
    let pages: [(&[u8], &[u8]); 2] = [(b"a", &[1; 50]), (b"b", &[2; 60])];
    let spoil: [fn(&mut Header, &mut Vec<u8>); 4] = [
        |_, body| body.truncate(body.len() - 1),
        |header, _| header.flags = 0,
        |_, body| body[4] = 49,
        |_, body| body[16 + 50] = 200,
    ];
    for (case, spoil) in spoil.iter().enumerate() {
        let mut wire = fixture.attach(&session).unwrap();
        let (mut header, meta, mut body) = direct_put(space, 1, &pages);
        spoil(&mut header, &mut body);
        wire.send(&header, &meta, &body);
        wire.expect_refused(Code::Malformed);
        let mut other = fixture.attach(&session).unwrap();
        // The first page of the last case was whole and right.
        assert_eq!(other.presence(Op::Delete, 0, space, &[b"a", b"b"]), [case == 3, false], "case {case}");
    }
    fixture.wait_status("all slots free", |status| status.dram.as_ref().unwrap().used_bytes == 0);
}

#[test]
fn a_put_that_dies_at_any_byte_is_never_visible() {
    let fixture = Fixture::open(&[]);
    let space = fixture.open_space("hostile");
    let (session, mut watcher) = fixture.wire();
    let bytes = page(9, 40);
    for cut in 0..64 + 16 + 40 {
        let mut wire = fixture.attach(&session).unwrap();
        let (header, meta) = wire.offer(space, &[(b"k", &bytes)]);
        assert_eq!(wire.ask(&header, &meta).meta, [Code::Want as u8]);
        let (header, body) = put_data(space, header.request_id, &[(b"k", &bytes)]);
        wire.stream.write_all(&frame(&header, b"", &body)[..cut]).unwrap();
        assert!(!watcher.exists(space, b"k"), "visible with {cut} bytes sent");
        drop(wire);
        assert!(!watcher.exists(space, b"k"), "visible after a cut at {cut}");
    }
    // The same for a put that brings its page along.
    let (header, meta, body) = direct_put(space, 1, &[(b"k", &bytes)]);
    let whole = frame(&header, &meta, &body);
    for cut in 0..whole.len() {
        let mut wire = fixture.attach(&session).unwrap();
        wire.stream.write_all(&whole[..cut]).unwrap();
        assert!(!watcher.exists(space, b"k"), "visible with {cut} bytes sent");
        drop(wire);
        assert!(!watcher.exists(space, b"k"), "visible after a cut at {cut}");
    }
    // The same for the offer itself.
    let (offer, meta) = watcher.offer(space, &[(b"k", &bytes)]);
    let whole = frame(&offer, &meta, b"");
    for cut in 0..whole.len() {
        let mut wire = fixture.attach(&session).unwrap();
        wire.stream.write_all(&whole[..cut]).unwrap();
    }
    fixture.wait_status("all slots free", |status| status.dram.as_ref().unwrap().used_bytes == 0);
    fixture.wait_status("one connection left", |status| status.sessions[0].connections == 1);
    assert!(!watcher.exists(space, b"k"));
    assert_eq!(watcher.put(space, &[(b"k", &bytes)]), [Code::Ok], "nothing stands in the way of a good one");
}

#[test]
fn a_client_that_stops_reading_is_dropped_and_holds_nothing() {
    let fixture = Fixture::open(&["--limits-stall-time-max", "200ms", "--dram", "1GiB"]);
    let space = fixture.open_space("hostile");
    let (session, mut wire) = fixture.wire();
    let bytes = page(3, 32 << 20);
    assert_eq!(wire.put(space, &[(b"k", &bytes)]), [Code::Ok]);
    let (header, meta) = wire.get_request(space, 0, &[(b"k", 32 << 20)]);
    wire.send(&header, &meta, b"");
    // The reply begins, so the page is pinned; then we read no more.
    let mut first = [0; 64];
    wire.stream.read_exact(&mut first).unwrap();
    fixture.wait_status("the connection gone", |status| status.sessions[0].connections == 0);
    assert_eq!(fixture.inspect(space, b"k", true).status.unwrap().pins, 0);
    assert!(fixture.http("/metrics").contains("memkv_connections_stalled_total 1\n"));
    let mut other = fixture.attach(&session).unwrap();
    assert!(other.get(space, 0, &[(b"k", 32 << 20)])[0].2 == bytes, "the page is still whole");
}

#[test]
fn a_client_that_stops_sending_is_dropped_and_holds_nothing() {
    let fixture = Fixture::open(&["--limits-stall-time-max", "200ms"]);
    let space = fixture.open_space("hostile");
    let (_session, mut wire) = fixture.wire();
    let bytes = page(3, 1 << 20);
    let (header, meta) = wire.offer(space, &[(b"k", &bytes)]);
    wire.ask(&header, &meta);
    let (header, body) = put_data(space, header.request_id, &[(b"k", &bytes)]);
    wire.stream.write_all(&frame(&header, b"", &body)[..500_000]).unwrap();
    wire.wait_closed();
    fixture.wait_status("the slot free", |status| status.dram.as_ref().unwrap().used_bytes == 0);
}

#[test]
fn an_idle_connection_is_not_a_stalled_one() {
    let fixture = Fixture::open(&["--limits-stall-time-max", "50ms", "--limits-request-time-max", "50ms"]);
    let space = fixture.open_space("hostile");
    let (_session, mut wire) = fixture.wire();
    let idle = std::time::Instant::now();
    while idle.elapsed() < Duration::from_millis(200) {
        std::thread::yield_now();
    }
    assert!(!wire.exists(space, b"k"));
}

#[test]
fn offers_give_their_slots_back_when_their_time_is_over() {
    let fixture = Fixture::open(&[]);
    let space = fixture.open_space("hostile");
    let (_session, mut wire) = fixture.wire();
    let pages: [(&[u8], &[u8]); 1] = [(b"k", &[5; 5000])];
    let (mut header, meta) = wire.offer(space, &pages);
    header.deadline_ms = 30;
    assert_eq!(wire.ask(&header, &meta).meta, [Code::Want as u8]);
    fixture.wait_status("the slot free", |status| status.dram.as_ref().unwrap().used_bytes == 0);
    // The pages come too late; the connection goes on.
    let (data, body) = put_data(space, header.request_id, &pages);
    wire.send(&data, b"", &body);
    assert_eq!(wire.receive().header.status, Code::Expired);
    assert!(!wire.exists(space, b"k"));
    assert_eq!(wire.put(space, &pages), [Code::Ok]);
}

#[test]
fn one_connection_cannot_reserve_the_whole_store() {
    let fixture = Fixture::open(&["--page-max", "8MiB"]);
    let space = fixture.open_space("hostile");
    let (session, mut wire) = fixture.wire();
    let keys: Vec<_> = (0..40_u32).map(u32::to_le_bytes).collect();
    let bytes = page(1, 4 << 20);
    let pages: Vec<_> = keys.iter().map(|key| (&key[..], &bytes[..])).collect();
    let (header, meta) = wire.offer(space, &pages);
    let verdicts = wire.ask(&header, &meta).meta;
    // A quarter of 128 MiB.
    assert_eq!(verdicts.iter().filter(|code| **code == Code::Want as u8).count(), 8);
    assert_eq!(verdicts.iter().filter(|code| **code == Code::Busy as u8).count(), 32);
    let mut other = fixture.attach(&session).unwrap();
    assert_eq!(other.put(space, &[(b"other", &bytes)]), [Code::Ok]);
}

#[test]
fn connections_have_a_bound() {
    let fixture = Fixture::open(&["--limits-connections-max", "3"]);
    let session = fixture.session();
    let _one: Wire = fixture.attach(&session).unwrap();
    let _two = fixture.attach(&session).unwrap();
    assert_eq!(raw(&fixture, b""), b"", "closed at once");
    assert!(fixture.http("/metrics").contains("memkv_connections_refused_total 1\n"));
}
