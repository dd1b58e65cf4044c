//! One run: builds the cluster, carries the plan out step by step, and looks at what is left.
//!
//! A run has three phases. First the cluster is disturbed while clients work. Then everything is healed, and every client
//! waits until it sees the cluster as it is and reads every page. Last the clients leave, and servers must be left with
//! nothing but pages.

use crate::book::Book;
use crate::disk;
use crate::net::{Network, PORT};
use crate::plan::{DISTURBED_MS, Fault, Memory, Plan, Way, Window};
use crate::rng::Rng;
use crate::sealed;
use crate::trace::{Listener, Trace};
use crate::work;
use memkv_client::ServerAddress;
use memkv_server::Config;
use memkv_server::config::HugePages;
use memkv_server::config::rdma::{RdmaConfig, RdmaMode};
use memkv_server::config::shm::ShmSocket;
use memkv_server::config::storage::{Numa, Share, StorageConfig};
use memkv_server::sim::{Census, SimServer};
use parking_lot::Mutex;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;
use tokio::sync::Notify;
use turmoil::net::TcpListener;
use turmoil::{Builder, Sim};

/// Simulated time of one step, in milliseconds.
const STEP_MS: u64 = 2;
/// How long clients may take to settle and read, and servers to be left with nothing.
const SETTLE_MS: u64 = 40_000;
const EMPTY_MS: u64 = 40_000;

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
    /// The member list and its number.
    pub(crate) members: Mutex<(u64, Vec<ServerAddress>)>,
    /// Pages that a calm run lost.
    pub(crate) lost: Mutex<Vec<String>>,
    pub(crate) settled: AtomicUsize,
    pub(crate) closed: AtomicUsize,
    pub(crate) ops: AtomicU64,
    pub(crate) hits: AtomicU64,
    recovered: AtomicU64,
    phase: AtomicU8,
    servers: Vec<Place>,
}

/// Where a server runs.
struct Place {
    running: Mutex<Option<SimServer>>,
    stop: Notify,
    folder: PathBuf,
}

impl Shared {
    pub(crate) fn phase(&self) -> Phase {
        match self.phase.load(Relaxed) {
            0 => Phase::Disturbed,
            1 => Phase::Settling,
            _ => Phase::Closing,
        }
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
    let trace = Trace::new(names.collect(), print);
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
        stop: Notify::new(),
        folder: folder.join(format!("s{server}")),
    };
    Arc::new(Shared {
        seed,
        net: Network::new(trace.clone(), seed, plan.window_bytes),
        trace,
        book: Mutex::new(Book::new(plan.keeps_owners() && !plan.tears())),
        members: Mutex::new((0, (0..plan.servers).map(member).collect())),
        lost: Mutex::default(),
        settled: AtomicUsize::new(0),
        closed: AtomicUsize::new(0),
        ops: AtomicU64::new(0),
        hits: AtomicU64::new(0),
        recovered: AtomicU64::new(0),
        phase: AtomicU8::new(0),
        servers: (0..plan.servers).map(place).collect(),
        plan,
    })
}

fn member(server: usize) -> ServerAddress {
    let name = format!("s{server}");
    ServerAddress { id: name.clone(), host: name, port: PORT, weight: 100 }
}

fn server_config(shared: &Shared, server: usize) -> Config {
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
            ..StorageConfig::default()
        },
        rdma: RdmaConfig { mode: RdmaMode::Off, ..RdmaConfig::default() },
        shm_socket: ShmSocket::Off,
        ..Config::default()
    }
}

/// One life of a server host.
async fn serve(shared: Arc<Shared>, server: usize) -> turmoil::Result {
    let place = &shared.servers[server];
    let listener = TcpListener::bind(("0.0.0.0", PORT)).await?;
    let (running, found) = SimServer::start(server_config(&shared, server)).await?;
    shared.recovered.fetch_add(found.dram_pages, Relaxed);
    shared.trace.note(&format!("starts with {} pages", found.dram_pages));
    *place.running.lock() = Some(running.clone());
    loop {
        let accepted = tokio::select! {
            biased;
            () = place.stop.notified() => break,
            accepted = listener.accept() => accepted?,
        };
        running.admit(shared.net.link(accepted.0, false)?);
    }
    drop(listener);
    shared.trace.note("stops");
    running.stop().await;
    place.running.lock().take();
    drop(running);
    shared.trace.note("stopped");
    std::future::pending().await
}

