//! One suite over both transports: what is put comes back, byte for byte, and nothing else does.

use crate::common::{assert_all, assert_hits, client_of, exists, get, put, tcp_space};
use memkv_client::blocking::{Client, Space};
use memkv_client::{PageOutcome, SpaceDescription, SpaceId, Transport};
use memkv_proto::v1::InspectKeyRequest;
use memkv_tests::control::Control;
use memkv_tests::daemon::{Daemon, Setup};
use memkv_tests::pages::{keys, page, pages};

/// Runs `suite` over each transport, against a daemon of its own.
fn over_both(suite: impl Fn(&Daemon, &Client, &Space)) {
    for transport in [Transport::Tcp, Transport::Grpc] {
        let daemon = Daemon::start_with(Setup { dram: "256MiB".into(), ..Setup::default() }).unwrap();
        let client = client_of(&[daemon.addr()], transport);
        let space = client.space(SpaceDescription::named("suite").unwrap()).unwrap();
        suite(&daemon, &client, &space);
        client.close();
    }
}

#[test]
fn pages_of_many_sizes_round_trip() {
    over_both(|daemon, _, space| {
        for len in [1, 4095, 4096, 4097, 65_536, 100_000, 1 << 20, (4 << 20) + 7] {
            let keys = keys(&format!("size-{len}"), 5);
            assert_all(&put(space, &keys, &pages(&keys, len)), PageOutcome::Stored);
            assert_hits(space, &keys, len);
        }
        let dram = daemon.control().unwrap().status().unwrap().dram.unwrap();
        assert_eq!(dram.pages, 40);
    });
}

#[test]
fn a_batch_reports_each_page_in_its_place() {
    over_both(|_, _, space| {
        let all = keys("batch", 300);
        let stored: Vec<_> = all.iter().step_by(3).cloned().collect();
        assert_all(&put(space, &stored, &pages(&stored, 5000)), PageOutcome::Stored);
        let found = exists(space, &all);
        let mut pages = vec![vec![0_u8; 5000]; all.len()];
        let mut slices: Vec<&mut [u8]> = pages.iter_mut().map(Vec::as_mut_slice).collect();
        let mut outcomes = vec![PageOutcome::Busy; all.len()];
        let report = space.get_into(&all, &mut slices, &mut outcomes).unwrap();
        assert_eq!((report.ok, report.bytes, report.failed), (100, 500_000, 0));
        for (i, key) in all.iter().enumerate() {
            let expected = if i % 3 == 0 { PageOutcome::Hit } else { PageOutcome::Miss };
            assert_eq!((outcomes[i], found[i]), (expected, i % 3 == 0));
            assert!(i % 3 != 0 || pages[i] == page(key, 5000), "wrong bytes at {i}");
        }
    });
}

#[test]
fn the_first_put_wins() {
    over_both(|_, _, space| {
        let key = keys("once", 1);
        assert_all(&put(space, &key, &[page(b"first", 4096)]), PageOutcome::Stored);
        assert_all(&put(space, &key, &[page(b"second", 4096)]), PageOutcome::Exists);
        let (outcome, bytes) = get(space, &key, 4096).remove(0);
        assert_eq!(outcome, PageOutcome::Hit);
        assert!(bytes == page(b"first", 4096));
    });
}

#[test]
fn another_length_is_a_mismatch_and_writes_nothing() {
    over_both(|_, _, space| {
        let key = keys("length", 1);
        assert_all(&put(space, &key, &pages(&key, 4096)), PageOutcome::Stored);
        for len in [4095, 4097, 1] {
            let (outcome, bytes) = get(space, &key, len).remove(0);
            assert_eq!(outcome, PageOutcome::SizeMismatch);
            assert!(bytes.iter().all(|&byte| byte == 0xee), "the destination was written");
        }
        assert_hits(space, &key, 4096);
    });
}

#[test]
fn deleted_pages_are_gone_and_can_be_put_again() {
    over_both(|daemon, _, space| {
        let all = keys("delete", 10);
        assert_all(&put(space, &all, &pages(&all, 4096)), PageOutcome::Stored);
        let mut removed = [false; 5];
        space.delete(&all[..5], &mut removed).unwrap();
        assert_eq!(removed, [true; 5]);
        space.delete(&all[..5], &mut removed).unwrap();
        assert_eq!(removed, [false; 5]);
        assert_eq!(exists(space, &all), [[false; 5], [true; 5]].concat());
        assert_eq!(daemon.control().unwrap().status().unwrap().dram.unwrap().pages, 5);
        assert_all(&put(space, &all[..5], &pages(&all[..5], 4096)), PageOutcome::Stored);
        assert_hits(space, &all, 4096);
    });
}

#[test]
fn touch_says_what_is_there() {
    over_both(|_, _, space| {
        let all = keys("touch", 4);
        put(space, &all[1..3], &pages(&all[1..3], 100));
        let mut present = [true; 4];
        space.touch(&all, &mut present).unwrap();
        assert_eq!(present, [false, true, true, false]);
    });
}

