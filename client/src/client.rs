//! The client: its servers, its background runtime, its life and end.

use crate::config::{TlsMode, Transport};
use crate::discovery::{self, Discovery};
use crate::fill::{self, Copies};
use crate::hedge::Pace;
use crate::hot::Announced;
use crate::members::Members;
use crate::plan::ScratchPool;
use crate::server::{Attempt, Server};
use crate::spin::Spin;
use crate::stats::Counters;
use crate::tls::{Binding, Tls};
use crate::way::Way;
use crate::{ClientStats, Config, Error, ErrorKind, ServerAddress, Space, control, drive, rdma, session};
use arc_swap::ArcSwap;
use memkv_core::page::key_digest;
use memkv_core::route::{self, Ranks};
use memkv_core::{Key, Limits, SpaceDescription, SpaceId};
use memkv_proto::v1;
use memkv_rdma::Verbs;
use memkv_transport::tenant::ClientSecret;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::mem::ManuallyDrop;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::time::Instant;

/// How often it is looked whether a server that is being emptied still needs an old member list.
const DRAIN_LOOK: Duration = Duration::from_secs(10);

/// What a client's background tasks share with it. Does not keep the client alive.
pub(crate) struct Shared {
    pub(crate) config: Config,
    /// What this client proves to servers; nothing to those without a key.
    pub(crate) secret: Option<ClientSecret>,
    /// Processors that this process may use.
    pub(crate) cores: usize,
    pub(crate) spin: Spin,
    /// The NICs, if there are any to use.
    pub(crate) rdma: Option<Arc<rdma::Context>>,
    /// The network of a simulation.
    /// TLS, if the configuration asks for it.
    pub(crate) tls: std::sync::OnceLock<Arc<Tls>>,
    #[cfg(feature = "sim")]
    pub(crate) net: std::sync::OnceLock<Arc<dyn memkv_transport::sim::Net>>,
    spaces: Mutex<BTreeMap<SpaceId, SpaceDescription>>,
    /// Who the members are, and how they are found.
    pub(crate) discovery: Discovery,
    members: ArcSwap<Members>,
    /// Held while a new list is made from the present one.
    adopting: Mutex<Announced>,
    /// How long reads take.
    pub(crate) pace: Pace,
    /// Copies that are missing.
    pub(crate) copies: Copies,
    /// Counts reads, from anywhere, so that those of hot pages begin at different servers.
    pub(crate) turn: AtomicU64,
    this: std::sync::Weak<Shared>,
}

impl Shared {
    pub(crate) fn new(config: Config, rdma: Option<Arc<rdma::Context>>) -> Arc<Self> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let secret = config.auth_key.clone().map(|key| ClientSecret::new(key, config.tenant.as_deref()));
        Arc::new_cyclic(|this| Self {
            config,
            secret,
            cores,
            spin: Spin::default(),
            rdma,
            tls: std::sync::OnceLock::new(),
            #[cfg(feature = "sim")]
            net: std::sync::OnceLock::new(),
            spaces: Mutex::default(),
            discovery: Discovery::default(),
            members: ArcSwap::default(),
            adopting: Mutex::default(),
            pace: Pace::default(),
            copies: Copies::default(),
            // Clients that begin together must not go the same ways.
            turn: AtomicU64::new(getrandom::u64().unwrap_or(0)),
            this: this.clone(),
        })
    }

    /// All spaces that were opened with this client.
    pub(crate) fn all_spaces(&self) -> Vec<SpaceDescription> {
        self.spaces.lock().values().cloned().collect()
    }

    /// The cluster as it is now.
    pub(crate) fn members(&self) -> Arc<Members> {
        self.members.load_full()
    }

    /// Takes in what a pong says about the server's state and its hot pages.
    pub(crate) fn heard_pong(&self, server: &Server, pong: &v1::Pong) {
        self.discovery.heard_epoch(pong.members_epoch);
        self.heard_state(server, pong.state());
        let copies_max = u8::try_from(self.config.hot_copies).unwrap_or(u8::MAX);
        let mut announced = self.adopting.lock();
        if let Some(hot) = announced.hear(&server.address.id, pong, copies_max) {
            self.members.store(Arc::new(self.members().with_hot(Arc::new(hot))));
        }
    }

    /// A server's session ended: what it announced is over.
    pub(crate) fn session_ended(&self, server: &Server) {
        let mut announced = self.adopting.lock();
        if let Some(hot) = announced.forget(&server.address.id) {
            self.members.store(Arc::new(self.members().with_hot(Arc::new(hot))));
        }
    }

    /// A server says whether it takes new pages.
    pub(crate) fn heard_state(&self, server: &Server, state: v1::ServerState) {
        let draining = match state {
            v1::ServerState::Draining | v1::ServerState::Drained => true,
            v1::ServerState::Serving => false,
            v1::ServerState::Unspecified | v1::ServerState::Stopping => return,
        };
        if server.set_draining(draining) {
            let _adopting = self.adopting.lock();
            let members = self.members();
            self.members.store(Arc::new(members.with_hot(members.hot().clone())));
        }
    }

    /// Forgets member lists whose time is over, and ends servers that only they had.
    fn forget_old(&self) {
        let _adopting = self.adopting.lock();
        let before = self.members();
        if let Some(after) = before.without_old(Instant::now()) {
            self.store_members(&before, after);
        }
    }

    /// Publishes a list and ends the servers that are in it no more.
    fn store_members(&self, before: &Members, after: Members) {
        let after = Arc::new(after);
        self.members.store(after.clone());
        let is_gone = |old: &&Arc<Server>| !after.reach.iter().any(|new| Arc::ptr_eq(old, new));
        for gone in before.reach.iter().filter(is_gone) {
            gone.end();
        }
    }

    /// A handle for a task of its own.
    pub(crate) fn for_task(&self) -> Arc<Self> {
        self.this.upgrade().expect("whoever has a reference is inside an Arc that lives")
    }
}

