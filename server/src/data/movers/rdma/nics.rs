//! The server's NICs: opened at start, with the memory for pages registered at each.
//!
//! The memory is registered for local work only, so no key exists with which a client could reach a page.
//!
//! A NIC that was removed is let go of, with all that was made of it: the system ends a removal only when nobody has the
//! NIC open any more. Its connections are ended by shutting their sockets down. It is opened again when it is back.
//!
//! `unsafe` is here because registering memory promises that it stays mapped.

use super::plan::Part;
use crate::app::StartError;
use crate::config::rdma::{RdmaConfig, RdmaMode};
use memkv_proto::v1;
use memkv_rdma::{
    Access, Link, Nic, NicInfo, Place as Port, QueuePair, RdmaError, Region, Verbs, register_all,
};
use memkv_storage::Engine;
use parking_lot::{Mutex, RwLock};
use std::collections::HashMap;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The arena is registered in parts of so many bytes: a multiple of every chunk, so that no slot lies in two.
const PART_BYTES: usize = 1 << 30;
/// Bytes that are written to a client to try the way, as much as the largest packet.
pub(crate) const TRIAL_BYTES: u32 = 4096;
/// The most NICs that a server uses.
const NICS_MAX: usize = 16;
/// Pauses between looks for a NIC that is gone.
const PAUSE: Duration = Duration::from_secs(1);
/// How often a long registration says how far it is.
const PROGRESS: Duration = Duration::from_secs(1);

/// One open NIC.
#[derive(Debug)]
pub(crate) struct OpenNic {
    // The regions come first, so that they are gone before what they are made of.
    _arena: Vec<Box<dyn Region>>,
    trial: Box<dyn Region>,
    parts: Vec<Part>,
    nic: Arc<dyn Nic>,
    down: AtomicBool,
    bound: Mutex<Sockets>,
    trial_bytes: Box<[u8]>,
    _engine: Keep,
}

/// The sockets of the connections whose queue pairs are this NIC's.
#[derive(Debug, Default)]
struct Sockets {
    next: u64,
    open: HashMap<u64, OwnedFd>,
    /// The NIC is let go of: none comes in any more.
    ended: bool,
}

/// A connection's place among the sockets of its NIC.
#[derive(Debug)]
pub(crate) struct Place {
    nic: Arc<OpenNic>,
    number: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        let socket = self.nic.bound.lock().open.remove(&self.number);
        drop(socket);
    }
}

/// Keeps the memory for pages mapped.
struct Keep(#[allow(dead_code, reason = "it is held, not used")] Arc<Engine>);

impl std::fmt::Debug for Keep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Engine")
    }
}

impl OpenNic {
    fn open(verbs: &dyn Verbs, place: &Port, engine: &Arc<Engine>) -> Result<Self, RdmaError> {
        let nic = verbs.open(place)?;
        let (start, bytes) = engine.memory();
        let name = nic.info().name.clone();
        let (begun, said) = (Instant::now(), Mutex::new(Instant::now()));
        let progress = |done: u64, of: u64| {
            let mut said = said.lock();
            if said.elapsed() >= PROGRESS {
                *said = Instant::now();
                let seconds = begun.elapsed().as_secs();
                tracing::info!(nic = name, registered = done, of, seconds, "registering memory for rdma");
            }
        };
        // SAFETY: the engine keeps the memory mapped, and this value holds the engine until after the regions are
        // dropped. Slots are read and written through handles which queue pairs hold while their work is under way.
        let arena =
            unsafe { register_all(nic.as_ref(), start, bytes, Access::Local, PART_BYTES, &progress) }?;
        let trial_bytes = vec![0; TRIAL_BYTES as usize].into_boxed_slice();
        let trial_start = NonNull::from(&trial_bytes[..]).cast();
        // SAFETY: the box is dropped after the region, and its bytes never change.
        let trial = unsafe { nic.register(trial_start, trial_bytes.len(), Access::Local) }?;
        let begin = start.as_ptr().expose_provenance() as u64;
        let part = |index: usize, key: u32| {
            let from = index * PART_BYTES;
            let bytes = PART_BYTES.min(bytes - from) as u64;
            Part { start: begin + from as u64, bytes, key }
        };
        let parts = arena.iter().enumerate().map(|(index, region)| part(index, region.local_key())).collect();
        let (down, bound, _engine) = (AtomicBool::new(false), Mutex::default(), Keep(Arc::clone(engine)));
        Ok(Self { _arena: arena, trial, parts, nic, down, bound, trial_bytes, _engine })
    }

