//! A queue pair with its completion queue and its completion channel.
//!
//! The three are destroyed in this order, each ignoring a refusal: the only one that a correct program meets is that
//! the device is gone, and then nothing moves either.

use super::events::set_nonblocking;
use super::nic::flags;
use super::query::mtu_code;
use crate::error::{Errno, RdmaError};
use crate::info::{GidInfo, Link, PortInfo};
use crate::nic::{Access, Address, Completion, QueuePair, Timing, Work, WorkError, WorkKind};
use rdma_mummy_sys::{
    ibv_ack_cq_events, ibv_comp_channel, ibv_cq, ibv_create_comp_channel, ibv_create_cq, ibv_create_qp,
    ibv_destroy_comp_channel, ibv_destroy_cq, ibv_destroy_qp, ibv_get_cq_event, ibv_modify_qp, ibv_poll_cq,
    ibv_post_send, ibv_qp, ibv_qp_attr, ibv_qp_attr_mask as mask, ibv_qp_init_attr, ibv_qp_state,
    ibv_qp_type, ibv_req_notify_cq, ibv_send_flags, ibv_send_wr, ibv_sge, ibv_wc, ibv_wc_status,
    ibv_wr_opcode, rdma_t, wr_t,
};
use sideway::ibverbs::device_context::DeviceContext;
use sideway::ibverbs::protection_domain::ProtectionDomain;
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;

/// Completions taken from the queue at a time.
const POLL: usize = 16;
/// The wait that we ask of a peer when we are not ready, as the library codes it: 0.64 ms.
const RNR_TIMER: u8 = 12;
/// Routers that a packet may pass.
const HOPS: u8 = 64;
/// Queue pair and packet numbers have 24 bits.
const NUMBER_MAX: u32 = (1 << 24) - 1;

#[derive(Debug)]
pub(super) struct VerbsPair {
    qp: Qp,
    address: Address,
    port: PortInfo,
    gid_index: u8,
    access: Access,
    stage: Stage,
    depth: u64,
    /// Pieces of work that were posted, and those whose room was given back. Also the `wr_id` of the next one.
    posted: u64,
    reaped: u64,
    /// The caller's names of what is under way, at `wr_id % depth`.
    ids: Box<[u64]>,
    /// Room for one chain, kept so that posting does not allocate.
    requests: Vec<Request>,
    spans: Vec<Span>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Stage {
    Fresh,
    Ready,
    Failed,
}

struct Request(ibv_send_wr);
struct Span(ibv_sge);

// SAFETY: pointers in it are set and used within one call of `post`.
unsafe impl Send for Request {}

impl std::fmt::Debug for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Request({})", self.0.wr_id)
    }
}

impl std::fmt::Debug for Span {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Span({:#x}, {})", self.0.addr, self.0.length)
    }
}

impl VerbsPair {
    pub(super) fn new(
        context: &Arc<DeviceContext>,
        domain: &Arc<ProtectionDomain>,
        port: &PortInfo,
        gid: &GidInfo,
        reads: u8,
        depth: u32,
        access: Access,
    ) -> Result<Self, RdmaError> {
        let qp = Qp::new(Cq::new(Channel::new(context)?, context, depth)?, domain, depth)?;
        let Ok(gid_index) = u8::try_from(gid.index) else {
            return Err(RdmaError::Limit { what: "GID index", wanted: gid.index.into(), limit: 255 });
        };
        let mut random = [0; 4];
        getrandom::fill(&mut random)
            .map_err(|_| RdmaError::System { call: "getrandom", errno: Errno::last() })?;
        // A fresh number, so that late packets of a queue pair that had the same name are not taken for ours.
        let psn = u32::from_ne_bytes(random) & NUMBER_MAX;
        let (gid, lid, qpn, mtu_bytes) = (gid.gid, port.lid, qp.number(), port.mtu_bytes);
        let address = Address { gid, lid, qpn, psn, mtu_bytes, reads };
        let mut pair = Self {
            qp,
            address,
            port: port.clone(),
            gid_index,
            access,
            stage: Stage::Fresh,
            depth: depth.into(),
            posted: 0,
            reaped: 0,
            ids: vec![0; depth as usize].into(),
            requests: Vec::with_capacity(depth as usize),
            spans: Vec::with_capacity(depth as usize),
        };
        pair.initialize()?;
        Ok(pair)
    }