#[test]
fn a_prefix_ends_at_the_first_gap() {
    over_both(|_, _, space| {
        let all = keys("prefix", 50);
        let stored: Vec<_> = all[..20].iter().chain(&all[21..]).cloned().collect();
        put(space, &stored, &pages(&stored, 100));
        assert_eq!(space.exists_prefix(&all).unwrap(), 20);
        assert_eq!(space.exists_prefix(&all[21..]).unwrap(), 29);
        assert_eq!(space.exists_prefix(&all[20..]).unwrap(), 0);
    });
}

#[test]
fn single_ops_work_without_knowing_the_length() {
    over_both(|_, _, space| {
        let bytes = page(b"single", 12_345);
        assert_eq!(space.get(b"single").unwrap(), None);
        assert_eq!(space.put(b"single", &bytes).unwrap(), PageOutcome::Stored);
        assert!(space.get(b"single").unwrap() == Some(bytes));
    });
}

#[test]
fn clear_removes_exactly_its_own_space() {
    over_both(|_, client, space| {
        let other = client.space(SpaceDescription::named("other").unwrap()).unwrap();
        let all = keys("clear", 40);
        let others: Vec<_> = all.iter().map(|key| page(&[key, &b"other"[..]].concat(), 3000)).collect();
        assert_all(&put(space, &all, &pages(&all, 3000)), PageOutcome::Stored);
        // Same keys, other bytes: the two spaces must never mix.
        assert_all(&put(&other, &all, &others), PageOutcome::Stored);
        assert_hits(space, &all, 3000);
        space.clear().unwrap();
        assert!(exists(space, &all).iter().all(|found| !found));
        for ((outcome, bytes), expected) in get(&other, &all, 3000).iter().zip(&others) {
            assert_eq!(*outcome, PageOutcome::Hit);
            assert!(bytes == expected, "one space shows another's bytes");
        }
        assert_all(&put(space, &all, &pages(&all, 3000)), PageOutcome::Stored);
        assert_hits(space, &all, 3000);
    });
}

#[test]
fn keys_of_1_and_512_bytes_work() {
    over_both(|_, _, space| {
        let all = vec![vec![0], vec![0xff; 512]];
        assert_all(&put(space, &all, &pages(&all, 64)), PageOutcome::Stored);
        assert_hits(space, &all, 64);
    });
}

#[test]
fn both_transports_see_the_same_pages() {
    let daemon = Daemon::start().unwrap();
    let (tcp, over_tcp) = tcp_space(&[&daemon], "same");
    let grpc = client_of(&[daemon.addr()], Transport::Grpc);
    let over_grpc = grpc.space(SpaceDescription::named("same").unwrap()).unwrap();
    assert_eq!(over_tcp.id(), over_grpc.id());
    let all = keys("both", 20);
    put(&over_tcp, &all[..10], &pages(&all[..10], 70_000));
    put(&over_grpc, &all[10..], &pages(&all[10..], 70_000));
    assert_hits(&over_tcp, &all, 70_000);
    assert_hits(&over_grpc, &all, 70_000);
    tcp.close();
    grpc.close();
}

#[test]
fn a_batch_is_spread_over_all_servers() {
    let daemons = [Daemon::start().unwrap(), Daemon::start().unwrap(), Daemon::start().unwrap()];
    let (client, space) = tcp_space(&daemons.each_ref(), "spread");
    let all = keys("spread", 300);
    assert_all(&put(&space, &all, &pages(&all, 4096)), PageOutcome::Stored);
    assert_hits(&space, &all, 4096);
    let held: Vec<u64> = daemons
        .iter()
        .map(|daemon| daemon.control().unwrap().status().unwrap().dram.unwrap().pages)
        .collect();
    assert_eq!(held.iter().sum::<u64>(), 300);
    assert!(held.iter().all(|&pages| pages > 30), "{held:?}");
    // Pages are where the route says.
    let controls: Vec<_> = daemons.iter().map(|daemon| (daemon.port(), daemon.control().unwrap())).collect();
    for key in all.iter().step_by(10) {
        let owner = client.route(space.id(), key)[0].server.port;
        for (port, control) in &controls {
            assert_eq!(is_held(control, space.id(), key), *port == owner, "{}", key.escape_ascii());
        }
    }
    client.close();
}

fn is_held(control: &Control, space: SpaceId, key: &[u8]) -> bool {
    let message = InspectKeyRequest { space_id: space.0.to_vec(), key: key.to_vec(), verify: true };
    let request = control.request("/memkv.v1.Admin/InspectKey", message);
    let response = control.block_on(control.admin().inspect_key(request)).unwrap().into_inner();
    assert_eq!(response.found, response.verified, "a stored page does not match its checksum");
    response.found
}
