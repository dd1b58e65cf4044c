//! Input that makes no sense: each gets a clear answer that says what to do, and costs nobody else anything.

use crate::common::wait_until_empty;
use memkv_core::SpaceId;
use memkv_proto::v1;
use memkv_tests::control::{Control, Session};
use memkv_tests::daemon::{Daemon, Setup};
use memkv_tests::pages::page;
use memkv_tests::wire::{DataConn, data_frame, dial, exists_frame, frame, get_frame, key_list, offer_frame};
use memkv_tests::{random, wait_for};
use memkv_transport::auth::AuthKey;
use memkv_transport::frame::{Code, Header, Op};
use memkv_transport::handshake::{ATTACH_BYTES, Attach, CHALLENGE_BYTES, PREFACE};
use std::io::{Read as _, Write as _};

const OTHER_KEY: &str = "ffeeddccbbaa99887766554433221100ffeeddccbbaa99887766554433221100";

/// A daemon, its control plane, a session and a space with one page under `here`.
fn with_a_page() -> (Daemon, Control, Session, SpaceId) {
    let daemon = Daemon::start().unwrap();
    let control = daemon.control().unwrap();
    let space = control.open_space("bad").unwrap();
    let session = control.session().unwrap();
    assert_eq!(session.attach().unwrap().put(space, b"here", &page(b"here", 5000)).unwrap(), Code::Ok);
    (daemon, control, session, space)
}

/// The page of [`with_a_page`] is still there and right.
#[track_caller]
fn nothing_is_lost(session: &Session, space: SpaceId) {
    let mut conn = session.attach().unwrap();
    assert_eq!(conn.get(space, b"here", 5000).unwrap(), (Code::Ok, page(b"here", 5000)));
}

#[test]
fn a_wrong_key_is_refused_by_both_sides() {
    let daemon = Daemon::start().unwrap();
    daemon.allow("auth");
    let wrong = Control::connect(daemon.addr(), Some(AuthKey::from_hex(OTHER_KEY).unwrap())).unwrap();
    let error = format!("{:#}", wrong.session().unwrap_err());
    assert!(error.contains("MEMKV_AUTH_KEY"), "{error}");
    let status = wrong.status().unwrap_err();
    assert_eq!(status.code(), tonic::Code::Unauthenticated);
    assert!(status.message().contains("MEMKV_AUTH_KEY"), "{status}");
    let failures = daemon.metrics().unwrap().sum("memkv_auth_failures_total", &[]);
    assert!(failures >= 2.0, "{failures} failures counted");
    assert_eq!(daemon.control().unwrap().status().unwrap().session_count, 0);
}

#[test]
fn no_key_is_refused() {
    let daemon = Daemon::start().unwrap();
    daemon.allow("auth");
    let without = Control::connect(daemon.addr(), None).unwrap();
    let status = without.status().unwrap_err();
    assert_eq!(status.code(), tonic::Code::Unauthenticated);
    assert!(status.message().contains("MEMKV_AUTH_KEY"), "{status}");
    assert!(without.session().is_err());
    assert_eq!(without.open_space("x").unwrap_err().code(), tonic::Code::Unauthenticated);
}

#[test]
fn a_credential_is_good_for_one_call() {
    let daemon = Daemon::start().unwrap();
    daemon.allow("auth");
    let control = daemon.control().unwrap();
    let request = control.request("/memkv.v1.Admin/GetStatus", v1::GetStatusRequest {});
    let credential = request.metadata().get(memkv_proto::AUTH_METADATA).unwrap().clone();
    let call = |method_of: &str| {
        let mut request = control.request(method_of, v1::GetStatusRequest {});
        request.metadata_mut().insert(memkv_proto::AUTH_METADATA, credential.clone());
        control.block_on(control.admin().get_status(request))
    };
    call("/memkv.v1.Admin/GetStatus").unwrap();
    let replayed = call("/memkv.v1.Admin/GetStatus").unwrap_err();
    assert_eq!(replayed.code(), tonic::Code::Unauthenticated);
    // A credential of another method does not fit either.
    let other = control.request("/memkv.v1.Admin/ListSpaces", v1::GetStatusRequest {});
    let refused = control.block_on(control.admin().get_status(other)).unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unauthenticated);
}

