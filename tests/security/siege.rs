//! Peers that want to use the server up: floods, silence, slowness. Others are served meanwhile, and memory stays where it is.
//!
//! Figures of time are the bench's (`memkv-bench siege`); here it is shown that each way ends.

use memkv_proto::v1;
use memkv_proto::v1::client_message::Message as FromClient;
use memkv_tests::control::Control;
use memkv_tests::daemon::{Daemon, PATIENCE, Setup};
use memkv_tests::wire::{self, DataConn};
use memkv_tests::{StopAtEnd, random, wait_for};
use memkv_transport::frame::Code;
use memkv_transport::handshake::{Attach, PREFACE};
use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio_stream::StreamExt as _;

/// The whole beginning of an HTTP/2 connection: preface and empty settings.
const HTTP2: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// A daemon with few places and little patience.
fn daemon(args: &[&str]) -> Daemon {
    let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
    Daemon::start_with(Setup { args, ..Setup::default() }).unwrap()
}

/// A connection from another address of this host.
fn dial_from(source: [u8; 4], to: SocketAddr) -> Option<TcpStream> {
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None).ok()?;
    bind(&socket, &SocketAddr::from((source, 0))).ok()?;
    connect(&socket, &to).ok()?;
    Some(TcpStream::from(socket))
}

fn ends(mut stream: &TcpStream) {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut said = Vec::new();
    match stream.read_to_end(&mut said) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "it stays open: {error}"),
    }
}

/// A new client opens a session, puts a page and reads it back.
fn is_served(daemon: &Daemon, key: &[u8]) {
    let control = daemon.control().unwrap();
    let space = control.open_space("siege").unwrap();
    let session = control.session().unwrap();
    let mut data = session.attach().unwrap();
    assert_eq!(data.put(space, key, b"a page").unwrap(), Code::Ok);
    assert_eq!(data.get(space, key, 6).unwrap(), (Code::Ok, b"a page".to_vec()));
}

#[test]
fn silence_ends_wherever_it_begins() {
    let daemon = daemon(&["--limits-handshake-time-max", "2s"]);
    let hello = Attach { session_id: [1; 16], client_nonce: [2; 32] }.encode();
    let beginnings: [&[u8]; 7] =
        [b"", &PREFACE[..3], &PREFACE, &hello[..40], &HTTP2[..8], &HTTP2[..20], HTTP2];
    let silent: Vec<TcpStream> = beginnings
        .iter()
        .map(|beginning| {
            let mut stream = wire::dial(daemon.addr()).unwrap();
            stream.write_all(beginning).unwrap();
            stream
        })
        .collect();
    is_served(&daemon, b"meanwhile");
    silent.iter().for_each(ends);
    wait_for("no guest is left", PATIENCE, || {
        (daemon.metrics().unwrap().sum("memkv_guests", &[]) == 0.0).then_some(())
    })
    .unwrap();
}

#[test]
fn a_writer_of_single_bytes_is_dropped_in_a_handshake_and_in_a_frame() {
    let daemon = daemon(&[
        "--limits-handshake-time-max",
        "1s",
        "--limits-stall-time-max",
        "5s",
        "--limits-request-time-max",
        "1500ms",
    ]);
    // Each byte comes well within the stall time; what ends it is the time for the whole.
    let trickle = |stream: &TcpStream, bytes: &[u8]| {
        bytes.iter().any(|byte| {
            std::thread::sleep(Duration::from_millis(50));
            (&mut &*stream).write_all(&[*byte]).is_err()
        })
    };
    let stream = wire::dial(daemon.addr()).unwrap();
    trickle(&stream, &Attach { session_id: [1; 16], client_nonce: [2; 32] }.encode()[..60]);
    ends(&stream);
    let control = daemon.control().unwrap();
    let space = control.open_space("siege").unwrap();
    let session = control.session().unwrap();
    let data = session.attach().unwrap();
    trickle(&data.stream, &wire::exists_frame(1, space, &[b"key"])[..60]);
    ends(&data.stream);
    assert!(daemon.metrics().unwrap().sum("memkv_connections_stalled_total", &[]) >= 1.0);
    let mut other = session.attach().unwrap();
    assert_eq!(other.exists(space, &[b"key"]).unwrap(), [false]);
}

#[test]
fn a_flood_of_silent_connections_takes_neither_places_nor_memory() {
    let daemon = daemon(&["--limits-connections-max", "64"]);
    is_served(&daemon, b"before");
    let before = daemon.resident_bytes().unwrap();
    let flood: Vec<TcpStream> = (0..600).map(|_| TcpStream::connect(daemon.addr()).unwrap()).collect();
    is_served(&daemon, b"during");
    let metrics = daemon.metrics().unwrap();
    assert!(metrics.sum("memkv_guests", &[]) <= 16.0, "a quarter of the places");
    assert!(metrics.sum("memkv_connections_put_out_total", &[]) >= 580.0);
    assert_eq!(metrics.sum("memkv_connections_refused_total", &[]), 0.0, "nobody was refused");
    let grown = daemon.resident_bytes().unwrap().saturating_sub(before);
    assert!(grown < 16 << 20, "{grown} bytes more for 600 connections that were put out");
    drop(flood);
    is_served(&daemon, b"after");
}

