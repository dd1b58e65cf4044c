//! Which way pages take to one server: RDMA, shared memory, or the socket itself.
//!
//! A way that fails is left alone for a while that doubles; meanwhile connections are opened by the next best one, and
//! the session climbs back when the while is over. With a transport that is forced there is one way only, and its
//! failure is the attempt's failure.
//!
//! Deliberately absent: clocks and sockets.

use crate::backoff::Backoff;
use crate::config::Transport;
use parking_lot::Mutex;
use std::fmt;
use std::time::Duration;
use tokio::time::Instant;

/// How pages move on a connection. Later is better.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(usize)]
pub(crate) enum Way {
    /// Inside frames on a TCP connection.
    #[default]
    Tcp = 0,
    /// Through shared memory, beside a Unix socket.
    Shm = 1,
    /// By RDMA, beside a TCP connection.
    Rdma = 2,
}

impl Way {
    /// All, best first.
    pub(crate) const ALL: [Self; 3] = [Self::Rdma, Self::Shm, Self::Tcp];

    /// Whether a transport setting allows it.
    pub(crate) fn is_allowed(self, transport: Transport) -> bool {
        match transport {
            Transport::Auto => true,
            Transport::Tcp => self == Self::Tcp,
            Transport::Shm => self == Self::Shm,
            Transport::Rdma => self == Self::Rdma,
            Transport::Grpc => false,
        }
    }
}

impl From<Way> for Transport {
    fn from(way: Way) -> Self {
        match way {
            Way::Tcp => Self::Tcp,
            Way::Shm => Self::Shm,
            Way::Rdma => Self::Rdma,
        }
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Shm => "shm",
            Self::Rdma => "rdma",
        })
    }
}

#[derive(Default)]
struct Entry {
    /// Not before then.
    until: Option<Instant>,
    backoff: Backoff,
    /// Why it does not work, for people; `None` while it does.
    reason: Option<String>,
    /// This process does not have it.
    missing: bool,
}

/// What is known of the ways to one server.
#[derive(Default)]
pub(crate) struct Ways {
    entries: Mutex<[Entry; 3]>,
}

impl Ways {
    /// The ways to try now, best first.
    pub(crate) fn due(&self, transport: Transport, now: Instant) -> impl Iterator<Item = Way> + use<> {
        let entries = self.entries.lock();
        let due: Vec<_> = Way::ALL
            .into_iter()
            .filter(|way| way.is_allowed(transport))
            .filter(|way| {
                let entry = &entries[*way as usize];
                transport != Transport::Auto
                    || (!entry.missing && entry.until.is_none_or(|until| until <= now))
            })
            .collect();
        due.into_iter()
    }

    /// When a way that is better than `current` is to be tried again, if there is one: `now` if it may be already.
    pub(crate) fn next_climb(&self, transport: Transport, current: Way, now: Instant) -> Option<Instant> {
        let entries = self.entries.lock();
        let better = Way::ALL.into_iter().filter(|way| *way > current && way.is_allowed(transport));
        let better = better.filter(|way| !entries[*way as usize].missing);
        better.map(|way| entries[way as usize].until.unwrap_or(now)).min()
    }

    /// This process does not have a way, and never will.
    pub(crate) fn set_missing(&self, way: Way) {
        self.entries.lock()[way as usize].missing = true;
    }

    /// A connection was opened.
    pub(crate) fn worked(&self, way: Way) {
        self.entries.lock()[way as usize] = Entry::default();
    }

    /// A way did not work. `lasting` if it will not while both processes live: it is then tried again only with a new
    /// session. Returns whether that is news.
    pub(crate) fn failed(&self, way: Way, reason: &str, lasting: bool, now: Instant, jitter: f64) -> bool {
        let entry = &mut self.entries.lock()[way as usize];
        let pause = entry.backoff.next(jitter);
        entry.until = if lasting { now.checked_add(FOREVER) } else { now.checked_add(pause) };
        let news = entry.reason.as_deref() != Some(reason);
        entry.reason = Some(reason.to_owned());
        news
    }

    /// Something has changed: a way may be tried again at once.
    pub(crate) fn again(&self, way: Way) {
        self.entries.lock()[way as usize].until = None;
    }

    /// A session begins: everything may be tried again.
    pub(crate) fn begin_session(&self) {
        self.entries.lock().iter_mut().for_each(|entry| entry.until = None);
    }

    /// Why a way does not work.
    #[cfg(test)]
    fn reason(&self, way: Way) -> Option<String> {
        self.entries.lock()[way as usize].reason.clone()
    }
}

/// Longer than any session.
const FOREVER: Duration = Duration::from_secs(1 << 32);

#[cfg(test)]
mod tests {
    use super::*;

    fn due(ways: &Ways, transport: Transport, now: Instant) -> Vec<Way> {
        ways.due(transport, now).collect()
    }

    #[test]
    fn a_way_that_fails_is_left_alone_for_a_while() {
        let (ways, now) = (Ways::default(), Instant::now());
        assert_eq!(due(&ways, Transport::Auto, now), Way::ALL);
        assert!(ways.failed(Way::Rdma, "no device", false, now, 1.0));
        assert!(!ways.failed(Way::Rdma, "no device", false, now, 1.0), "the same again is no news");
        assert!(ways.failed(Way::Shm, "another host", true, now, 1.0));
        assert_eq!(due(&ways, Transport::Auto, now), [Way::Tcp]);
        let later = ways.next_climb(Transport::Auto, Way::Tcp, now).unwrap();
        assert!(later > now && later < now + Duration::from_secs(3600));
        assert_eq!(due(&ways, Transport::Auto, later), [Way::Rdma, Way::Tcp]);
        assert_eq!(ways.next_climb(Transport::Auto, Way::Rdma, now), None);
        ways.worked(Way::Rdma);
        assert_eq!(ways.reason(Way::Rdma), None);
        assert_eq!(due(&ways, Transport::Auto, now), [Way::Rdma, Way::Tcp]);
        assert_eq!(ways.next_climb(Transport::Auto, Way::Tcp, now), Some(now), "it works and is not used");
        ways.begin_session();
        assert_eq!(due(&ways, Transport::Auto, now), Way::ALL);
        assert_eq!(ways.reason(Way::Shm).as_deref(), Some("another host"));
    }

    #[test]
    fn a_way_that_is_missing_is_never_tried() {
        let (ways, now) = (Ways::default(), Instant::now());
        ways.set_missing(Way::Rdma);
        ways.begin_session();
        assert_eq!(due(&ways, Transport::Auto, now), [Way::Shm, Way::Tcp]);
        assert_eq!(ways.next_climb(Transport::Auto, Way::Shm, now), None);
        assert_eq!(ways.next_climb(Transport::Auto, Way::Tcp, now), Some(now));
    }

    #[test]
    fn a_forced_way_is_always_tried_and_never_left() {
        let (ways, now) = (Ways::default(), Instant::now());
        ways.failed(Way::Rdma, "no device", false, now, 1.0);
        assert_eq!(due(&ways, Transport::Rdma, now), [Way::Rdma]);
        assert_eq!(due(&ways, Transport::Shm, now), [Way::Shm]);
        assert_eq!(due(&ways, Transport::Tcp, now), [Way::Tcp]);
        assert_eq!(ways.next_climb(Transport::Tcp, Way::Tcp, now), None);
    }
}