    fn initialize(&mut self) -> Result<(), RdmaError> {
        let mut attr = blank_attr();
        attr.qp_state = ibv_qp_state::IBV_QPS_INIT;
        attr.pkey_index = 0;
        attr.port_num = self.port.number;
        attr.qp_access_flags = i32::from(flags(self.access)).cast_unsigned();
        self.qp.modify(
            &mut attr,
            mask::IBV_QP_STATE | mask::IBV_QP_PKEY_INDEX | mask::IBV_QP_PORT | mask::IBV_QP_ACCESS_FLAGS,
        )
    }

    fn ready_to_receive(&self, peer: &Address, path_mtu: u32) -> Result<(), RdmaError> {
        let mut attr = blank_attr();
        attr.qp_state = ibv_qp_state::IBV_QPS_RTR;
        attr.path_mtu = path_mtu;
        attr.dest_qp_num = peer.qpn;
        attr.rq_psn = peer.psn;
        attr.max_dest_rd_atomic = self.address.reads;
        attr.min_rnr_timer = RNR_TIMER;
        attr.ah_attr.dlid = peer.lid;
        attr.ah_attr.port_num = self.port.number;
        // On InfiniBand the LID suffices inside a subnet, which is the first half of the GID.
        let is_global = self.port.link == Link::Ethernet || self.address.gid[..8] != peer.gid[..8];
        if is_global {
            attr.ah_attr.is_global = 1;
            attr.ah_attr.grh.dgid.raw = peer.gid;
            attr.ah_attr.grh.sgid_index = self.gid_index;
            attr.ah_attr.grh.hop_limit = HOPS;
        }
        let what = mask::IBV_QP_STATE
            | mask::IBV_QP_AV
            | mask::IBV_QP_PATH_MTU
            | mask::IBV_QP_DEST_QPN
            | mask::IBV_QP_RQ_PSN
            | mask::IBV_QP_MAX_DEST_RD_ATOMIC
            | mask::IBV_QP_MIN_RNR_TIMER;
        self.qp.modify(&mut attr, what)
    }

    fn ready_to_send(&self, peer: &Address, timing: Timing) -> Result<(), RdmaError> {
        let mut attr = blank_attr();
        attr.qp_state = ibv_qp_state::IBV_QPS_RTS;
        attr.timeout = timing.ack_exponent.min(31);
        attr.retry_cnt = timing.retries.min(7);
        attr.rnr_retry = timing.rnr_retries.min(7);
        attr.sq_psn = self.address.psn;
        // More reads at a time than the peer answers would break the connection.
        attr.max_rd_atomic = self.address.reads.min(peer.reads);
        let what = mask::IBV_QP_STATE
            | mask::IBV_QP_TIMEOUT
            | mask::IBV_QP_RETRY_CNT
            | mask::IBV_QP_RNR_RETRY
            | mask::IBV_QP_SQ_PSN
            | mask::IBV_QP_MAX_QP_RD_ATOMIC;
        self.qp.modify(&mut attr, what)
    }

    /// Fills the room for a chain with this work.
    fn chain(&mut self, work: &[Work]) {
        self.requests.clear();
        self.spans.clear();
        for (offset, piece) in work.iter().enumerate() {
            let number = self.posted + offset as u64;
            self.ids[slot(number, self.depth)] = piece.id;
            self.spans.push(Span(ibv_sge { addr: piece.local, length: piece.len, lkey: piece.local_key }));
            let mut request = blank_request();
            request.wr_id = number;
            request.num_sge = 1;
            request.opcode = match piece.kind {
                WorkKind::Read => ibv_wr_opcode::IBV_WR_RDMA_READ,
                WorkKind::Write => ibv_wr_opcode::IBV_WR_RDMA_WRITE,
            };
            request.send_flags = if piece.signaled { ibv_send_flags::IBV_SEND_SIGNALED.0 } else { 0 };
            request.wr = wr_t { rdma: rdma_t { remote_addr: piece.remote, rkey: piece.remote_key } };
            self.requests.push(Request(request));
        }
        // Both have their final length, so these addresses stay.
        let mut next = null_mut();
        for (request, span) in self.requests.iter_mut().zip(&mut self.spans).rev() {
            request.0.sg_list = &raw mut span.0;
            request.0.next = next;
            next = &raw mut request.0;
        }
    }

