//! Calls that are given up: whoever dropped a future or whose deadline passed has its memory back, for good.

use crate::calls::runtime;
use crate::ops::{PATIENCE, assert_all, assert_hits, exists, get, put};
use crate::rig::{Rig, open, tests};
use memkv_client::PageOutcome;
use memkv_client::blocking::Space;
use memkv_tests::daemon::Daemon;
use memkv_tests::pages::{keys, page, pages};
use memkv_tests::wait_for;
use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

tests![
    dropped_gets_write_nothing_afterwards,
    dropped_puts_leave_whole_pages_or_none,
    a_call_to_a_frozen_server_times_out_and_writes_nothing_later,
    calls_that_a_freeze_interrupts_write_nothing_later,
];

/// What the caller's memory is filled with once it has it back.
const MINE: u8 = 0x5a;
const COUNT: usize = 24;

fn len(rig: &Rig) -> usize {
    rig.pick(200_000, 50_000)
}

/// Repeats `call` until the server is frozen in the middle of one, and drops that one. Calls that had ended by then.
fn drop_in_the_middle(daemon: &Daemon, least: usize, mut call: impl AsyncFnMut(usize)) -> usize {
    let ended = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let (say, frozen) = tokio::sync::oneshot::channel();
        let ended = &ended;
        scope.spawn(move || {
            let enough = || (ended.load(Ordering::SeqCst) >= least).then_some(());
            say.send(wait_for("calls end", PATIENCE, enough).and_then(|()| daemon.freeze())).unwrap();
        });
        let calls = async {
            loop {
                call(ended.load(Ordering::SeqCst)).await;
                ended.fetch_add(1, Ordering::SeqCst);
            }
        };
        runtime().block_on(async {
            tokio::select! {
                biased;
                result = frozen => result.unwrap().unwrap(),
                () = calls => {}
            }
        });
    });
    ended.into_inner()
}

/// Waits until the server works on nothing any more.
fn wait_until_quiet(daemon: &Daemon) {
    wait_for("nothing is in flight", PATIENCE, || {
        (daemon.metrics().ok()?.sum("memkv_requests_in_flight", &[]) == 0.0).then_some(())
    })
    .unwrap();
}

#[track_caller]
fn assert_mine(room: &[Vec<u8>]) {
    let is_mine = |page: &Vec<u8>| black_box(page).iter().all(|byte| *byte == MINE);
    assert!(room.iter().all(is_mine), "memory was written after its call had ended");
}

fn dropped_gets_write_nothing_afterwards(rig: &Rig) {
    let daemon = rig.daemon();
    let (client, space) = rig.space(&[&daemon], "dropped");
    let (all, len) = (keys("dropped", COUNT), len(rig));
    assert_all(&put(&space, &all, &pages(&all, len)), PageOutcome::Stored);
    for round in 0..rig.pick(6, 2) {
        let mut room = vec![vec![0; len]; COUNT];
        drop_in_the_middle(&daemon, round, async |_| {
            let mut slices: Vec<&mut [u8]> = room.iter_mut().map(Vec::as_mut_slice).collect();
            let mut out = [PageOutcome::Busy; COUNT];
            space.asynchronous().get_into(&all, &mut slices, &mut out).await.unwrap();
            assert_all(&out, PageOutcome::Hit);
        });
        room.iter_mut().for_each(|page| page.fill(MINE));
        daemon.thaw().unwrap();
        // The client goes on with the connections that it has left or opens anew.
        recover(&space, &daemon, &all);
        assert_mine(&room);
        assert_hits(&space, &all, len);
    }
    client.close();
}

fn dropped_puts_leave_whole_pages_or_none(rig: &Rig) {
    let daemon = rig.daemon();
    let (client, space) = rig.space(&[&daemon], "dropped");
    let len = len(rig);
    let there = keys("there", 1);
    for round in 0..rig.pick(6, 2) {
        assert_all(&put(&space, &there, &pages(&there, len)), PageOutcome::Stored);
        let keys_of = |call: usize| keys(&format!("{round}-{}", call % 4), COUNT);
        let mut bytes = Vec::new();
        let ended = drop_in_the_middle(&daemon, round, async |call| {
            let all = keys_of(call);
            bytes = pages(&all, len);
            let sources: Vec<&[u8]> = bytes.iter().map(Vec::as_slice).collect();
            let mut out = [PageOutcome::Busy; COUNT];
            space.asynchronous().put_from(&all, &sources, &mut out).await.unwrap();
            assert!(out.iter().all(|outcome| outcome.is_success()), "{out:?}");
        });
        // A server that read on would store these bytes.
        bytes.iter_mut().for_each(|page| page.fill(MINE));
        black_box(&bytes);
        daemon.thaw().unwrap();
        recover(&space, &daemon, &there);
        for call in 0..=ended.min(3) {
            let all = keys_of(call);
            for (key, (outcome, bytes)) in all.iter().zip(get(&space, &all, len)) {
                match outcome {
                    PageOutcome::Hit => assert!(bytes == page(key, len), "{} is wrong", key.escape_ascii()),
                    other => assert!(other == PageOutcome::Miss && call == ended % 4, "{call}: {other:?}"),
                }
            }
            let again = put(&space, &all, &pages(&all, len));
            assert!(again.iter().all(|outcome| outcome.is_success()), "{again:?}");
            assert_hits(&space, &all, len);
        }
        space.clear().unwrap();
    }
    client.close();
}