#[test]
fn who_floods_without_end_from_one_host_does_not_keep_others_out() {
    let daemon = daemon(&["--limits-connections-max", "64"]);
    let (over, floods) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let stop = StopAtEnd(&over);
        scope.spawn(|| {
            let mut held = Vec::new();
            while !over.load(Ordering::Relaxed) {
                held.extend(dial_from([127, 0, 0, 2], daemon.addr()));
                floods.fetch_add(1, Ordering::Relaxed);
                if held.len() > 200 {
                    held.clear();
                }
            }
        });
        let begun =
            wait_for("the flood begins", PATIENCE, || (floods.load(Ordering::Relaxed) > 100).then_some(()));
        // A client that is put out once would be served at a second try; here every first try has to do.
        for round in 0..20_u8 {
            is_served(&daemon, &[b'r', round]);
        }
        drop(stop);
        begun.unwrap();
    });
    assert!(daemon.metrics().unwrap().sum("memkv_connections_put_out_total", &[]) > 16.0);
}

#[test]
fn sessions_that_prove_nothing_take_no_places_of_sessions() {
    let daemon = daemon(&["--limits-sessions-max", "2"]);
    let control = daemon.control().unwrap();
    let hello = || v1::ClientMessage {
        message: Some(FromClient::Hello(v1::Hello {
            protocol_min: 1,
            protocol_max: 1,
            client_nonce: random::<32>().to_vec(),
            ..v1::Hello::default()
        })),
    };
    let open = |control: &Control| {
        let messages = tokio_stream::iter([hello()]).chain(tokio_stream::pending());
        let mut client = v1::session_client::SessionClient::new(control.channel());
        control.block_on(async move {
            let mut replies = client.open(messages).await?.into_inner();
            let challenge = replies.message().await?;
            Ok::<_, tonic::Status>((replies, challenge))
        })
    };
    // Each over a connection of its own.
    let half: Vec<_> = (0..8)
        .map(|_| {
            let guest = Control::connect(daemon.addr(), None).unwrap();
            let opened = open(&guest).unwrap();
            (guest, opened)
        })
        .collect();
    assert!(half.iter().all(|(_, (_, challenge))| challenge.is_some()), "each was challenged");
    let second = open(&half[0].0).expect_err("a guest opens one session at a time");
    assert!(second.message().contains("another session"), "{second}");
    let _both = [control.session().unwrap(), control.session().unwrap()];
    let full = control.session().expect_err("there are places for two").to_string();
    assert!(full.contains("limits.sessions_max") || format!("{full:?}").contains("sessions"), "{full}");
}

#[test]
fn bytes_in_flight_of_one_connection_are_bounded() {
    let daemon = daemon(&["--limits-stall-time-max", "1s"]);
    let control = daemon.control().unwrap();
    let space = control.open_space("siege").unwrap();
    let session = control.session().unwrap();
    // Offers that hold slots and never send: a quarter of the store goes to one connection, the rest to others.
    let mut greedy: DataConn = session.attach().unwrap();
    let mut held = 0;
    for number in 0..64_u8 {
        let id = greedy.id();
        let reply = greedy.call(&wire::offer_frame(id, space, &[(&[number], 1 << 20)])).unwrap();
        held += u32::from(reply.single_verdict().unwrap() == Code::Want);
    }
    assert!((1..=16).contains(&held), "{held} MiB of 64 are held");
    let mut other = session.attach().unwrap();
    assert_eq!(other.put(space, b"other", &[1; 1 << 20]).unwrap(), Code::Ok);
}

#[test]
fn clients_that_do_not_read_hold_so_much_of_the_hosts_memory_together() {
    let daemon = daemon(&["--limits-unread-bytes-max", "4MiB", "--limits-stall-time-max", "10m"]);
    let control = daemon.control().unwrap();
    let space = control.open_space("siege").unwrap();
    let session = control.session().unwrap();
    let keys: [&[u8]; 4] = [b"a", b"b", b"c", b"d"];
    let mut reader = session.attach().unwrap();
    for key in keys {
        assert_eq!(reader.put(space, key, &[7; 1 << 20]).unwrap(), Code::Ok);
    }
    // What one asks for is more than socket buffers take, and the buffers of all are more than may be held.
    let request = wire::get_frame(1, space, &keys.map(|key| (key, 1 << 20)), true);
    let other = control.session().unwrap();
    let stopped: Vec<_> = (0..40).map(|_| other.attach().unwrap()).collect();
    let stopped = stopped.into_iter().map(|mut data| {
        data.send(&request).unwrap();
        data
    });
    let stopped: Vec<_> = stopped.collect();
    let dropped = || daemon.metrics().unwrap().sum("memkv_connections_stalled_total", &[]);
    wait_for("most of those that do not read are dropped", PATIENCE, || (dropped() >= 24.0).then_some(()))
        .unwrap();
    assert!(dropped() < 40.0, "not all of them");
    // Who reads is served, and nothing of him counts.
    for _ in 0..40 {
        assert_eq!(reader.get(space, b"d", 1 << 20).unwrap(), (Code::Ok, vec![7; 1 << 20]));
    }
    // Who did not read may not come back at once to ask for as much again; others may come.
    let again = other.attach().expect_err("a session that does not read rests");
    assert!(format!("{again:?}").contains("TooMany"), "{again:?}");
    session.attach().unwrap();
    drop(stopped);
    wait_for("it may come back later", PATIENCE, || other.attach().ok()).unwrap();
}
