//! Source addresses that keep failing to prove who they are.
//!
//! An address that has failed [`FAILURES_MAX`] times within [`WINDOW`] is refused until the window is over, before
//! anything is computed for it. The table has a bound: when it is full, the address whose window began first is
//! forgotten.
//!
//! Addresses of one IPv6 network (/64) count as one: whoever has one has them all.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// Failures of one address in one window.
const FAILURES_MAX: u32 = 32;
const WINDOW: Duration = Duration::from_secs(10);
/// Addresses that are remembered.
const ADDRESSES_MAX: usize = 4096;

/// The addresses that failed lately.
#[derive(Debug, Default)]
pub(crate) struct Attempts {
    table: Mutex<HashMap<IpAddr, Window>>,
}

#[derive(Clone, Copy, Debug)]
struct Window {
    begun: Instant,
    failures: u32,
}

impl Attempts {
    /// Whether an address may try. A connection without one (a Unix socket) may.
    pub(crate) fn may_try(&self, peer: Option<SocketAddr>) -> bool {
        self.may_try_at(peer, Instant::now())
    }

    /// Notes a failure.
    pub(crate) fn failed(&self, peer: Option<SocketAddr>) {
        self.failed_at(peer, Instant::now());
    }

    fn may_try_at(&self, peer: Option<SocketAddr>, now: Instant) -> bool {
        let Some(peer) = peer else { return true };
        let table = self.table.lock();
        let window = table.get(&network(peer.ip()));
        window
            .is_none_or(|window| window.failures < FAILURES_MAX || now.duration_since(window.begun) >= WINDOW)
    }

    fn failed_at(&self, peer: Option<SocketAddr>, now: Instant) {
        let Some(peer) = peer else { return };
        let address = network(peer.ip());
        let mut table = self.table.lock();
        if table.len() >= ADDRESSES_MAX && !table.contains_key(&address) {
            table.retain(|_, window| now.duration_since(window.begun) < WINDOW);
            let oldest = table.iter().min_by_key(|(_, window)| window.begun).map(|(address, _)| *address);
            if let Some(oldest) = oldest.filter(|_| table.len() >= ADDRESSES_MAX) {
                table.remove(&oldest);
            }
        }
        let window = table.entry(address).or_insert(Window { begun: now, failures: 0 });
        if now.duration_since(window.begun) >= WINDOW {
            *window = Window { begun: now, failures: 0 };
        }
        window.failures += 1;
    }
}

fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => IpAddr::V6((u128::from(address) >> 64 << 64).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(text: &str) -> Option<SocketAddr> {
        Some(SocketAddr::new(text.parse().unwrap(), 1))
    }

    #[test]
    fn an_address_that_keeps_failing_waits_and_others_do_not() {
        let (attempts, now) = (Attempts::default(), Instant::now());
        for _ in 0..FAILURES_MAX {
            assert!(attempts.may_try_at(peer("10.0.0.1"), now));
            attempts.failed_at(peer("10.0.0.1"), now);
        }
        assert!(!attempts.may_try_at(peer("10.0.0.1"), now));
        assert!(!attempts.may_try_at(peer("::ffff:10.0.0.1"), now), "the same address in other words");
        assert!(attempts.may_try_at(peer("10.0.0.2"), now) && attempts.may_try_at(None, now));
        assert!(attempts.may_try_at(peer("10.0.0.1"), now + WINDOW));
        attempts.failed_at(peer("10.0.0.1"), now + WINDOW);
        assert!(attempts.may_try_at(peer("10.0.0.1"), now + WINDOW), "a new window begins with one");
    }

    #[test]
    fn a_network_of_ipv6_is_one_address() {
        let (attempts, now) = (Attempts::default(), Instant::now());
        for host in 0..FAILURES_MAX {
            attempts.failed_at(peer(&format!("2001:db8::{host:x}")), now);
        }
        assert!(!attempts.may_try_at(peer("2001:db8::ffff"), now));
        assert!(attempts.may_try_at(peer("2001:db8:0:1::1"), now));
    }

    #[test]
    fn the_table_has_a_bound() {
        let (attempts, now) = (Attempts::default(), Instant::now());
        for number in 0..u32::try_from(2 * ADDRESSES_MAX).unwrap() {
            attempts.failed_at(
                Some(SocketAddr::new(IpAddr::V4(number.into()), 1)),
                now + Duration::from_nanos(number.into()),
            );
        }
        assert_eq!(attempts.table.lock().len(), ADDRESSES_MAX);
    }
}