    fn completion(&mut self, entry: &ibv_wc) -> Completion {
        let number = entry.wr_id;
        self.reaped = self.reaped.max(number + 1);
        let result = outcome(entry.status);
        if result.is_err() {
            self.stage = Stage::Failed;
        }
        Completion { id: self.ids[slot(number, self.depth)], result }
    }
}

impl QueuePair for VerbsPair {
    fn address(&self) -> Address {
        self.address
    }

    fn connect(&mut self, peer: &Address, timing: Timing) -> Result<(), RdmaError> {
        if self.stage != Stage::Fresh {
            return Err(RdmaError::NotConnected);
        }
        self.stage = Stage::Failed;
        if peer.qpn > NUMBER_MAX || peer.psn > NUMBER_MAX {
            return Err(RdmaError::Peer("its numbers have more than 24 bits"));
        }
        let path_mtu = mtu_code(self.address.mtu_bytes.min(peer.mtu_bytes));
        let path_mtu = path_mtu.ok_or(RdmaError::Peer("its MTU is none"))?;
        self.ready_to_receive(peer, path_mtu)?;
        self.ready_to_send(peer, timing)?;
        self.stage = Stage::Ready;
        Ok(())
    }

    unsafe fn post(&mut self, work: &[Work]) -> Result<(), RdmaError> {
        if self.stage != Stage::Ready {
            return Err(RdmaError::NotConnected);
        }
        if self.posted - self.reaped + work.len() as u64 > self.depth {
            return Err(RdmaError::Full);
        }
        let limit = self.port.message_bytes;
        if let Some(long) = work.iter().find(|piece| u64::from(piece.len) > limit) {
            return Err(RdmaError::Limit { what: "bytes of a message", wanted: long.len.into(), limit });
        }
        self.chain(work);
        let Some(first) = self.requests.first_mut().map(|request| &raw mut request.0) else { return Ok(()) };
        let mut bad: *mut ibv_send_wr = null_mut();
        // SAFETY: the chain is in `requests` and `spans`, which stay until the call returns; the memory that it names
        // stays by the promise of this function's caller.
        let errno = unsafe { ibv_post_send(self.qp.raw.as_ptr(), first, &raw mut bad) };
        if errno == 0 {
            self.posted += work.len() as u64;
            return Ok(());
        }
        // Room was left, so the device does not work. What it took is answered by failing.
        let is_bad = |request: &Request| std::ptr::eq(&raw const request.0, bad);
        self.posted += self.requests.iter().position(is_bad).unwrap_or(work.len()) as u64;
        self.fail();
        Err(RdmaError::System { call: "ibv_post_send", errno: Errno(errno) })
    }

    fn poll(&mut self, out: &mut Vec<Completion>) -> Result<(), RdmaError> {
        let mut entries = [const { MaybeUninit::<ibv_wc>::uninit() }; POLL];
        loop {
            // SAFETY: the completion queue is ours, and there is room for as many entries as we say.
            let found =
                unsafe { ibv_poll_cq(self.qp.cq.raw.as_ptr(), POLL as i32, entries.as_mut_ptr().cast()) };
            let Ok(found) = usize::try_from(found) else {
                self.stage = Stage::Failed;
                return Err(RdmaError::System { call: "ibv_poll_cq", errno: Errno(-found) });
            };
            for entry in &entries[..found] {
                // SAFETY: the library filled the first `found` entries.
                let entry = unsafe { entry.assume_init_ref() };
                out.push(self.completion(entry));
            }
            if found < POLL {
                return Ok(());
            }
        }
    }

