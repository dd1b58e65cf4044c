//! An open device with its protection domain, and its regions.

use super::events::{self, Health};
use super::pair::VerbsPair;
use super::query;
use crate::error::{Errno, RdmaError};
use crate::info::{GidInfo, NicInfo, Place, PortInfo};
use crate::nic::{Access, Nic, QueuePair, Region};
use crate::register::memlock_limit;
use sideway::ibverbs::AccessFlags;
use sideway::ibverbs::device_context::DeviceContext;
use sideway::ibverbs::memory_region::{
    MemoryRegion, RegisterMemoryRegionError, RegisterMemoryRegionErrorKind,
};
use sideway::ibverbs::protection_domain::ProtectionDomain;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;

#[derive(Debug)]
pub(super) struct VerbsNic {
    context: Arc<DeviceContext>,
    domain: Arc<ProtectionDomain>,
    info: NicInfo,
    place: Place,
    port: PortInfo,
    gid: GidInfo,
    health: Health,
}

impl VerbsNic {
    pub(super) fn new(context: Arc<DeviceContext>, place: &Place) -> Result<Self, RdmaError> {
        let info = query::info(&context)?;
        let (nic, number, index) = (place.nic.clone(), place.port, place.gid_index);
        let Some(port) = info.port(number).cloned() else {
            return Err(RdmaError::NoSuchDevice { wanted: format!("{nic}:{number}"), present: nic });
        };
        if !port.active {
            return Err(RdmaError::PortDown { nic, port: number });
        }
        let Some(gid) = port.gids.iter().find(|gid| gid.index == index).cloned() else {
            return Err(RdmaError::NoSuchGid { nic, port: number, index });
        };
        events::prepare(&context)?;
        let failed = |_| RdmaError::System { call: "ibv_alloc_pd", errno: Errno::last() };
        let domain = context.alloc_pd().map_err(failed)?;
        let (place, health) = (place.clone(), Health::of(&nic));
        Ok(Self { context, domain, info, place, port, gid, health })
    }
}

impl Nic for VerbsNic {
    fn info(&self) -> &NicInfo {
        &self.info
    }

    fn place(&self) -> &Place {
        &self.place
    }

    fn health(&self) -> Result<(), RdmaError> {
        self.health.check(&self.context, &self.place.nic, self.place.port)
    }

    unsafe fn register(
        &self,
        start: NonNull<u8>,
        len: usize,
        access: Access,
    ) -> Result<Box<dyn Region>, RdmaError> {
        let address = start.as_ptr().expose_provenance();
        // SAFETY: the caller keeps the memory mapped until the region is dropped.
        let region = unsafe { self.domain.reg_mr(address, len, flags(access)) };
        region.map(boxed).map_err(|error| refused(&error, len as u64))
    }

    unsafe fn register_dmabuf(
        &self,
        buffer: BorrowedFd<'_>,
        offset: u64,
        len: usize,
        address: u64,
        access: Access,
    ) -> Result<Box<dyn Region>, RdmaError> {
        // SAFETY: the descriptor is open, the kernel takes its own reference to the buffer, and the caller answers
        // for what is in it.
        let region =
            unsafe { self.domain.reg_dmabuf_mr(offset, len, address, buffer.as_raw_fd(), flags(access)) };
        region.map(boxed).map_err(|error| refused(&error, len as u64))
    }

    fn queue_pair(&self, depth: u32, access: Access) -> Result<Box<dyn QueuePair>, RdmaError> {
        let limit = self.info.limits.work_requests;
        if depth == 0 || depth > limit {
            return Err(RdmaError::Limit {
                what: "work requests",
                wanted: depth.into(),
                limit: limit.into(),
            });
        }
        self.health()?;
        let reads = self.info.limits.reads;
        let pair = VerbsPair::new(&self.context, &self.domain, &self.port, &self.gid, reads, depth, access)?;
        Ok(Box::new(pair))
    }
}

/// What a device may do with memory, in the library's words. A peer may only write where we may.
pub(super) fn flags(access: Access) -> AccessFlags {
    let mut flags = AccessFlags::LocalWrite;
    if access.peer_reads() {
        flags |= AccessFlags::RemoteRead;
    }
    if access.peer_writes() {
        flags |= AccessFlags::RemoteWrite;
    }
    flags
}

#[derive(Debug)]
struct VerbsRegion(Arc<MemoryRegion>);

fn boxed(region: Arc<MemoryRegion>) -> Box<dyn Region> {
    Box::new(VerbsRegion(region))
}

impl Region for VerbsRegion {
    fn local_key(&self) -> u32 {
        self.0.lkey()
    }

    fn remote_key(&self) -> u32 {
        self.0.rkey()
    }
}

/// Why a registration was refused. Want of memory under a limit means the limit, as far as anybody can know.
fn refused(error: &RegisterMemoryRegionError, bytes: u64) -> RdmaError {
    let errno = match &error.0 {
        RegisterMemoryRegionErrorKind::Ibverbs(error) => super::errno(error),
        _ => Errno(0),
    };
    let no_memory = errno.0 == rustix::io::Errno::NOMEM.raw_os_error();
    match memlock_limit() {
        Some(limit) if no_memory => RdmaError::Memlock { bytes, limit },
        _ => RdmaError::Register { bytes, errno },
    }
}
