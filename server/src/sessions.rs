//! The registry of open sessions.
//!
//! A session lives as long as its gRPC stream. When the stream ends, [`Session::end`] wakes every data connection of
//! it, and each drops what it holds: pins, reserved slots, its place in the limits.

use crate::allowance::Allowance;
use crate::clock::Clock;
use crate::config::RequestBytes;
use crate::data::SessionRdma;
use crate::tenants::Tenant;
use crate::tenants::tenant::{Connected, Proven};
use crate::tls::TlsPeer;
use dashmap::DashMap;
use memkv_storage::Moment;
use memkv_transport::auth::SessionKey;
use parking_lot::Mutex;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// A session's 16 random bytes.
pub(crate) type SessionId = [u8; 16];

/// One open session.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) id: SessionId,
    /// Binds data connections to the session.
    pub(crate) key: SessionKey,
    pub(crate) client_name: String,
    pub(crate) client_version: String,
    pub(crate) peer: Option<SocketAddr>,
    /// What TLS said of the client when it opened the session; `None` in plain text.
    pub(crate) tls: Option<Arc<TlsPeer>>,
    /// When it opened, by the daemon's clock.
    pub(crate) opened_ms: u64,
    /// Whose it is.
    pub(crate) tenant: Arc<Tenant>,
    /// What its client has proved.
    pub(crate) proven: Proven,
    /// Bytes of pages sent.
    pub(crate) sent_bytes: AtomicU64,
    /// Bytes of pages received.
    pub(crate) received_bytes: AtomicU64,
    /// Pages by RDMA.
    pub(crate) rdma: SessionRdma,
    /// What requests of its data connections may hold.
    pub(crate) held: Allowance,
    connections: AtomicU32,
    rest: Mutex<Rest>,
    /// Those of its connections whose socket is full.
    unread: AtomicU32,
    ended: watch::Sender<bool>,
}

/// How long a session gets no connections, the first time that one of its own did not read while memory was short.
const REST: Duration = Duration::from_secs(1);
/// And the most, after as many times as that takes.
const REST_MOST: Duration = Duration::from_secs(16);

/// When a session that does not read may connect again. What a connection asks for is copied before anybody knows that nobody
/// reads it, so one that comes back at once costs others as much as a reader does.
#[derive(Debug, Default)]
struct Rest {
    until: Option<Instant>,
    last: Duration,
}

impl Rest {
    fn is_over(&self, now: Instant) -> bool {
        self.until.is_none_or(|until| now >= until)
    }

    /// Begins one, twice as long as the last unless that was over for as long as the longest.
    fn begin(&mut self, now: Instant) {
        if !self.is_over(now) {
            return;
        }
        let is_again = self.until.is_some_and(|until| now < until + REST_MOST);
        self.last = if is_again { (2 * self.last).min(REST_MOST) } else { REST };
        self.until = Some(now + self.last);
    }
}

impl Session {
    /// When its client uses pages. A batch may come over several of its connections within a millisecond: that is one
    /// moment, and what other clients use then is another.
    pub(crate) fn moment(&self, clock: &Clock) -> Moment {
        Moment { ms: clock.now_ms(), tag: u16::from_le_bytes([self.id[0], self.id[1]]) }
    }

    /// A session without connections.
    pub(crate) fn new(
        id: SessionId,
        key: SessionKey,
        client: (String, String),
        (tenant, proven): (Arc<Tenant>, Proven),
        peer: Option<SocketAddr>,
        opened_ms: u64,
    ) -> Self {
        Self {
            id,
            key,
            client_name: client.0,
            client_version: client.1,
            peer,
            tls: None,
            opened_ms,
            tenant,
            proven,
            sent_bytes: AtomicU64::new(0),
            received_bytes: AtomicU64::new(0),
            rdma: SessionRdma::default(),
            held: Allowance::new(RequestBytes::default().session),
            connections: AtomicU32::new(0),
            rest: Mutex::default(),
            unread: AtomicU32::new(0),
            ended: watch::Sender::new(false),
        }
    }

    /// Takes a connection's place; `None` if there are `most` already, its tenant has as many as it may, it rests, or it does not
    /// read while the memory for that `is_short`.
    pub(crate) fn attach(self: &Arc<Self>, most: u32, is_short: bool) -> Option<Attachment> {
        let does_not_read = is_short && self.unread.load(Ordering::Relaxed) > 0;
        if does_not_read || !self.rest.lock().is_over(Instant::now()) {
            return None;
        }
        let more = |now: u32| (now < most).then_some(now + 1);
        let place = self.tenant.connect()?;
        self.connections.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(Attachment { session: Arc::clone(self), _place: place })
    }