pub(crate) struct Inner {
    pub(crate) shared: Arc<Shared>,
    pub(crate) handle: Handle,
    pub(crate) scratch: ScratchPool,
    pub(crate) counters: Counters,
    runtime: Mutex<Option<Runtime>>,
    closed: AtomicBool,
    pid: u32,
}

/// A client of a MemKV cluster. Cheap to clone; all clones share connections and counters.
///
/// It owns one background thread that connects, reconnects and probes. When the last clone (of it and its spaces)
/// is dropped, or [`Client::close`] was called, the thread and all connections go away.
#[derive(Clone)]
pub struct Client {
    pub(crate) inner: Arc<Inner>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("servers", &self.inner.shared.config.servers).finish_non_exhaustive()
    }
}

/// Whether ops go to a server now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerState {
    /// They do.
    Ready,
    /// There is no session; the background keeps trying. Its keys are [`crate::PageOutcome::Unavailable`] at once.
    Connecting,
    /// The circuit breaker is open; the background probes. Its keys are [`crate::PageOutcome::Unavailable`] at once.
    Suspect {
        /// What happened last.
        reason: String,
    },
}

/// What the client sees of one server now.
#[derive(Clone, Debug, PartialEq)]
pub struct ServerView {
    /// As configured.
    pub address: ServerAddress,
    /// What the server calls itself, once a session was open.
    pub node_id: Option<String>,
    /// Whether ops go to it.
    pub state: ServerState,
    /// How pages move.
    pub transport: Transport,
    /// Data connections open now.
    pub connections: u32,
    /// The server's bounds, as it announced them; defaults before that.
    pub limits: Limits,
    /// What went wrong last, if anything ever did.
    pub last_error: Option<String>,
}

/// One place in a key's order of servers.
#[derive(Clone, Debug, PartialEq)]
pub struct RouteEntry {
    /// The server.
    pub server: ServerAddress,
    /// Its share of the keys relative to the others, as it counts now.
    pub weight: u32,
    /// Its score for the key; the highest owns it.
    pub score: f64,
    /// Whether it takes no new pages.
    pub draining: bool,
    /// When it is asked for the page, from 1; 0 if it is not.
    pub asked: usize,
    /// Whether it is to hold the page.
    pub home: bool,
}

/// Forgets old member lists when their time is over; later, if servers of theirs are being emptied.
async fn forget_old_at(shared: Arc<Shared>, mut until: Instant) {
    loop {
        tokio::time::sleep_until(until).await;
        shared.forget_old();
        if !shared.members().keeps_old(until) {
            return;
        }
        until = Instant::now() + DRAIN_LOOK;
    }
}

pub(crate) fn closed() -> Error {
    Error::new(ErrorKind::Closed, "the client is closed; make a new one")
}

