//! What one client may make a server hold: bytes of messages and requests, slots, connections. Beyond it that client is refused,
//! and others are not.

use crate::estate::{Estate, Guest, of, tenant};
use crate::http2::{Raw, credential};
use memkv_credentials::{Quotas, Tenant};
use memkv_proto::v1;
use memkv_tests::control::{Control, put_messages};
use memkv_tests::daemon::{Daemon, Setup};
use memkv_tests::pages::page;
use memkv_tests::wait_for;
use memkv_tests::wire::{self, DataConn};
use memkv_transport::frame::{Code, Header, Op};
use std::time::Duration;
use tokio_stream::StreamExt as _;
use tonic::Code as Status;

const PATIENCE: Duration = Duration::from_secs(60);
const MIB: usize = 1 << 20;
const PUT: &str = "/memkv.v1.Kv/Put";
const REFLECT: &str = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";

/// What is begun stays for as long as the test takes.
fn patient(bounds: &[&str]) -> Setup {
    let times = ["--limits-stall-time-max=10m", "--limits-request-time-max=10m"];
    let args = times.iter().chain(bounds).map(|arg| (*arg).to_owned()).collect();
    Setup { args, ..Setup::default() }
}

/// Bounds that a test reaches: a session's, a tenant's, the server's.
fn tight() -> Setup {
    patient(&[
        "--limits-session-request-bytes-max=32MiB",
        "--limits-tenant-request-bytes-max=48MiB",
        "--limits-request-bytes-max=64MiB",
    ])
}

/// Begins so many calls with so many bytes of a message that does not come to its end, and waits until the server has refused all but
/// `most` of them; how many it holds.
fn begun_puts(raw: &mut Raw, control: &Control, (begun, bytes): (usize, usize), most: usize) -> usize {
    for _ in 0..begun {
        let stream = raw.begin(PUT, Some(&credential(control, PUT)), 15 << 20);
        let _taken = raw.fill(stream, bytes, PATIENCE);
    }
    begun - raw.ended_of(begun - most, PATIENCE)
}

#[test]
fn what_comes_of_a_guest_is_not_kept_beyond_a_little() {
    let daemon = Daemon::start_with(Setup::default()).unwrap();
    let warm = Raw::connect(daemon.addr());
    let before = daemon.resident_bytes().unwrap();
    let guests: Vec<Raw> = (0..48)
        .map(|_| {
            let mut raw = Raw::connect(daemon.addr());
            for _ in 0..24 {
                let stream = raw.begin(REFLECT, None, 250 << 10);
                if raw.fill(stream, 240 << 10, Duration::from_millis(20)) < 240 << 10 {
                    break;
                }
            }
            raw
        })
        .collect();
    let grown = daemon.resident_bytes().unwrap().saturating_sub(before);
    assert!(grown < 64 << 20, "{} MiB for 48 guests that sent 6 MiB each", grown >> 20);
    // Whoever asks for as much as anybody does is answered.
    let control = daemon.control().unwrap();
    let space = control.open_space("bounds").unwrap();
    let large = page(b"large", 4 * MIB);
    assert_eq!(control.put(space, &[(b"large", &large)], 4 * MIB).unwrap(), [v1::Status::Ok]);
    drop((warm, guests));
}

#[test]
fn messages_of_a_connection_and_of_a_tenant_are_bounded_and_others_are_served() {
    let estate = Estate::with_setup(&of([tenant("a", 1), tenant("b", 2)]), tight());
    let (a, b) = (estate.control("a", 1), estate.control("b", 2));
    let mut first = Raw::connect(estate.daemon.addr());
    let held = begun_puts(&mut first, &a, (20, 3 * MIB), 10);
    assert!((8..=10).contains(&held), "{held} times 3 MiB of 32 on one connection");
    let mut second = Raw::connect(estate.daemon.addr());
    let left = 48 - 3 * held;
    let more = begun_puts(&mut second, &a, (40, MIB), left);
    assert!((left - 4..=left).contains(&more), "{more} times 1 MiB, and {held} times 3, of the tenant's 48");
    // The other tenant has a share of its own.
    let space = b.open_space("bounds").unwrap();
    let bytes = page(b"k", 4 * MIB);
    assert_eq!(b.put(space, &[(b"k", &bytes)], 3 * MIB).unwrap(), [v1::Status::Ok]);
    let refused = a.put(a.open_space("bounds").unwrap(), &[(b"k", &bytes)], 4 * MIB).unwrap_err();
    assert_eq!(refused.code(), Status::ResourceExhausted, "{refused:?}");
    // What goes away makes room.
    drop((first, second));
    let space = a.open_space("bounds").unwrap();
    wait_for("there is room again", PATIENCE, || a.put(space, &[(b"k", &bytes)], 4 * MIB).ok()).unwrap();
}

