//! Pages with several places: replicas, servers that fail, missing copies, hot pages, and members that come and go.

use crate::common::{
    PATIENCE, assert_all, assert_hits, client_with, exists, get, named_servers, put, space_of,
};
use crate::names::{Names, a, srv};
use memkv_client::blocking::{Client, Space};
use memkv_client::{CopyStats, PageOutcome};
use memkv_tests::daemon::{Daemon, Setup};
use memkv_tests::pages::{keys, page, pages};
use memkv_tests::wait_for;
use std::collections::BTreeSet;

const LEN: usize = 5000;

fn daemons(count: usize, args: &[&str]) -> Vec<Daemon> {
    let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
    (0..count)
        .map(|_| Daemon::start_with(Setup { args: args.clone(), ..Setup::default() }).unwrap())
        .collect()
}

/// Waits for something in the counters of copies.
#[track_caller]
fn wait_for_copies(client: &Client, what: &str, ready: impl Fn(&CopyStats) -> bool) -> CopyStats {
    let mut last = CopyStats::default();
    let there = wait_for(what, PATIENCE, || {
        last = client.stats().copies;
        ready(&last).then_some(())
    });
    assert!(there.is_ok(), "{what}: {last:?}");
    last
}

/// The ids of the servers that hold the page.
fn holders(client: &Client, space: &Space, key: &[u8]) -> BTreeSet<String> {
    let answers = client.inspect_key(space.id(), key, false);
    let found = answers.into_iter().filter(|(_, answer)| answer.as_ref().is_ok_and(|answer| answer.found));
    found.map(|(address, _)| address.id).collect()
}

/// The ids of the servers that should hold the page.
fn homes(client: &Client, space: &Space, key: &[u8]) -> BTreeSet<String> {
    let route = client.route(space.id(), key);
    route.into_iter().filter(|entry| entry.home).map(|entry| entry.server.id).collect()
}

#[test]
fn every_server_but_one_may_die() {
    let mut daemons = daemons(3, &[]);
    let servers = named_servers(&daemons, &[]);
    let client = client_with(&[("servers", &servers), ("replicas", "3")]);
    let space = space_of(&client, "copies");
    let (keys, more) = (keys("page", 60), keys("later", 20));
    assert_all(&put(&space, &keys, &pages(&keys, LEN)), PageOutcome::Stored);
    for key in &keys[..5] {
        assert_eq!(holders(&client, &space, key).len(), 3);
    }
    daemons[0].kill().unwrap();
    assert_hits(&space, &keys, LEN);
    daemons[2].kill().unwrap();
    assert_hits(&space, &keys, LEN);
    assert!(exists(&space, &keys).iter().all(|found| *found));
    // A page that one healthy server takes is stored.
    assert_all(&put(&space, &more, &pages(&more, LEN)), PageOutcome::Stored);
    assert_hits(&space, &more, LEN);
    let (absent, mut removed) = (get(&space, &memkv_tests::pages::keys("absent", 5), LEN), vec![false; 60]);
    assert!(absent.iter().all(|(outcome, _)| *outcome == PageOutcome::Miss), "one that answers says so");
    space.delete(&keys, &mut removed).unwrap();
    assert!(removed.iter().all(|removed| *removed));
}

#[test]
fn two_replicas_are_on_two_servers_and_gone_from_both_after_a_delete() {
    let daemons = daemons(3, &[]);
    let servers = named_servers(&daemons, &[]);
    let client = client_with(&[("servers", &servers), ("replicas", "2")]);
    let space = space_of(&client, "copies");
    let keys = keys("page", 30);
    assert_all(&put(&space, &keys, &pages(&keys, LEN)), PageOutcome::Stored);
    for key in &keys {
        assert_eq!(holders(&client, &space, key), homes(&client, &space, key));
        assert_eq!(homes(&client, &space, key).len(), 2);
    }
    assert_all(&put(&space, &keys, &pages(&keys, LEN)), PageOutcome::Exists);
    let mut removed = vec![false; keys.len()];
    space.delete(&keys, &mut removed).unwrap();
    assert!(removed.iter().all(|removed| *removed));
    assert!(keys.iter().all(|key| holders(&client, &space, key).is_empty()));
}

