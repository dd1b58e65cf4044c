//! A client that stops reading costs the server one connection's memory and time, and nobody else anything.

use crate::common::PATIENCE;
use crate::sessions::pins;
use memkv_tests::daemon::{Daemon, Setup};
use memkv_tests::pages::page;
use memkv_tests::wait_for;
use memkv_tests::wire::get_frame;
use memkv_transport::frame::Code;

#[test]
fn a_client_that_stops_reading_is_dropped_and_bothers_nobody() {
    let args = vec!["--limits-stall-time-max".into(), "2s".into()];
    let daemon = Daemon::start_with(Setup { dram: "256MiB".into(), args, ..Setup::default() }).unwrap();
    let control = daemon.control().unwrap();
    let space = control.open_space("slow").unwrap();
    let session = control.session().unwrap();
    let mut healthy = session.attach().unwrap();
    let len = 4 << 20;
    for i in 0..8_u8 {
        assert_eq!(healthy.put(space, &[i], &page(&[i], len)).unwrap(), Code::Ok);
    }
    let keys: Vec<[u8; 1]> = (0..8).map(|i| [i]).collect();
    let wanted: Vec<(&[u8], u32)> = keys.iter().map(|key| (&key[..], len as u32)).collect();
    let before = daemon.resident_bytes().unwrap();
    // Each asks for a gigabyte and reads none of it.
    let mut stuck: Vec<_> = (0..8).map(|_| session.attach().unwrap()).collect();
    for conn in &mut stuck {
        for id in 1..=32 {
            conn.send(&get_frame(id, space, &wanted, true)).unwrap();
        }
    }
    wait_for("the pages are pinned", PATIENCE, || (pins(&control, space, &[0]) > 0).then_some(())).unwrap();
    for i in 0..8_u8 {
        assert_eq!(healthy.get(space, &[i], len as u32).unwrap(), (Code::Ok, page(&[i], len)));
    }
    let grown = daemon.resident_bytes().unwrap().saturating_sub(before);
    assert!(grown < 64 << 20, "replies that nobody reads made the server grow by {grown} bytes");
    // The server gives them up by itself, while they are still connected.
    wait_for("the stuck readers are dropped", PATIENCE, || {
        (daemon.metrics().unwrap().sum("memkv_data_connections", &[]) == 1.0).then_some(())
    })
    .unwrap();
    for i in 0..8_u8 {
        assert_eq!(pins(&control, space, &[i]), 0);
        assert_eq!(healthy.get(space, &[i], len as u32).unwrap().0, Code::Ok);
    }
    assert_eq!(daemon.metrics().unwrap().sum("memkv_connections_stalled_total", &[]), 8.0);
    drop(stuck);
}
