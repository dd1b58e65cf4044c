//! The server's NICs: opened once at start, with the memory for pages registered at each.
//!
//! The memory is registered for local work only, so no key exists with which a client could reach a page.
//!
//! `unsafe` is here because registering memory promises that it stays mapped.

use super::plan::Part;
use crate::app::StartError;
use crate::config::rdma::{RdmaConfig, RdmaMode};
use memkv_proto::v1;
use memkv_rdma::{Access, Link, Nic, Place, QueuePair, RdmaError, Region, Verbs, register_all};
use memkv_storage::Engine;
use parking_lot::Mutex;
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
    trial_bytes: Box<[u8]>,
    _engine: Keep,
}

/// Keeps the memory for pages mapped.
struct Keep(#[allow(dead_code, reason = "it is held, not used")] Arc<Engine>);

impl std::fmt::Debug for Keep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Engine")
    }
}

impl OpenNic {
    fn open(verbs: &dyn Verbs, place: &Place, engine: &Arc<Engine>) -> Result<Self, RdmaError> {
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
        let (down, _engine) = (AtomicBool::new(false), Keep(Arc::clone(engine)));
        Ok(Self { _arena: arena, trial, parts, nic, down, trial_bytes, _engine })
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

    fn is_ethernet(&self) -> bool {
        let place = self.nic.place();
        self.nic.info().port(place.port).is_none_or(|port| port.link == Link::Ethernet)
    }
}

/// All NICs that the server uses.
#[derive(Debug)]
pub(crate) struct Nics {
    open: Vec<Arc<OpenNic>>,
    /// Which of them are near.
    near: Vec<bool>,
    depth: u32,
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
                let names: Vec<_> = nics.open.iter().map(|nic| nic.name()).collect();
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
                Ok(nic) => open.push(Arc::new(nic)),
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
                Ok(Self { near: memkv_rdma::near(&nodes, home), open, depth: config.queue_depth })
            }
        }
    }

    /// What clients are told.
    pub(crate) fn offer(&self) -> v1::RdmaOffer {
        let nic = |(nic, near): (&Arc<OpenNic>, &bool)| v1::RdmaNic {
            name: nic.name().to_owned(),
            ethernet: nic.is_ethernet(),
            far: !near,
        };
        v1::RdmaOffer {
            nics: self.open.iter().zip(&self.near).map(nic).collect(),
            regions_max: super::regions::REGIONS_MAX,
            region_keys_max: super::regions::KEYS_MAX,
        }
    }

    /// Looks which NICs work. Returns how many do not.
    pub(crate) fn look(&self) -> u64 {
        self.open.iter().for_each(|nic| nic.look());
        self.open.iter().filter(|nic| nic.is_down()).count() as u64
    }

    /// The NIC at a place of the offer.
    pub(crate) fn get(&self, place: u32) -> Option<&Arc<OpenNic>> {
        self.open.get(place as usize)
    }

    /// Work requests that a queue pair is made for.
    pub(crate) fn depth(&self) -> u32 {
        self.depth
    }
}
