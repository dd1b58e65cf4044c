//! Connections whose peer has not proved anything yet: how many there may be, how long, and who goes first.
//!
//! A connection is a guest from its accept until its data connection has joined a session, its session has opened, or one of its calls
//! had a right credential. Guests take a part of all places only, so that a flood of them cannot keep out who has a key. When that part is full, the
//! next one is not refused: somebody who was silent for longer goes, and of all hosts the one with most guests loses its oldest. A
//! client that means it proves itself within a round trip or two, long before its turn.
//!
//! Invariants:
//! - there are never more than `most` guests;
//! - nobody who has proved something is put out;
//! - a guest opens one session at a time.
//!
//! Who goes is told by shutting the socket down: whatever the connection is doing, it sees its end. Deliberately absent: knowledge of
//! planes and TLS, and connections to the Unix socket, whose name only those learn who have proved something.

use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// The most guests, if there are places for as many.
const GUESTS_MAX: usize = 1024;
/// Guests have this part of all places at most.
const SHARE: usize = 4;

/// All guests of one server.
#[derive(Debug)]
pub(crate) struct Guests {
    most: usize,
    /// How long a guest may take until it has proved something or asked for something that needs no proof.
    patience: Duration,
    room: Mutex<Room>,
}

#[derive(Debug, Default)]
struct Room {
    /// By their numbers, which rise.
    guests: HashMap<SocketAddr, Entry>,
    hosts: HashMap<IpAddr, BTreeMap<u64, SocketAddr>>,
    next: u64,
    put_out: u64,
    /// Those that were put out and still have their places: each gives it back when its task sees its end.
    leaving: HashSet<u64>,
}

#[derive(Debug)]
struct Entry {
    number: u64,
    since: Instant,
    /// Has asked for its health or for descriptions: that needs no proof, and may take long.
    spoke: bool,
    /// A session of it is being opened.
    opening: bool,
    socket: OwnedFd,
}

impl Room {
    /// Takes a guest off the lists.
    fn remove(&mut self, peer: &SocketAddr, number: Option<u64>) -> Option<Entry> {
        let entry = self.guests.get(peer)?;
        if number.is_some_and(|number| number != entry.number) {
            return None;
        }
        let entry = self.guests.remove(peer)?;
        let host = self.hosts.get_mut(&peer.ip())?;
        host.remove(&entry.number);
        if host.is_empty() {
            self.hosts.remove(&peer.ip());
        }
        Some(entry)
    }

    /// The oldest guest of the host with most guests.
    fn next_out(&self) -> Option<SocketAddr> {
        let host = self.hosts.values().max_by_key(|guests| guests.len())?;
        host.values().next().copied()
    }

    fn put_out(&mut self, peer: SocketAddr) {
        if let Some(entry) = self.remove(&peer, None) {
            self.put_out += 1;
            self.leaving.insert(entry.number);
            tracing::debug!(%peer, "a connection that proved nothing is closed");
            // A socket that is closed already needs nothing.
            let _closed = rustix::net::shutdown(&entry.socket, rustix::net::Shutdown::Both);
        }
    }
}

impl Guests {
    /// Room for guests beside `places` connections, each of which may take `patience` until it has shown what it wants.
    pub(crate) fn new(places: usize, patience: Duration) -> Self {
        let most = (places / SHARE).clamp(1, GUESTS_MAX);
        Self { most, patience, room: Mutex::default() }
    }

    /// Takes a new connection in; if there is no room, another guest goes.
    ///
    /// # Errors
    ///
    /// If the system has no descriptors left.
    pub(crate) fn enter(self: &Arc<Self>, peer: SocketAddr, socket: impl AsFd) -> io::Result<Guest> {
        let socket = socket.as_fd().try_clone_to_owned()?;
        let mut room = self.room.lock();
        // The system gives a peer's port to a next connection once nothing is left of the first.
        room.remove(&peer, None);
        while room.guests.len() >= self.most {
            let Some(out) = room.next_out() else { break };
            room.put_out(out);
        }
        let number = room.next;
        room.next += 1;
        let entry = Entry { number, since: Instant::now(), spoke: false, opening: false, socket };
        room.guests.insert(peer, entry);
        room.hosts.entry(peer.ip()).or_default().insert(number, peer);
        Ok(Guest { guests: Arc::clone(self), peer, number })
    }

    /// The connection of `peer` has proved something: from now on it stays.
    pub(crate) fn prove(&self, peer: Option<SocketAddr>) {
        if let Some(peer) = peer {
            drop(self.room.lock().remove(&peer, None));
        }
    }

    /// The connection of `peer` has asked for something that needs no proof: it may stay while there is room.
    pub(crate) fn spoke(&self, peer: Option<SocketAddr>) {
        let mut room = self.room.lock();
        if let Some(entry) = peer.and_then(|peer| room.guests.get_mut(&peer)) {
            entry.spoke = true;
        }
    }

    /// Whether the connection of `peer` may begin to open a session: a guest opens one at a time.
    pub(crate) fn begin_session(&self, peer: Option<SocketAddr>) -> bool {
        let mut room = self.room.lock();
        match peer.and_then(|peer| room.guests.get_mut(&peer)) {
            Some(entry) => !std::mem::replace(&mut entry.opening, true),
            None => true,
        }
    }

