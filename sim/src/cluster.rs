//! One run: builds the cluster, carries the plan out step by step, and looks at what is left.
//!
//! A run has three phases. First the cluster is disturbed while clients work. Then everything is healed, and every client
//! waits until it sees the cluster as it is and reads every page. Last the clients leave, and servers must be left with
//! nothing but pages. What a fault does is in [`crate::faults`].

use crate::book::Book;
use crate::faults::Draining;
use crate::net::{Network, PORT, Port};
use crate::plan::{DISTURBED_MS, Plan, Window};
use crate::rng::Rng;
use crate::sealed;
use crate::trace::{Listener, Trace};
use crate::work;
use memkv_client::ServerAddress;
use memkv_core::Limits;
use memkv_server::Config;
use memkv_server::config::HugePages;
use memkv_server::config::rdma::{RdmaConfig, RdmaMode};
use memkv_server::config::shm::ShmSocket;
use memkv_server::config::storage::{DrivePath, Io, Numa, NvmeMode, Share, StorageConfig};
use memkv_server::sim::{Census, FaultPlan, SimServer};
use parking_lot::Mutex;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;
use turmoil::net::TcpListener;
use turmoil::{Builder, Sim};

/// Simulated time of one step, in milliseconds.
const STEP_MS: u64 = 2;
/// How long clients may take to settle and read, and servers to be left with nothing.
const SETTLE_MS: u64 = 40_000;
const EMPTY_MS: u64 = 40_000;
/// The largest page a server takes: not much more than the largest there is, so that segments are small.
const PAGE_BYTES_MAX: u32 = 64 << 10;
/// How long drives may take to let go of what was removed.
const DRIVES_MS: u64 = 5000;

/// What the run is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Disturbed = 0,
    Settling = 1,
    Closing = 2,
}

/// What the hosts and the driver of a run share.
pub(crate) struct Shared {
    pub(crate) seed: u64,
    pub(crate) plan: Plan,
    pub(crate) trace: Arc<Trace>,
    pub(crate) net: Arc<Network>,
    pub(crate) book: Mutex<Book>,
    /// The member list and its number, and since when each is a member.
    pub(crate) members: Mutex<(u64, Vec<(ServerAddress, u64)>)>,
    /// Reads that missed pages in a run in which none may be lost.
    pub(crate) lost: Mutex<Vec<String>>,
    /// Pages that were still not there in the end, however often they were read.
    pub(crate) gone: Mutex<Vec<String>>,
    /// Pages that came back after their removal.
    pub(crate) revived: Mutex<Vec<String>>,
    /// When each client gave up an op.
    pub(crate) given_up: Vec<Mutex<Vec<Instant>>>,
    pub(crate) settled: AtomicUsize,
    pub(crate) closed: AtomicUsize,
    pub(crate) ops: AtomicU64,
    pub(crate) hits: AtomicU64,
    recovered: AtomicU64,
    /// Pages that stores gave up by themselves.
    forgotten: AtomicU64,
    moments: AtomicU64,
    /// Removals that stores could not note on their drives.
    unnoted: AtomicU64,
    /// Reads of drives that missed because there was no room in memory.
    busy: AtomicU64,
    phase: AtomicU8,
    pub(crate) servers: Vec<Place>,
}

/// Where a server runs.
pub(crate) struct Place {
    pub(crate) running: Mutex<Option<SimServer>>,
    pub(crate) order: Mutex<Option<Order>>,
    pub(crate) ordered: Notify,
    /// Its memory, if that outlives it, and the folder of its drive.
    pub(crate) folder: PathBuf,
    pub(crate) drive: PathBuf,
    pub(crate) faults: Arc<FaultPlan>,
    /// How often it was started.
    pub(crate) lives: AtomicU64,
}

/// What a server is told.
pub(crate) enum Order {
    Stop,
    Drain(Vec<ServerAddress>),
    CancelDrain,
}

impl Shared {
    pub(crate) fn phase(&self) -> Phase {
        match self.phase.load(Relaxed) {
            0 => Phase::Disturbed,
            1 => Phase::Settling,
            _ => Phase::Closing,
        }
    }