    /// Notes that one of its connections has a full socket, until the result is dropped.
    pub(crate) fn leaves_unread(&self) -> Unread<'_> {
        self.unread.fetch_add(1, Ordering::Relaxed);
        Unread(&self.unread)
    }

    /// Notes that one of its connections was dropped because it did not read: it gets no others for a while.
    pub(crate) fn rest(&self, now: Instant) {
        self.rest.lock().begin(now);
    }

    /// Counts bytes of pages that went to the client.
    pub(crate) fn sent(&self, bytes: u64) {
        self.sent_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.tenant.sent(bytes);
    }

    /// Counts bytes of pages that came from the client.
    pub(crate) fn received(&self, bytes: u64) {
        self.received_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.tenant.received(bytes);
    }

    /// Data connections attached now.
    pub(crate) fn connections(&self) -> u32 {
        self.connections.load(Ordering::Relaxed)
    }

    /// Ends the session: all its connections close.
    pub(crate) fn end(&self) {
        self.ended.send_replace(true);
        self.rdma.end();
    }

    /// Waits until the session has ended.
    pub(crate) async fn wait_ended(&self) {
        let mut ended = self.ended.subscribe();
        // The sender lives in `self`, so waiting cannot fail while somebody waits.
        let _ended = ended.wait_for(|ended| *ended).await;
    }
}

/// A session's connection whose socket is full, until this is dropped.
#[derive(Debug)]
pub(crate) struct Unread<'a>(&'a AtomicU32);

impl Drop for Unread<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A data connection's place in its session, given back on drop.
#[derive(Debug)]
pub(crate) struct Attachment {
    pub(crate) session: Arc<Session>,
    _place: Connected,
}

impl Drop for Attachment {
    fn drop(&mut self) {
        self.session.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// All open sessions by id.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    open: DashMap<SessionId, Arc<Session>>,
}

impl Sessions {
    /// Registers a session; dropping the result ends it.
    pub(crate) fn register(self: &Arc<Self>, session: Session) -> Registered {
        let session = Arc::new(session);
        self.open.insert(session.id, Arc::clone(&session));
        Registered { sessions: Arc::clone(self), session }
    }

    /// The session with this id, if it is open.
    pub(crate) fn find(&self, id: &SessionId) -> Option<Arc<Session>> {
        self.open.get(id).map(|entry| Arc::clone(&entry))
    }

    /// How many are open.
    pub(crate) fn count(&self) -> usize {
        self.open.len()
    }

    /// Up to `most` of the open sessions for which `is` says so.
    pub(crate) fn some(&self, most: usize, is: impl Fn(&Session) -> bool) -> Vec<Arc<Session>> {
        self.open.iter().filter(|entry| is(entry)).take(most).map(|entry| Arc::clone(&entry)).collect()
    }

    /// Ends the sessions for which `is` says so; says how many.
    pub(crate) fn end_those(&self, is: impl Fn(&Session) -> bool) -> usize {
        self.open.iter().filter(|entry| is(entry)).map(|entry| entry.end()).count()
    }

    /// Ends every session.
    pub(crate) fn end_all(&self) {
        self.open.iter().for_each(|entry| entry.end());
    }
}

/// An open session's entry in the registry. Dropping it ends the session.
#[derive(Debug)]
pub(crate) struct Registered {
    sessions: Arc<Sessions>,
    pub(crate) session: Arc<Session>,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.sessions.open.remove(&self.session.id);
        self.session.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_does_not_read_rests_twice_as_long_each_time_and_is_forgiven_in_the_end() {
        let mut rest = Rest::default();
        let mut now = Instant::now();
        assert!(rest.is_over(now), "nobody rests at first");
        for seconds in [1, 2, 4, 8, 16, 16] {
            rest.begin(now);
            // What else was dropped with it counts once.
            rest.begin(now + Duration::from_millis(1));
            assert!(
                !rest.is_over(now + Duration::from_millis(seconds * 1000 - 1)),
                "{seconds} s are not over"
            );
            now += Duration::from_secs(seconds);
            assert!(rest.is_over(now), "{seconds} s are over");
        }
        now += REST_MOST;
        rest.begin(now);
        assert!(rest.is_over(now + REST), "it begins anew");
    }
}
