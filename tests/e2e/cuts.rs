//! A put that dies halfway is never visible, at no byte boundary, and holds nothing afterwards.

use crate::common::wait_until_empty;
use memkv_tests::control::put_messages;
use memkv_tests::daemon::Daemon;
use memkv_tests::pages::page;
use memkv_tests::wire::{DataConn, data_frame, offer_frame};
use memkv_transport::frame::Code;
use std::time::Duration;

const KEY: &[u8] = b"cut";

/// Ends a connection: in order, or with a reset.
fn end(conn: DataConn, reset: bool) {
    if reset {
        rustix::net::sockopt::set_socket_linger(&conn.stream, Some(Duration::ZERO)).unwrap();
    }
}

#[test]
fn a_put_cut_at_any_byte_is_never_visible() {
    let daemon = Daemon::start().unwrap();
    let control = daemon.control().unwrap();
    let space = control.open_space("cuts").unwrap();
    let session = control.session().unwrap();
    let bytes = page(KEY, 150);
    let offer = offer_frame(7, space, &[(KEY, 150)]);
    let data = data_frame(7, space, &[(KEY, &bytes)]);
    let mut watcher = session.attach().unwrap();
    for cut in 0..offer.len() + data.len() {
        let mut conn = session.attach().unwrap();
        conn.send(&offer[..cut.min(offer.len())]).unwrap();
        if cut >= offer.len() {
            // The slot of the connection before may come back a moment later than its end.
            let verdict = conn.reply().unwrap().single_verdict().unwrap();
            assert_eq!(verdict, Code::Want, "cut {cut}");
            conn.send(&data[..cut - offer.len()]).unwrap();
        }
        assert_eq!(watcher.exists(space, &[KEY]).unwrap(), [false], "visible after {cut} bytes");
        assert_eq!(watcher.get(space, KEY, 150).unwrap().0, Code::Miss, "visible after {cut} bytes");
        end(conn, cut % 2 == 1);
    }
    wait_until_empty(&daemon);
    assert_eq!(watcher.exists(space, &[KEY]).unwrap(), [false]);
    // The same bytes, not cut, are a page.
    assert_eq!(watcher.put(space, KEY, &bytes).unwrap(), Code::Ok);
    assert_eq!(watcher.get(space, KEY, 150).unwrap(), (Code::Ok, bytes));
}

#[test]
fn a_batch_cut_in_its_second_page_may_keep_the_first_but_not_the_second() {
    let daemon = Daemon::start().unwrap();
    let control = daemon.control().unwrap();
    let space = control.open_space("cuts").unwrap();
    let session = control.session().unwrap();
    let (first, second) = (page(b"1", 9000), page(b"2", 9000));
    let mut conn = session.attach().unwrap();
    let offer = conn.call(&offer_frame(1, space, &[(b"1", 9000), (b"2", 9000)])).unwrap();
    assert_eq!(offer.verdicts(), [Some(Code::Want); 2]);
    let data = data_frame(1, space, &[(b"1", &first), (b"2", &second)]);
    conn.send(&data[..data.len() - 1]).unwrap();
    drop(conn);
    let mut watcher = session.attach().unwrap();
    assert_eq!(watcher.exists(space, &[b"2"]).unwrap(), [false]);
    let (code, bytes) = watcher.get(space, b"1", 9000).unwrap();
    assert!(code == Code::Miss || (code == Code::Ok && bytes == first), "{code:?}");
    // Both keys are free for whoever comes next.
    assert!(matches!(watcher.put(space, b"1", &first).unwrap(), Code::Ok | Code::Exists));
    assert_eq!(watcher.put(space, b"2", &second).unwrap(), Code::Ok);
    assert_eq!(watcher.get(space, b"2", 9000).unwrap(), (Code::Ok, second));
}

#[test]
fn a_grpc_put_that_breaks_off_stores_nothing() {
    let daemon = Daemon::start().unwrap();
    let control = daemon.control().unwrap();
    let space = control.open_space("cuts").unwrap();
    let bytes = page(b"grpc", 10_000);
    let whole = put_messages(space, b"grpc", &bytes, 1000);
    for cut in 1..whole.len() {
        let messages = whole[..cut].to_vec();
        let request = control.request("/memkv.v1.Kv/Put", tokio_stream::iter(messages));
        let answer = control.block_on(control.kv().put(request));
        assert!(answer.is_err(), "a page of {cut} of {} pieces was accepted: {answer:?}", whole.len());
        let (status, _) = control.get(space, &[b"grpc"], &[]).unwrap().remove(0);
        assert_eq!(status, memkv_proto::v1::Status::Miss, "visible after {cut} pieces");
    }
    wait_until_empty(&daemon);
    let stored = control.put(space, &[(b"grpc", &bytes)], 1000).unwrap();
    assert_eq!(stored, [memkv_proto::v1::Status::Ok]);
}
