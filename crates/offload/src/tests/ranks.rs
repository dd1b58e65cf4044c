//! Several ranks in step, each on a thread, each with faults of its own: their caches stay equal.

use super::fake::Fake;
use super::rig::{Rig, Setup, keys, prompt};
use crate::{Ranks, RanksLost, StopPolicy, Warmup};
use memkv_client::PageOutcome;
use memkv_radix::{Access, Request, WritePolicy};
use parking_lot::{Condvar, Mutex};
use std::sync::Arc;
use std::time::Duration;

/// How long a rank waits for the others before it takes them for dead.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where the ranks of one engine meet.
struct Meeting {
    ranks: usize,
    round: Mutex<Round>,
    over: Condvar,
}

#[derive(Default)]
struct Round {
    number: u64,
    values: Vec<Vec<u64>>,
    least: Vec<u64>,
}

impl Meeting {
    fn of(ranks: usize) -> Arc<Self> {
        Arc::new(Self { ranks, round: Mutex::default(), over: Condvar::new() })
    }

    /// Waits for all ranks; returns the smallest values.
    fn min(&self, values: &[u64]) -> Vec<u64> {
        let mut round = self.round.lock();
        let number = round.number;
        round.values.push(values.to_vec());
        if round.values.len() == self.ranks {
            let all = std::mem::take(&mut round.values);
            assert!(all.iter().all(|rank| rank.len() == values.len()), "the ranks differ in their jobs");
            let least = |at| all.iter().map(|rank: &Vec<u64>| rank[at]).min();
            round.least = (0..values.len()).filter_map(least).collect();
            round.number += 1;
            self.over.notify_all();
        }
        while round.number == number {
            let waited = self.over.wait_for(&mut round, PATIENCE);
            assert!(!waited.timed_out(), "another rank does not come");
        }
        round.least.clone()
    }
}

struct Member {
    meeting: Arc<Meeting>,
    /// Calls in which the network is down.
    down: Vec<usize>,
    calls: usize,
}

impl Ranks for Member {
    fn min(&mut self, values: &mut [u64]) -> Result<(), RanksLost> {
        self.calls += 1;
        if self.down.contains(&self.calls) {
            return Err(RanksLost("the network is down".to_owned()));
        }
        values.copy_from_slice(&self.meeting.min(values));
        Ok(())
    }
}

/// Numbers that look random.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

/// What can be seen of a cache from outside: for each prompt its device pages and how much host memory has.
type View = Vec<(Vec<u32>, usize)>;

fn view(rig: &mut Rig, prompts: &[Vec<u32>]) -> View {
    let space = rig.space.clone();
    let look = |text: &Vec<u32>| {
        let found = rig.cache.match_prefix(Access::of(&space), text.into());
        (found.pages.iter().map(memkv_radix::PageId::index).collect(), found.host_pages)
    };
    prompts.iter().map(look).collect()
}

