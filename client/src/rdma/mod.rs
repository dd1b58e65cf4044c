//! RDMA to and from the caller's registered memory, issued by the server.
//!
//! - [`Context`]: the NICs of this process and what is registered with them, for all servers;
//! - [`memory`]: registered memory, the caller's and the bounce buffer;
//! - [`session`]: what one server has been told, and where its queue pairs come from;
//! - [`rails`]: which NICs a new queue pair connects;
//! - [`QueuePair`]: bound to one data connection.
//!
//! Invariants:
//! - only the server issues work, and only between an op's request and its reply;
//! - an op that gives up drops its [`QueuePair`] before it returns, and with that the NIC lets nobody reach memory
//!   through it any more: a late write has nowhere to go;
//! - a [`Region`] that is dropped is deregistered when the drop returns, whatever any server still believes.
//!
//! Deliberately absent: work requests of our own, and completions.

#[allow(
    unsafe_code,
    reason = "registers memory by address, and copies from and to memory that a peer may write"
)]
mod memory;
mod rails;
mod session;
mod table;

pub use memory::Region;
pub(crate) use memory::{Bounce, Lent};
pub(crate) use session::RdmaSession;
pub(crate) use table::Table;

use crate::attach::Attacher;
use crate::link::Link;
use crate::mover::Bound;
use crate::{Config, Error, ErrorKind};
use event_listener::Event;
use memkv_proto::v1;
use memkv_rdma::{Address, Link as LinkKind, Nic, RdmaError, Timing, Verbs};
use memkv_transport::frame::Mover;
use memory::Registered;
use parking_lot::Mutex;
use rails::{Rail, Rails};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::watch;

/// The region of the bounce buffer; its first bytes are where servers try the way.
pub(crate) const BOUNCE_REGION: u32 = 0;
/// The most NICs that a client uses.
const NICS_MAX: usize = 16;
/// Work requests that a client's queue pair has room for: it posts none.
const DEPTH: u32 = 1;
/// How often NICs are asked whether they still work.
const LOOK: Duration = Duration::from_millis(200);
/// The most pairs of NICs that are tried for one connection.
const TRIES: usize = 3;

/// What moved by RDMA, and what had to be copied for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RdmaStats {
    /// NICs that work; 0 if pages do not move by RDMA.
    pub nics: u32,
    /// Regions registered now, without the bounce buffer.
    pub regions: u32,
    /// Queue pairs that exist now.
    pub queue_pairs: u32,
    /// Pages that moved between the caller's memory and a server without a copy.
    pub direct_pages: u64,
    /// Bytes of those pages.
    pub direct_bytes: u64,
    /// Pages that went through the bounce buffer, because they are not in a registered region.
    pub bounced_pages: u64,
    /// Bytes of those pages.
    pub bounced_bytes: u64,
    /// Pages that went in frames on a connection with RDMA, because the bounce buffer had no room.
    pub framed_pages: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    queue_pairs: AtomicU64,
    pub(crate) direct_pages: AtomicU64,
    pub(crate) direct_bytes: AtomicU64,
    pub(crate) bounced_pages: AtomicU64,
    pub(crate) bounced_bytes: AtomicU64,
    pub(crate) framed_pages: AtomicU64,
}

/// The NICs of a client and the memory that is registered with them.
pub(crate) struct Context {
    // Dropped first: registrations before the bounce buffer, which is registered too.
    known: Mutex<Known>,
    bounce: Bounce,
    nics: Vec<Arc<dyn Nic>>,
    rails: Rails,
    /// Counts changes of `known`.
    version: watch::Sender<u64>,
    /// Counts changes of NICs between working and not.
    changes: watch::Sender<u64>,
    sessions: Mutex<Vec<Weak<RdmaSession>>>,
    /// Notified when a server has answered.
    answered: Event,
    pub(crate) counters: Counters,
    pid: u32,
}

#[derive(Default)]
struct Known {
    next: u32,
    regions: BTreeMap<u32, Registered>,
}