    /// The memory for pages, as the NIC knows it.
    pub(crate) fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// The bytes that are written to try the way.
    pub(crate) fn trial(&self) -> Part {
        let start = self.trial_bytes.as_ptr().expose_provenance() as u64;
        Part { start, bytes: TRIAL_BYTES.into(), key: self.trial.local_key() }
    }

    /// A queue pair that its peer may do nothing with, and how much work it takes at a time.
    pub(crate) fn queue_pair(&self, depth: u32) -> Result<(Box<dyn QueuePair>, usize), RdmaError> {
        let depth = depth.min(self.nic.info().limits.work_requests.max(2));
        Ok((self.nic.queue_pair(depth, Access::Local)?, depth as usize))
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.nic.info().name
    }

    /// Whether it works.
    ///
    /// # Errors
    ///
    /// Why not.
    pub(crate) fn health(&self) -> Result<(), RdmaError> {
        self.nic.health()
    }

    /// Whether it did not work when that was last looked at.
    pub(crate) fn is_down(&self) -> bool {
        self.down.load(Ordering::Relaxed)
    }

    /// Looks whether it works, and says so once when that changes.
    fn look(&self) {
        let (health, name) = (self.nic.health(), self.name());
        if self.down.swap(health.is_err(), Ordering::Relaxed) == health.is_err() {
            return;
        }
        match health {
            Ok(()) => tracing::info!(nic = name, "the rdma device works again"),
            Err(error) => tracing::warn!(nic = name, %error, fix = error.fix(), "rdma device not used"),
        }
    }

    /// Enters a connection, which ends with the NIC.
    ///
    /// # Errors
    ///
    /// When the NIC is gone, or the system has no descriptor left.
    pub(crate) fn enter(self: &Arc<Self>, socket: BorrowedFd<'_>) -> std::io::Result<Place> {
        let socket = socket.try_clone_to_owned()?;
        let mut bound = self.bound.lock();
        if bound.ended {
            return Err(std::io::Error::other("the device is gone"));
        }
        bound.next += 1;
        let number = bound.next;
        bound.open.insert(number, socket);
        Ok(Place { nic: Arc::clone(self), number })
    }

    /// Ends all connections: whatever they do, they see their sockets' end.
    fn hang_up(&self) {
        let mut bound = self.bound.lock();
        bound.ended = true;
        for socket in bound.open.values() {
            // A socket that is closed already needs nothing.
            let _closed = rustix::net::shutdown(socket, rustix::net::Shutdown::Both);
        }
    }

    fn is_gone(&self) -> bool {
        matches!(self.nic.health(), Err(RdmaError::Gone { .. }))
    }
}

/// A NIC that the server uses, while it is there.
#[derive(Debug)]
struct Slot {
    /// How it was opened first.
    info: NicInfo,
    port: Port,
    near: bool,
    now: RwLock<Option<Arc<OpenNic>>>,
    /// When to look for it again.
    due: Mutex<Instant>,
}

impl Slot {
    fn new(nic: OpenNic, near: bool) -> Self {
        let (info, port) = (nic.nic.info().clone(), nic.nic.place().clone());
        let (now, due) = (RwLock::new(Some(Arc::new(nic))), Mutex::new(Instant::now()));
        Self { info, port, near, now, due }
    }

    fn is_ethernet(&self) -> bool {
        self.info.port(self.port.port).is_none_or(|port| port.link == Link::Ethernet)
    }

    fn get(&self) -> Option<Arc<OpenNic>> {
        self.now.read().clone()
    }

    fn is_needy(&self) -> bool {
        self.get().map_or_else(|| *self.due.lock() <= Instant::now(), |nic| nic.is_gone())
    }
}

/// All NICs that the server uses.
#[derive(Debug)]
pub(crate) struct Nics {
    slots: Vec<Slot>,
    depth: u32,
    verbs: Arc<dyn Verbs>,
    engine: Keep,
}

impl Nics {
    /// Opens the configured NICs. `None` if there are none to use, and none are required.
    ///
    /// # Errors
    ///
    /// [`StartError::Rdma`] if the configuration requires RDMA and there is none.
    pub(crate) fn open(
        config: &RdmaConfig,
        verbs: Option<Arc<dyn Verbs>>,
        engine: &Arc<Engine>,
    ) -> Result<Option<Self>, StartError> {
        if config.mode == RdmaMode::Off {
            return Ok(None);
        }
        match Self::open_all(config, verbs, engine) {
            Ok(nics) => {
                let names: Vec<_> = nics.slots.iter().map(|slot| slot.info.name.as_str()).collect();
                tracing::info!(nics = names.join(","), "pages may move by rdma");
                Ok(Some(nics))
            }
            Err(error) if config.mode == RdmaMode::Require => Err(StartError::Rdma(error)),
            Err(
                error @ (RdmaError::NotBuilt
                | RdmaError::NoLibrary
                | RdmaError::NoKernel
                | RdmaError::NoDevice),
            ) => {
                tracing::info!(%error, "no rdma");
                Ok(None)
            }
            Err(error) => {
                tracing::warn!(%error, fix = error.fix(), "no rdma");
                Ok(None)
            }
        }
    }

