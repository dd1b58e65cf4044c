//! RDMA to and from the caller's registered memory, issued by the server.
//!
//! - [`Context`]: the NICs of this process and what is registered with them, for all servers;
//! - [`nics`]: each NIC, open or gone;
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
mod nics;
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
use memkv_rdma::{Address, RdmaError, Timing, Verbs};
use memkv_transport::frame::Mover;
use memory::Registered;
use nics::{Nics, Opened};
use parking_lot::Mutex;
use rails::{Rail, Rails};
use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;

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
    nics: Nics,
    rails: Rails,
    /// Counts changes of `known`.
    version: watch::Sender<u64>,
    /// Counts changes of NICs between working and not.
    changes: watch::Sender<u64>,
    /// Counts NICs that were opened again, each with keys that no session of before knows.
    renewals: AtomicU64,
    sessions: Mutex<Vec<Weak<RdmaSession>>>,
    /// Notified when a server has answered.
    answered: Event,
    pub(crate) counters: Counters,
    pid: u32,
}

#[derive(Default)]
struct Known {
    next: u32,
    regions: BTreeMap<u32, Arc<Registered>>,
}

impl Known {
    /// Gives memory its number.
    fn enter(&mut self, registered: Arc<Registered>) -> Result<u32, Error> {
        let id = self.next;
        // The last number means another thing over shared memory.
        self.next = id.checked_add(1).filter(|&next| next < u32::MAX).ok_or_else(|| {
            let text = "this client has registered as many regions as it can; make a new one";
            Error::new(ErrorKind::Unavailable, text)
        })?;
        self.regions.insert(id, registered);
        Ok(id)
    }
}

impl Context {
    /// Opens the configured NICs.
    ///
    /// # Errors
    ///
    /// Why there is no RDMA.
    pub(crate) fn open(config: &Config, verbs: Option<Arc<dyn Verbs>>) -> Result<Arc<Self>, RdmaError> {
        let verbs = verbs.map_or_else(memkv_rdma::system, Ok)?;
        let nics = Nics::open(config, verbs)?;
        let (bounce, registered) = Bounce::new(&nics.all(), config.rdma_bounce_bytes)?;
        let regions = BTreeMap::from([(BOUNCE_REGION, Arc::new(registered))]);
        let rails = nics.kinds().map(|(ethernet, near)| Rail::new(ethernet, near)).collect();
        Ok(Arc::new(Self {
            rails: Rails::new(rails),
            nics,
            bounce,
            known: Mutex::new(Known { next: BOUNCE_REGION + 1, regions }),
            version: watch::Sender::new(0),
            changes: watch::Sender::new(0),
            renewals: AtomicU64::new(0),
            sessions: Mutex::default(),
            answered: Event::new(),
            counters: Counters::default(),
            pid: std::process::id(),
        }))
    }

    /// The names of the NICs, with commas between.
    pub(crate) fn names(&self) -> String {
        self.nics.names()
    }

    pub(crate) fn bounce(&self) -> &Bounce {
        &self.bounce
    }

