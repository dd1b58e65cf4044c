//! Servers that die, freeze, stop and come back: misses within the deadline, never an error, never wrong bytes.

use crate::common::{OP_TIMEOUT, PATIENCE, SLACK, assert_all, assert_hits, exists, get, put, tcp_space};
use memkv_client::blocking::{Client, Space};
use memkv_client::{PageOutcome, ServerState};
use memkv_tests::daemon::Daemon;
use memkv_tests::pages::{keys, page, pages};
use memkv_tests::proxy::{Faults, Proxy};
use memkv_tests::wait_for;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const LEN: usize = 20_000;

fn three() -> [Daemon; 3] {
    [Daemon::start().unwrap(), Daemon::start().unwrap(), Daemon::start().unwrap()]
}

/// The keys that this daemon owns, and the others.
fn split(client: &Client, space: &Space, all: &[Vec<u8>], daemon: &Daemon) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let owned = |key: &&Vec<u8>| client.route(space.id(), key)[0].server.port == daemon.port();
    all.iter().cloned().partition(|key| owned(&key))
}

/// What a load of several threads saw.
#[derive(Default)]
struct Load {
    stop: AtomicBool,
    hits: AtomicUsize,
    failed: AtomicUsize,
    slowest_ms: AtomicUsize,
}

impl Load {
    /// Puts and gets until told to stop. Errors and wrong bytes panic; the rest is counted.
    fn run(&self, space: &Space, thread: usize) {
        for lap in 0.. {
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            let all = keys(&format!("load-{thread}-{}", lap % 40), 12);
            let bytes = pages(&all, LEN);
            self.timed(|| put(space, &all, &bytes));
            for ((outcome, got), expected) in self.timed(|| get(space, &all, LEN)).iter().zip(&bytes) {
                match outcome {
                    PageOutcome::Hit => {
                        assert!(got == expected, "wrong bytes");
                        self.hits.fetch_add(1, Ordering::SeqCst);
                    }
                    PageOutcome::Miss | PageOutcome::Unavailable | PageOutcome::TimedOut => {
                        self.failed.fetch_add(1, Ordering::SeqCst);
                    }
                    other => panic!("a get became {other:?}"),
                }
            }
            self.timed(|| exists(space, &all));
        }
    }

    fn timed<T>(&self, call: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = call();
        self.slowest_ms.fetch_max(start.elapsed().as_millis() as usize, Ordering::SeqCst);
        result
    }

    /// Waits for so many more hits.
    fn more_hits(&self, count: usize) {
        let goal = self.hits.load(Ordering::SeqCst) + count;
        wait_for("the load goes on", PATIENCE, || (self.hits.load(Ordering::SeqCst) >= goal).then_some(()))
            .unwrap();
    }

    /// Runs four threads of load while `story` happens.
    fn during(space: &Space, story: impl FnOnce(&Load)) -> Load {
        let load = Load::default();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let load = &load;
                scope.spawn(move || load.run(space, thread));
            }
            // A story that fails must still stop the load, or the scope would never end.
            let told = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| story(&load)));
            load.stop.store(true, Ordering::SeqCst);
            if let Err(panic) = told {
                std::panic::resume_unwind(panic);
            }
        });
        let slowest = Duration::from_millis(load.slowest_ms.load(Ordering::SeqCst) as u64);
        assert!(slowest < OP_TIMEOUT + SLACK, "a call took {slowest:?}, its deadline is {OP_TIMEOUT:?}");
        load
    }
}

#[test]
fn kill_9_of_one_of_three_servers_costs_only_its_own_keys() {
    let mut daemons = three();
    let (client, space) = tcp_space(&daemons.each_ref(), "kill");
    let kept = keys("kept", 120);
    assert_all(&put(&space, &kept, &pages(&kept, LEN)), PageOutcome::Stored);
    let (lost, alive) = split(&client, &space, &kept, &daemons[1]);
    assert!(lost.len() > 10 && alive.len() > 40);
    let load = Load::during(&space, |load| {
        load.more_hits(200);
        daemons[1].kill().unwrap();
        load.more_hits(400);
        assert_hits(&space, &alive, LEN);
        assert!(get(&space, &lost, LEN).iter().all(|(outcome, _)| !outcome.is_success()));
        assert!(exists(&space, &alive).iter().all(|&found| found));
        assert!(exists(&space, &lost).iter().all(|&found| !found));
    });
    assert!(load.failed.load(Ordering::SeqCst) > 0, "nobody noticed the kill");
    client.close();
}

#[test]
fn a_killed_server_is_used_again_after_its_restart() {
    let mut daemons = three();
    let (client, space) = tcp_space(&daemons.each_ref(), "restart");
    let all = keys("restart", 60);
    assert_all(&put(&space, &all, &pages(&all, LEN)), PageOutcome::Stored);
    let (lost, alive) = split(&client, &space, &all, &daemons[2]);
    daemons[2].kill().unwrap();
    assert!(put(&space, &lost, &pages(&lost, LEN)).iter().all(|outcome| !outcome.is_success()));
    daemons[2].restart().unwrap();
    // Nothing but time and the same calls: the client reconnects and opens its space there by itself.
    wait_for("pages are stored there again", PATIENCE, || {
        put(&space, &lost, &pages(&lost, LEN)).iter().all(|outcome| outcome.is_success()).then_some(())
    })
    .unwrap();
    assert_hits(&space, &lost, LEN);
    assert_hits(&space, &alive, LEN);
    assert!(client.servers().iter().all(|server| matches!(server.state, ServerState::Ready)));
    client.close();
}