#[test]
fn a_version_that_the_server_does_not_speak_is_named() {
    let daemon = Daemon::start().unwrap();
    let control = daemon.control().unwrap();
    let hello = |min, max| v1::Hello {
        protocol_min: min,
        protocol_max: max,
        client_nonce: random::<32>().to_vec(),
        ..v1::Hello::default()
    };
    for (min, max) in [(2, 3), (0, 0), (3, 2)] {
        let error = format!("{:#}", control.session_with(hello(min, max)).unwrap_err());
        assert!(error.contains("version"), "{min}..{max}: {error}");
    }
    let session = control.session_with(hello(1, 9)).unwrap();
    let mut stream = dial(daemon.addr()).unwrap();
    let mut attach = Attach { session_id: session.id, client_nonce: random() }.encode();
    attach[8] = 2;
    stream.write_all(&attach).unwrap();
    let mut challenge = [0; CHALLENGE_BYTES];
    stream.read_exact(&mut challenge).unwrap();
    // The answer carries the server's version and the status "version".
    assert_eq!((&challenge[..8], challenge[8], challenge[10]), (&PREFACE[..], 1, 4));
}

#[test]
fn a_nonce_of_another_length_is_refused() {
    let daemon = Daemon::start().unwrap();
    let control = daemon.control().unwrap();
    let hello =
        v1::Hello { protocol_min: 1, protocol_max: 1, client_nonce: vec![1; 5], ..v1::Hello::default() };
    let error = format!("{:#}", control.session_with(hello).unwrap_err());
    assert!(error.contains("client_nonce"), "{error}");
}

#[test]
fn an_unknown_session_is_refused() {
    let (daemon, _control, session, space) = with_a_page();
    daemon.allow("auth");
    let error = DataConn::attach(daemon.addr(), random(), &session.key).unwrap_err().to_string();
    assert!(error.contains("UnknownSession"), "{error}");
    // Another session's key does not open this one.
    let other = daemon.control().unwrap().session().unwrap();
    let error = DataConn::attach(daemon.addr(), session.id, &other.key).unwrap_err().to_string();
    assert!(error.contains("does not know the session's key"), "{error}");
    nothing_is_lost(&session, space);
}

#[test]
fn an_unknown_space_has_no_pages_and_takes_none() {
    let (_daemon, control, session, space) = with_a_page();
    let unknown = SpaceId([9; 16]);
    let mut conn = session.attach().unwrap();
    assert_eq!(conn.exists(unknown, &[b"here"]).unwrap(), [false]);
    assert_eq!(conn.get(unknown, b"here", 5000).unwrap().0, Code::Miss);
    let id = conn.id();
    let refusal = conn.call(&offer_frame(id, unknown, &[(b"new", 100)])).unwrap();
    assert_eq!(refusal.header.status, Code::UnknownSpace);
    assert!(refusal.text().contains("OpenSpace"), "{}", refusal.text());
    assert_eq!(conn.exists(space, &[b"here"]).unwrap(), [true], "the connection goes on");
    let status = control.put(unknown, &[(b"new", b"page")], 100).unwrap_err();
    assert_eq!(status.code(), tonic::Code::FailedPrecondition, "{status}");
    assert!(status.message().contains("OpenSpace"), "{status}");
    nothing_is_lost(&session, space);
}