#[test]
fn a_missing_copy_is_filled_from_the_one_that_is_there() {
    let mut daemons = daemons(2, &[]);
    let servers = named_servers(&daemons, &[]);
    let client = client_with(&[("servers", &servers), ("replicas", "2")]);
    let space = space_of(&client, "copies");
    let keys = keys("page", 40);
    assert_all(&put(&space, &keys, &pages(&keys, LEN)), PageOutcome::Stored);
    daemons[1].kill().unwrap();
    daemons[1].restart().unwrap();
    let first = |key: &Vec<u8>| client.route(space.id(), key)[0].server.id == "kv-1";
    let lost: Vec<_> = keys.iter().filter(|key| first(key)).cloned().collect();
    assert!(!lost.is_empty() && lost.len() < keys.len());
    wait_for("the server is back", PATIENCE, || {
        client.servers().iter().all(|view| view.state == memkv_client::ServerState::Ready).then_some(())
    })
    .unwrap();
    // Half of them by asking only: then the length is not known either.
    let (asked, read) = lost.split_at(lost.len() / 2);
    assert!(exists(&space, asked).iter().all(|found| *found));
    assert_hits(&space, read, LEN);
    let done = wait_for_copies(&client, "all copies are filled", |copies| {
        copies.filled == lost.len() as u64 && copies.pending == 0
    });
    assert_eq!((done.found_elsewhere, done.moved, done.failed_write), (lost.len() as u64, 0, 0));
    let alone = client_with(&[("servers", &format!("kv-1={}", daemons[1].addr()))]);
    assert_hits(&space_of(&alone, "copies"), &lost, LEN);
}

#[test]
fn a_read_leaves_a_frozen_server_and_its_memory_stays_as_it_is() {
    let daemons = daemons(2, &[]);
    let servers = named_servers(&daemons, &[]);
    let client = client_with(&[("servers", &servers), ("replicas", "2"), ("hedge", "20ms")]);
    let space = space_of(&client, "copies");
    let keys = keys("page", 64);
    assert_all(&put(&space, &keys, &pages(&keys, LEN)), PageOutcome::Stored);
    assert_hits(&space, &keys, LEN);
    daemons[0].freeze().unwrap();
    let first = get(&space, &keys, LEN);
    // Long before the deadline of the frozen server's part, and with nothing left to the caller of it.
    assert!(client.stats().copies.hedged > 0);
    daemons[0].thaw().unwrap();
    wait_for("the frozen server answers again", PATIENCE, || {
        let second = get(&space, &keys, LEN);
        assert!(second.iter().all(|(outcome, _)| *outcome == PageOutcome::Hit));
        (client.servers()[0].state == memkv_client::ServerState::Ready).then_some(())
    })
    .unwrap();
    for (key, (outcome, bytes)) in keys.iter().zip(first) {
        assert_eq!(outcome, PageOutcome::Hit, "{}", key.escape_ascii());
        assert!(bytes == page(key, LEN), "wrong bytes under {}", key.escape_ascii());
    }
}

#[test]
fn hot_pages_get_copies_and_lose_them() {
    let daemons = daemons(3, &["--hot-reads", "20", "--limits-ping-interval", "200ms"]);
    let servers = named_servers(&daemons, &[]);
    let client = client_with(&[("servers", &servers), ("hot_copies", "3")]);
    let space = space_of(&client, "copies");
    let (keys, cold) = (keys("hot", 4), keys("cold", 20));
    assert_all(&put(&space, &keys, &pages(&keys, LEN)), PageOutcome::Stored);
    assert_all(&put(&space, &cold, &pages(&cold, LEN)), PageOutcome::Stored);
    wait_for_copies(&client, "all copies of hot pages", |copies| {
        (0..10).for_each(|_| assert_hits(&space, &keys, LEN));
        copies.hot_pages == 4 && copies.filled == 8
    });
    for key in &keys {
        assert_eq!(homes(&client, &space, key).len(), 3);
        assert_eq!(holders(&client, &space, key).len(), 3);
    }
    assert!(cold.iter().all(|key| homes(&client, &space, key).len() == 1));
    // Reads go to all of them: one that was slow before is tried again in time.
    let reads = || daemons.iter().map(|daemon| daemon.metrics().unwrap().sum("memkv_get_keys_total", &[]));
    let before: Vec<f64> = reads().collect();
    wait_for("all copies are read", PATIENCE, || {
        (0..60).for_each(|_| assert_hits(&space, &keys, LEN));
        before.iter().zip(reads()).all(|(before, after)| after - before >= 60.0).then_some(())
    })
    .unwrap();
    // Left alone, they cool down; the pages are where they belong.
    wait_for_copies(&client, "no hot pages", |copies| copies.hot_pages == 0);
    assert!(keys.iter().all(|key| homes(&client, &space, key).len() == 1));
    assert_hits(&space, &keys, LEN);
}