#[test]
fn a_frozen_server_costs_a_deadline_and_then_nothing() {
    let daemons = three();
    let (client, space) = tcp_space(&daemons.each_ref(), "freeze");
    let all = keys("freeze", 60);
    assert_all(&put(&space, &all, &pages(&all, LEN)), PageOutcome::Stored);
    let (silent, alive) = split(&client, &space, &all, &daemons[0]);
    daemons[0].freeze().unwrap();
    // Its keys are misses within the deadline, in the same batch as the others' hits.
    for _ in 0..4 {
        let start = Instant::now();
        let outcomes = get(&space, &all, LEN);
        assert!(start.elapsed() < OP_TIMEOUT + SLACK, "{:?}", start.elapsed());
        for (key, (outcome, bytes)) in all.iter().zip(outcomes) {
            if alive.contains(key) {
                assert!(outcome == PageOutcome::Hit && bytes == page(key, LEN), "{outcome:?}");
            } else {
                assert!(!outcome.is_success(), "{outcome:?}");
            }
        }
    }
    // By now the breaker is open: the server is not waited for any more.
    let suspect =
        client.servers().into_iter().find(|server| server.address.port == daemons[0].port()).unwrap();
    assert!(!matches!(suspect.state, ServerState::Ready), "{:?}", suspect.state);
    let start = Instant::now();
    for _ in 0..10 {
        assert!(exists(&space, &silent).iter().all(|&found| !found));
    }
    assert!(start.elapsed() < OP_TIMEOUT, "ten calls after the breaker opened took {:?}", start.elapsed());
    daemons[0].thaw().unwrap();
    wait_for("its pages hit again", PATIENCE, || {
        exists(&space, &silent).iter().all(|&found| found).then_some(())
    })
    .unwrap();
    assert_hits(&space, &all, LEN);
    client.close();
}

#[test]
fn a_stalled_network_is_like_a_frozen_server() {
    let daemon = Daemon::start().unwrap();
    let proxy = Proxy::start(daemon.addr()).unwrap();
    let client = crate::common::client_of(&[proxy.addr()], memkv_client::Transport::Tcp);
    let space = client.space(memkv_client::SpaceDescription::named("stall").unwrap()).unwrap();
    let all = keys("stall", 10);
    assert_all(&put(&space, &all, &pages(&all, LEN)), PageOutcome::Stored);
    proxy.set(Faults { stall: true, ..Faults::default() });
    let start = Instant::now();
    assert!(get(&space, &all, LEN).iter().all(|(outcome, _)| !outcome.is_success()));
    assert!(start.elapsed() < OP_TIMEOUT + SLACK, "{:?}", start.elapsed());
    proxy.set(Faults::default());
    // Late bytes of the old replies must not land in these pages.
    wait_for("pages hit again", PATIENCE, || {
        let got = get(&space, &all, LEN);
        for (key, (outcome, bytes)) in all.iter().zip(&got) {
            assert!(*outcome != PageOutcome::Hit || *bytes == page(key, LEN), "wrong bytes");
        }
        got.iter().all(|(outcome, _)| *outcome == PageOutcome::Hit).then_some(())
    })
    .unwrap();
    client.close();
}

#[test]
fn sigterm_under_load_ends_cleanly() {
    let mut daemons = three();
    let (client, space) = tcp_space(&daemons.each_ref(), "term");
    Load::during(&space, |load| {
        load.more_hits(200);
        let status = daemons[0].stop().unwrap();
        assert!(status.success(), "{status}");
        load.more_hits(400);
    });
    let log = daemons[0].log();
    assert!(daemons[0].unexpected_log_lines().is_empty(), "{log}");
    client.close();
}

#[test]
fn all_servers_gone_is_all_misses() {
    let mut daemons = three();
    let (client, space) = tcp_space(&daemons.each_ref(), "gone");
    let all = keys("gone", 30);
    assert_all(&put(&space, &all, &pages(&all, LEN)), PageOutcome::Stored);
    for daemon in &mut daemons {
        daemon.kill().unwrap();
    }
    for _ in 0..5 {
        let start = Instant::now();
        assert!(get(&space, &all, LEN).iter().all(|(outcome, _)| !outcome.is_success()));
        assert!(put(&space, &all, &pages(&all, LEN)).iter().all(|outcome| !outcome.is_success()));
        assert_eq!(space.exists_prefix(&all).unwrap(), 0);
        assert!(start.elapsed() < 3 * OP_TIMEOUT + SLACK);
    }
    let start = Instant::now();
    client.close();
    assert!(start.elapsed() < PATIENCE, "close waits for the dead");
}