/// Waits until a thawed server is used again and has done all that it was sent.
fn recover(space: &Space, daemon: &Daemon, key: &[Vec<u8>]) {
    wait_for("the server is used again", PATIENCE, || exists(space, key)[0].then_some(())).unwrap();
    wait_until_quiet(daemon);
}

fn a_call_to_a_frozen_server_times_out_and_writes_nothing_later(rig: &Rig) {
    let daemon = rig.daemon();
    let client = rig.hasty_client(&[&daemon]);
    let (space, len) = (open(&client, "frozen"), len(rig));
    let (all, new) = (keys("frozen", COUNT), keys("new", COUNT));
    assert_all(&put(&space, &all, &pages(&all, len)), PageOutcome::Stored);
    for call in ["get", "put"] {
        recover(&space, &daemon, &all);
        daemon.freeze().unwrap();
        let mut room = pages(&new, len);
        let mut out = [PageOutcome::Busy; COUNT];
        let start = Instant::now();
        if call == "get" {
            let mut slices: Vec<&mut [u8]> = room.iter_mut().map(Vec::as_mut_slice).collect();
            space.get_into(&all, &mut slices, &mut out).unwrap();
        } else {
            let slices: Vec<&[u8]> = room.iter().map(Vec::as_slice).collect();
            space.put_from(&new, &slices, &mut out).unwrap();
        }
        assert!(start.elapsed() < rig.short_bound(), "a {call} took {:?}", start.elapsed());
        assert!(start.elapsed() >= rig.short_timeout(), "a {call} was given up after {:?}", start.elapsed());
        assert_all(&out, PageOutcome::TimedOut);
        room.iter_mut().for_each(|page| page.fill(MINE));
        daemon.thaw().unwrap();
        recover(&space, &daemon, &all);
        assert_mine(&room);
    }
    // A put whose deadline passed may have been carried out or not; bytes from after it are no page.
    for (key, (outcome, bytes)) in new.iter().zip(get(&space, &new, len)) {
        assert!(outcome == PageOutcome::Miss || (outcome == PageOutcome::Hit && bytes == page(key, len)));
    }
    assert_hits(&space, &all, len);
    client.close();
}

fn calls_that_a_freeze_interrupts_write_nothing_later(rig: &Rig) {
    const READERS: usize = 3;
    let daemon = rig.daemon();
    let client = rig.hasty_client(&[&daemon]);
    let (space, len) = (open(&client, "interrupted"), len(rig));
    let all = keys("interrupted", COUNT);
    assert_all(&put(&space, &all, &pages(&all, len)), PageOutcome::Stored);
    for round in 0..rig.pick(4, 2) {
        let hits = AtomicUsize::new(0);
        let kept: Vec<Vec<Vec<u8>>> = std::thread::scope(|scope| {
            let reading = || {
                // Until a call does not bring all of its pages.
                let mut room = vec![vec![0; len]; COUNT];
                loop {
                    let mut slices: Vec<&mut [u8]> = room.iter_mut().map(Vec::as_mut_slice).collect();
                    let mut out = [PageOutcome::Busy; COUNT];
                    space.get_into(&all, &mut slices, &mut out).unwrap();
                    for ((key, outcome), bytes) in all.iter().zip(&out).zip(&room) {
                        assert!(*outcome != PageOutcome::Hit || *bytes == page(key, len), "wrong bytes");
                    }
                    if out.iter().any(|outcome| *outcome != PageOutcome::Hit) {
                        room.iter_mut().for_each(|page| page.fill(MINE));
                        return room;
                    }
                    hits.fetch_add(1, Ordering::SeqCst);
                }
            };
            let threads: Vec<_> = (0..READERS).map(|_| scope.spawn(reading)).collect();
            let goal = 5 + round;
            wait_for("pages move", PATIENCE, || (hits.load(Ordering::SeqCst) >= goal).then_some(())).unwrap();
            daemon.freeze().unwrap();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        daemon.thaw().unwrap();
        recover(&space, &daemon, &all);
        kept.iter().for_each(|room| assert_mine(room));
        assert_hits(&space, &all, len);
    }
    client.close();
}
