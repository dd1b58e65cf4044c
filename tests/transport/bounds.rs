//! Limits of pages, batches and memory, and who may come in at all.

use crate::ops::{PATIENCE, assert_all, assert_hits, exists, get, put};
use crate::rig::{Rig, open, tests};
use memkv_client::blocking::Client;
use memkv_client::{Config, ErrorKind, PageOutcome};
use memkv_tests::daemon::{Daemon, Setup};
use memkv_tests::pages::{keys, page, pages};
use memkv_tests::wait_for;
use memkv_tests::wire::offer_frame;
use memkv_transport::frame::Code;

tests![
    a_page_larger_than_the_limit_is_too_large,
    a_batch_larger_than_the_limit_is_divided,
    a_store_without_room_is_busy,
    a_batch_larger_than_the_store_never_lies,
    a_wrong_key_is_refused,
    no_key_is_refused,
    a_server_without_a_key_serves_clients_without_one,
];

const OTHER_KEY: &str = "ffeeddccbbaa99887766554433221100ffeeddccbbaa99887766554433221100";

fn a_page_larger_than_the_limit_is_too_large(rig: &Rig) {
    let args = [rig.flags(), vec!["--page-max".into(), "1MiB".into()]].concat();
    let setup = Setup { args, ..Setup::default() };
    let daemon = Daemon::start_with(setup).unwrap();
    let (client, space) = rig.space(&[&daemon], "large");
    let all = keys("large", 3);
    let mut bytes = pages(&all, 1 << 20);
    bytes[1].push(0);
    let outcomes = put(&space, &all, &bytes);
    assert_eq!(outcomes, [PageOutcome::Stored, PageOutcome::TooLarge, PageOutcome::Stored]);
    assert_hits(&space, &[all[0].clone(), all[2].clone()], 1 << 20);
    // To ask for more than any page has is a miss or a mismatch, as ever.
    let outcomes: Vec<_> = get(&space, &all, 2 << 20).into_iter().map(|(outcome, _)| outcome).collect();
    assert_eq!(outcomes, [PageOutcome::SizeMismatch, PageOutcome::Miss, PageOutcome::SizeMismatch]);
    client.close();
}

fn a_batch_larger_than_the_limit_is_divided(rig: &Rig) {
    let daemon = rig.daemon_with("96MiB", &["--limits-batch-keys-max", "50"]);
    let (client, space) = rig.space(&[&daemon], "divided");
    assert_eq!(client.servers()[0].limits.batch_keys_max, 50);
    let all = keys("divided", 333);
    assert_all(&put(&space, &all[..300], &pages(&all[..300], 3000)), PageOutcome::Stored);
    assert_hits(&space, &all[..300], 3000);
    assert_eq!(exists(&space, &all), [vec![true; 300], vec![false; 33]].concat());
    assert_eq!(space.exists_prefix(&all).unwrap(), 300);
    client.close();
}