    fn arm(&mut self) -> Result<(), RdmaError> {
        self.qp.cq.take_events();
        // SAFETY: the completion queue is ours.
        let errno = unsafe { ibv_req_notify_cq(self.qp.cq.raw.as_ptr(), 0) };
        if errno == 0 {
            Ok(())
        } else {
            Err(RdmaError::System { call: "ibv_req_notify_cq", errno: Errno(errno) })
        }
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.qp.cq.channel.fd())
    }

    fn fail(&mut self) {
        self.stage = Stage::Failed;
        self.qp.fail();
    }
}

/// Where the name of a piece of work is kept.
fn slot(number: u64, depth: u64) -> usize {
    usize::try_from(number % depth).expect("the depth has 32 bits")
}

fn outcome(status: ibv_wc_status::Type) -> Result<(), WorkError> {
    match status {
        ibv_wc_status::IBV_WC_SUCCESS => Ok(()),
        ibv_wc_status::IBV_WC_WR_FLUSH_ERR => Err(WorkError::Flushed),
        ibv_wc_status::IBV_WC_REM_ACCESS_ERR
        | ibv_wc_status::IBV_WC_REM_INV_REQ_ERR
        | ibv_wc_status::IBV_WC_REM_OP_ERR => Err(WorkError::RemoteAccess),
        ibv_wc_status::IBV_WC_RETRY_EXC_ERR | ibv_wc_status::IBV_WC_RESP_TIMEOUT_ERR => {
            Err(WorkError::RetryExceeded)
        }
        ibv_wc_status::IBV_WC_RNR_RETRY_EXC_ERR => Err(WorkError::RnrRetry),
        ibv_wc_status::IBV_WC_LOC_LEN_ERR
        | ibv_wc_status::IBV_WC_LOC_PROT_ERR
        | ibv_wc_status::IBV_WC_LOC_QP_OP_ERR
        | ibv_wc_status::IBV_WC_LOC_ACCESS_ERR => Err(WorkError::Local),
        other => Err(WorkError::Other(other)),
    }
}

fn blank_attr() -> ibv_qp_attr {
    // SAFETY: numbers and byte arrays, all of which may be zero.
    unsafe { MaybeUninit::zeroed().assume_init() }
}

fn blank_request() -> ibv_send_wr {
    // SAFETY: numbers, unions of numbers, and pointers, all of which may be zero.
    unsafe { MaybeUninit::zeroed().assume_init() }
}

/// The completion channel: where the kernel reports completions that were asked for.
#[derive(Debug)]
struct Channel {
    raw: NonNull<ibv_comp_channel>,
    _context: Arc<DeviceContext>,
}

// SAFETY: the library locks what several threads may use, and we use it from one at a time.
unsafe impl Send for Channel {}

impl Channel {
    fn new(context: &Arc<DeviceContext>) -> Result<Self, RdmaError> {
        // SAFETY: only used while `context` is borrowed.
        let device = unsafe { context.context() };
        // SAFETY: the context is open.
        let raw = unsafe { ibv_create_comp_channel(device.as_ptr()) };
        let raw = created(raw, "ibv_create_comp_channel")?;
        let channel = Self { raw, _context: Arc::clone(context) };
        // SAFETY: it was just made.
        set_nonblocking(unsafe { channel.raw.as_ref() }.fd)?;
        Ok(channel)
    }

    fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the channel is valid until it is dropped.
        let fd = unsafe { self.raw.as_ref() }.fd;
        // SAFETY: open as long as the channel.
        unsafe { BorrowedFd::borrow_raw(fd) }
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        // SAFETY: made by `new`, destroyed once; its completion queue was destroyed before.
        unsafe { ibv_destroy_comp_channel(self.raw.as_ptr()) };
    }
}

/// The completion queue.
#[derive(Debug)]
struct Cq {
    raw: NonNull<ibv_cq>,
    channel: Channel,
}

// SAFETY: as for `Channel`.
unsafe impl Send for Cq {}