#[test]
fn a_message_with_too_many_keys_or_bytes_is_refused_before_it_is_read() {
    let daemon = Daemon::start_with(Setup::default()).unwrap();
    let control = daemon.control().unwrap();
    let space = control.open_space("bounds").unwrap();
    let exists = |count: usize| {
        let message = v1::ExistsRequest { space_id: space.0.to_vec(), keys: vec![b"k".to_vec(); count] };
        let request = control.request("/memkv.v1.Kv/Exists", message);
        control.block_on(control.kv().exists(request)).map(|reply| reply.into_inner().present.len())
    };
    assert_eq!(exists(16_384).unwrap(), 16_384);
    let slightly = exists(16_385).unwrap_err();
    assert!(
        slightly.code() == Status::InvalidArgument && slightly.message().contains("16385 keys"),
        "{slightly:?}"
    );
    let far = exists(1 << 20).unwrap_err();
    assert!(far.code() == Status::InvalidArgument && far.message().contains("fields"), "{far:?}");
    let mut space = v1::Space::default();
    space.fields.insert("x".to_owned(), "y".repeat(300 << 10));
    let request = control.request("/memkv.v1.Kv/OpenSpace", v1::OpenSpaceRequest { space: Some(space) });
    let long = control.block_on(control.kv().open_space(request)).unwrap_err();
    assert!(
        long.code() == Status::InvalidArgument && long.message().contains("this method takes"),
        "{long:?}"
    );
}

#[test]
fn slots_of_puts_through_grpc_are_bounded_for_a_connection_and_a_tenant() {
    // A store of 64 MiB: 16 for one connection, 24 for one tenant.
    let estate = Estate::with_setup(&of([tenant("a", 1), tenant("b", 2)]), patient(&[]));
    let shed = || estate.daemon.metrics().unwrap().sum("memkv_put_shed_offers_total", &[]);
    let seen = || shed() + estate.daemon.metrics().unwrap().sum("memkv_dram_used_bytes", &[]) / MIB as f64;
    let begin = |control: &Control, count: u32| {
        let space = control.open_space("slots").unwrap();
        let page = vec![1; MIB];
        let begin = |number: u32| {
            let first = put_messages(space, &number.to_le_bytes(), &page, 4096).remove(0);
            let messages = tokio_stream::iter([first]).chain(tokio_stream::pending());
            let request = control.request(PUT, messages);
            let (mut kv, before) = (control.kv(), seen());
            let put = control.spawn(async move { drop(kv.put(request).await) });
            wait_for("a slot is taken or refused", PATIENCE, || (seen() > before + 0.9).then_some(()))
                .unwrap();
            put
        };
        (0..count).map(begin).collect::<Vec<_>>()
    };
    let one = estate.control("a", 1);
    let held = begin(&one, 20);
    assert_eq!(shed(), 4.0, "of 20 pages on one connection");
    let other = estate.control("a", 1);
    let more = begin(&other, 20);
    assert_eq!(shed(), 16.0, "of 40 pages of one tenant");
    // Somebody else stores as before.
    let mut b = Guest::of(&estate, "b", 2);
    let space = b.control.open_space("slots").unwrap();
    assert_eq!(b.data.put(space, b"k", &page(b"k", MIB)).unwrap(), Code::Ok);
    held.iter().chain(&more).for_each(tokio::task::JoinHandle::abort);
    let space = one.open_space("slots").unwrap();
    wait_for("the slots come back", PATIENCE, || {
        let put = one.put(space, &[(b"new", &page(b"new", MIB))], MIB).ok()?;
        (put == [v1::Status::Ok]).then_some(())
    })
    .unwrap();
}

/// The beginning of a request with 8 MiB of keys.
fn long_request(conn: &mut DataConn) {
    let meta = vec![7; 8 * MIB];
    let header = Header::request(Op::Exists, 1, memkv_core::SpaceId::default(), 100);
    conn.send(&wire::frame(header, &meta, &[])[..8 * MIB]).unwrap();
}