fn a_store_without_room_is_busy(rig: &Rig) {
    let daemon = rig.daemon_with("64MiB", &[]);
    let (client, space) = rig.space(&[&daemon], "room");
    let len = 4 << 20;
    let (all, small) = (keys("room", 3), keys("small", 3));
    assert_all(&put(&space, &small, &pages(&small, 5000)), PageOutcome::Stored);
    // Offers whose pages never come hold slots that nobody can take from them.
    let control = daemon.control().unwrap();
    let session = control.session().unwrap();
    let mut holders = Vec::new();
    // A store also says busy while it makes room. It stays busy when half of it is held.
    wait_for("all is held that may be", PATIENCE, || {
        let mut conn = session.attach().unwrap();
        let names: Vec<[u8; 2]> = (0..4).map(|i| [holders.len() as u8, i]).collect();
        let offers: Vec<(&[u8], u32)> = names.iter().map(|name| (&name[..], len as u32)).collect();
        let verdicts = conn.call(&offer_frame(1, space.id(), &offers)).unwrap().verdicts();
        let is_refused = !verdicts.contains(&Some(Code::Want));
        if !is_refused {
            holders.push(conn);
        }
        let stays = daemon.metrics().unwrap().sum("memkv_put_shed_backlog_total", &[]) > 0.0;
        (stays && is_refused).then_some(())
    })
    .unwrap();
    assert!((2..16).contains(&holders.len()), "{} connections hold 64 MiB", holders.len());
    let report = space.put_from(&all, &[&vec![1; len][..]; 3], &mut [PageOutcome::Miss; 3]).unwrap();
    assert_eq!((report.ok, report.failed), (0, 3));
    assert_all(&put(&space, &all, &pages(&all, len)), PageOutcome::Busy);
    assert_eq!(exists(&space, &all), [false; 3]);
    assert!(get(&space, &all, len).iter().all(|(outcome, _)| *outcome == PageOutcome::Miss));
    drop(holders);
    wait_for("there is room again", PATIENCE, || {
        put(&space, &all, &pages(&all, len)).iter().all(|outcome| outcome.is_success()).then_some(())
    })
    .unwrap();
    assert_hits(&space, &all, len);
    client.close();
}

fn a_batch_larger_than_the_store_never_lies(rig: &Rig) {
    let daemon = rig.daemon_with("64MiB", &[]);
    let (client, space) = rig.space(&[&daemon], "flood");
    let (all, len) = (keys("flood", 100), 1 << 20);
    let outcomes = put(&space, &all, &pages(&all, len));
    let stored = outcomes.iter().filter(|outcome| **outcome == PageOutcome::Stored).count();
    let busy = outcomes.iter().filter(|outcome| **outcome == PageOutcome::Busy).count();
    assert!(stored > 0 && stored + busy == 100, "{outcomes:?}");
    for (i, (outcome, bytes)) in get(&space, &all, len).iter().enumerate() {
        match outcome {
            PageOutcome::Hit => {
                assert_eq!(outcomes[i], PageOutcome::Stored);
                assert!(*bytes == page(&all[i], len), "wrong bytes at {i}");
            }
            other => assert_eq!(*other, PageOutcome::Miss),
        }
    }
    client.close();
}

fn a_wrong_key_is_refused(rig: &Rig) {
    let daemon = rig.daemon();
    daemon.allow("auth");
    let config = rig.config(&[daemon.addr()]).auth_key_hex(OTHER_KEY).build().unwrap();
    let error = Client::connect(config).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Unauthenticated, "{error}");
    assert!(error.to_string().contains("MEMKV_AUTH_KEY"), "{error}");
    assert_eq!(daemon.control().unwrap().status().unwrap().session_count, 0);
}

fn no_key_is_refused(rig: &Rig) {
    let daemon = rig.daemon();
    daemon.allow("auth");
    let config = Config::builder().without_environment().servers(daemon.addr().to_string());
    let error = Client::connect(config.transport(rig.transport).build().unwrap()).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Unauthenticated, "{error}");
    assert!(error.to_string().contains("MEMKV_AUTH_KEY"), "{error}");
}

fn a_server_without_a_key_serves_clients_without_one(rig: &Rig) {
    let daemon = Daemon::start_with(Setup { key: None, ..rig.setup() }).unwrap();
    daemon.allow("key");
    daemon.allow("auth");
    // Whoever has a key expects to be protected by it.
    let error = Client::connect(rig.config(&[daemon.addr()]).build().unwrap()).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Unauthenticated, "{error}");
    let config = rig.config(&[daemon.addr()]).auth_key_hex("").build().unwrap();
    let client = Client::connect(config).unwrap();
    let space = open(&client, "open");
    let keys = keys("open", 3);
    assert_all(&put(&space, &keys, &pages(&keys, 10_000)), PageOutcome::Stored);
    assert_hits(&space, &keys, 10_000);
    client.close();
}