    /// Notes what a server has forgotten in a life that ends, or in its last one.
    pub(crate) fn count_forgotten(&self, server: &SimServer) {
        let status = server.census().engine;
        let counters = &status.counters;
        let mut gone =
            counters.demote_unread + counters.demote_dropped + counters.persist_dropped + counters.corrupt;
        for drive in status.nvme.iter().flat_map(|nvme| &nvme.log.drives) {
            let dropped = &drive.dropped;
            gone += drive.reclaimed_segments + dropped.full + dropped.drive_failed + dropped.backlog;
        }
        self.forgotten.fetch_add(gone, Relaxed);
        self.busy.fetch_add(counters.promote_busy, Relaxed);
        self.unnoted.fetch_add(status.nvme.as_ref().map_or(0, |nvme| nvme.removals_failed), Relaxed);
    }

    /// How many reads of pages on drives found no room in memory so far.
    pub(crate) fn without_room(&self) -> u64 {
        let running = self.servers.iter().filter_map(|place| place.running.lock().clone());
        let now: u64 = running.map(|server| server.census().engine.counters.promote_busy).sum();
        self.busy.load(Relaxed) + now
    }

    /// A number that is greater each time. What orders ops: the clocks of two hosts differ by up to a step.
    pub(crate) fn moment(&self) -> u64 {
        self.moments.fetch_add(1, Relaxed)
    }

    fn enter(&self, phase: Phase) {
        self.trace.note(&format!("{phase:?}"));
        self.phase.store(phase as u8, Relaxed);
    }
}

/// What a run came to.
pub(crate) struct Report {
    pub(crate) plan: Plan,
    pub(crate) digest: u64,
    pub(crate) events: u64,
    pub(crate) ops: u64,
    pub(crate) hits: u64,
    pub(crate) evicted: u64,
    pub(crate) recovered: u64,
    pub(crate) simulated_ms: u64,
    pub(crate) wrong: Vec<String>,
    pub(crate) last: Vec<String>,
}

/// Runs a seed on this thread, which is sealed for good. `folder` is for memory that outlives servers.
pub(crate) fn run(seed: u64, folder: &Path, print: bool) -> Report {
    sealed::seal(seed);
    sealed::hurry(memkv_server::sim::prepare);
    let plan = Plan::new(seed);
    let names = (0..plan.servers).map(|n| format!("s{n}")).chain((0..plan.clients).map(|n| format!("c{n}")));
    let trace = Trace::new(names.collect(), folder, print);
    for (host, skew) in plan.skews_ms.iter().enumerate() {
        trace.set_skew_ms(host, *skew);
    }
    tracing::subscriber::set_global_default(Listener(trace.clone())).expect("a process runs one seed");
    let shared = share(seed, plan, trace, folder);
    let mut driver = Driver::new(shared.clone());
    if let Err(text) = driver.drive() {
        shared.trace.wrong(text);
    }
    driver.report()
}

fn share(seed: u64, plan: Plan, trace: Arc<Trace>, folder: &Path) -> Arc<Shared> {
    let place = |server| Place {
        running: Mutex::default(),
        order: Mutex::default(),
        ordered: Notify::new(),
        folder: folder.join(format!("s{server}")),
        drive: folder.join(format!("s{server}-drive")),
        faults: FaultPlan::new(),
        lives: AtomicU64::new(0),
    };
    // Drives are made in it.
    std::fs::create_dir_all(folder).expect("a folder for the servers");
    Arc::new(Shared {
        seed,
        net: Network::new(trace.clone(), seed, plan.window_bytes),
        trace,
        book: Mutex::new(Book::new(plan.keeps_removals())),
        members: Mutex::new((1, (0..plan.servers).map(|server| (member(server), 0)).collect())),
        lost: Mutex::default(),
        gone: Mutex::default(),
        revived: Mutex::default(),
        moments: AtomicU64::new(1),
        unnoted: AtomicU64::new(0),
        busy: AtomicU64::new(0),
        given_up: (0..plan.clients).map(|_| Mutex::default()).collect(),
        settled: AtomicUsize::new(0),
        closed: AtomicUsize::new(0),
        ops: AtomicU64::new(0),
        hits: AtomicU64::new(0),
        recovered: AtomicU64::new(0),
        forgotten: AtomicU64::new(0),
        phase: AtomicU8::new(0),
        servers: (0..plan.servers).map(place).collect(),
        plan,
    })
}