/// Checks a configuration and settles the transport.
pub(crate) fn settle(config: Config) -> Result<Config, Error> {
    if config.discovery.is_some() {
        return Ok(config);
    }
    if config.servers.is_empty() {
        let text = "no server is configured; set MEMKV_SERVERS, for example MEMKV_SERVERS=10.0.0.5:9900,10.0.0.6:9900, or MEMKV_DISCOVERY";
        return Err(Error::new(ErrorKind::Config, text));
    }
    for (index, server) in config.servers.iter().enumerate() {
        if config.servers[..index].iter().any(|other| other.id == server.id) {
            return Err(Error::new(
                ErrorKind::Config,
                format!("the server id {:?} is there twice", server.id),
            ));
        }
    }
    if config.servers.iter().all(|server| server.weight == 0) {
        return Err(Error::new(
            ErrorKind::Config,
            "all servers have weight 0, so none takes keys; give one a weight",
        ));
    }
    Ok(config)
}

/// Opens the NICs, if the transport may use them.
fn open_rdma(config: &Config, verbs: Option<Arc<dyn Verbs>>) -> Result<Option<Arc<rdma::Context>>, Error> {
    if !matches!(config.transport, Transport::Auto | Transport::Rdma) {
        return Ok(None);
    }
    if config.tls.mode == TlsMode::Payload {
        if config.transport == Transport::Rdma {
            let text = "tls is payload and the transport is rdma, but RDMA does not encrypt; set MEMKV_TLS=on, or MEMKV_TRANSPORT=auto";
            return Err(Error::new(ErrorKind::Config, text));
        }
        return Ok(None);
    }
    match rdma::Context::open(config, verbs) {
        Ok(context) => {
            tracing::info!(nics = context.names(), "pages may move by rdma");
            Ok(Some(context))
        }
        Err(error) if config.transport == Transport::Rdma => Err(rdma::not_supported(&error)),
        Err(error) => {
            tracing::info!(reason = %error, fix = error.fix(), "no rdma; pages take another way");
            Ok(None)
        }
    }
}

impl Inner {
    fn new(config: Config, verbs: Option<Arc<dyn Verbs>>) -> Result<Self, Error> {
        let config = settle(config)?;
        let tls = Tls::open(&config)?;
        let rdma = open_rdma(&config, verbs)?;
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("memkv-client")
            .enable_all()
            .build()
            .map_err(|error| {
                let text = format!("cannot start the client's background thread: {error}");
                Error::new(ErrorKind::Unavailable, text).with_source(error)
            })?;
        let handle = runtime.handle().clone();
        let shared = Shared::new(config, rdma);
        if let Some(tls) = tls {
            shared.tls.get_or_init(|| Arc::new(tls));
        }
        Self::run_on(shared, handle, Some(runtime))
    }

    /// A client whose background tasks run on `handle`; it ends `runtime` with itself.
    pub(crate) fn run_on(
        shared: Arc<Shared>,
        handle: Handle,
        runtime: Option<Runtime>,
    ) -> Result<Self, Error> {
        let inner = Self {
            handle,
            scratch: ScratchPool::default(),
            counters: Counters::default(),
            runtime: Mutex::new(runtime),
            closed: AtomicBool::new(false),
            pid: std::process::id(),
            shared,
        };
        // From here on, an early return shuts the runtime down in `Drop`.
        inner.adopt(&inner.shared.config.servers)?;
        inner.handle.spawn(fill::run(inner.shared.clone()));
        if let Some(context) = &inner.shared.rdma {
            inner.handle.spawn(rdma::watch(Arc::downgrade(context)));
        }
        Ok(inner)
    }

    /// The cluster as it is now.
    pub(crate) fn members(&self) -> Arc<Members> {
        self.shared.members()
    }

