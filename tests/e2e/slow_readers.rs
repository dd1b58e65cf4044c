//! A client that stops reading costs the server one connection's memory and time, and nobody else anything.

use crate::common::PATIENCE;
use crate::sessions::pins;
use memkv_tests::daemon::{Daemon, Setup};
use memkv_tests::pages::page;
use memkv_tests::wait_for;
use memkv_tests::wire::{DataConn, get_frame};
use memkv_transport::frame::{Code, HEADER_BYTES};
use memkv_transport::records::PAGE_RECORD_BYTES;
use std::io::Read as _;

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

/// Reads a reply with a pause before each of these places; in every pause the store takes another page.
fn read_with_pauses(reader: &mut DataConn, len: usize, places: &[usize], mut pause: impl FnMut()) -> Vec<u8> {
    let mut reply = vec![0; len];
    let mut begin = 0;
    for end in places.iter().copied().chain([len]) {
        reader.stream.read_exact(&mut reply[begin..end]).unwrap();
        begin = end;
        pause();
    }
    reply
}

#[test]
fn pages_that_are_evicted_while_they_are_read_stay_as_they_are_at_every_boundary() {
    // The oldest page goes first, so the pages that are being read go soon.
    let args = vec!["--eviction-policy".into(), "lru".into()];
    let daemon = Daemon::start_with(Setup { dram: "64MiB".into(), args, ..Setup::default() }).unwrap();
    let control = daemon.control().unwrap();
    let space = control.open_space("evicted").unwrap();
    let session = control.session().unwrap();
    let mut writer = session.attach().unwrap();
    // More than the sockets between hold, so that the server has bytes left to send in every pause but the last ones.
    let (len, names) = (4 << 20, [*b"one", *b"two", *b"six"]);
    let wanted: Vec<(&[u8], u32)> = names.iter().map(|name| (&name[..], len as u32)).collect();
    let expected: Vec<u8> = names.iter().flat_map(|name| page(name, len)).collect();
    let records = HEADER_BYTES + names.len() * PAGE_RECORD_BYTES;
    let total = records + expected.len();
    let ends = (1..names.len()).map(|pages| records + pages * len);
    let plans: [Vec<usize>; 3] = [
        // Every byte of the header and the records, and the first ones of the pages.
        (1..records + 8).collect(),
        // Every byte around the ends of the pages.
        ends.flat_map(|end| end - 16..end + 16).collect(),
        // Odd places all over.
        (1..60).map(|part| (part * total / 60) | 1).collect(),
    ];
    let filler = page(b"filler", len);
    let (mut fresh, mut gone) = (0_u32, 0);
    for (plan, places) in plans.iter().enumerate() {
        for (name, _) in &wanted {
            writer.put(space, name, &page(name, len)).unwrap();
        }
        let mut reader = session.attach().unwrap();
        reader.send(&get_frame(1, space, &wanted, true)).unwrap();
        let reply = read_with_pauses(&mut reader, total, places, || {
            fresh += 1;
            writer.put(space, &fresh.to_le_bytes(), &filler).unwrap();
        });
        assert!(reply[records..] == expected, "a page changed while it was read, plan {plan}");
        let keys: Vec<&[u8]> = names.iter().map(|name| &name[..]).collect();
        gone += writer.exists(space, &keys).unwrap().iter().filter(|found| !**found).count();
    }
    assert!(gone > 0, "no page was evicted while it was read, so nothing was tested");
    let evicted = control.status().unwrap().ops.unwrap().evicted;
    assert!(evicted > 100, "only {evicted} pages were evicted");
}
