//! Several clients and threads at once, also where there is not room for all pages.

use crate::ops::{assert_all, assert_hits, exists, get, put};
use crate::rig::{Rig, tests};
use memkv_client::PageOutcome;
use memkv_client::blocking::Space;
use memkv_tests::pages::{keys, page, pages};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

tests![
    of_many_puts_of_one_key_one_wins,
    threads_of_one_client_do_not_disturb_each_other,
    clients_read_what_others_wrote,
    pages_evicted_while_they_are_read_are_right_or_missing,
    pages_deleted_while_they_are_read_are_right_or_missing,
];

fn of_many_puts_of_one_key_one_wins(rig: &Rig) {
    const WRITERS: usize = 6;
    let daemon = rig.daemon();
    let clients: Vec<_> = (0..WRITERS).map(|_| rig.space(&[&daemon], "race")).collect();
    let barrier = Barrier::new(WRITERS);
    for round in 0..rig.pick(20, 5) {
        let key = keys(&format!("race-{round}"), 1);
        // Every writer has other bytes, so that a page made of two shows.
        let bytes = |writer: usize| page(format!("{round} {writer}").as_bytes(), 200_000);
        let outcomes: Vec<PageOutcome> = std::thread::scope(|scope| {
            let racing: Vec<_> = clients
                .iter()
                .enumerate()
                .map(|(writer, (_, space))| {
                    let (key, barrier, bytes) = (&key, &barrier, bytes(writer));
                    scope.spawn(move || {
                        barrier.wait();
                        put(space, key, &[bytes]).remove(0)
                    })
                })
                .collect();
            racing.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let count = |what| outcomes.iter().filter(|outcome| **outcome == what).count();
        let (stored, existing) = (count(PageOutcome::Stored), count(PageOutcome::Exists));
        assert_eq!((stored, existing), (1, WRITERS - 1), "{outcomes:?}");
        let winner = outcomes.iter().position(|outcome| *outcome == PageOutcome::Stored).unwrap();
        for (_, space) in &clients {
            let (outcome, got) = get(space, &key, 200_000).remove(0);
            assert_eq!(outcome, PageOutcome::Hit);
            assert!(got == bytes(winner), "the page is not the winner's");
        }
    }
    for (client, _) in clients {
        client.close();
    }
}

fn threads_of_one_client_do_not_disturb_each_other(rig: &Rig) {
    let daemon = rig.daemon();
    let (client, space) = rig.space(&[&daemon], "threads");
    std::thread::scope(|scope| {
        for thread in 0..6 {
            let space = &space;
            scope.spawn(move || {
                for lap in 0..rig.pick(5, 2) {
                    let all = keys(&format!("{thread}-{lap}"), 20);
                    let len = 10_000 * (thread + 1);
                    assert_all(&put(space, &all, &pages(&all, len)), PageOutcome::Stored);
                    assert_hits(space, &all, len);
                    assert!(exists(space, &all).iter().all(|&found| found));
                }
            });
        }
    });
    client.close();
}

fn clients_read_what_others_wrote(rig: &Rig) {
    const CLIENTS: usize = 4;
    let daemon = rig.daemon();
    let (len, count) = (rig.pick(300_000, 50_000), 16);
    let barrier = Barrier::new(CLIENTS);
    std::thread::scope(|scope| {
        for me in 0..CLIENTS {
            let (daemon, barrier) = (&daemon, &barrier);
            scope.spawn(move || {
                let (client, space) = rig.space(&[daemon], "shared");
                let of = |client: usize| keys(&format!("by-{client}"), count);
                assert_all(&put(&space, &of(me), &pages(&of(me), len)), PageOutcome::Stored);
                barrier.wait();
                for other in 0..CLIENTS {
                    assert_hits(&space, &of((me + other) % CLIENTS), len);
                }
                client.close();
            });
        }
    });
}

/// Reads pages of the newest batches until told to stop; says how many hit.
fn read(space: &Space, newest: &AtomicUsize, stop: &AtomicBool, batch: usize, len: usize) -> usize {
    let (mut hits, mut lap) = (0, 0);
    while !stop.load(Ordering::SeqCst) {
        // Some are there for sure, some are about to go, some are gone.
        let back = [0, 3, 8, 1, 12, 5][lap % 6];
        lap += 1;
        let Some(number) = newest.load(Ordering::SeqCst).checked_sub(1 + back) else { continue };
        let all = keys(&format!("flow-{number}"), batch);
        for (key, (outcome, bytes)) in all.iter().zip(get(space, &all, len)) {
            match outcome {
                PageOutcome::Hit => {
                    assert!(bytes == page(key, len), "wrong bytes under {}", key.escape_ascii());
                    hits += 1;
                }
                other => assert!(matches!(other, PageOutcome::Miss | PageOutcome::Busy), "{other:?}"),
            }
        }
    }
    hits
}

/// Readers beside a writer that makes `laps` batches of pages, with `after` behind each.
fn flow(rig: &Rig, dram: &str, laps: usize, after: impl Fn(&Space, usize)) -> (u64, usize) {
    let daemon = rig.daemon_with(dram, &["--eviction-policy", "lru"]);
    let (batch, len) = (8, 512 << 10);
    let (newest, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let readers = [rig.space(&[&daemon], "flow"), rig.space(&[&daemon], "flow")];
    let (writer, space) = rig.space(&[&daemon], "flow");
    let hits: usize = std::thread::scope(|scope| {
        let reading: Vec<_> = readers
            .iter()
            .map(|(_, space)| scope.spawn(|| read(space, &newest, &stop, batch, len)))
            .collect();
        // A writer that fails must still stop the readers, or the scope would never end.
        let written = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for lap in 0..laps {
                let all = keys(&format!("flow-{lap}"), batch);
                for outcome in put(&space, &all, &pages(&all, len)) {
                    assert!(matches!(outcome, PageOutcome::Stored | PageOutcome::Busy), "{outcome:?}");
                }
                newest.store(lap + 1, Ordering::SeqCst);
                after(&space, lap);
            }
        }));
        stop.store(true, Ordering::SeqCst);
        if let Err(panic) = written {
            std::panic::resume_unwind(panic);
        }
        reading.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    let evicted = daemon.control().unwrap().status().unwrap().ops.unwrap().evicted;
    writer.close();
    for (client, _) in readers {
        client.close();
    }
    (evicted, hits)
}

fn pages_evicted_while_they_are_read_are_right_or_missing(rig: &Rig) {
    let (evicted, hits) = flow(rig, "64MiB", rig.pick(80, 30), |_, _| {});
    assert!(evicted > 50 && hits > 50, "{evicted} pages were evicted, {hits} hit");
}

fn pages_deleted_while_they_are_read_are_right_or_missing(rig: &Rig) {
    let (_, hits) = flow(rig, "160MiB", rig.pick(40, 15), |space, lap| {
        if let Some(old) = lap.checked_sub(2) {
            let all = keys(&format!("flow-{old}"), 8);
            space.delete(&all, &mut [false; 8]).unwrap();
        }
    });
    assert!(hits > 20, "{hits} hits");
}
