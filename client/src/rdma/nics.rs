//! The NICs of this process: each is open, or gone and waited for.
//!
//! A NIC that was removed is let go of, since the system ends a removal only when nobody has the NIC open any more, and is
//! opened again when it is back. Its life tells one opening from the next: what was made in an earlier life is of no use.
//!
//! Deliberately absent: memory. Who opens a NIC again registers everything with it before [`Nics::publish`].

use super::NICS_MAX;
use crate::Config;
use memkv_rdma::{Link, Nic, NicInfo, Place, RdmaError, Verbs};
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Pauses between looks for a NIC that is gone.
const PAUSE: Duration = Duration::from_secs(1);

/// An open NIC.
#[derive(Clone)]
pub(super) struct Opened {
    pub(super) nic: Arc<dyn Nic>,
    /// Which opening of it this is, from 1.
    pub(super) life: u64,
}

/// One NIC of ours.
struct Slot {
    /// How it was opened first.
    info: NicInfo,
    place: Place,
    state: Mutex<State>,
}

impl Slot {
    fn is_ethernet(&self) -> bool {
        self.info.port(self.place.port).is_none_or(|port| port.link == Link::Ethernet)
    }
}

struct State {
    now: Result<Opened, RdmaError>,
    lives: u64,
    /// When to look for it again.
    due: Instant,
}

/// All NICs of ours, by their places.
pub(super) struct Nics {
    verbs: Arc<dyn Verbs>,
    slots: Vec<Slot>,
    near: Vec<bool>,
}

impl Nics {
    /// Opens the configured NICs.
    ///
    /// # Errors
    ///
    /// Why there is none.
    pub(super) fn open(config: &Config, verbs: Arc<dyn Verbs>) -> Result<Self, RdmaError> {
        let infos = verbs.nics()?;
        let places = memkv_rdma::choose(&infos, &config.rdma_devices, config.rdma_gid_index)?;
        let (mut slots, mut nodes, mut failed) = (Vec::new(), Vec::new(), None);
        for place in places.iter().take(NICS_MAX) {
            match verbs.open(place) {
                Ok(nic) => {
                    let info = nic.info().clone();
                    nodes.push(info.numa);
                    let now = Ok(Opened { nic, life: 1 });
                    let state = Mutex::new(State { now, lives: 1, due: Instant::now() });
                    slots.push(Slot { info, place: place.clone(), state });
                }
                // One bad NIC of several is not used; the others are.
                Err(error) => {
                    tracing::warn!(nic = place.nic, %error, fix = error.fix(), "rdma device not used");
                    failed = failed.or(Some(error));
                }
            }
        }
        if let Some(error) = failed.filter(|_| slots.is_empty()) {
            return Err(error);
        }
        // Who names NICs wants all of them.
        let home = verbs.home_node().filter(|_| config.rdma_devices.is_empty());
        let near = memkv_rdma::near(&nodes, home);
        Ok(Self { verbs, slots, near })
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// The names of the NICs, with commas between.
    pub(super) fn names(&self) -> String {
        self.slots.iter().map(|slot| slot.info.name.as_str()).collect::<Vec<_>>().join(",")
    }

    pub(super) fn name(&self, place: usize) -> &str {
        &self.slots[place].info.name
    }

    /// For each, whether it is on an Ethernet, and whether it is near.
    pub(super) fn kinds(&self) -> impl Iterator<Item = (bool, bool)> {
        self.slots.iter().map(Slot::is_ethernet).zip(self.near.iter().copied())
    }

    /// The NIC at a place.
    ///
    /// # Errors
    ///
    /// Why there is none now.
    pub(super) fn get(&self, place: usize) -> Result<Opened, RdmaError> {
        self.slots[place].state.lock().now.clone()
    }

    /// All that are open now.
    pub(super) fn all(&self) -> Vec<Option<Opened>> {
        (0..self.len()).map(|place| self.get(place).ok()).collect()
    }

    /// The life of the NIC at a place; 0 while it is gone.
    pub(super) fn life(&self, place: usize) -> u64 {
        self.get(place).map_or(0, |opened| opened.life)
    }

    /// Whether the NIC at a place works.
    ///
    /// # Errors
    ///
    /// Why not.
    pub(super) fn health(&self, place: usize) -> Result<(), RdmaError> {
        self.get(place)?.nic.health()
    }

    /// The places of NICs that are gone and still open here.
    pub(super) fn gone(&self) -> Vec<usize> {
        let is_gone = |&place: &usize| {
            self.get(place).is_ok_and(|opened| matches!(opened.nic.health(), Err(RdmaError::Gone { .. })))
        };
        (0..self.len()).filter(is_gone).collect()
    }

    /// The places of NICs to look for now.
    pub(super) fn due(&self) -> Vec<usize> {
        let now = Instant::now();
        let is_due = |&place: &usize| {
            let state = self.slots[place].state.lock();
            state.now.is_err() && state.due <= now
        };
        (0..self.len()).filter(is_due).collect()
    }

    /// Gives up the NIC at a place, for this reason.
    pub(super) fn close(&self, place: usize, why: RdmaError) {
        let mut state = self.slots[place].state.lock();
        let closed = std::mem::replace(&mut state.now, Err(why));
        state.due = Instant::now() + PAUSE;
        drop(state);
        drop(closed);
    }

    /// Opens the NIC at a place again, for whoever asks only.
    ///
    /// # Errors
    ///
    /// Why that does not work now.
    pub(super) fn open_again(&self, place: usize) -> Result<Opened, RdmaError> {
        let slot = &self.slots[place];
        let found = memkv_rdma::find_again(&self.verbs.nics()?, &slot.info, &slot.place)?;
        let nic = self.verbs.open(&found)?;
        let mut state = slot.state.lock();
        state.lives += 1;
        Ok(Opened { nic, life: state.lives })
    }

    /// Lets everybody have a NIC that was opened again.
    pub(super) fn publish(&self, place: usize, opened: Opened) {
        self.slots[place].state.lock().now = Ok(opened);
    }
}