/// Carries the plan out.
struct Driver {
    shared: Arc<Shared>,
    sim: Sim<'static>,
    now_ms: u64,
    /// Begins and ends of faults, the next one last.
    due: Vec<(u64, bool, Window)>,
    rng: Rng,
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
        due.sort_by_key(|(at, begins, window)| std::cmp::Reverse((*at, *begins, window.server)));
        Self { rng: Rng::new(shared.seed, 0xD41E), shared: shared.clone(), sim, now_ms: 0, due, evicted: 0 }
    }

    /// All phases; an error ends the run at once.
    fn drive(&mut self) -> Result<(), String> {
        while self.now_ms < DISTURBED_MS {
            while self.due.last().is_some_and(|(at, ..)| *at <= self.now_ms) {
                let (_, begins, window) = self.due.pop().expect("there is one");
                self.apply(begins, &window);
            }
            self.step()?;
        }
        let clients = self.shared.plan.clients;
        self.shared.enter(Phase::Settling);
        self.until(SETTLE_MS, "clients settle and read", |shared| shared.settled.load(Relaxed) == clients)?;
        self.shared.enter(Phase::Closing);
        self.until(1000, "clients close", |shared| shared.closed.load(Relaxed) == clients)?;
        self.look_at_what_is_left()
    }

    fn step(&mut self) -> Result<(), String> {
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
        for (number, place) in self.shared.servers.iter().enumerate() {
            let Some(server) = place.running.lock().clone() else {
                return Err(format!("s{number} does not run at the end"));
            };
            self.evicted += server.census().engine.counters.evicted_pages;
            let corrupt = server.verify();
            if corrupt > 0 && !self.shared.plan.tears() {
                self.shared.trace.wrong(format!("s{number} has {corrupt} pages with wrong bytes"));
            }
            server.clear();
            let engine = server.census().engine;
            if (engine.pages, engine.used_slot_bytes) != (0, 0) {
                let text = format!("s{number} has no pages and holds slots: {engine:?}");
                self.shared.trace.wrong(text);
            }
        }
        let lost = std::mem::take(&mut *self.shared.lost.lock());
        if self.evicted == 0 {
            lost.into_iter().for_each(|text| self.shared.trace.wrong(text));
        }
        Ok(())
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

/// What faults do, and how they end.
impl Driver {
    fn apply(&mut self, begins: bool, window: &Window) {
        let word = if begins { "begins" } else { "ends" };
        self.shared.trace.note(&format!("s{}: {:?} {word}", window.server, window.fault));
        let server = window.server;
        let name = format!("s{server}");
        match window.fault {
            Fault::Frozen => self.hold(&name, None, begins),
            Fault::Loss { client } => self.hold(&name, Some(client), begins),
            Fault::Cut { client, way } => self.cut(&name, client, way, begins),
            Fault::Slow { client, ms } => {
                let ms = if begins { ms } else { self.shared.plan.latency_ms };
                for client in self.clients(client) {
                    self.sim.set_link_max_message_latency(
                        name.as_str(),
                        client.as_str(),
                        Duration::from_millis(ms),
                    );
                }
            }
            Fault::Resets => self.shared.net.reset_some(self.sim.lookup(name.as_str())),
            Fault::Flips { permille } => {
                let permille = if begins { permille } else { 0 };
                self.shared.net.flip(self.sim.lookup(name.as_str()), permille);
            }
            Fault::Crash { memory } if begins => self.crash(server, memory),
            Fault::Crash { .. } => self.sim.bounce(name.as_str()),
            Fault::Restart if begins => self.shared.servers[server].stop.notify_one(),
            Fault::Restart => {
                let memory = if self.shared.plan.durable { Memory::Kept } else { Memory::Lost };
                self.crash(server, memory);
                self.sim.bounce(name.as_str());
            }
            Fault::Left => self.set_weight(server, (!begins).then_some(100)),
            Fault::Weight(weight) => self.set_weight(server, Some(if begins { weight } else { 100 })),
            Fault::ClockJump { ms } => {
                let own = self.shared.plan.skews_ms[server];
                self.shared.trace.set_skew_ms(server, own + if begins { ms } else { 0 });
            }
        }
    }

    /// One client's name, or all.
    fn clients(&self, client: Option<usize>) -> Vec<String> {
        let all = 0..self.shared.plan.clients;
        all.filter(|number| client.is_none_or(|one| one == *number))
            .map(|number| format!("c{number}"))
            .collect()
    }

    fn hold(&self, server: &str, client: Option<usize>, begins: bool) {
        for client in self.clients(client) {
            if begins {
                self.sim.hold(server, client.as_str());
            } else {
                self.sim.release(server, client.as_str());
            }
        }
    }

    fn cut(&self, server: &str, client: Option<usize>, way: Way, begins: bool) {
        let to = self.sim.lookup(server);
        for client in self.clients(client) {
            let from = self.sim.lookup(client.as_str());
            if !begins {
                self.sim.repair(server, client.as_str());
                self.shared.net.heal(from, to);
                continue;
            }
            if way != Way::FromServer {
                self.sim.partition_oneway(client.as_str(), server);
                self.shared.net.cut(from, to);
            }
            if way != Way::ToServer {
                self.sim.partition_oneway(server, client.as_str());
                self.shared.net.cut(to, from);
            }
        }
    }

    fn crash(&mut self, server: usize, memory: Memory) {
        self.sim.crash(format!("s{server}"));
        let place = &self.shared.servers[server];
        place.running.lock().take();
        let done = match memory {
            Memory::Kept => Ok(()),
            Memory::Lost => disk::lose(&place.folder),
            Memory::Torn => disk::tear(&place.folder, &mut self.rng),
        };
        if let Err(error) = done {
            self.shared.trace.wrong(format!("cannot work on {}: {error}", place.folder.display()));
        }
    }

    /// Changes the member list; `None` takes the server out of it. The last one stays.
    fn set_weight(&mut self, server: usize, weight: Option<u32>) {
        let mut members = self.shared.members.lock();
        let mut list: Vec<_> = std::mem::take(&mut members.1);
        let id = format!("s{server}");
        list.retain(|member| member.id != id);
        if let Some(weight) = weight {
            list.push(ServerAddress { weight, ..member(server) });
        }
        if list.is_empty() {
            list.push(member(server));
        }
        list.sort_by(|a, b| a.id.cmp(&b.id));
        *members = (members.0 + 1, list);
    }
}