/// One rank's life: `script` is the same for all, `faults` is its own.
fn live(
    rank: usize,
    meeting: Arc<Meeting>,
    write: WritePolicy,
    stores: &[Fake],
) -> (Vec<View>, crate::Stats) {
    let mut setup = Setup { write, device_pages: 30, host_pages: 60, ..Setup::default() };
    if write == WritePolicy::Selective {
        // Then prefetches are stopped while some ranks are done and others are not.
        setup.options.stop = StopPolicy::BestEffort;
    }
    let mut rig = Rig::new(&setup, &stores[rank]);
    let down = vec![11, 12, 40];
    rig.tiers = rig.tiers.with_ranks(Box::new(Member { meeting, down, calls: 0 }));
    let space = rig.space.clone();
    let prompts: Vec<Vec<u32>> = (1..=6).map(|seed| prompt(seed, 9)).collect();
    let (mut script, mut faults) = (Dice(77), Dice(1000 + rank as u64));
    let mut waiting: Vec<(Request, Warmup, Vec<u32>)> = Vec::new();
    let mut views = Vec::new();
    for step in 0..400 {
        // The same on all ranks.
        if waiting.len() < 3 && script.roll(3) == 0 {
            let text = prompts[script.roll(6) as usize].clone();
            waiting.push((rig.start(&text), Warmup::default(), text));
        }
        if script.roll(9) == 0 {
            rig.tiers.make_room(&mut rig.cache, 40);
        }
        if script.roll(9) == 0 {
            rig.cache.evict_host(9);
        }
        if script.roll(12) == 0 && !waiting.is_empty() {
            let (request, _, _) = waiting.remove(0);
            rig.cache.abort(request);
        }
        let mut still = Vec::new();
        for (mut request, mut warmup, text) in waiting {
            if script.roll(3) > 0 {
                // Its turn has not come.
                still.push((request, warmup, text));
            } else if rig.tiers.warm(&mut rig.cache, Access::of(&space), &mut request, &mut warmup) {
                serve(&mut rig, request, &text);
            } else {
                still.push((request, warmup, text));
            }
        }
        waiting = still;
        // Each rank has its own speed and its own bad luck.
        for _ in 0..faults.roll(4) {
            rig.hand.turn();
        }
        rig.device.stop_after((faults.roll(10) == 0).then(|| faults.roll(4) as usize));
        rig.store.break_all((faults.roll(8) == 0).then_some(PageOutcome::TimedOut));
        if faults.roll(40) == 0 {
            rig.hand.drop_all();
        }
        rig.poll();
        if step % 10 == 0 {
            views.push(view(&mut rig, &prompts));
        }
    }
    for (request, warmup, _) in waiting {
        drop(warmup);
        rig.cache.abort(request);
    }
    // Every rank calls for the same number of agreements, however long its own transfers take.
    while rig.hand.turn() {}
    for _ in 0..200 {
        rig.store.break_all(None);
        rig.device.stop_after(None);
        rig.poll();
        while rig.hand.turn() {}
    }
    views.push(view(&mut rig, &prompts));
    assert!(rig.tiers.is_idle());
    (views, rig.tiers.stats())
}

fn serve(rig: &mut Rig, request: Request, text: &[u32]) {
    if rig.cache.stats().device_free < 12 && rig.cache.stats().evictable_tokens < 48 {
        rig.cache.abort(request);
    } else {
        rig.compute(request, text);
    }
}

/// Runs ranks over stores that have what they have; returns each one's views and figures.
fn run(ranks: usize, write: WritePolicy, stores: &[Fake]) -> Vec<(Vec<View>, crate::Stats)> {
    let meeting = Meeting::of(ranks);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..ranks)
            .map(|rank| {
                let meeting = meeting.clone();
                scope.spawn(move || live(rank, meeting, write, stores))
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

#[test]
fn the_caches_of_ranks_with_different_faults_stay_equal() {
    for write in [WritePolicy::Through, WritePolicy::Selective, WritePolicy::Back] {
        let stores: Vec<Fake> = (0..3).map(|_| Fake::default()).collect();
        let ranks = run(3, write, &stores);
        assert_eq!(ranks[0].0, ranks[1].0, "{write:?}");
        assert_eq!(ranks[0].0, ranks[2].0, "{write:?}");
        for (_, stats) in &ranks {
            assert!(stats.lost_agreements > 0, "{stats:?}");
            assert!(stats.failed_backups + stats.failed_loads > 0, "{stats:?}");
            assert!(stats.stopped_prefetches > 0, "{stats:?}");
            assert!(stats.prefetched_pages > 0 && stats.loaded_pages > 0, "{stats:?}");
        }
        assert_ne!(ranks[0].1, ranks[1].1, "the faults were the ranks' own");
    }
}

#[test]
fn all_ranks_get_what_the_poorest_has() {
    let text = prompt(1, 12);
    let stores: Vec<Fake> = (0..2)
        .map(|_| {
            let store = Fake::default();
            let mut rig = Rig::new(&Setup::default(), &store);
            rig.serve(&text);
            rig.settle();
            store
        })
        .collect();
    // One rank lacks page 9; the other cannot read page 5 although it is there.
    stores[0].remove(keys(&text)[9]);
    stores[1].spoil(keys(&text)[5], PageOutcome::Corrupt);
    let meeting = Meeting::of(2);
    let found: Vec<usize> = std::thread::scope(|scope| {
        let threads: Vec<_> = stores
            .iter()
            .map(|store| {
                let (meeting, text) = (meeting.clone(), &text);
                scope.spawn(move || {
                    let mut rig = Rig::new(&Setup::default(), store);
                    let member = Member { meeting, down: Vec::new(), calls: 0 };
                    rig.tiers = rig.tiers.with_ranks(Box::new(member));
                    let found = rig.serve_warm(text);
                    assert_eq!(rig.tiers.stats().prefetched_pages, 5);
                    found
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(found, [5, 5]);
}