    fn open_all(
        config: &RdmaConfig,
        verbs: Option<Arc<dyn Verbs>>,
        engine: &Arc<Engine>,
    ) -> Result<Self, RdmaError> {
        let verbs = verbs.map_or_else(memkv_rdma::system, Ok)?;
        let places = memkv_rdma::choose(&verbs.nics()?, &config.devices, config.gid_index)?;
        let mut open = Vec::new();
        let mut failed = None;
        for place in places.iter().take(NICS_MAX) {
            match OpenNic::open(verbs.as_ref(), place, engine) {
                Ok(nic) => open.push(nic),
                // One bad NIC of several is not used; the others are.
                Err(error) => {
                    tracing::warn!(nic = place.nic, %error, fix = error.fix(), "rdma device not used");
                    failed = failed.or(Some(error));
                }
            }
        }
        match failed {
            Some(error) if open.is_empty() => Err(error),
            _ => {
                // Who names NICs wants all of them.
                let home = verbs.home_node().filter(|_| config.devices.is_empty());
                let nodes: Vec<_> = open.iter().map(|nic| nic.nic.info().numa).collect();
                let near = memkv_rdma::near(&nodes, home);
                let slots = open.into_iter().zip(near).map(|(nic, near)| Slot::new(nic, near)).collect();
                Ok(Self { slots, depth: config.queue_depth, verbs, engine: Keep(Arc::clone(engine)) })
            }
        }
    }

    /// What clients are told.
    pub(crate) fn offer(&self) -> v1::RdmaOffer {
        let nic = |slot: &Slot| v1::RdmaNic {
            name: slot.info.name.clone(),
            ethernet: slot.is_ethernet(),
            far: !slot.near,
        };
        v1::RdmaOffer {
            nics: self.slots.iter().map(nic).collect(),
            regions_max: super::regions::REGIONS_MAX,
            region_keys_max: super::regions::KEYS_MAX,
        }
    }

    /// Looks which NICs work. Returns how many do not.
    pub(crate) fn look(&self) -> u64 {
        let works = |slot: &Slot| {
            slot.get().is_some_and(|nic| {
                nic.look();
                !nic.is_down()
            })
        };
        self.slots.iter().filter(|slot| !works(slot)).count() as u64
    }

    /// Whether [`Nics::tend`] has something to do.
    pub(crate) fn is_needy(&self) -> bool {
        self.slots.iter().any(Slot::is_needy)
    }

    /// Lets go of NICs that are gone, and opens those again that are back. Calls the driver, which takes its time for the
    /// memory for pages.
    pub(crate) fn tend(&self) {
        for slot in self.slots.iter().filter(|slot| slot.is_needy()) {
            if let Some(gone) = slot.now.write().take() {
                gone.hang_up();
            } else if let Err(error) = self.open_again(slot) {
                tracing::debug!(nic = slot.info.name, %error, "the rdma device is not back");
            }
            *slot.due.lock() = Instant::now() + PAUSE;
        }
    }

    fn open_again(&self, slot: &Slot) -> Result<(), RdmaError> {
        let port = memkv_rdma::find_again(&self.verbs.nics()?, &slot.info, &slot.port)?;
        let nic = OpenNic::open(self.verbs.as_ref(), &port, &self.engine.0)?;
        *slot.now.write() = Some(Arc::new(nic));
        tracing::info!(nic = slot.info.name, "the rdma device is back");
        Ok(())
    }

    /// The NIC at a place of the offer.
    ///
    /// # Errors
    ///
    /// Why there is none.
    pub(crate) fn get(&self, place: u32) -> Result<Arc<OpenNic>, String> {
        let slot = self.slots.get(place as usize).ok_or("the server has no such nic")?;
        slot.get().ok_or_else(|| format!("the server's {} is gone", slot.info.name))
    }

    /// Work requests that a queue pair is made for.
    pub(crate) fn depth(&self) -> u32 {
        self.depth
    }
}
