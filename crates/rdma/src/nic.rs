//! The traits: what a NIC does, whether real or simulated.

use crate::error::RdmaError;
use crate::info::{NicInfo, Place};
use std::fmt::Debug;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::Arc;

/// All RDMA of a machine.
pub trait Verbs: Send + Sync + Debug {
    /// Lists the NICs, sorted by name. May be empty.
    ///
    /// # Errors
    ///
    /// When the system does not answer.
    fn nics(&self) -> Result<Vec<NicInfo>, RdmaError>;

    /// The NUMA node that this process runs on, if it runs on one of several.
    fn home_node(&self) -> Option<u32> {
        crate::home_node()
    }

    /// Opens a NIC with a protection domain of its own: regions and queue pairs of different calls do not mix.
    ///
    /// # Errors
    ///
    /// When the device, port or GID is not there or cannot be used.
    fn open(&self, place: &Place) -> Result<Arc<dyn Nic>, RdmaError>;
}

/// One open NIC with its protection domain.
pub trait Nic: Send + Sync + Debug {
    /// What was known of it when it was opened.
    fn info(&self) -> &NicInfo;

    /// Which port and GID its queue pairs use.
    fn place(&self) -> &Place;

    /// Whether the device and its port still work, as far as it has told. Cheap: meant to be asked before a queue pair
    /// is made, and when work fails.
    ///
    /// # Errors
    ///
    /// [`RdmaError::Gone`] for good: open the NIC again. [`RdmaError::PortDown`] until the port is up again.
    fn health(&self) -> Result<(), RdmaError>;

    /// Makes memory known to the NIC. It is pinned: pages are faulted in, and count against the memlock limit.
    ///
    /// # Safety
    ///
    /// The memory is mapped until the region is dropped. While it is registered, the NIC may read and, if `access`
    /// says so or if local work names it, write it at any time: no reference to its bytes may rely on the contrary.
    ///
    /// # Errors
    ///
    /// When the limits do not suffice, or the system refuses.
    unsafe fn register(
        &self,
        start: NonNull<u8>,
        len: usize,
        access: Access,
    ) -> Result<Box<dyn Region>, RdmaError>;

    /// Makes a buffer known to the NIC that another device shares as a dma-buf, such as memory of a GPU. Peers and work
    /// name its bytes from `address` on, which need not be mapped.
    ///
    /// # Safety
    ///
    /// While it is registered, the NIC may read and write the buffer as in [`Nic::register`].
    ///
    /// # Errors
    ///
    /// As [`Nic::register`]; also when the NIC, its driver or the verbs library cannot do this.
    unsafe fn register_dmabuf(
        &self,
        buffer: BorrowedFd<'_>,
        offset: u64,
        len: usize,
        address: u64,
        access: Access,
    ) -> Result<Box<dyn Region>, RdmaError>;

    /// Makes a queue pair with its own completion queue, for `depth` work requests outstanding at a time.
    /// `access` is what the peer may do through it to regions that allow it.
    ///
    /// # Errors
    ///
    /// When the device's limits do not suffice, or the system refuses.
    fn queue_pair(&self, depth: u32, access: Access) -> Result<Box<dyn QueuePair>, RdmaError>;
}

/// What a peer may do. The local side may always read and write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The peer may do nothing.
    Local,
    /// The peer may read, write, or both.
    Remote {
        /// Whether it may read.
        read: bool,
        /// Whether it may write.
        write: bool,
    },
}

impl Access {
    /// The peer may read and write.
    pub const REMOTE: Self = Self::Remote { read: true, write: true };

    /// Whether the peer may read.
    #[must_use]
    pub fn peer_reads(self) -> bool {
        matches!(self, Self::Remote { read: true, .. })
    }

    /// Whether the peer may write.
    #[must_use]
    pub fn peer_writes(self) -> bool {
        matches!(self, Self::Remote { write: true, .. })
    }
}

/// Registered memory. Dropping it deregisters: after that no peer reaches it, and work that names it fails.
pub trait Region: Send + Sync + Debug {
    /// Names it in our own work requests.
    fn local_key(&self) -> u32;

    /// Names it in the peer's work requests.
    fn remote_key(&self) -> u32;
}

/// What one side tells the other of its queue pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The port's GID.
    pub gid: [u8; 16],
    /// The port's LID; 0 on Ethernet.
    pub lid: u16,
    /// The queue pair's number, 24 bits.
    pub qpn: u32,
    /// The first packet's sequence number, 24 bits.
    pub psn: u32,
    /// The port's active MTU in bytes.
    pub mtu_bytes: u32,
    /// How many reads the queue pair answers at a time.
    pub reads: u8,
}

/// How long a queue pair waits for its peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// The wait for an acknowledgement is 4.096 µs times 2 to the power of this; 0 is for ever, 31 the most.
    pub ack_exponent: u8,
    /// How often it sends again without an answer, up to 7.
    pub retries: u8,
    /// How often it sends again when the peer is not ready, up to 7; 7 is for ever.
    pub rnr_retries: u8,
}