#[test]
fn the_server_refuses_keys_of_0_and_513_bytes() {
    let (_daemon, control, session, space) = with_a_page();
    for bad in [vec![], vec![b'x'; 513]] {
        let key: &[u8] = &bad;
        for bytes in [
            exists_frame(5, space, &[b"here", key]),
            get_frame(5, space, &[(key, 100)], true),
            offer_frame(5, space, &[(b"new", 100), (key, 100)]),
            frame(Header::request(Op::Delete, 5, space, 2), &key_list(&[b"here", key]), &[]),
        ] {
            let mut conn = session.attach().unwrap();
            let reply = conn.call(&bytes).unwrap();
            assert_eq!((reply.header.status, reply.header.request_id), (Code::Malformed, 5));
            assert!(reply.text().contains("1 to 512 bytes"), "{}", reply.text());
            assert!(conn.read_to_close().unwrap().is_empty());
        }
        let status = control.get(space, &[key], &[]).unwrap_err();
        assert_eq!(status.code(), tonic::Code::InvalidArgument);
        assert!(status.message().contains("1 to 512 bytes"), "{status}");
        let status = control.put(space, &[(key, b"page")], 100).unwrap_err();
        assert_eq!(status.code(), tonic::Code::InvalidArgument, "{status}");
    }
    nothing_is_lost(&session, space);
}

#[test]
fn a_page_larger_than_the_limit_is_too_large() {
    let setup = Setup { args: vec!["--page-max".into(), "1MiB".into()], ..Setup::default() };
    let daemon = Daemon::start_with(setup).unwrap();
    let control = daemon.control().unwrap();
    let space = control.open_space("large").unwrap();
    let session = control.session().unwrap();
    let mut conn = session.attach().unwrap();
    for len in [(1 << 20) + 1, u32::MAX, 0] {
        let id = conn.id();
        let reply = conn.call(&offer_frame(id, space, &[(b"x", len)])).unwrap();
        assert_eq!(reply.single_verdict().unwrap(), Code::TooLarge, "{len} bytes");
    }
}

#[test]
fn a_page_larger_than_its_destination_is_not_sent() {
    let (_daemon, _control, session, space) = with_a_page();
    let mut conn = session.attach().unwrap();
    for exact in [true, false] {
        let id = conn.id();
        let reply = conn.call(&get_frame(id, space, &[(b"here", 4999), (b"here", 5000)], exact)).unwrap();
        let pages = reply.pages().unwrap();
        assert_eq!((pages[0].0, pages[0].1.len, pages[0].2.len()), (Code::SizeMismatch, 5000, 0));
        assert_eq!((pages[1].0, &pages[1].2), (Code::Ok, &page(b"here", 5000)));
    }
    // More room than needed: a mismatch only if the length must be exact.
    let id = conn.id();
    let reply = conn.call(&get_frame(id, space, &[(b"here", 5001)], true)).unwrap();
    assert_eq!(reply.pages().unwrap()[0].0, Code::SizeMismatch);
    let id = conn.id();
    let reply = conn.call(&get_frame(id, space, &[(b"here", u32::MAX)], false)).unwrap();
    assert_eq!(reply.pages().unwrap()[0].0, Code::Ok);
}