    /// Takes over a member list: starts what is new, goes on with what is known (whatever its weight is now), ends what
    /// is gone. Pages are still looked for where they were, and servers that left still asked, for `move_grace`.
    pub(crate) fn adopt(&self, list: &[ServerAddress]) -> Result<(), Error> {
        let _context = self.handle.enter();
        let _adopting = self.shared.adopting.lock();
        let before = self.members();
        let (mut servers, mut new) = (Vec::new(), Vec::new());
        for address in list {
            let server = match before.same(address) {
                Some(known) => known.clone(),
                None => {
                    let binding = Binding::default();
                    let channel = control::channel(&self.shared, address, &binding)?;
                    let mut server = Server::new(address.clone(), channel);
                    server.binding = binding;
                    #[cfg(feature = "sim")]
                    server.join_net(self.shared.net.get());
                    let server = Arc::new(server);
                    if self.shared.rdma.is_none() {
                        server.ways.set_missing(Way::Rdma);
                    }
                    new.push(server.clone());
                    server
                }
            };
            servers.push((server, address.weight));
        }
        let config = &self.shared.config;
        let until = config.move_grace.map(|grace| Instant::now() + grace);
        self.shared.store_members(&before, before.next(servers, config.replicas, until));
        if let Some(until) = until {
            self.handle.spawn(forget_old_at(self.shared.for_task(), until));
        }
        for server in new {
            let task = self.handle.spawn(session::run(self.shared.clone(), server.clone()));
            server.runs(task.abort_handle());
        }
        Ok(())
    }

    /// Refuses to work after `close`, and in a process that was forked off.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.pid != std::process::id() {
            let text = "this client was made before a fork, and its background thread stayed in the parent; make a new client in this process";
            return Err(Error::new(ErrorKind::Closed, text));
        }
        if self.closed.load(Relaxed) { Err(closed()) } else { Ok(()) }
    }

    fn close(&self) {
        if self.pid != std::process::id() {
            return;
        }
        self.closed.store(true, Relaxed);
        // Also those that left and are still asked.
        for server in &self.members().reach {
            server.end();
        }
        let runtime = self.runtime.lock().take();
        if let Some(runtime) = runtime {
            // Does not wait, so it may be called from inside any runtime.
            runtime.shutdown_background();
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.pid == std::process::id() {
            self.close();
            return;
        }
        // In a forked child the background thread does not exist, and locks that it held stay locked for ever. The
        // parent's things are left alone; the child is the poorer by their memory.
        let runtime = self.runtime.try_lock().and_then(|mut runtime| runtime.take());
        let _left = ManuallyDrop::new((runtime, self.members(), self.shared.rdma.clone()));
    }
}

impl Client {
    /// Connects to the configured servers.
    ///
    /// Waits until every server has answered once or has been tried once, at most `connect_timeout`. A server that
    /// cannot be reached is no error: the background keeps trying, and its keys are misses meanwhile.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] or [`ErrorKind::NotSupported`] for a configuration that cannot work;
    /// [`ErrorKind::Unauthenticated`], [`ErrorKind::VersionMismatch`] or `NotSupported` if a server answered
    /// and will never take this client.
    pub async fn connect(config: Config) -> Result<Self, Error> {
        Self::connect_with(config, None).await
    }

    /// Like [`Client::connect`], with these verbs in place of the machine's; for tests with simulated ones.
    ///
    /// # Errors
    ///
    /// See [`Client::connect`].
    pub async fn connect_with(config: Config, verbs: Option<Arc<dyn Verbs>>) -> Result<Self, Error> {
        Self::answered(Inner::new(config, verbs)?).await
    }

    /// Waits for the servers' first answers.
    pub(crate) async fn answered(inner: Inner) -> Result<Self, Error> {
        let client = Self { inner: Arc::new(inner) };
        let inner = &client.inner;
        let deadline = Instant::now() + inner.shared.config.connect_timeout;
        discovery::start(inner, deadline).await?;
        let members = inner.members();
        for server in &members.servers {
            let mut attempt = server.attempt.subscribe();
            let answered =
                async move { attempt.wait_for(|attempt| !matches!(attempt, Attempt::None)).await.is_ok() };
            drive::before(&inner.handle, deadline, answered).await;
        }
        for server in &members.servers {
            let attempt = server.attempt.borrow().clone();
            if let Attempt::Failed { fatal: Some(kind), text } = attempt {
                return Err(Error::new(kind, format!("server {}: {text}", server.address)));
            }
        }
        Ok(client)
    }

    /// A space of this client. Registers it with every ready server now, and with the others when they come.
    ///
    /// # Errors
    ///
    /// What a server says against the space; [`ErrorKind::Closed`]. Servers that do not answer are no error.
    pub async fn space(&self, description: SpaceDescription) -> Result<Space, Error> {
        self.inner.check()?;
        let description = match &self.inner.shared.config.tenant {
            Some(tenant) => {
                description.of_tenant(tenant).map_err(|error| Error::bad_input(error.to_string()))?
            }
            None => description,
        };
        let id = description.id();
        self.inner.shared.spaces.lock().insert(id, description.clone());
        if let Err(error) = self.register(&description).await {
            self.inner.shared.spaces.lock().remove(&id);
            return Err(error.context("open space"));
        }
        Ok(Space::new(self.clone(), description))
    }

