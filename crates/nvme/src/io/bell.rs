//! Wakes a drive's thread, which waits on a descriptor.

use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::OwnedFd;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

/// A bell that is heard once, however often it was rung.
pub(crate) struct Bell {
    pub(crate) fd: OwnedFd,
    rung: AtomicBool,
}

impl Bell {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { fd: eventfd(0, EventfdFlags::CLOEXEC)?, rung: AtomicBool::new(false) })
    }

    /// Rings, after whatever there is to tell was put where the listener looks.
    pub(crate) fn ring(&self) {
        if !self.rung.swap(true, Ordering::SeqCst) {
            // The counter cannot overflow: it is taken before the next ring writes.
            rustix::io::write(&self.fd, &1_u64.to_ne_bytes()).ok();
        }
    }

    /// Waits for a ring. The listener looks for what there is afterwards, so that nothing is missed.
    pub(crate) fn hear(&self) {
        let mut count = [0; 8];
        rustix::io::read(&self.fd, &mut count).ok();
        self.rung.store(false, Ordering::SeqCst);
    }
}