impl Context {
    /// Opens the configured NICs.
    ///
    /// # Errors
    ///
    /// Why there is no RDMA.
    pub(crate) fn open(config: &Config, verbs: Option<Arc<dyn Verbs>>) -> Result<Arc<Self>, RdmaError> {
        let verbs = verbs.map_or_else(memkv_rdma::system, Ok)?;
        let infos = verbs.nics()?;
        let places = memkv_rdma::choose(&infos, &config.rdma_devices, config.rdma_gid_index)?;
        let (mut nics, mut failed) = (Vec::new(), None);
        for place in places.iter().take(NICS_MAX) {
            match verbs.open(place) {
                Ok(nic) => nics.push(nic),
                // One bad NIC of several is not used; the others are.
                Err(error) => {
                    tracing::warn!(nic = place.nic, %error, fix = error.fix(), "rdma device not used");
                    failed = failed.or(Some(error));
                }
            }
        }
        if let Some(error) = failed.filter(|_| nics.is_empty()) {
            return Err(error);
        }
        let (bounce, registered) = Bounce::new(&nics, config.rdma_bounce_bytes)?;
        let regions = BTreeMap::from([(BOUNCE_REGION, registered)]);
        // Who names NICs wants all of them.
        let home = verbs.home_node().filter(|_| config.rdma_devices.is_empty());
        let near = memkv_rdma::near(&nics.iter().map(|nic| nic.info().numa).collect::<Vec<_>>(), home);
        let rails = nics.iter().zip(near).map(|(nic, near)| Rail::new(is_ethernet(nic), near)).collect();
        Ok(Arc::new(Self {
            rails: Rails::new(rails),
            nics,
            bounce,
            known: Mutex::new(Known { next: BOUNCE_REGION + 1, regions }),
            version: watch::Sender::new(0),
            changes: watch::Sender::new(0),
            sessions: Mutex::default(),
            answered: Event::new(),
            counters: Counters::default(),
            pid: std::process::id(),
        }))
    }

    /// The names of the NICs, with commas between.
    pub(crate) fn names(&self) -> String {
        self.nics.iter().map(|nic| nic.info().name.as_str()).collect::<Vec<_>>().join(",")
    }

    pub(crate) fn bounce(&self) -> &Bounce {
        &self.bounce
    }

    /// Makes registered memory known to the servers.
    fn add(&self, registered: Registered) -> Result<u32, Error> {
        let mut known = self.known.lock();
        let id = known.next;
        // The last number means another thing over shared memory.
        known.next = id.checked_add(1).filter(|&next| next < u32::MAX).ok_or_else(|| {
            Error::new(
                ErrorKind::Unavailable,
                "this client has registered as many regions as it can; make a new one",
            )
        })?;
        known.regions.insert(id, registered);
        drop(known);
        self.version.send_modify(|version| *version += 1);
        Ok(id)
    }

    /// Deregisters memory: when this returns, no NIC lets a server reach it.
    fn remove(&self, id: u32) {
        let registered = self.known.lock().regions.remove(&id);
        // Ops stop naming it before it is gone.
        for session in self.open_sessions() {
            session.refresh();
        }
        drop(registered);
        self.version.send_modify(|version| *version += 1);
    }

    fn open_sessions(&self) -> Vec<Arc<RdmaSession>> {
        let mut sessions = self.sessions.lock();
        sessions.retain(|session| session.strong_count() > 0);
        sessions.iter().filter_map(Weak::upgrade).collect()
    }

    /// Whether all servers have answered about a region.
    fn is_answered(&self, id: u32) -> bool {
        self.open_sessions().iter().all(|session| session.is_answered(id))
    }

    pub(crate) fn stats(&self) -> RdmaStats {
        let counters = &self.counters;
        let small = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        RdmaStats {
            nics: small((0..self.nics.len()).filter(|&nic| !self.rails.is_down(nic)).count()),
            regions: small(self.known.lock().regions.len().saturating_sub(1)),
            queue_pairs: u32::try_from(counters.queue_pairs.load(Relaxed)).unwrap_or(u32::MAX),
            direct_pages: counters.direct_pages.load(Relaxed),
            direct_bytes: counters.direct_bytes.load(Relaxed),
            bounced_pages: counters.bounced_pages.load(Relaxed),
            bounced_bytes: counters.bounced_bytes.load(Relaxed),
            framed_pages: counters.framed_pages.load(Relaxed),
        }
    }

    /// Asks every NIC whether it works, and says so once when that changes.
    fn look(&self) {
        for (place, nic) in self.nics.iter().enumerate() {
            let (health, name) = (nic.health(), &nic.info().name);
            if !self.rails.set_down(place, health.is_err()) {
                continue;
            }
            match health {
                Ok(()) => tracing::info!(nic = name, "the rdma device works again"),
                Err(error) => tracing::warn!(nic = name, %error, fix = error.fix(), "rdma device not used"),
            }
            self.changes.send_modify(|changes| *changes += 1);
        }
    }

    /// Waits until a NIC stops working.
    async fn wait_down(&self, nic: usize) {
        let mut changes = self.nic_changes();
        while !self.rails.is_down(nic) {
            // The sender lives in `self`, so there is always a next change to wait for.
            let _changed = changes.changed().await;
        }
    }

