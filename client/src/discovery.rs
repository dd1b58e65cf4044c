//! Keeps the client's members as its source of members says: a source is asked in the background, and every change
//! of who is a member, where, and with which weight is adopted.
//!
//! Invariants:
//! - a source that is away changes nothing; a client that has not heard of any member yet has none, and every key
//!   is a miss until it has;
//! - a server whose pong names a newer list than the client's has the source asked again, once for each such epoch.
//!
//! Deliberately absent: what weights follow from a list ([`memkv_discovery::Roster`]), and what becomes of pages whose
//! owner has changed.

use crate::client::{Client, Inner};
use crate::{Error, ErrorKind, ServerAddress, drive};
use memkv_discovery::{Health, Location, Member, MemberList, Now, Roster, Rules, Seat, Source, follow, open};
use parking_lot::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::watch;
use tokio::time::Instant;

/// Without a change of weights, how long until it is looked again.
const IDLE: Duration = Duration::from_secs(3600);

/// What the client knows of its members and of their source.
#[derive(Debug, Default)]
pub(crate) struct Discovery {
    health: Arc<Health>,
    epoch: AtomicU64,
    /// Whether epochs are those that servers see too: with etcd.
    comparable: AtomicBool,
    /// The newest epoch that a server told of.
    told: AtomicU64,
    stale: AtomicU64,
    changes: AtomicU64,
    seats: Mutex<Vec<Seat>>,
    skipped: AtomicU64,
}

/// Who the members are, as a client sees it now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// Where the list comes from: a location, or `MEMKV_SERVERS` for the static list.
    pub source: String,
    /// The epoch of the list; 0 before the first one. Comparable between all who ask the same etcd.
    pub epoch: u64,
    /// Why the source does not answer, while it does not.
    pub error: Option<String>,
    /// The members, by id.
    pub members: Vec<MemberView>,
}

/// One member, as a client sees it now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberView {
    /// What the source says.
    pub member: Member,
    /// Its weight for routing now: less than its own while it is new, 0 while it is drained.
    pub weight: u32,
    /// It is not in the list any more; its keys wait for it to come back.
    pub lost: bool,
}

/// How finding members goes, since the client was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiscoveryStats {
    /// The epoch of the list.
    pub epoch: u64,
    /// Lists that the source gave.
    pub lists: u64,
    /// Changes of servers or weights that followed from them.
    pub changes: u64,
    /// Times that the source had no answer.
    pub failures: u64,
    /// Times that a server told of a newer list, and the source was asked again.
    pub told_stale: u64,
    /// Records of the list that made no sense.
    pub skipped_records: u64,
}

impl Discovery {
    /// A server says which list it sees.
    pub(crate) fn heard_epoch(&self, epoch: u64) {
        let own = self.epoch.load(Relaxed);
        // A client without a source, or without a list yet, has nothing to compare with.
        if !self.comparable.load(Relaxed)
            || own == 0
            || epoch <= own
            || self.told.fetch_max(epoch, Relaxed) >= epoch
        {
            return;
        }
        self.stale.fetch_add(1, Relaxed);
        tracing::debug!(own, told = epoch, "a server knows a newer list of members");
        self.health.refresh();
    }

    pub(crate) fn stats(&self) -> DiscoveryStats {
        DiscoveryStats {
            epoch: self.epoch.load(Relaxed),
            lists: self.health.lists(),
            changes: self.changes.load(Relaxed),
            failures: self.health.failures(),
            told_stale: self.stale.load(Relaxed),
            skipped_records: self.skipped.load(Relaxed),
        }
    }
}

impl Client {
    /// Who the members of the cluster are, as this client sees it now.
    #[must_use]
    pub fn membership(&self) -> Membership {
        let shared = &self.inner.shared;
        let Some(location) = &shared.config.discovery else {
            let view = |address: &ServerAddress| MemberView {
                member: Member::new(&*address.id, &*address.host, address.port, address.weight),
                weight: address.weight,
                lost: false,
            };
            let members = shared.config.servers.iter().map(view).collect();
            return Membership { source: "MEMKV_SERVERS".to_owned(), epoch: 1, error: None, members };
        };
        let seats = shared.discovery.seats.lock().clone();
        let view = |seat: Seat| MemberView { member: seat.member, weight: seat.weight, lost: seat.lost };
        Membership {
            source: location.to_string(),
            epoch: shared.discovery.epoch.load(Relaxed),
            error: shared.discovery.health.error(),
            members: seats.into_iter().map(view).collect(),
        }
    }
}

/// Begins to follow the source, if there is one, and waits for its first list until the deadline.
pub(crate) async fn start(inner: &Arc<Inner>, deadline: Instant) -> Result<(), Error> {
    let shared = &inner.shared;
    let Some(location) = &shared.config.discovery else { return Ok(()) };
    let source = {
        let _context = inner.handle.enter();
        open(location).map_err(|error| {
            let text =
                format!("{location}: {error}; correct it, or name the name server with ?server=IP:PORT");
            Error::new(ErrorKind::Config, text).with_source(error)
        })?
    };
    if !begin(inner, source, matches!(location, Location::Etcd(_)), deadline).await {
        tracing::warn!(%location, "no list of members yet; every key is a miss until there is one");
    }
    Ok(())
}

