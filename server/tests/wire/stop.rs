//! The graceful stop.

use crate::harness::{Fixture, next, put_data};
use memkv_proto::v1;
use memkv_proto::v1::server_message::Message as FromServer;
use memkv_server::{Server, Stopped};
use memkv_transport::frame::{Code, Header, Op};
use std::net::TcpStream;
use std::thread;

#[test]
fn what_is_in_flight_finishes_and_nothing_new_begins() {
    let mut fixture = Fixture::open(&[]);
    let space = fixture.open_space("stop");
    let (mut session, mut wire) = fixture.wire();
    let pages: [(&[u8], &[u8]); 1] = [(b"k", &[8; 70_000])];
    let (offer, meta) = wire.offer(space, &pages);
    assert_eq!(wire.ask(&offer, &meta).meta, [Code::Want as u8]);
    let server = fixture.take_server();
    let stopping = thread::spawn(move || server.stop(std::future::pending()));

    let Ok(Some(FromServer::Notice(notice))) = fixture.runtime.block_on(next(&mut session.inbox)) else {
        panic!("no notice")
    };
    assert_eq!(notice.state(), v1::ServerState::Stopping);
    assert!(fixture.http("/readyz").starts_with("HTTP/1.1 503"));
    assert!(fixture.http("/healthz").starts_with("HTTP/1.1 200"));
    let reply = wire.ask(&Header::request(Op::Exists, 90, space, 0), b"");
    assert_eq!(reply.header.status, Code::Stopping);
    let (late_offer, late_meta) = wire.offer(space, &[(b"late", b"page")]);
    assert_eq!(wire.ask(&late_offer, &late_meta).header.status, Code::Stopping);
    // Longer than a server without anything in flight takes to close its connections.
    let waited = std::time::Instant::now();
    while waited.elapsed() < std::time::Duration::from_millis(600) {
        thread::yield_now();
    }
    assert!(!stopping.is_finished(), "an offer is in flight");

    let (data, body) = put_data(space, offer.request_id, &pages);
    wire.send(&data, b"", &body);
    assert_eq!(wire.receive().meta, [Code::Ok as u8]);
    wire.wait_closed();
    let end = fixture.runtime.block_on(next(&mut session.inbox)).unwrap_err();
    assert_eq!(end.code(), tonic::Code::Unavailable);
    assert_eq!(stopping.join().unwrap(), Stopped::Gracefully);
    assert!(TcpStream::connect(fixture.address).is_err());
}

#[test]
fn new_connections_are_refused_while_stopping() {
    let mut fixture = Fixture::open(&[]);
    let space = fixture.open_space("stop");
    let (mut session, mut wire) = fixture.wire();
    let (offer, meta) = wire.offer(space, &[(b"k", b"page")]);
    wire.ask(&offer, &meta);
    let server = fixture.take_server();
    let stopping = thread::spawn(move || server.stop(std::future::pending()));
    fixture.runtime.block_on(next(&mut session.inbox)).unwrap();
    let refused = TcpStream::connect(fixture.address);
    assert!(refused.is_err(), "the listener is gone");
    drop(wire);
    assert_eq!(stopping.join().unwrap(), Stopped::Gracefully);
}

#[test]
fn the_deadline_and_a_second_signal_cut_the_rest_off() {
    for (timeout, abort) in [("100ms", false), ("1h", true)] {
        let mut fixture = Fixture::open(&["--shutdown-timeout", timeout]);
        let space = fixture.open_space("stop");
        let (_session, mut wire) = fixture.wire();
        let (offer, meta) = wire.offer(space, &[(b"k", b"page")]);
        wire.ask(&offer, &meta);
        let server = fixture.take_server();
        let stopped = server.stop(async move {
            if !abort {
                std::future::pending::<()>().await;
            }
        });
        assert_eq!(stopped, Stopped::Aborted);
        wire.wait_closed();
    }
}

#[test]
fn an_idle_server_stops_although_clients_are_connected() {
    let mut fixture = Fixture::open(&[]);
    let (_session, mut wire) = fixture.wire();
    let _idle_channel = fixture.channel();
    assert_eq!(fixture.stop(), Stopped::Gracefully);
    wire.wait_closed();
}

#[test]
fn a_port_in_use_is_named_with_what_to_do() {
    let fixture = Fixture::open(&[]);
    let flags = ["memkv-server", "--listen", &fixture.address.to_string()];
    let args = memkv_server::config::command().try_get_matches_from(flags).unwrap();
    let config = memkv_server::Config::load(&args, []).unwrap().config;
    let Err(error) = Server::start(config) else { panic!("two servers on one port") };
    let text = error.to_string();
    assert!(
        text.contains(&fixture.address.to_string()) && text.contains("set listen to another one"),
        "{text}"
    );
}