impl Cq {
    fn new(channel: Channel, context: &Arc<DeviceContext>, depth: u32) -> Result<Self, RdmaError> {
        let entries = i32::try_from(depth).map_err(|_| RdmaError::Full)?;
        // SAFETY: only used while `context` is borrowed.
        let device = unsafe { context.context() };
        // SAFETY: the context is open, and the channel belongs to it.
        let raw = unsafe { ibv_create_cq(device.as_ptr(), entries, null_mut(), channel.raw.as_ptr(), 0) };
        Ok(Self { raw: created(raw, "ibv_create_cq")?, channel })
    }

    /// Takes what made the channel readable, and acknowledges it: destroying the queue would wait for that.
    fn take_events(&mut self) {
        let mut queue = null_mut();
        let mut unused = null_mut();
        // SAFETY: the channel is ours and does not wait.
        while unsafe { ibv_get_cq_event(self.channel.raw.as_ptr(), &raw mut queue, &raw mut unused) } == 0 {
            // SAFETY: the channel has no other queue than this one.
            unsafe { ibv_ack_cq_events(self.raw.as_ptr(), 1) };
        }
    }
}

impl Drop for Cq {
    fn drop(&mut self) {
        // SAFETY: made by `new`, destroyed once, after its queue pair, with all events acknowledged.
        unsafe { ibv_destroy_cq(self.raw.as_ptr()) };
    }
}

/// The queue pair itself.
#[derive(Debug)]
struct Qp {
    raw: NonNull<ibv_qp>,
    cq: Cq,
    _domain: Arc<ProtectionDomain>,
}

// SAFETY: as for `Channel`.
unsafe impl Send for Qp {}

impl Qp {
    fn new(cq: Cq, domain: &Arc<ProtectionDomain>, depth: u32) -> Result<Self, RdmaError> {
        // SAFETY: numbers and pointers, all of which may be zero.
        let mut init: ibv_qp_init_attr = unsafe { MaybeUninit::zeroed().assume_init() };
        init.send_cq = cq.raw.as_ptr();
        init.recv_cq = cq.raw.as_ptr();
        init.cap.max_send_wr = depth;
        init.cap.max_send_sge = 1;
        // Nothing is ever received, but some devices refuse a receive queue without room.
        init.cap.max_recv_wr = 1;
        init.cap.max_recv_sge = 1;
        init.qp_type = ibv_qp_type::IBV_QPT_RC;
        init.sq_sig_all = 0;
        // SAFETY: only used while `domain` is borrowed.
        let parent = unsafe { domain.pd() };
        // SAFETY: domain and completion queue are of one context, and both are kept as long as the queue pair.
        let raw = unsafe { ibv_create_qp(parent.as_ptr(), &raw mut init) };
        Ok(Self { raw: created(raw, "ibv_create_qp")?, cq, _domain: Arc::clone(domain) })
    }

    fn number(&self) -> u32 {
        // SAFETY: valid until it is dropped.
        unsafe { self.raw.as_ref() }.qp_num
    }

    fn modify(&self, attr: &mut ibv_qp_attr, what: mask) -> Result<(), RdmaError> {
        let what = i32::try_from(what.0).expect("the flags are below bit 31");
        // SAFETY: the queue pair is ours, and `attr` has what the flags say.
        let errno = unsafe { ibv_modify_qp(self.raw.as_ptr(), attr, what) };
        if errno == 0 {
            Ok(())
        } else {
            Err(RdmaError::System { call: "ibv_modify_qp", errno: Errno(errno) })
        }
    }

    /// To the error state. A refusal means that it is there already, or that the device is gone.
    fn fail(&self) {
        let mut attr = blank_attr();
        attr.qp_state = ibv_qp_state::IBV_QPS_ERR;
        self.modify(&mut attr, mask::IBV_QP_STATE).unwrap_or(());
    }
}

impl Drop for Qp {
    fn drop(&mut self) {
        // SAFETY: made by `new`, destroyed once. When the call returns, the device does nothing for it any more.
        if unsafe { ibv_destroy_qp(self.raw.as_ptr()) } != 0 {
            self.fail();
        }
    }
}

fn created<T>(raw: *mut T, call: &'static str) -> Result<NonNull<T>, RdmaError> {
    NonNull::new(raw).ok_or_else(|| RdmaError::System { call, errno: Errno::last() })
}