pub(crate) fn member(server: usize) -> ServerAddress {
    let name = format!("s{server}");
    ServerAddress { id: name.clone(), host: name, port: PORT, weight: 100 }
}

fn server_config(shared: &Shared, server: usize) -> Config {
    let drives = shared.plan.drives;
    let drive = |quota_bytes| DrivePath {
        path: shared.servers[server].drive.clone(),
        quota_bytes: Some(quota_bytes),
    };
    let through = drives.is_some_and(|drives| drives.through);
    Config {
        node_id: Some(format!("s{server}")),
        auth_key: Some(work::key()),
        dram_bytes: shared.plan.dram_bytes,
        prefault: false,
        huge_pages: HugePages::Off,
        high_watermark: 0.9,
        low_watermark: 0.8,
        stall_timeout: Duration::from_secs(2),
        handshake_timeout: Duration::from_secs(1),
        ping_interval: Duration::from_millis(500),
        storage: StorageConfig {
            backing: shared.plan.durable.then(|| shared.servers[server].folder.clone()),
            share: Share::Off,
            numa: Numa::Off,
            scrub_bytes_per_s: 4 << 20,
            policy: shared.plan.policy,
            drives: drives.iter().map(|drives| drive(drives.quota_bytes)).collect(),
            nvme_mode: if through { NvmeMode::WriteThrough } else { NvmeMode::Demote },
            nvme_io: Io::Threads,
            nvme_sync: drives.is_some_and(|drives| drives.sync),
            segment_bytes: 1 << 20,
            queue_depth: 16,
            admit_unread: true,
            ..StorageConfig::default()
        },
        limits: Limits { page_bytes_max: PAGE_BYTES_MAX, ..Limits::default() },
        rdma: RdmaConfig { mode: RdmaMode::Off, ..RdmaConfig::default() },
        shm_socket: ShmSocket::Off,
        ..Config::default()
    }
}

/// One life of a server host.
async fn serve(shared: Arc<Shared>, server: usize) -> turmoil::Result {
    let place = &shared.servers[server];
    let listener = TcpListener::bind(("0.0.0.0", PORT)).await?;
    let port = Arc::new(Port { net: shared.net.clone(), host: format!("s{server}") });
    let config = server_config(&shared, server);
    let (running, found) = SimServer::start(config, &place.faults, port).await?;
    place.lives.fetch_add(1, Relaxed);
    running.hear_epoch(shared.members.lock().0);
    shared.recovered.fetch_add(found.dram_pages + found.nvme_pages, Relaxed);
    shared.trace.note(&format!("starts with {} pages and {} on a drive", found.dram_pages, found.nvme_pages));
    *place.running.lock() = Some(running.clone());
    loop {
        let accepted = tokio::select! {
            biased;
            () = place.ordered.notified() => None,
            accepted = listener.accept() => Some(accepted?),
        };
        if let Some((stream, _)) = accepted {
            running.admit(shared.net.link(stream, false)?);
            continue;
        }
        let order = place.order.lock().take();
        match order {
            None => {}
            Some(Order::Stop) => break,
            Some(order) => drop(tokio::spawn(obey(shared.clone(), running.clone(), order))),
        }
    }
    drop(listener);
    shared.trace.note("stops");
    running.stop().await;
    shared.count_forgotten(&running);
    running.let_go();
    place.running.lock().take();
    drop(running);
    shared.trace.note("stopped");
    std::future::pending().await
}