#[test]
fn without_leave_for_copies_hot_pages_stay_where_they_are() {
    let daemons = daemons(2, &["--hot-reads", "20", "--limits-ping-interval", "100ms"]);
    let servers = named_servers(&daemons, &[]);
    let listening = client_with(&[("servers", &servers)]);
    let deaf = client_with(&[("servers", &servers), ("hot_copies", "1")]);
    let space = space_of(&deaf, "copies");
    let keys = keys("hot", 1);
    assert_all(&put(&space, &keys, &pages(&keys, LEN)), PageOutcome::Stored);
    wait_for_copies(&listening, "a hot page", |copies| {
        (0..10).for_each(|_| assert_hits(&space, &keys, LEN));
        copies.hot_pages == 1
    });
    assert_eq!((deaf.stats().copies.hot_pages, homes(&deaf, &space, &keys[0]).len()), (0, 1));
}

/// A name server that tells of these daemons.
fn tell(names: &Names, daemons: &[&Daemon]) {
    let mut records = Vec::new();
    for (at, daemon) in daemons.iter().enumerate() {
        let name = format!("kv-{}.example.", daemon.port());
        records.push(srv("_memkv._tcp.kv.example.", (0, 100, daemon.port()), &name, 1));
        records.push(a(&name, [127, 0, 0, 1], 1));
        assert!(at < 10);
    }
    names.set(records);
}

/// Waits until the client has sessions to exactly so many servers.
fn wait_for_servers(client: &Client, count: usize) {
    wait_for("the members", PATIENCE, || {
        let views = client.servers();
        let ready = views.iter().all(|view| view.state == memkv_client::ServerState::Ready);
        (views.len() == count && ready).then_some(())
    })
    .unwrap();
}

#[test]
fn after_a_join_and_a_leave_pages_are_found_where_they_were_and_move() {
    let (names, daemons) = (Names::start(), daemons(3, &[]));
    let location = names.location("srv://_memkv._tcp.kv.example.");
    tell(&names, &[&daemons[0], &daemons[1]]);
    let options = [("discovery", &location[..]), ("member_ramp", "off"), ("member_grace", "1s")];
    let client = client_with(&options);
    wait_for_servers(&client, 2);
    let space = space_of(&client, "copies");
    let keys = keys("page", 120);
    assert_all(&put(&space, &keys, &pages(&keys, LEN)), PageOutcome::Stored);
    let owner = |key: &Vec<u8>| client.route(space.id(), key)[0].server.port;
    let settled = |what: &str, moved: u64, expected: usize| {
        let done = wait_for_copies(&client, what, |copies| copies.pending == 0 && copies.moved >= moved);
        assert_eq!(done.moved, moved, "{what}");
        assert_eq!(done.found_elsewhere, expected as u64, "{what}");
        // Now they are where they belong, and nowhere else.
        assert_hits(&space, &keys, LEN);
        assert_eq!(client.stats().copies.found_elsewhere, expected as u64, "{what}");
        for key in keys.iter().step_by(7) {
            assert_eq!(holders(&client, &space, key), homes(&client, &space, key), "{what}");
        }
    };

    tell(&names, &[&daemons[0], &daemons[1], &daemons[2]]);
    wait_for_servers(&client, 3);
    let joined = keys.iter().filter(|key| owner(key) == daemons[2].port()).count();
    assert!(joined > 10, "{joined}");
    assert_hits(&space, &keys, LEN);
    settled("moved after a join", joined as u64, joined);

    let left = keys.iter().filter(|key| owner(key) == daemons[0].port()).count();
    tell(&names, &[&daemons[1], &daemons[2]]);
    wait_for_servers(&client, 2);
    assert_hits(&space, &keys, LEN);
    settled("moved after a leave", (joined + left) as u64, joined + left);
}
