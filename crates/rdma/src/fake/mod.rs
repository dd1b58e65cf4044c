//! A network of simulated NICs in one process, for faults that no NIC makes on demand.
//!
//! Bytes really move, by copying between registered regions. Keys, bounds, rights, protection domains and the room in
//! send queues are checked as a NIC checks them. Without a script all work completes at once, inside `post`. With
//! [`Fabric::hold`] it stays under way until the test delivers it, in the order that the test wants.
//!
//! What is only alike: queue pairs keep their order, so [`Order::Newest`] reorders work of different queue pairs only,
//! as in a real network; and a message moves at once, whole or not at all.
//!
//! Deliberately absent: threads, time, and chance. What a test does is all that happens.

mod memory;
mod network;
#[cfg(test)]
mod tests;

use crate::error::{Errno, RdmaError};
use crate::info::{GidInfo, GidKind, Link, NicInfo, NicLimits, Place, PortInfo};
use crate::nic::{Access, Address, Completion, Nic, QueuePair, Region, Timing, Verbs, Work, WorkError};
use memory::Memory;
use network::{NewPair, State};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The network. Its clones are the same one; every NIC reaches every other and itself.
#[derive(Clone, Debug)]
pub struct Fabric {
    shared: Arc<Shared>,
    home: Option<u32>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
}

/// What the network holds back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hold {
    /// Nothing.
    #[default]
    Nothing,
    /// Bytes move at once; their completions wait.
    Completions,
    /// Nothing moves and nothing completes.
    Transfers,
}

/// In which order held work goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// As it was posted.
    Oldest,
    /// The queue pair with the newest first piece goes first.
    Newest,
}

/// What there is, and what was done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Regions that are registered.
    pub regions: usize,
    /// Queue pairs that exist.
    pub queue_pairs: usize,
    /// Pieces of work that are under way.
    pub held: usize,
    /// Calls of `post`.
    pub doorbells: u64,
    /// Pieces of work posted.
    pub posted: u64,
    /// Bytes moved.
    pub moved_bytes: u64,
}

impl Fabric {
    /// A network with `nics` NICs `fake0`, `fake1`, …, on NUMA nodes 0, 1, ….
    #[must_use]
    pub fn new(nics: u8) -> Self {
        Self::with((0..nics).map(fake_nic).collect())
    }

    /// A network with these NICs. Each has at least one port, with a GID that no other has.
    #[must_use]
    pub fn with(nics: Vec<NicInfo>) -> Self {
        Self { shared: Arc::new(Shared { state: Mutex::new(State::new(nics)) }), home: None }
    }

    /// The same network, seen by a process on this NUMA node.
    #[must_use]
    pub fn at_node(&self, node: u32) -> Self {
        Self { home: Some(node), ..self.clone() }
    }

    /// Takes a NIC's port down, or up again. While it is down, nothing gets to or from the NIC, and what is under way
    /// waits: here nobody counts attempts.
    pub fn set_port(&self, nic: &str, up: bool) {
        self.shared.lock().set_port(nic, up);
    }

    /// How many openings of a NIC exist: open NICs and what was made of them keep theirs. While there are any of a NIC that
    /// was removed, a system waits with the removal.
    #[must_use]
    pub fn openings_of(&self, nic: &str) -> usize {
        self.shared.lock().openings_of(nic)
    }

    /// How many queue pairs a NIC has.
    #[must_use]
    pub fn queue_pairs_of(&self, nic: &str) -> usize {
        self.shared.lock().queue_pairs_of(nic)
    }

    /// Sets what is held back from now on. [`Hold::Nothing`] delivers everything that was.
    pub fn hold(&self, hold: Hold) {
        self.shared.lock().set_hold(hold);
    }

    /// Lets up to `most` pieces of held work go on. Returns how many did.
    pub fn deliver(&self, most: usize, order: Order) -> usize {
        self.shared.lock().deliver(most, order)
    }

    /// Fails one piece of work: the one that is carried out after `after` others.
    pub fn fail_work(&self, after: usize, error: WorkError) {
        self.shared.lock().script_failure(after, error);
    }

    /// Alters the first byte of one piece of work on its way: of the one that is carried out after `after` others.
    pub fn damage_work(&self, after: usize) {
        self.shared.lock().script_damage(after);
    }

    /// Refuses the next registrations, for want of memory that may be locked.
    pub fn refuse_registrations(&self, times: usize) {
        self.shared.lock().script_refusals(times);
    }

    /// Takes a NIC away: its queue pairs fail, and every call says that it is gone.
    pub fn remove(&self, nic: &str) {
        self.shared.lock().set_present(nic, false);
    }

    /// Puts a NIC back. Who had it open has to open it again.
    pub fn restore(&self, nic: &str) {
        self.shared.lock().set_present(nic, true);
    }

    /// What there is, and what was done so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.shared.lock().counts()
    }
}

