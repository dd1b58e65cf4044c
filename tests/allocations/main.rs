//! No allocation per page, on neither side: a server in the test's own process, a real client, and an allocator that
//! counts.
//!
//! The caller's own thread, where blocking ops run, must allocate nothing at all. The server has other things to do
//! besides (sessions, timers), so what its threads allocate is compared between many small batches and as many large ones:
//! only what grows with the pages is an allocation per page.
//!
//! There is one: the index entry of a page that is stored. It lives as long as the page and goes with it.

#![deny(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "in a test, a panic is how a failure is reported")]

#[allow(unsafe_code, reason = "an allocator that counts can only be made with it")]
mod counting;

use counting::{Counts, alone, counted};
use memkv_client::blocking::{Client, Space};
use memkv_client::{Config, ErrorKind, PageOutcome, SpaceDescription, Transport};
use memkv_server::Server;
use memkv_server::config::{Config as ServerConfig, command};
use memkv_tests::pages::{keys, page};

/// Pages of a small batch and of a large one, and bytes of a page: below what several connections share.
const FEW: usize = 8;
const MANY: usize = 264;
const LEN: usize = 5000;
/// Batches of each size.
const ROUNDS: usize = 40;
/// How many allocations per page are none: a table that grows once, a timer that fires.
const NONE: f64 = 0.02;

/// A server of this process and a client of it; `None` if this build has no such transport.
fn start(transport: Transport) -> Option<(Server, Client, Space)> {
    let line =
        ["memkv-server", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--dram", "128MiB"];
    let args = command().try_get_matches_from(line).unwrap();
    let server = Server::start(ServerConfig::load(&args, None).unwrap().config).unwrap();
    let config = Config::builder().without_environment().servers(server.address().to_string());
    let client = match Client::connect(config.transport(transport).build().unwrap()) {
        Err(error) if error.kind() == ErrorKind::NotSupported => {
            eprintln!("skipped: {error}");
            return None;
        }
        client => client.unwrap(),
    };
    assert_eq!(client.servers()[0].transport, transport);
    let space = client.space(SpaceDescription::named("allocations").unwrap()).unwrap();
    Some((server, client, space))
}

/// Batches of one size: the keys of each round, and the caller's memory.
struct Batches<'a> {
    space: &'a Space,
    /// A put has keys of its own in each round; it removes them outside of what is counted.
    keys: Vec<Vec<u8>>,
    page: Vec<u8>,
    room: Vec<Vec<u8>>,
    out: Vec<PageOutcome>,
    flags: Vec<bool>,
}

impl<'a> Batches<'a> {
    fn new(space: &'a Space, count: usize) -> Self {
        Self {
            space,
            keys: keys(&format!("batch of {count}"), count),
            page: page(b"allocations", LEN),
            room: vec![vec![0; LEN]; count],
            out: vec![PageOutcome::Busy; count],
            flags: vec![false; count],
        }
    }

    /// Puts, asks, gets and removes all pages; what putting, asking and getting allocated.
    fn round(&mut self) -> [Counts; 3] {
        let count = self.keys.len();
        let sources = vec![&self.page[..]; count];
        let mut targets: Vec<&mut [u8]> = self.room.iter_mut().map(Vec::as_mut_slice).collect();
        let (space, keys, out, flags) = (self.space, &self.keys, &mut self.out, &mut self.flags);
        let put = counted(|| assert_eq!(space.put_from(keys, &sources, out).unwrap().ok, count));
        assert_eq!(out[..], vec![PageOutcome::Stored; count][..]);
        let exists = counted(|| assert_eq!(space.exists(keys, flags).unwrap().ok, count));
        let get = counted(|| assert_eq!(space.get_into(keys, &mut targets, out).unwrap().ok, count));
        assert!(self.room.iter().all(|page| *page == self.page));
        self.room.iter_mut().for_each(|page| page.fill(0));
        assert_eq!(space.delete(keys, flags).unwrap().ok, count);
        [put, exists, get]
    }

    /// The sum of many rounds, once everything has its size.
    fn rounds(&mut self) -> [Counts; 3] {
        // Which of its connections an op gets is chance, so buffers take some rounds to grow everywhere.
        for _ in 0..10 {
            self.round();
        }
        let mut sums = [Counts::default(); 3];
        for _ in 0..ROUNDS {
            for (sum, counts) in sums.iter_mut().zip(self.round()) {
                sum.own += counts.own;
                sum.others += counts.others;
            }
        }
        sums
    }
}

fn nothing_is_allocated_per_page(transport: Transport) {
    let _alone = alone();
    let Some((server, client, space)) = start(transport) else { return };
    let many = Batches::new(&space, MANY).rounds();
    let few = Batches::new(&space, FEW).rounds();
    let pages = ((MANY - FEW) * ROUNDS) as f64;
    // A page that is new has an entry in the index.
    let lawful = [("put", 1.0), ("exists", 0.0), ("get", 0.0)];
    for (((op, entries), many), few) in lawful.into_iter().zip(many).zip(few) {
        let per_page = (many.others as f64 - few.others as f64) / pages - entries;
        eprintln!(
            "{transport}: {op}: {few:?} and {many:?} in {ROUNDS} batches, {per_page:+.4} a page by others"
        );
        assert_eq!((few.own, many.own), (0, 0), "{transport}: {op} allocates on the caller's thread");
        assert!(per_page < NONE, "{transport}: {op} allocates {per_page:.3} times a page on other threads");
    }
    client.close();
    server.stop(std::future::pending());
}

#[test]
fn the_counter_counts() {
    let _alone = alone();
    let counts = counted(|| {
        drop(std::hint::black_box(Box::new(7)));
        let beside = || drop(std::hint::black_box(vec![1; 100]));
        std::thread::scope(|scope| drop(scope.spawn(beside)));
    });
    assert!(counts.own >= 1 && counts.others >= 1, "{counts:?}");
    let mut list = Vec::with_capacity(1);
    let grown = counted(|| list.extend_from_slice(&[1_u8; 4000]));
    assert_eq!(grown.own, 1, "growing counts");
    assert_eq!(counted(|| {}).own, 0);
}

#[test]
fn nothing_is_allocated_per_page_over_tcp() {
    nothing_is_allocated_per_page(Transport::Tcp);
}

#[test]
fn nothing_is_allocated_per_page_over_shm() {
    nothing_is_allocated_per_page(Transport::Shm);
}