    /// Makes registered memory known to the servers, once it is registered with every NIC that is open. Calls the driver.
    fn add(&self, registered: Registered) -> Result<u32, Error> {
        let registered = Arc::new(registered);
        let id = loop {
            let stale = {
                let mut known = self.known.lock();
                // No NIC is let go of or opened again while this is locked.
                let stale = (0..self.nics.len()).find(|&nic| self.nics.life(nic) != registered.life(nic));
                match stale {
                    None => break known.enter(registered)?,
                    Some(place) => place,
                }
            };
            let nic = self.nics.get(stale).ok();
            registered.renew(stale, nic.as_ref()).map_err(|error| rdma_error(&error))?;
        };
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
        if let Some(registered) = registered {
            registered.end();
        }
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
        for place in 0..self.nics.len() {
            let (health, name) = (self.nics.health(place), self.nics.name(place));
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

    /// Whether [`Context::tend`] has something to do.
    fn is_needy(&self) -> bool {
        !self.nics.gone().is_empty() || !self.nics.due().is_empty()
    }

    /// Lets go of NICs that are gone, and takes up again those that are back. Calls the driver, which may take its time.
    fn tend(&self) {
        for place in self.nics.gone() {
            let known = self.known.lock();
            let name = self.nics.name(place).to_owned();
            self.nics.close(place, RdmaError::Gone { nic: name });
            let regions: Vec<_> = known.regions.values().cloned().collect();
            drop(known);
            self.let_go(place, &regions);
        }
        for place in self.nics.due() {
            if let Err(error) = self.nics.open_again(place).and_then(|opened| self.take_up(place, opened)) {
                tracing::debug!(nic = self.nics.name(place), %error, "the rdma device is not back");
                self.nics.close(place, error);
            }
        }
    }

    /// Registers everything with a NIC that was opened again, and then uses it.
    fn take_up(&self, place: usize, opened: Opened) -> Result<(), RdmaError> {
        loop {
            let known = self.known.lock();
            let is_stale = |registered: &&Arc<Registered>| registered.life(place) != opened.life;
            let stale: Vec<_> = known.regions.values().filter(is_stale).cloned().collect();
            if stale.is_empty() {
                // Sessions of before have to end before a queue pair of this NIC is made.
                self.renewals.fetch_add(1, Release);
                self.nics.publish(place, opened);
                self.changes.send_modify(|changes| *changes += 1);
                return Ok(());
            }
            drop(known);
            for registered in &stale {
                if let Err(error) = registered.renew(place, Some(&opened)) {
                    let regions: Vec<_> = self.known.lock().regions.values().cloned().collect();
                    self.let_go(place, &regions);
                    return Err(error);
                }
            }
        }
    }

    /// Deregisters memory from one NIC.
    fn let_go(&self, place: usize, regions: &[Arc<Registered>]) {
        for registered in regions {
            if let Err(error) = registered.renew(place, None) {
                tracing::debug!(nic = self.nics.name(place), %error, "memory is not deregistered");
            }
        }
    }

    /// How many NICs have been opened again.
    fn renewals(&self) -> u64 {
        self.renewals.load(Acquire)
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
        let trouble = (0..self.nics.len()).find_map(|place| self.nics.health(place).err());
        trouble
            .map(|error| rdma_error(&error))
            .unwrap_or_else(|| Error::new(ErrorKind::Unavailable, "rdma: no NIC here worked a moment ago"))
    }
}

/// Looks after the NICs as long as they are used. A connection by a NIC that is down is not used any more, and no new one
/// is made by it. One that was removed is let go of, and opened again when it is back.
pub(crate) async fn watch(context: Weak<Context>) {
    let mut ticks = tokio::time::interval(LOOK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut tending: Option<JoinHandle<()>> = None;
    loop {
        ticks.tick().await;
        let Some(context) = context.upgrade() else { return };
        context.look();
        if tending.as_ref().is_none_or(JoinHandle::is_finished) && context.is_needy() {
            tending = Some(tokio::task::spawn_blocking(move || context.tend()));
        }
    }
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
    let nic = context.nics.get(own).map_err(|error| rdma_error(&error))?.nic;
    let mut pair = in_background(move || nic.queue_pair(DEPTH, memkv_rdma::Access::REMOTE)).await?;
    let (peer, token): (Address, [u8; 16]) = session.connect(own, other, &pair.address()).await?;
    let pair = in_background(move || pair.connect(&peer, Timing::default()).map(|()| pair)).await?;
    context.counters.queue_pairs.fetch_add(1, Relaxed);
    let pair = QueuePair { _pair: pair, nic: own, session: session.clone() };
    let stream = attacher.bound(Mover::Rdma, &token).await?;
    Ok(attacher.link(stream, Bound::Rdma(pair)))
}