    /// A snapshot of the counters.
    #[must_use]
    pub fn stats(&self) -> ClientStats {
        ClientStats { discovery: self.inner.shared.discovery.stats(), ..self.counted() }
    }

    fn counted(&self) -> ClientStats {
        let rdma = self.inner.shared.rdma.as_ref().map(|rdma| rdma.stats()).unwrap_or_default();
        let members = self.inner.members();
        let copies = self.inner.shared.copies.read(members.hot().len());
        self.inner.counters.read(members.servers.iter().map(|server| server.stats()).collect(), rdma, copies)
    }

    /// What the client sees of its servers now.
    #[must_use]
    pub fn servers(&self) -> Vec<ServerView> {
        let transport = self.inner.shared.config.transport;
        self.inner.members().servers.iter().map(|server| server.view(transport)).collect()
    }

    /// The configuration it runs with.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.inner.shared.config
    }

    /// The servers in a key's order of preference; empty for bytes that are no key.
    #[must_use]
    pub fn route(&self, space: SpaceId, key: &[u8]) -> Vec<RouteEntry> {
        let Ok(key) = Key::new(key) else { return Vec::new() };
        let digest = key_digest(space, key);
        let members = self.inner.members();
        let candidates = members.candidates(digest, &mut Ranks::default());
        let entry = |index: usize| {
            let at = candidates.as_slice().iter().position(|&place| place as usize == index);
            RouteEntry {
                server: members.servers[index].address.clone(),
                weight: members.nodes[index].weight,
                score: members.nodes[index].score(digest),
                draining: members.servers[index].is_draining(),
                asked: at.map_or(0, |at| at + 1),
                home: at.is_some_and(|at| candidates.is_home(at)),
            }
        };
        route::order(&members.nodes, digest).into_iter().map(entry).collect()
    }

    /// Closes connections and sessions and ends the background thread, for all clones. Ops that run meanwhile in
    /// other threads end with [`crate::PageOutcome::Unavailable`] or as they would have.
    #[allow(
        clippy::unused_async,
        reason = "closing may come to wait for a farewell; callers should be ready for it"
    )]
    pub async fn close(self) {
        self.inner.close();
    }

    pub(crate) fn close_now(&self) {
        self.inner.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_fork_it_refuses_to_work_and_leaves_the_parents_things_alone() {
        let config = Config::builder().without_environment().servers("127.0.0.1:1").build().unwrap();
        let mut inner = Inner::new(config, None).unwrap();
        assert!(inner.check().is_ok());
        inner.pid = inner.pid.wrapping_add(1);
        let error = inner.check().unwrap_err();
        assert!(error.kind() == ErrorKind::Closed && error.to_string().contains("fork"), "{error}");
        let (handle, server) = (inner.handle.clone(), inner.members().servers[0].clone());
        drop(inner);
        // The runtime still runs, and the servers are still held, as they are in the parent.
        assert_eq!(crate::blocking::block_on(handle.spawn(async { 7 })).unwrap(), 7);
        assert!(Arc::strong_count(&server) >= 2);
    }

    #[test]
    fn closing_ends_servers_that_left_as_well() {
        let config = Config::builder().without_environment().servers("a=127.0.0.1:1,b=127.0.0.1:2");
        let inner = Inner::new(config.build().unwrap(), None).unwrap();
        let both = inner.members().servers.clone();
        inner.adopt(&inner.shared.config.servers[..1]).unwrap();
        inner.close();
        assert!(both.len() == 2 && both.iter().all(|server| server.has_ended()));
    }

    #[test]
    fn the_error_of_a_config_is_told_before_anything_is_started() {
        let mut config = Config::default();
        assert_eq!(settle(config.clone()).unwrap_err().kind(), ErrorKind::Config);
        config.servers = vec!["a:1*0".parse().unwrap()];
        assert!(settle(config.clone()).unwrap_err().to_string().contains("weight"));
        config.servers = vec!["a:1".parse().unwrap(), "a:1".parse().unwrap()];
        assert!(settle(config).unwrap_err().to_string().contains("twice"));
    }
}
