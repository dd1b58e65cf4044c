//! Clients that know what each page must hold.

use memkv_client::blocking::{Client, Space};
use memkv_client::{Config, PageOutcome, SpaceDescription, Transport};
use memkv_tests::daemon::KEY;
use memkv_tests::pages::page;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::faults::Rng;

/// The deadline of every call.
const OP_TIMEOUT: Duration = Duration::from_secs(1);
/// A call that takes longer than this hangs: the machine may be busy, and a stopped server is not the caller's fault.
const HANG: Duration = Duration::from_secs(8);
/// Chains of pages, and pages of one: together more than the servers' memory holds.
const CHAINS: usize = 400;
const CHAIN: usize = 16;
const LENGTHS: [usize; 4] = [3_000, 16 << 10, 40_000, 64 << 10];

/// What the load has counted.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) calls: u64,
    pub(crate) hits: u64,
    pub(crate) misses: u64,
    pub(crate) stored: u64,
    pub(crate) bytes: u64,
    /// Pages whose server was not there or did not answer in time.
    pub(crate) unavailable: u64,
    /// Pages that the client found damaged and did not hand out.
    pub(crate) refused: u64,
    /// Pages that were handed out with other bytes than were put.
    pub(crate) wrong: u64,
    /// Calls that hung.
    pub(crate) late: u64,
    /// Exceptions of the plugin; clients in Rust have none.
    pub(crate) raised: u64,
}

impl Counts {
    pub(crate) fn since(&self, before: &Self) -> Self {
        self.with(before, u64::saturating_sub)
    }

    /// The sum of both.
    pub(crate) fn and(&self, other: &Self) -> Self {
        self.with(other, u64::saturating_add)
    }

    fn with(&self, other: &Self, join: fn(u64, u64) -> u64) -> Self {
        Self {
            calls: join(self.calls, other.calls),
            hits: join(self.hits, other.hits),
            misses: join(self.misses, other.misses),
            stored: join(self.stored, other.stored),
            bytes: join(self.bytes, other.bytes),
            unavailable: join(self.unavailable, other.unavailable),
            refused: join(self.refused, other.refused),
            wrong: join(self.wrong, other.wrong),
            late: join(self.late, other.late),
            raised: join(self.raised, other.raised),
        }
    }
}

#[derive(Debug, Default)]
struct Shared {
    over: AtomicBool,
    counts: [AtomicU64; 9],
}

impl Shared {
    fn add(&self, which: usize, amount: u64) {
        self.counts[which].fetch_add(amount, Ordering::Relaxed);
    }

    fn counts(&self) -> Counts {
        let [calls, hits, misses, stored, bytes, unavailable, refused, wrong, late] =
            std::array::from_fn(|which| self.counts[which].load(Ordering::Relaxed));
        Counts { calls, hits, misses, stored, bytes, unavailable, refused, wrong, late, raised: 0 }
    }
}

/// Running clients.
pub(crate) struct Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts clients of `servers`: over the network, and as close as the host allows.
    pub(crate) fn start(servers: &str, seed: u64) -> Self {
        let shared = Arc::new(Shared::default());
        let ways = [Transport::Tcp, Transport::Tcp, Transport::Auto];
        let threads = ways.iter().zip(1_u64..).map(|(way, number)| {
            let client = Client::connect(config(servers, *way)).unwrap();
            let space = client.space(SpaceDescription::named("campaign").unwrap()).unwrap();
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || {
                work(&space, &shared, &mut Rng::new(seed ^ number << 20));
                client.close();
            })
        });
        let threads = threads.collect();
        Self { shared, threads }
    }

    /// What was counted so far.
    pub(crate) fn counts(&self) -> Counts {
        self.shared.counts()
    }

    /// Ends all clients.
    pub(crate) fn stop(self) -> Counts {
        self.shared.over.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().expect("a client panicked");
        }
        self.shared.counts()
    }
}

fn config(servers: &str, transport: Transport) -> Config {
    let builder = Config::builder().without_environment().servers(servers).auth_key_hex(KEY);
    builder.transport(transport).op_timeout(OP_TIMEOUT).build().unwrap()
}

/// The keys of a run of one chain, and the length of its pages.
fn run(random: &mut Rng) -> (Vec<Vec<u8>>, usize) {
    // Some chains are asked for much more often than others.
    let chain = random.below(CHAINS).min(random.below(CHAINS));
    let from = random.below(CHAIN / 2);
    let to = from + 1 + random.below(CHAIN - from);
    let keys = (from..to).map(|at| format!("chain/{chain}/{at}").into_bytes()).collect();
    (keys, LENGTHS[chain % LENGTHS.len()])
}

fn work(space: &Space, shared: &Shared, random: &mut Rng) {
    while !shared.over.load(Ordering::Relaxed) {
        let (keys, len) = run(random);
        let begun = Instant::now();
        match random.below(16) {
            0 => drop(space.delete(&keys, &mut vec![false; keys.len()])),
            1 => drop(space.exists_prefix(&keys)),
            _ => get_or_put(space, shared, &keys, len),
        }
        shared.add(0, 1);
        if begun.elapsed() > 2 * HANG {
            shared.add(8, 1);
        }
    }
}

/// What an engine does: reads what is there, computes the rest and puts it.
fn get_or_put(space: &Space, shared: &Shared, keys: &[Vec<u8>], len: usize) {
    let mut rooms = vec![vec![0; len]; keys.len()];
    let mut outcomes = vec![PageOutcome::Unavailable; keys.len()];
    let mut targets: Vec<&mut [u8]> = rooms.iter_mut().map(Vec::as_mut_slice).collect();
    let begun = Instant::now();
    let got = space.get_into(keys, &mut targets, &mut outcomes);
    if begun.elapsed() > HANG {
        shared.add(8, 1);
    }
    if got.is_err() {
        return;
    }
    let mut absent = Vec::new();
    for ((key, room), outcome) in keys.iter().zip(&rooms).zip(&outcomes) {
        let right = page(key, len);
        match outcome {
            PageOutcome::Hit => {
                shared.add(1, 1);
                shared.add(4, len as u64);
                if *room != right {
                    shared.add(7, 1);
                    eprintln!("wrong bytes under {}", String::from_utf8_lossy(key));
                }
            }
            PageOutcome::Corrupt => shared.add(6, 1),
            PageOutcome::Unavailable | PageOutcome::TimedOut | PageOutcome::Busy => shared.add(5, 1),
            _ => {
                shared.add(2, 1);
                absent.push((key, right));
            }
        }
    }
    let keys: Vec<&Vec<u8>> = absent.iter().map(|(key, _)| *key).collect();
    let pages: Vec<&[u8]> = absent.iter().map(|(_, page)| page.as_slice()).collect();
    let mut outcomes = vec![PageOutcome::Unavailable; keys.len()];
    if !keys.is_empty() && space.put_from(&keys, &pages, &mut outcomes).is_ok() {
        let stored = outcomes.iter().filter(|outcome| **outcome == PageOutcome::Stored).count() as u64;
        shared.add(3, stored);
        shared.add(4, stored * len as u64);
    }
}
