//! One gRPC connection, as its calls and its socket share it: whose it is, and how much of it waits to be served.
//!
//! Until a connection has proved something, the server reads [`GUEST_BYTES`] of it while calls are open and then leaves the rest to
//! the network. So a guest holds no more than that, whatever it opens, sends in pieces or leaves unread: HTTP/2's own windows are
//! far wider, since they are made for pages. A connection that has proved something belongs to a tenant, and has a place among
//! that tenant's connections.
//!
//! Deliberately absent: closing. A guest that is not read any more fails the next liveness check of HTTP/2 and goes by that.

use crate::allowance::Allowance;
use crate::config::RequestBytes;
use crate::tenants::Tenant;
use crate::tenants::tenant::Connected;
use parking_lot::Mutex;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Waker};
use std::time::Instant;

/// Bytes that are read of a guest while it has calls open.
const GUEST_BYTES: u64 = 128 << 10;
/// How many more each second: for those who watch the server's health for days.
const GUEST_BYTES_PER_S: u64 = 16;

/// One gRPC connection.
#[derive(Debug)]
pub(crate) struct Line {
    /// What its calls may hold together.
    pub(crate) allowance: Allowance,
    owner: OnceLock<(Arc<Tenant>, Connected)>,
    since: Instant,
    /// Bytes read since no call was open.
    read: AtomicU64,
    calls: AtomicU32,
    /// Bytes of slots that wait for pages of its puts.
    arriving: AtomicU64,
    /// The socket's reader, while it is held back.
    waiting: Mutex<Option<Waker>>,
}

impl Default for Line {
    fn default() -> Self {
        Self::new(RequestBytes::default().session)
    }
}

impl Line {
    /// A new connection, whose calls may hold so many bytes.
    pub(crate) fn new(bytes: u64) -> Self {
        Self {
            allowance: Allowance::new(bytes),
            owner: OnceLock::new(),
            since: Instant::now(),
            read: AtomicU64::new(0),
            calls: AtomicU32::new(0),
            arriving: AtomicU64::new(0),
            waiting: Mutex::default(),
        }
    }

    /// Whose it is, once it has proved something.
    pub(crate) fn owner(&self) -> Option<&Arc<Tenant>> {
        self.owner.get().map(|(tenant, _)| tenant)
    }

    /// It has proved that it is a tenant's. `false` if that has as many connections as it may.
    pub(crate) fn prove(&self, tenant: &Arc<Tenant>) -> bool {
        if self.owner.get().is_none() {
            let Some(place) = tenant.connect() else { return false };
            // Of two calls at once the second gives its place back.
            drop(self.owner.set((Arc::clone(tenant), place)));
            self.wake();
        }
        true
    }

    /// Whether its socket may be read; if not, the reader is woken when it may.
    pub(crate) fn may_read(&self, context: &Context<'_>) -> bool {
        if self.is_free() {
            return true;
        }
        *self.waiting.lock() = Some(context.waker().clone());
        // It may have become free before the waker was there.
        self.is_free()
    }

    /// So many bytes came.
    pub(crate) fn has_read(&self, bytes: u64) {
        if self.owner.get().is_none() {
            self.read.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// Counts a call until the result is dropped.
    pub(crate) fn call(self: &Arc<Self>) -> Call {
        self.calls.fetch_add(1, Ordering::AcqRel);
        Call(Arc::clone(self))
    }

    /// Counts a slot that waits for its page, until the result is dropped.
    pub(crate) fn arriving(self: &Arc<Self>, bytes: u64) -> Waiting {
        self.arriving.fetch_add(bytes, Ordering::Relaxed);
        Waiting { line: Arc::clone(self), bytes }
    }

    /// Bytes of all such slots.
    pub(crate) fn arriving_bytes(&self) -> u64 {
        self.arriving.load(Ordering::Relaxed)
    }

    fn is_free(&self) -> bool {
        let grown = GUEST_BYTES_PER_S.saturating_mul(self.since.elapsed().as_secs());
        self.owner.get().is_some() || self.read.load(Ordering::Acquire) < GUEST_BYTES + grown
    }

    fn wake(&self) {
        if let Some(waker) = self.waiting.lock().take() {
            waker.wake();
        }
    }
}

/// A slot that waits for its page.
#[derive(Debug)]
pub(crate) struct Waiting {
    line: Arc<Line>,
    bytes: u64,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.line.arriving.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// A call that is open, with all that it holds.
#[derive(Debug)]
pub(crate) struct Call(Arc<Line>);

impl Drop for Call {
    fn drop(&mut self) {
        if self.0.calls.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.read.store(0, Ordering::Release);
            self.0.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tenants::tenant::Shares;
    use std::sync::atomic::AtomicUsize;
    use std::task::Wake;

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn a_guest_is_read_so_far_until_its_calls_end_or_it_proves_something() {
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        let context = Context::from_waker(&waker);
        let line = Arc::new(Line::default());
        let (one, other) = (line.call(), line.call());
        line.has_read(GUEST_BYTES - 1);
        assert!(line.may_read(&context));
        line.has_read(1 + 60 * GUEST_BYTES_PER_S);
        assert!(!line.may_read(&context), "a guest that sent too much is left alone");
        drop(one);
        assert!(!line.may_read(&context), "a call is open");
        drop(other);
        assert_eq!(woken.0.load(Ordering::SeqCst), 1);
        assert!(line.may_read(&context), "nothing is held any more");
        line.has_read(2 * GUEST_BYTES);
        assert!(!line.may_read(&context));
        assert!(line.prove(&Arc::new(Tenant::cluster(false, Shares::default()))));
        assert_eq!(woken.0.load(Ordering::SeqCst), 2);
        line.has_read(u64::MAX / 2);
        assert!(line.may_read(&context) && line.owner().is_some());
    }
}