/// Begins or ends a drain.
async fn obey(shared: Arc<Shared>, running: SimServer, order: Order) {
    match order {
        Order::Stop => {}
        Order::CancelDrain => running.cancel_drain().await,
        Order::Drain(members) => {
            let members =
                members.into_iter().map(|member| (member.id, member.host, member.port, member.weight));
            let begun = running.drain(members.collect(), shared.plan.replicas).await;
            shared.trace.note(&format!("drains: {begun:?}"));
        }
    }
}

/// Carries the plan out.
pub(crate) struct Driver {
    pub(crate) shared: Arc<Shared>,
    pub(crate) sim: Sim<'static>,
    pub(crate) now_ms: u64,
    /// Drains that were begun, by server.
    pub(crate) draining: Vec<Option<Draining>>,
    /// Begins and ends of faults, the next one last.
    due: Vec<(u64, bool, Window)>,
    pub(crate) rng: Rng,
    evicted: u64,
}

impl Driver {
    fn new(shared: Arc<Shared>) -> Self {
        let plan = &shared.plan;
        let mut sim = Builder::new()
            .rng_seed(shared.seed)
            .tick_duration(Duration::from_millis(STEP_MS))
            .simulation_duration(Duration::from_secs(3600))
            .max_message_latency(Duration::from_millis(plan.latency_ms))
            .tcp_capacity(4096)
            .enable_random_order()
            .build();
        for server in 0..plan.servers {
            let shared = shared.clone();
            sim.host(format!("s{server}"), move || serve(shared.clone(), server));
        }
        for client in 0..plan.clients {
            let shared = shared.clone();
            sim.host(format!("c{client}"), move || {
                let shared = shared.clone();
                async move {
                    work::run(shared, client).await;
                    std::future::pending().await
                }
            });
        }
        let mut due: Vec<_> = plan
            .windows
            .iter()
            .flat_map(|window| [(window.from_ms, true, *window), (window.to_ms, false, *window)])
            .collect();
        if plan.drives.is_some() {
            shared.servers.iter().for_each(|place| place.faults.keep_unsynced());
        }
        due.sort_by_key(|(at, begins, window)| std::cmp::Reverse((*at, *begins, window.server)));
        Self {
            rng: Rng::new(shared.seed, 0xD41E),
            shared: shared.clone(),
            draining: (0..plan.servers).map(|_| None).collect(),
            sim,
            now_ms: 0,
            due,
            evicted: 0,
        }
    }

    /// All phases; an error ends the run at once.
    fn drive(&mut self) -> Result<(), String> {
        while self.now_ms < DISTURBED_MS {
            self.apply_due();
            self.step()?;
        }
        // What ends within the last step.
        self.apply_due();
        let clients = self.shared.plan.clients;
        self.shared.enter(Phase::Settling);
        self.until(SETTLE_MS, "clients settle and read", |shared| shared.settled.load(Relaxed) == clients)?;
        self.shared.enter(Phase::Closing);
        self.until(1000, "clients close", |shared| shared.closed.load(Relaxed) == clients)?;
        self.look_at_what_is_left()
    }

    fn apply_due(&mut self) {
        while self.due.last().is_some_and(|(at, ..)| *at <= self.now_ms) {
            let (_, begins, window) = self.due.pop().expect("there is one");
            self.apply(begins, &window);
        }
    }

    pub(crate) fn step(&mut self) -> Result<(), String> {
        self.sim.step().map_err(|error| format!("a host ended: {error}"))?;
        self.now_ms += STEP_MS;
        self.shared.trace.set_now_ms(self.now_ms);
        if crate::panics() > 0 {
            return Err("something panicked, see above".to_owned());
        }
        Ok(())
    }

    fn until(&mut self, most_ms: u64, what: &str, done: impl Fn(&Shared) -> bool) -> Result<(), String> {
        let until = self.now_ms + most_ms;
        while !done(&self.shared) {
            if self.now_ms > until {
                return Err(format!("after {most_ms} ms it still was not so that {what}"));
            }
            self.step()?;
        }
        Ok(())
    }