/// Begins to follow a source; whether its first list came before the deadline. `comparable`: servers see the same epochs.
pub(crate) async fn begin(
    inner: &Arc<Inner>,
    source: Box<dyn Source>,
    comparable: bool,
    deadline: Instant,
) -> bool {
    let shared = &inner.shared;
    shared.discovery.comparable.store(comparable, Relaxed);
    let (tell, lists) = watch::channel(MemberList::default());
    let health = shared.discovery.health.clone();
    inner.handle.spawn(async move { follow(source, tell, &health).await });
    let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let rules = Rules { ramp_ms: ms(shared.config.member_ramp), grace_ms: ms(shared.config.member_grace) };
    let (begun, mut first) = watch::channel(false);
    inner.handle.spawn(lead(Arc::downgrade(inner), lists, rules, begun));
    let waited = async move { first.wait_for(|begun| *begun).await.is_ok() };
    drive::before(&inner.handle, deadline, waited).await
}

/// Turns lists and the passing of time into adopted members, for as long as the client lives.
async fn lead(
    client: Weak<Inner>,
    mut lists: watch::Receiver<MemberList>,
    rules: Rules,
    begun: watch::Sender<bool>,
) {
    let began = Instant::now();
    let mut roster = Roster::new(rules);
    let mut look = began + IDLE;
    loop {
        tokio::select! {
            changed = lists.changed() => match changed {
                Ok(()) => {
                    let list = lists.borrow_and_update().clone();
                    let Some(inner) = client.upgrade() else { return };
                    inner.shared.discovery.skipped.store(list.skipped.into(), Relaxed);
                    roster.update(list, now(began));
                }
                Err(_) => return,
            },
            () = tokio::time::sleep_until(look) => {}
        }
        let (seats, next) = roster.seats(now(began));
        look = Instant::now() + next.map_or(IDLE, Duration::from_millis);
        let Some(inner) = client.upgrade() else { return };
        inner.take_seats(roster.epoch(), seats);
        begun.send_replace(true);
    }
}

fn now(began: Instant) -> Now {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    Now { steady_ms: ms(began.elapsed()), unix_ms: ms(unix) }
}

impl Inner {
    /// Adopts the members and their weights, if they are not what they were.
    fn take_seats(&self, epoch: u64, seats: Vec<Seat>) {
        let discovery = &self.shared.discovery;
        let addresses: Vec<ServerAddress> = seats.iter().map(address).collect();
        let before: Vec<ServerAddress> = discovery.seats.lock().iter().map(address).collect();
        if addresses != before {
            if let (true, Some(grace)) = (before.is_empty(), self.shared.config.move_grace) {
                self.adopt_earlier(&seats, &addresses, grace);
            }
            // Sources give addresses that can be used, so this is not to be expected; the members known so far stay.
            if let Err(error) = self.adopt(&addresses) {
                tracing::warn!(%error, epoch, "the list of members cannot be used");
                return;
            }
            discovery.changes.fetch_add(1, Relaxed);
            tracing::info!(epoch, members = %line(&seats), "members");
        }
        *discovery.seats.lock() = seats;
        if discovery.epoch.swap(epoch, Relaxed) > epoch {
            // A store that was set up anew counts from the beginning.
            discovery.told.store(0, Relaxed);
        }
    }
}

impl Inner {
    /// Before its first list, a client that starts now takes over the one that others had before it: without the servers
    /// that joined lately, and with those that drain. Pages that have not moved yet are where that list says.
    fn adopt_earlier(&self, seats: &[Seat], present: &[ServerAddress], grace: Duration) {
        let unix_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let is_settled = |seat: &&Seat| u128::from(seat.member.since_unix_ms) + grace.as_millis() <= unix_ms;
        let settled = seats.iter().filter(is_settled);
        let earlier: Vec<_> =
            settled.map(|seat| ServerAddress { weight: seat.member.weight, ..address(seat) }).collect();
        if !earlier.is_empty() && earlier != present {
            // If it cannot be used, neither can the present one, which says so.
            self.adopt(&earlier).ok();
        }
    }
}

fn address(seat: &Seat) -> ServerAddress {
    let Member { id, host, port, .. } = &seat.member;
    ServerAddress { id: id.clone(), host: host.clone(), port: *port, weight: seat.weight }
}

/// The members on one line of the log.
fn line(seats: &[Seat]) -> String {
    let one = |seat: &Seat| format!("{}{}", address(seat), if seat.lost { " (lost)" } else { "" });
    seats.iter().map(one).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_epoch_is_asked_for_once() {
        let discovery = Discovery::default();
        discovery.comparable.store(true, Relaxed);
        discovery.heard_epoch(7);
        assert_eq!(discovery.stats().told_stale, 0, "there is no list yet to be old");
        discovery.epoch.store(5, Relaxed);
        discovery.comparable.store(false, Relaxed);
        discovery.heard_epoch(6);
        assert_eq!(discovery.stats().told_stale, 0, "the epochs of DNS are the client's own");
        discovery.comparable.store(true, Relaxed);
        // Also when servers do not agree yet.
        for epoch in [0, 5, 7, 7, 4, 7, 9, 7, 9] {
            discovery.heard_epoch(epoch);
        }
        assert_eq!((discovery.stats().told_stale, discovery.health.refreshes()), (2, 2));
    }
}