#[test]
fn frames_that_make_no_sense_end_their_connection_only() {
    let (daemon, _control, session, space) = with_a_page();
    let good = exists_frame(3, space, &[b"here"]);
    let change = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] = value;
        bytes
    };
    let promised =
        |count, meta: &[u8], body: &[u8]| frame(Header::request(Op::Exists, 3, space, count), meta, body);
    let cases = [
        ("another magic", change(0, b'X'), Code::Malformed),
        ("another layout", change(4, 9), Code::Malformed),
        ("an unknown op", change(5, 99), Code::Malformed),
        (
            "a reply as request",
            frame(Header::reply_to(&Header::request(Op::Exists, 3, space, 0), Code::Ok, 0), &[], &[]),
            Code::Malformed,
        ),
        ("an unknown flag", change(7, 0x80), Code::Malformed),
        ("a reserved byte", change(55, 1), Code::Malformed),
        ("a wrong check", change(60, good[60] ^ 1), Code::Malformed),
        ("an altered key", change(good.len() - 1, b'x'), Code::Malformed),
        ("fewer keys than promised", promised(2, &key_list(&[b"here"]), &[]), Code::Malformed),
        ("more keys than promised", promised(1, &key_list(&[b"here", b"more"]), &[]), Code::Malformed),
        ("half a key", promised(1, &key_list(&[b"here"])[..4], &[]), Code::Malformed),
        ("a body that does not belong", promised(1, &key_list(&[b"here"]), b"body"), Code::Malformed),
        ("data without an offer", data_frame(77, space, &[(b"x", b"page")]), Code::Malformed),
        ("too many keys", promised(u32::MAX, &[], &[]), Code::OverLimit),
    ];
    for (what, bytes, code) in cases {
        let mut conn = session.attach().unwrap();
        conn.send(&bytes).unwrap();
        let reply = conn.reply().unwrap_or_else(|error| panic!("{what}: no answer: {error:#}"));
        assert_eq!(reply.header.status, code, "{what}: {}", reply.text());
        assert!(!reply.text().is_empty(), "{what}: no text");
        assert!(conn.read_to_close().unwrap().is_empty(), "{what}");
    }
    nothing_is_lost(&session, space);
    assert!(daemon.metrics().unwrap().sum("memkv_protocol_errors_total", &[]) >= 14.0);
}

#[test]
fn a_meta_section_over_the_limit_is_refused_before_it_is_read() {
    let (daemon, _control, session, space) = with_a_page();
    let before = daemon.resident_bytes().unwrap();
    let mut header = exists_frame(3, space, &[b"here"]);
    header.truncate(64);
    header[36..40].copy_from_slice(&u32::MAX.to_le_bytes());
    let mut conns: Vec<_> = (0..16).map(|_| session.attach().unwrap()).collect();
    for conn in &mut conns {
        let reply = conn.call(&header).unwrap();
        assert_eq!(reply.header.status, Code::OverLimit, "{}", reply.text());
        assert!(conn.read_to_close().unwrap().is_empty());
    }
    let grown = daemon.resident_bytes().unwrap().saturating_sub(before);
    assert!(grown < 32 << 20, "sixteen headers made the server grow by {grown} bytes");
    nothing_is_lost(&session, space);
}

#[test]
fn pages_that_do_not_match_their_offer_store_nothing() {
    let (daemon, _control, session, space) = with_a_page();
    let bytes = page(b"new", 100);
    let whole = data_frame(8, space, &[(b"new", &bytes)]);
    let longer = data_frame(8, space, &[(b"new", &page(b"new", 101))]);
    let twice = data_frame(8, space, &[(b"new", &bytes), (b"new", &bytes)]);
    let none = data_frame(8, space, &[]);
    for data in [longer, twice, none] {
        let mut conn = session.attach().unwrap();
        assert_eq!(
            conn.call(&offer_frame(8, space, &[(b"new", 100)])).unwrap().verdicts(),
            [Some(Code::Want)]
        );
        assert_eq!(conn.call(&data).unwrap().header.status, Code::Malformed);
        assert!(conn.read_to_close().unwrap().is_empty());
    }
    let mut conn = session.attach().unwrap();
    assert_eq!(conn.exists(space, &[b"new"]).unwrap(), [false]);
    // Bytes that do not match their checksum: this page only, and the connection goes on.
    let mut altered = whole.clone();
    *altered.last_mut().unwrap() ^= 1;
    assert_eq!(conn.call(&offer_frame(8, space, &[(b"new", 100)])).unwrap().verdicts(), [Some(Code::Want)]);
    assert_eq!(conn.call(&altered).unwrap().verdicts(), [Some(Code::Corrupt)]);
    assert_eq!(conn.exists(space, &[b"new"]).unwrap(), [false]);
    assert_eq!(conn.put(space, b"new", &bytes).unwrap(), Code::Ok);
    daemon.allow("corrupt");
    nothing_is_lost(&session, space);
}