    /// Without clients, servers are left with pages and nothing else; without pages, with nothing.
    fn look_at_what_is_left(&mut self) -> Result<(), String> {
        let until = self.now_ms + EMPTY_MS;
        let mut left = self.left();
        while !left.is_empty() {
            if self.now_ms > until {
                return Err(format!("servers still hold things {EMPTY_MS} ms after clients left: {left:?}"));
            }
            for _ in 0..20 {
                self.step()?;
            }
            left = self.left();
        }
        for number in 0..self.shared.servers.len() {
            self.look_at_pages(number)?;
        }
        let [lost, gone] =
            [&self.shared.lost, &self.shared.gone].map(|list| std::mem::take(&mut *list.lock()));
        let (forgotten, busy) = (self.shared.forgotten.load(Relaxed), self.shared.busy.load(Relaxed));
        let note = format!(
            "reads missed {} times what was promised, and {} pages for good; {forgotten} were forgotten, {busy} reads found no room",
            lost.len(),
            gone.len(),
        );
        self.shared.trace.note(&note);
        let (may_miss, may_lose) = match self.shared.plan.is_durable() {
            true => (forgotten + busy > 0, forgotten > 0),
            false => (self.evicted > 0, self.evicted > 0),
        };
        for (may, list) in [(may_miss, lost), (may_lose, gone)] {
            list.into_iter().filter(|_| !may).for_each(|text| self.shared.trace.wrong(text));
        }
        let revived = std::mem::take(&mut *self.shared.revived.lock());
        if self.shared.unnoted.load(Relaxed) == 0 {
            revived.into_iter().for_each(|text| self.shared.trace.wrong(text));
        }
        Ok(())
    }

    /// What a server still stores must be right, and be gone when all is removed.
    fn look_at_pages(&mut self, number: usize) -> Result<(), String> {
        let shared = self.shared.clone();
        let Some(server) = shared.servers[number].running.lock().clone() else {
            return Err(format!("s{number} does not run at the end"));
        };
        shared.count_forgotten(&server);
        self.evicted += server.census().engine.counters.evicted_pages;
        let corrupt = server.verify();
        if corrupt > 0 && !shared.plan.tears() {
            shared.trace.wrong(format!("s{number} has {corrupt} pages with wrong bytes"));
        }
        server.clear();
        let until = self.now_ms + if shared.plan.drives.is_some() { DRIVES_MS } else { 0 };
        loop {
            let engine = server.census().engine;
            if (engine.pages, engine.used_slot_bytes) == (0, 0) {
                return Ok(());
            }
            if self.now_ms >= until {
                shared.trace.wrong(format!("s{number} has no pages and holds slots: {engine:?}"));
                return Ok(());
            }
            self.step()?;
        }
    }

    /// Which servers hold what clients should have given back.
    fn left(&self) -> Vec<String> {
        let holds = |census: &Census| {
            census.sessions > 0 || census.data_connections > 0 || census.in_flight > 0 || census.regions > 0
        };
        let tell = |(number, place): (usize, &Place)| {
            let census = place.running.lock().as_ref().map(SimServer::census)?;
            let Census { sessions, data_connections, in_flight, regions, .. } = census;
            holds(&census).then(|| {
                format!(
                    "s{number}: {sessions} sessions, {data_connections} data connections, {in_flight} requests, {regions} regions"
                )
            })
        };
        self.shared.servers.iter().enumerate().filter_map(tell).collect()
    }

    fn report(mut self) -> Report {
        let shared = self.shared.clone();
        for place in &shared.servers {
            place.running.lock().take();
        }
        let (digest, events) = shared.trace.digest();
        self.due.clear();
        Report {
            plan: shared.plan.clone(),
            digest,
            events,
            ops: shared.ops.load(Relaxed),
            hits: shared.hits.load(Relaxed),
            evicted: self.evicted,
            recovered: shared.recovered.load(Relaxed),
            simulated_ms: self.now_ms,
            wrong: shared.trace.violations(),
            last: shared.trace.last(),
        }
    }
}