    /// The session of `peer` that was being opened is open, or came to nothing.
    pub(crate) fn end_session(&self, peer: Option<SocketAddr>) {
        let mut room = self.room.lock();
        if let Some(entry) = peer.and_then(|peer| room.guests.get_mut(&peer)) {
            entry.opening = false;
        }
    }

    /// Puts out who has taken too long to say anything.
    pub(crate) fn sweep(&self) {
        let mut room = self.room.lock();
        let now = Instant::now();
        let late =
            |entry: &Entry| !entry.spoke && now.saturating_duration_since(entry.since) >= self.patience;
        let late: Vec<SocketAddr> =
            room.guests.iter().filter(|(_, entry)| late(entry)).map(|(peer, _)| *peer).collect();
        late.into_iter().for_each(|peer| room.put_out(peer));
    }

    /// How often [`Guests::sweep`] is worth while.
    pub(crate) fn pace(&self) -> Duration {
        (self.patience / 4).max(Duration::from_millis(50))
    }

    /// Whether places come free at once, of those that were put out.
    pub(crate) fn are_leaving(&self) -> bool {
        !self.room.lock().leaving.is_empty()
    }

    /// How many there are.
    pub(crate) fn count(&self) -> u64 {
        self.room.lock().guests.len() as u64
    }

    /// How many were put out.
    pub(crate) fn put_out(&self) -> u64 {
        self.room.lock().put_out
    }
}

/// A connection's entry; it goes when the connection does.
#[derive(Debug)]
pub(crate) struct Guest {
    guests: Arc<Guests>,
    peer: SocketAddr,
    number: u64,
}

impl Drop for Guest {
    fn drop(&mut self) {
        let mut room = self.guests.room.lock();
        room.leaving.remove(&self.number);
        drop(room.remove(&self.peer, Some(self.number)));
    }
}

/// A connection's place among all, and its entry among the guests.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) _permit: tokio::sync::OwnedSemaphorePermit,
    pub(crate) _guest: Guest,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;
    use std::os::unix::net::UnixStream;

    fn peer(host: u8, port: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, host], port))
    }

    fn guests(places: usize) -> Arc<Guests> {
        Arc::new(Guests::new(places, Duration::from_secs(3600)))
    }

    /// Whether the other end sees that the connection was shut down.
    fn is_out(other: &UnixStream) -> bool {
        other.set_nonblocking(true).unwrap();
        matches!((&mut &*other).read(&mut [0]), Ok(0))
    }

    #[test]
    fn the_host_with_most_guests_loses_its_oldest() {
        let guests = guests(16);
        let mut kept = Vec::new();
        let mut enter = |host, port| {
            let (ours, theirs) = UnixStream::pair().unwrap();
            kept.push(guests.enter(peer(host, port), &ours).unwrap());
            theirs
        };
        let lone = enter(1, 1);
        let flood: Vec<UnixStream> = (1..=20).map(|port| enter(2, port)).collect();
        assert!(!is_out(&lone), "a host with one guest is not the one to lose");
        let out: Vec<bool> = flood.iter().map(is_out).collect();
        assert_eq!(out.iter().filter(|out| **out).count(), 17);
        assert!(out[..17].iter().all(|out| *out), "the oldest go first");
        assert_eq!((guests.count(), guests.put_out()), (4, 17));
        assert!(guests.are_leaving(), "their tasks have not seen it yet");
        drop(kept);
        assert!(!guests.are_leaving() && guests.count() == 0);
    }

    #[test]
    fn who_proves_something_stays_and_who_leaves_makes_room() {
        let guests = guests(4);
        let (first, first_other) = UnixStream::pair().unwrap();
        let entry = guests.enter(peer(1, 1), &first).unwrap();
        guests.prove(Some(peer(1, 1)));
        assert_eq!(guests.count(), 0);
        let (second, second_other) = UnixStream::pair().unwrap();
        let other = guests.enter(peer(1, 2), &second).unwrap();
        // The entry of the first is not the second's, whatever the order they end in.
        drop(entry);
        assert_eq!(guests.count(), 1);
        drop(other);
        assert_eq!((guests.count(), guests.put_out()), (0, 0));
        assert!(!is_out(&first_other) && !is_out(&second_other));
    }

    #[test]
    fn a_reused_port_is_a_new_guest() {
        let guests = guests(400);
        let (socket, _other) = UnixStream::pair().unwrap();
        let old = guests.enter(peer(1, 1), &socket).unwrap();
        let _new = guests.enter(peer(1, 1), &socket).unwrap();
        drop(old);
        assert_eq!(guests.count(), 1, "the old connection's end is not the new one's");
    }

    #[test]
    fn silence_ends_and_a_guest_opens_one_session_at_a_time() {
        let guests = Arc::new(Guests::new(400, Duration::ZERO));
        let (silent, silent_other) = UnixStream::pair().unwrap();
        let (asking, asking_other) = UnixStream::pair().unwrap();
        let _silent = guests.enter(peer(1, 1), &silent).unwrap();
        let _asking = guests.enter(peer(1, 2), &asking).unwrap();
        guests.spoke(Some(peer(1, 2)));
        guests.sweep();
        assert!(is_out(&silent_other) && !is_out(&asking_other));
        let peer = Some(peer(1, 2));
        assert!(guests.begin_session(peer));
        assert!(!guests.begin_session(peer), "a second one waits for the end of the first");
        guests.end_session(peer);
        assert!(guests.begin_session(peer));
        guests.prove(peer);
        assert!(guests.begin_session(peer) && guests.begin_session(peer), "who has proved something is free");
    }
}