#[test]
fn a_request_id_may_not_carry_two_offers() {
    let (daemon, _control, session, space) = with_a_page();
    let mut conn = session.attach().unwrap();
    assert_eq!(conn.call(&offer_frame(8, space, &[(b"a", 100)])).unwrap().verdicts(), [Some(Code::Want)]);
    let reply = conn.call(&offer_frame(8, space, &[(b"b", 100)])).unwrap();
    assert_ne!(reply.header.status, Code::Ok, "{:?}", reply.verdicts());
    drop(conn);
    let mut conn = session.attach().unwrap();
    conn.stream.set_nodelay(true).unwrap();
    let id = conn.id();
    conn.call(&frame(Header::request(Op::Delete, id, space, 1), &key_list(&[b"here"]), &[])).unwrap();
    wait_until_empty(&daemon);
}

#[test]
fn garbage_on_the_main_port_is_closed() {
    let (daemon, _control, session, space) = with_a_page();
    let mut bad_attach = Attach { session_id: session.id, client_nonce: random() }.encode().to_vec();
    bad_attach[12] = 1;
    let cases: [&[u8]; 5] = [
        b"GET / HTTP/1.1\r\nHost: memkv\r\n\r\n",
        &[0; 200],
        b"SSH-2.0-OpenSSH_9.0\r\n",
        &bad_attach,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nthis is no HTTP/2 at all, only long enough to look at",
    ];
    for garbage in cases {
        let mut conn = dial(daemon.addr()).unwrap();
        conn.write_all(garbage).unwrap();
        let mut answer = Vec::new();
        // A reset is as good as an end.
        let closed = match conn.read_to_end(&mut answer) {
            Ok(_) => true,
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        };
        assert!(closed, "{} stays open", garbage.escape_ascii());
        if garbage.starts_with(b"GET") {
            let answer = String::from_utf8_lossy(&answer);
            assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("admin port"), "{answer:?}");
        }
    }
    assert!(daemon.metrics().unwrap().sum("memkv_protocol_errors_total", &[]) >= 4.0);
    nothing_is_lost(&session, space);
}

#[test]
fn a_connection_that_never_says_what_it_is_is_closed() {
    let args = vec!["--limits-handshake-time-max".into(), "1s".into()];
    let daemon = Daemon::start_with(Setup { args, ..Setup::default() }).unwrap();
    let session = daemon.control().unwrap().session().unwrap();
    let attach = Attach { session_id: session.id, client_nonce: random() }.encode();
    for sent in [0, 1, 7, 8, 30, ATTACH_BYTES] {
        let mut conn = dial(daemon.addr()).unwrap();
        conn.write_all(&attach[..sent]).unwrap();
        let mut answer = Vec::new();
        let read = conn.read_to_end(&mut answer);
        assert!(read.is_ok(), "still open after {sent} bytes: {read:?}");
        // Whoever stops before its proof got the challenge, and no welcome.
        assert!(answer.len() <= CHALLENGE_BYTES);
    }
}

#[test]
fn a_frame_that_never_ends_is_given_up() {
    let args = vec!["--limits-stall-time-max".into(), "1s".into()];
    let daemon = Daemon::start_with(Setup { args, ..Setup::default() }).unwrap();
    let control = daemon.control().unwrap();
    let space = control.open_space("bad").unwrap();
    let session = control.session().unwrap();
    let offer = offer_frame(1, space, &[(b"x", 100)]);
    let data = data_frame(1, space, &[(b"x", &[7; 100])]);
    for (what, bytes) in [
        ("half a header", offer[..40].to_vec()),
        ("half a meta section", offer[..70].to_vec()),
        ("half a page", [&offer[..], &data[..120]].concat()),
    ] {
        let mut conn = session.attach().unwrap();
        conn.send(&bytes).unwrap();
        let closed = wait_for("the connection closes", crate::common::PATIENCE, || conn.read_to_close().ok());
        assert!(closed.is_ok(), "{what}: still open");
    }
    wait_until_empty(&daemon);
}
