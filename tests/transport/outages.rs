//! Servers that die, freeze, stop and come back: misses within the deadline, never an error, never wrong bytes.

use crate::ops::{PATIENCE, assert_all, assert_hits, exists, get, put};
use crate::rig::{Rig, open, tests};
use memkv_client::blocking::{Client, Space};
use memkv_client::{PageOutcome, ServerState};
use memkv_tests::daemon::Daemon;
use memkv_tests::pages::{keys, page, pages};
use memkv_tests::wait_for;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

tests![
    kill_9_of_one_of_three_servers_costs_only_its_own_keys,
    a_server_killed_in_the_middle_of_batches_is_used_again_after_its_restart,
    a_frozen_server_costs_a_deadline_and_then_nothing,
    sigterm_under_load_ends_cleanly,
    all_servers_gone_is_all_misses,
];

const LEN: usize = 20_000;

fn three(rig: &Rig) -> [Daemon; 3] {
    [rig.daemon(), rig.daemon(), rig.daemon()]
}

/// The keys that this daemon owns, and the others.
fn split(client: &Client, space: &Space, all: &[Vec<u8>], daemon: &Daemon) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let owned = |key: &&Vec<u8>| client.route(space.id(), key)[0].server.port == daemon.port();
    all.iter().cloned().partition(|key| owned(&key))
}

/// A client with a short deadline, and its space.
fn hasty_space(rig: &Rig, daemons: &[&Daemon]) -> (Client, Space) {
    let client = rig.hasty_client(daemons);
    let space = open(&client, "outage");
    (client, space)
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
    fn run(&self, space: &Space, thread: usize, count: usize, len: usize) {
        for lap in 0.. {
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            let all = keys(&format!("load-{thread}-{}", lap % 8), count);
            let bytes = pages(&all, len);
            self.timed(|| put(space, &all, &bytes));
            for ((outcome, got), expected) in self.timed(|| get(space, &all, len)).iter().zip(&bytes) {
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

    /// Runs threads of load, batches of `count` pages of `len` bytes, while `story` happens.
    fn during(rig: &Rig, space: &Space, (count, len): (usize, usize), story: impl FnOnce(&Load)) -> Load {
        let load = Load::default();
        std::thread::scope(|scope| {
            for thread in 0..rig.pick(4, 2) {
                let load = &load;
                scope.spawn(move || load.run(space, thread, count, len));
            }
            // A story that fails must still stop the load, or the scope would never end.
            let told = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| story(&load)));
            load.stop.store(true, Ordering::SeqCst);
            if let Err(panic) = told {
                std::panic::resume_unwind(panic);
            }
        });
        let slowest = Duration::from_millis(load.slowest_ms.load(Ordering::SeqCst) as u64);
        let (bound, timeout) = (rig.short_bound(), rig.short_timeout());
        assert!(slowest < bound, "a call took {slowest:?}, its deadline is {timeout:?}");
        load
    }
}

fn kill_9_of_one_of_three_servers_costs_only_its_own_keys(rig: &Rig) {
    let mut daemons = three(rig);
    let (client, space) = hasty_space(rig, &daemons.each_ref());
    let kept = keys("kept", 120);
    assert_all(&put(&space, &kept, &pages(&kept, LEN)), PageOutcome::Stored);
    let (lost, alive) = split(&client, &space, &kept, &daemons[1]);
    assert!(lost.len() > 10 && alive.len() > 40);
    let load = Load::during(rig, &space, (12, LEN), |load| {
        load.more_hits(100);
        daemons[1].kill().unwrap();
        load.more_hits(200);
        assert_hits(&space, &alive, LEN);
        assert!(get(&space, &lost, LEN).iter().all(|(outcome, _)| !outcome.is_success()));
        assert!(exists(&space, &alive).iter().all(|&found| found));
        assert!(exists(&space, &lost).iter().all(|&found| !found));
    });
    assert!(load.failed.load(Ordering::SeqCst) > 0, "nobody noticed the kill");
    client.close();
}

fn a_server_killed_in_the_middle_of_batches_is_used_again_after_its_restart(rig: &Rig) {
    let mut daemon = rig.daemon();
    let (client, space) = hasty_space(rig, &[&daemon]);
    let (count, len) = (16, rig.pick(256 << 10, 64 << 10));
    let load = Load::during(rig, &space, (count, len), |load| {
        for _ in 0..rig.pick(3, 2) {
            load.more_hits(2 * count);
            daemon.kill().unwrap();
            let failed = load.failed.load(Ordering::SeqCst);
            wait_for("the kill is noticed", PATIENCE, || {
                (load.failed.load(Ordering::SeqCst) > failed).then_some(())
            })
            .unwrap();
            daemon.restart().unwrap();
        }
        // Nothing but time and the same calls: the client reconnects and opens its space there by itself.
        load.more_hits(4 * count);
    });
    assert!(load.failed.load(Ordering::SeqCst) > 0);
    let all = keys("after", 30);
    assert_all(&put(&space, &all, &pages(&all, LEN)), PageOutcome::Stored);
    assert_hits(&space, &all, LEN);
    let view = client.servers().remove(0);
    assert_eq!((view.state, view.transport), (ServerState::Ready, rig.transport));
    client.close();
}

fn a_frozen_server_costs_a_deadline_and_then_nothing(rig: &Rig) {
    let daemons = three(rig);
    let (client, space) = hasty_space(rig, &daemons.each_ref());
    let all = keys("freeze", 60);
    assert_all(&put(&space, &all, &pages(&all, LEN)), PageOutcome::Stored);
    let (silent, alive) = split(&client, &space, &all, &daemons[0]);
    daemons[0].freeze().unwrap();
    // Its keys are misses within the deadline, in the same batch as the others' hits.
    for _ in 0..4 {
        let start = Instant::now();
        let outcomes = get(&space, &all, LEN);
        assert!(start.elapsed() < rig.short_bound(), "{:?}", start.elapsed());
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
    let (spent, timeout) = (start.elapsed(), rig.short_timeout());
    assert!(spent < timeout, "ten calls after the breaker opened took {spent:?}");
    daemons[0].thaw().unwrap();
    wait_for("its pages hit again", PATIENCE, || {
        exists(&space, &silent).iter().all(|&found| found).then_some(())
    })
    .unwrap();
    assert_hits(&space, &all, LEN);
    client.close();
}

fn sigterm_under_load_ends_cleanly(rig: &Rig) {
    let mut daemons = three(rig);
    let (client, space) = hasty_space(rig, &daemons.each_ref());
    Load::during(rig, &space, (12, LEN), |load| {
        load.more_hits(100);
        let status = daemons[0].stop().unwrap();
        assert!(status.success(), "{status}");
        load.more_hits(200);
    });
    let log = daemons[0].log();
    assert!(daemons[0].unexpected_log_lines().is_empty(), "{log}");
    client.close();
}

fn all_servers_gone_is_all_misses(rig: &Rig) {
    let mut daemons = three(rig);
    let (client, space) = hasty_space(rig, &daemons.each_ref());
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
        assert!(start.elapsed() < 3 * rig.short_bound());
    }
    let start = Instant::now();
    client.close();
    assert!(start.elapsed() < Duration::from_secs(20), "close waits for the dead");
}