    /// Tells when a NIC stops working or works again.
    pub(crate) fn nic_changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Why no queue pair can be made to a server. For good only where the networks differ: a NIC that is down comes back.
    fn trouble(&self, offer: &v1::RdmaOffer) -> Error {
        if !self.rails.reach(offer) {
            let text = "rdma: no NIC here is on a network of one of the server's (InfiniBand, Ethernet)";
            return Error::new(ErrorKind::NotSupported, text);
        }
        let trouble = self.nics.iter().find_map(|nic| nic.health().err()).map(|error| rdma_error(&error));
        trouble.unwrap_or_else(|| Error::new(ErrorKind::Unavailable, "rdma: no NIC here worked a moment ago"))
    }
}

/// Looks after the NICs as long as they are used. A connection by a NIC that is down is not used any more, and no new one
/// is made by it.
pub(crate) async fn watch(context: Weak<Context>) {
    let mut ticks = tokio::time::interval(LOOK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(context) = context.upgrade() else { return };
        context.look();
    }
}

fn is_ethernet(nic: &Arc<dyn Nic>) -> bool {
    nic.info().port(nic.place().port).is_none_or(|port| port.link == LinkKind::Ethernet)
}

/// The queue pair of one connection. Dropping it destroys it: no NIC reaches memory through it after that.
pub(crate) struct QueuePair {
    // Nobody reads it: it is there to be dropped.
    _pair: Box<dyn memkv_rdma::QueuePair>,
    /// The place of its NIC.
    nic: usize,
    pub(crate) session: Arc<RdmaSession>,
}

impl QueuePair {
    /// Whether its NIC works, as far as is known.
    pub(crate) fn is_usable(&self) -> bool {
        !self.session.context().rails.is_down(self.nic)
    }
}

impl Drop for QueuePair {
    fn drop(&mut self) {
        self.session.context().counters.queue_pairs.fetch_sub(1, Relaxed);
    }
}

fn rdma_error(error: &RdmaError) -> Error {
    Error::new(ErrorKind::Unavailable, format!("rdma: {error}; {}", error.fix()))
}

/// Why a client that was told to use RDMA cannot.
pub(crate) fn not_supported(error: &RdmaError) -> Error {
    let text = format!(
        "the transport is rdma, but there is none: {error}; {}, or set MEMKV_TRANSPORT=auto",
        error.fix()
    );
    Error::new(ErrorKind::NotSupported, text)
}

/// Runs calls of the driver, which may take their time.
async fn in_background<T: Send + 'static>(
    call: impl FnOnce() -> Result<T, RdmaError> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(call).await {
        Ok(done) => done.map_err(|error| rdma_error(&error)),
        Err(_) => Err(crate::client::closed()),
    }
}

/// Opens a connection whose pages move by RDMA.
pub(crate) async fn attach(attacher: &Attacher) -> Result<Box<Link>, Error> {
    let Some(session) = attacher.rdma.clone() else {
        let text = "the server offers no rdma; look at its log, and at its option rdma.mode";
        return Err(Error::new(ErrorKind::NotSupported, text));
    };
    session.settled().await?;
    let context = session.context().clone();
    let pairs = context.rails.pairs(session.offer());
    let mut last = None;
    for (own, other) in pairs.into_iter().take(TRIES) {
        let attached = tokio::select! {
            attached = attach_by(attacher, &session, own, other) => attached,
            // The server would wait for an answer of this NIC as long as it may.
            () = context.wait_down(own) => Err(context.trouble(session.offer())),
        };
        match attached {
            Ok(link) => return Ok(link),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| context.trouble(session.offer())))
}

/// Opens a connection with a queue pair between two NICs.
async fn attach_by(
    attacher: &Attacher,
    session: &Arc<RdmaSession>,
    own: usize,
    other: u32,
) -> Result<Box<Link>, Error> {
    let context = session.context();
    let nic = context.nics[own].clone();
    let mut pair = in_background(move || nic.queue_pair(DEPTH, memkv_rdma::Access::REMOTE)).await?;
    let (peer, token): (Address, [u8; 16]) = session.connect(own, other, &pair.address()).await?;
    let pair = in_background(move || pair.connect(&peer, Timing::default()).map(|()| pair)).await?;
    context.counters.queue_pairs.fetch_add(1, Relaxed);
    let pair = QueuePair { _pair: pair, nic: own, session: session.clone() };
    let stream = attacher.bound(Mover::Rdma, &token).await?;
    Ok(attacher.link(stream, Bound::Rdma(pair)))
}