#[test]
fn long_requests_of_a_session_are_bounded_and_those_of_others_are_not() {
    let estate = Estate::with_setup(&of([tenant("a", 1), tenant("b", 2)]), tight());
    let (a, mut b) = (Guest::of(&estate, "a", 1), Guest::of(&estate, "b", 2));
    let mut held: Vec<DataConn> = (0..4).map(|_| a.session.attach().unwrap()).collect();
    held.iter_mut().for_each(long_request);
    let over = || estate.daemon.metrics().unwrap().sum("memkv_requests_over_total", &[]);
    let ask = |conn: &mut DataConn| {
        let keys: Vec<Vec<u8>> = (0..4000_u32).map(|n| n.to_le_bytes().to_vec()).collect();
        let keys: Vec<&[u8]> = keys.iter().map(Vec::as_slice).collect();
        conn.call(&wire::exists_frame(9, memkv_core::SpaceId::default(), &keys)).unwrap()
    };
    let mut fifth = a.session.attach().unwrap();
    let refused = wait_for("it is too much", PATIENCE, || {
        let reply = ask(&mut fifth);
        (reply.header.status == Code::Busy).then_some(reply)
    })
    .unwrap();
    assert!(refused.text().contains("at work") && over() >= 1.0, "{}", refused.text());
    // What is short is not counted, and the connection goes on.
    assert_eq!(fifth.exists(memkv_core::SpaceId::default(), &[b"k"]).unwrap(), [false]);
    // The tenant has 16 MiB left for its other sessions, and others have their own.
    let again = a.control.session().unwrap();
    let mut others: Vec<DataConn> = (0..3).map(|_| again.attach().unwrap()).collect();
    others.iter_mut().take(2).for_each(long_request);
    wait_for("the tenant's share is used up", PATIENCE, || {
        (ask(&mut others[2]).header.status == Code::Busy).then_some(())
    })
    .unwrap();
    assert_eq!(ask(&mut b.data).header.status, Code::Ok);
    drop((held, others));
    wait_for("it comes back", PATIENCE, || (ask(&mut fifth).header.status == Code::Ok).then_some(()))
        .unwrap();
}

#[test]
fn a_tenant_has_so_many_connections_and_others_have_theirs() {
    let quotas = Quotas { connections: Some(4), ..Quotas::default() };
    let estate = Estate::with(&of([Tenant { quotas, ..tenant("a", 1) }, tenant("b", 2)]));
    // Its gRPC connection is the first.
    let control = estate.control("a", 1);
    let session = control.session().unwrap();
    let mut held: Vec<DataConn> = (0..3).map(|_| session.attach().unwrap()).collect();
    let refused = session.attach().expect_err("the fifth of four");
    assert!(format!("{refused:?}").contains("TooMany"), "{refused:?}");
    let grpc = estate.control("a", 1);
    let status = grpc.open_space("s").unwrap_err();
    assert!(
        status.code() == Status::ResourceExhausted && status.message().contains("quotas.connections"),
        "{status:?}"
    );
    assert!(grpc.session().is_err(), "nor does it open a session");
    let other = Guest::of(&estate, "b", 2);
    drop((held.pop(), other));
    wait_for("a place is free again", PATIENCE, || session.attach().ok()).unwrap();
}

#[test]
fn one_tenant_leaves_places_for_others() {
    let args = ["--limits-connections-max=32", "--limits-sessions-max=4"].map(str::to_owned).to_vec();
    let estate =
        Estate::with_setup(&of([tenant("a", 1), tenant("b", 2)]), Setup { args, ..Setup::default() });
    let control = estate.control("a", 1);
    let sessions: Vec<_> = (0..4).map_while(|_| control.session().ok()).collect();
    assert_eq!(sessions.len(), 2, "half of the sessions");
    let held: Vec<_> = (0..32).map_while(|_| sessions[0].attach().ok()).collect();
    assert_eq!(held.len(), 15, "half of the places, one of which its gRPC connection has");
    let mut b = Guest::of(&estate, "b", 2);
    let space = b.control.open_space("s").unwrap();
    assert_eq!(b.data.put(space, b"k", b"page").unwrap(), Code::Ok);
}