fn fake_nic(number: u8) -> NicInfo {
    let gid = std::net::Ipv4Addr::new(10, 0, 0, number + 1).to_ipv6_mapped().octets();
    let port = PortInfo {
        number: 1,
        active: true,
        link: Link::Ethernet,
        mtu_bytes: 4096,
        lid: 0,
        message_bytes: network::MESSAGE_BYTES,
        gids: vec![GidInfo { index: 0, gid, kind: GidKind::RoceV2, netdev: None }],
    };
    let limits = NicLimits {
        queue_pairs: 1 << 16,
        work_requests: 1 << 14,
        spans: 30,
        reads: 16,
        region_bytes: 1 << 40,
        regions: 1 << 20,
    };
    NicInfo { name: format!("fake{number}"), numa: Some(number.into()), ports: vec![port], limits }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Verbs for Fabric {
    fn nics(&self) -> Result<Vec<NicInfo>, RdmaError> {
        let state = self.shared.lock();
        let mut nics: Vec<NicInfo> =
            state.nics.iter().filter(|nic| nic.present).map(|nic| nic.info.clone()).collect();
        nics.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(nics)
    }

    fn home_node(&self) -> Option<u32> {
        self.home
    }

    fn open(&self, place: &Place) -> Result<Arc<dyn Nic>, RdmaError> {
        let mut state = self.shared.lock();
        let found = state.nics.iter().position(|nic| nic.present && nic.info.name == place.nic);
        let Some(index) = found else {
            return Err(RdmaError::NoSuchDevice { wanted: place.nic.clone(), present: "others".into() });
        };
        let info = state.nics[index].info.clone();
        let port = info.port(place.port);
        let gid = port.and_then(|port| port.gids.iter().find(|gid| gid.index == place.gid_index));
        let Some(gid) = gid.map(|gid| gid.gid) else {
            let (nic, port, index) = (place.nic.clone(), place.port, place.gid_index);
            return Err(RdmaError::NoSuchGid { nic, port, index });
        };
        let domain = state.new_name();
        state.nics[index].openings += 1;
        let (shared, life) = (Arc::clone(&self.shared), state.nics[index].life);
        let opening = Arc::new(Opening { shared, index, life });
        Ok(Arc::new(FakeNic { opening, info, place: place.clone(), gid, domain }))
    }
}

/// One opening of a NIC. All that was made of it keeps it open, as with a real one.
#[derive(Debug)]
struct Opening {
    shared: Arc<Shared>,
    index: usize,
    life: u64,
}

impl Drop for Opening {
    fn drop(&mut self) {
        self.shared.lock().nics[self.index].openings -= 1;
    }
}

#[derive(Debug)]
struct FakeNic {
    opening: Arc<Opening>,
    info: NicInfo,
    place: Place,
    gid: [u8; 16],
    domain: u32,
}

#[allow(unsafe_code, reason = "the trait's function is unsafe to call")]
impl Nic for FakeNic {
    fn info(&self) -> &NicInfo {
        &self.info
    }

    fn place(&self) -> &Place {
        &self.place
    }

    fn health(&self) -> Result<(), RdmaError> {
        let Opening { shared, index, life } = &*self.opening;
        shared.lock().check_usable(*index, *life)
    }

    unsafe fn register(
        &self,
        start: NonNull<u8>,
        len: usize,
        access: Access,
    ) -> Result<Box<dyn Region>, RdmaError> {
        // SAFETY: the caller keeps the memory until the region is dropped, and that drops this.
        let memory = unsafe { Memory::new(start, len) };
        let Opening { shared, index, life } = &*self.opening;
        let name = shared.lock().register((*index, *life), self.domain, memory, len as u64, access)?;
        Ok(Box::new(FakeRegion { opening: Arc::clone(&self.opening), name }))
    }

    unsafe fn register_dmabuf(
        &self,
        _buffer: BorrowedFd<'_>,
        _offset: u64,
        len: usize,
        _address: u64,
        _access: Access,
    ) -> Result<Box<dyn Region>, RdmaError> {
        let errno = Errno(rustix::io::Errno::OPNOTSUPP.raw_os_error());
        Err(RdmaError::Register { bytes: len as u64, errno })
    }

    fn queue_pair(&self, depth: u32, access: Access) -> Result<Box<dyn QueuePair>, RdmaError> {
        use rustix::event::{EventfdFlags, eventfd};
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|errno| RdmaError::System { call: "eventfd", errno: Errno(errno.raw_os_error()) })?;
        let event = Arc::new(event);
        let Opening { shared, index, life } = &*self.opening;
        let (nic, life, domain, gid) = (*index, *life, self.domain, self.gid);
        let new = NewPair { nic, life, domain, access, depth, gid, event: Arc::clone(&event) };
        let address = shared.lock().add_pair(new)?;
        let (opening, shared) = (Arc::clone(&self.opening), Arc::clone(shared));
        Ok(Box::new(FakePair { shared, address, event, _opening: opening }))
    }
}

#[derive(Debug)]
struct FakeRegion {
    opening: Arc<Opening>,
    name: u32,
}

impl Region for FakeRegion {
    fn local_key(&self) -> u32 {
        self.name * 2
    }

    fn remote_key(&self) -> u32 {
        self.name * 2 + 1
    }
}

impl Drop for FakeRegion {
    fn drop(&mut self) {
        self.opening.shared.lock().deregister(self.name);
    }
}

#[derive(Debug)]
struct FakePair {
    shared: Arc<Shared>,
    address: Address,
    event: Arc<OwnedFd>,
    _opening: Arc<Opening>,
}

#[allow(unsafe_code, reason = "the trait's function is unsafe to call")]
impl QueuePair for FakePair {
    fn address(&self) -> Address {
        self.address
    }

    fn connect(&mut self, peer: &Address, _timing: Timing) -> Result<(), RdmaError> {
        self.shared.lock().connect(self.address.qpn, peer)
    }

    unsafe fn post(&mut self, work: &[Work]) -> Result<(), RdmaError> {
        self.shared.lock().post(self.address.qpn, work)
    }

    fn poll(&mut self, out: &mut Vec<Completion>) -> Result<(), RdmaError> {
        self.shared.lock().poll(self.address.qpn, out);
        Ok(())
    }

    fn arm(&mut self) -> Result<(), RdmaError> {
        self.shared.lock().arm(self.address.qpn);
        Ok(())
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.event.as_fd())
    }

    fn fail(&mut self) {
        self.shared.lock().fail_pair(self.address.qpn);
    }
}

impl Drop for FakePair {
    fn drop(&mut self) {
        self.shared.lock().remove_pair(self.address.qpn);
    }
}