impl Default for Timing {
    /// 0.54 s per attempt and seven retries: a dead peer is noticed after some seconds, a slow one is not given up.
    fn default() -> Self {
        Self { ack_exponent: 17, retries: 7, rnr_retries: 6 }
    }
}

/// A reliable connection to one queue pair of a peer, with its own completion queue.
///
/// Work of one queue pair is carried out and completes in the order it was posted. A piece of work that fails puts
/// the queue pair into the error state: everything after it completes as [`WorkError::Flushed`].
///
/// Dropping it destroys it, whatever state it is in. When the drop returns, the NIC neither reads nor writes memory
/// for it any more, not for our work and not for the peer's, and its completions are gone.
pub trait QueuePair: Send + Debug {
    /// What the peer needs to connect to it. Does not change.
    fn address(&self) -> Address;

    /// Connects it to the peer's queue pair. Both sides have to. Work may be posted when both did.
    ///
    /// # Errors
    ///
    /// When the two do not fit, or the system refuses, for instance because there is no route. It cannot be
    /// connected again after that.
    fn connect(&mut self, peer: &Address, timing: Timing) -> Result<(), RdmaError>;

    /// Hands a chain of work to the NIC, with one doorbell. All of it is posted, or nothing.
    ///
    /// Room in the send queue is given back when a signaled piece of work's completion is polled, for it and all
    /// before it: a chain whose last piece is not signaled fills the queue for good.
    ///
    /// # Safety
    ///
    /// The local memory that each piece names stays mapped, and nothing else writes (for [`WorkKind::Write`]) or
    /// touches (for [`WorkKind::Read`]) it, until the completion of that piece or of a later one was polled, or the
    /// queue pair was dropped.
    ///
    /// # Errors
    ///
    /// [`RdmaError::Full`] without room for all of it, [`RdmaError::Limit`] for a piece that is too long,
    /// [`RdmaError::NotConnected`] before connecting and in the error state.
    unsafe fn post(&mut self, work: &[Work]) -> Result<(), RdmaError>;

    /// Appends what completed since to `out`: all signaled work, and all work that failed.
    /// Does not allocate, except for `out` to grow.
    ///
    /// # Errors
    ///
    /// When the completion queue itself is broken. The queue pair is of no use then.
    fn poll(&mut self, out: &mut Vec<Completion>) -> Result<(), RdmaError>;

    /// Asks for [`QueuePair::fd`] to become readable at the next completion, and takes back what made it readable.
    ///
    /// A completion between the last poll and this call makes no event: poll, arm, poll again, then wait.
    ///
    /// # Errors
    ///
    /// When the system refuses.
    fn arm(&mut self) -> Result<(), RdmaError>;

    /// Readable after a completion that [`QueuePair::arm`] asked to hear of. Not to be read from.
    fn fd(&self) -> Option<BorrowedFd<'_>>;

    /// Puts the queue pair into the error state: everything posted completes, most of it flushed.
    /// The peer notices when it tries to use it.
    fn fail(&mut self);
}

/// One piece of work: moves `len` bytes between local and remote memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Work {
    /// Comes back in the completion.
    pub id: u64,
    /// The direction.
    pub kind: WorkKind,
    /// The local address.
    pub local: u64,
    /// The local key of the region that has it.
    pub local_key: u32,
    /// How many bytes.
    pub len: u32,
    /// The peer's address.
    pub remote: u64,
    /// The remote key of the peer's region that has it.
    pub remote_key: u32,
    /// Whether it completes visibly when it succeeds. What fails always does.
    pub signaled: bool,
}

/// The direction of a piece of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkKind {
    /// From remote to local memory.
    Read,
    /// From local to remote memory.
    Write,
}

/// The end of a piece of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// That of the work.
    pub id: u64,
    /// Whether the bytes were moved. After an error, any part of them may have been.
    pub result: Result<(), WorkError>,
}

/// Why a piece of work failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WorkError {
    /// The queue pair failed before this piece.
    #[error("flushed")]
    Flushed,
    /// The peer has no such region, or does not allow it.
    #[error("the peer refused the access")]
    RemoteAccess,
    /// The peer does not answer.
    #[error("the peer does not answer")]
    RetryExceeded,
    /// The peer was not ready for too long.
    #[error("the peer was not ready")]
    RnrRetry,
    /// We have no such region.
    #[error("the local region is wrong")]
    Local,
    /// Something else: the status of the verbs library.
    #[error("verbs status {0}")]
    Other(u32),
}

impl WorkError {
    /// A short name of a closed set, for metrics and logs.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::Flushed => "flushed",
            Self::RemoteAccess => "remote_access",
            Self::RetryExceeded => "no_answer",
            Self::RnrRetry => "not_ready",
            Self::Local => "local",
            Self::Other(_) => "other",
        }
    }
}
