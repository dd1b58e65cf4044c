//! The harness of the end-to-end tests: real daemons, real sockets, and faults from outside.
//!
//! - [`daemon`]: starts, stops, kills and freezes `memkv-server` processes, and reads their logs;
//! - [`etcd`]: a real etcd;
//! - [`program`]: finds and builds the programs under test;
//! - [`certs`]: certificates, signed by an authority of the test's own;
//! - [`control`]: the gRPC plane, spoken directly;
//! - [`wire`]: the data plane, spoken byte by byte, for what a well-behaved client never sends;
//! - [`proxy`]: a TCP proxy that delays, stalls, cuts and flips bits;
//! - [`http`]: the admin port and its metrics;
//! - [`pages`]: page contents that can be recognised.
//!
//! A daemon's log is part of the result: every [`daemon::Daemon`] fails its test when it goes away if it logged
//! a WARN or ERROR that the test did not expect.
//!
//! Deliberately absent: the client crate. The harness is the second opinion on the protocol, so it must not
//! share the client's mistakes.

#![forbid(unsafe_code)]

pub mod certs;
pub mod control;
pub mod daemon;
pub mod etcd;
pub mod http;
pub mod pages;
pub mod program;
pub mod proxy;
pub mod wire;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Sets a flag when it is dropped, so that a test's threads that look at it end, also when the test fails.
#[derive(Debug)]
pub struct StopAtEnd<'a>(pub &'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Whether tests shall be small and patient: `MEMKV_TEST_SMALL=1`, for slow machines such as an emulated one.
#[must_use]
pub fn is_small() -> bool {
    std::env::var("MEMKV_TEST_SMALL").is_ok_and(|value| value == "1")
}

/// Polls `ready` until it yields a value; an error names `what` did not happen in time. On a machine that
/// [`is_small`], six times the patience.
///
/// # Errors
///
/// If `ready` yields nothing for `patience`.
pub fn wait_for<T>(
    what: &str,
    patience: Duration,
    mut ready: impl FnMut() -> Option<T>,
) -> anyhow::Result<T> {
    let patience = if is_small() { 6 * patience } else { patience };
    let start = Instant::now();
    loop {
        if let Some(value) = ready() {
            return Ok(value);
        }
        anyhow::ensure!(start.elapsed() < patience, "{what}: did not happen within {patience:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Random bytes.
///
/// # Panics
///
/// If the system has no randomness.
#[must_use]
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the system has randomness");
    bytes
}
