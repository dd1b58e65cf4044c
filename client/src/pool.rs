//! The ready data connections to one server.
//!
//! Ops borrow a connection exclusively ([`Lease`]). A lease that is dropped unfinished closes its connection: bytes
//! of an abandoned exchange can never reach another op. Connections are opened in the background only.
//!
//! A pool serves one session at a time, counted by `generation`; connections of an earlier one are closed when they
//! come back.

use crate::breaker::Kind;
use crate::link::Link;
use crate::server::Server;
use crate::way::Way;
use event_listener::Event;
use parking_lot::Mutex;
use std::sync::Arc;

/// Connections opened without being asked for.
const READY_MIN: u32 = 2;

#[derive(Default)]
#[allow(clippy::vec_box, reason = "an op takes a box out and gives it back without moving what is in it")]
struct State {
    ready: bool,
    generation: u64,
    idle: Vec<Box<Link>>,
    /// Connections of this generation, idle or lent.
    total: u32,
    /// Connections being opened.
    opening: u32,
    max: u32,
    /// Connections of lesser ways are closed when they come back.
    best: Way,
    /// Whether an op would have taken one more connection than there was.
    short: bool,
}

impl State {
    /// Whether a store may take an idle connection: it leaves one, so that loads never wait for stores alone.
    fn has_for_stores(&self) -> bool {
        self.idle.len() > usize::from(self.total > 1)
    }
}

#[derive(Default)]
pub(crate) struct Pool {
    state: Mutex<State>,
    /// For ops that are no stores.
    returned: Event,
    /// For stores, which leave the last idle connection to the others.
    returned_to_stores: Event,
}

/// What a pool has for an op.
pub(crate) enum Taken {
    Link(Box<Link>),
    /// All connections are lent.
    Busy,
    /// There is no session, or no connection in it: waiting would be for a connect.
    NotReady,
    /// Stores were too slow lately.
    SlowStores,
}

impl Pool {
    /// Takes an idle connection, if there is one for this kind of op.
    pub(crate) fn take(&self, kind: Kind) -> Taken {
        let mut state = self.state.lock();
        if !state.ready {
            return Taken::NotReady;
        }
        let may_take = kind != Kind::Store || state.has_for_stores();
        if may_take && let Some(link) = state.idle.pop() {
            return Taken::Link(link);
        }
        state.short = true;
        if state.total == 0 { Taken::NotReady } else { Taken::Busy }
    }

    /// Notified whenever a connection may be had for this kind of op, and when the session ends.
    pub(crate) fn returned(&self, kind: Kind) -> &Event {
        if kind == Kind::Store { &self.returned_to_stores } else { &self.returned }
    }

    /// Makes all waiting ops look again.
    pub(crate) fn wake_all(&self) {
        self.returned.notify(usize::MAX);
        self.returned_to_stores.notify(usize::MAX);
    }

    /// Makes one op of each kind look again that may find something.
    fn wake_one(&self, for_stores: bool) {
        self.returned.notify(1);
        if for_stores {
            self.returned_to_stores.notify(1);
        }
    }

    fn put_back(&self, link: Box<Link>) {
        let mut state = self.state.lock();
        let current = link.generation == state.generation;
        let mut lesser = None;
        if state.ready && current && link.mover.way() >= state.best && link.mover.is_usable() {
            state.idle.push(link);
        } else {
            state.total = state.total.saturating_sub(u32::from(current));
            lesser = Some(link);
        }
        let (for_stores, none) = (state.has_for_stores(), state.total == 0);
        drop(state);
        drop(lesser);
        if none { self.wake_all() } else { self.wake_one(for_stores) }
    }

    fn lost(&self, generation: u64) {
        let mut state = self.state.lock();
        if generation != state.generation {
            return;
        }
        state.total = state.total.saturating_sub(1);
        let (for_stores, none) = (state.has_for_stores(), state.total == 0);
        drop(state);
        // Without any, nothing will come back that could be waited for.
        if none {
            self.wake_all();
        } else if for_stores {
            self.returned_to_stores.notify(1);
        }
    }

    /// Begins a session: no connections yet, and at most `max` of them. Returns its generation.
    pub(crate) fn begin_session(&self, max: u32) -> u64 {
        let mut state = self.state.lock();
        state.generation += 1;
        state.max = max.max(1);
        state.best = Way::Tcp;
        state.total = 0;
        state.opening = 0;
        state.short = false;
        state.generation
    }

    /// Lets ops in.
    pub(crate) fn set_ready(&self) {
        self.state.lock().ready = true;
        self.wake_all();
    }

    /// Ends the session: closes idle connections and keeps ops out.
    pub(crate) fn end_session(&self) {
        let mut state = self.state.lock();
        state.ready = false;
        state.generation += 1;
        state.total = 0;
        let idle = std::mem::take(&mut state.idle);
        drop(state);
        drop(idle);
        self.wake_all();
    }

    /// The way of the connections opened last.
    pub(crate) fn best(&self) -> Way {
        self.state.lock().best
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.state.lock().ready
    }

    /// Connections open now.
    pub(crate) fn connections(&self) -> u32 {
        self.state.lock().total
    }

    /// How many connections to open now; each must end in [`Pool::opened`] or [`Pool::not_opened`].
    pub(crate) fn reserve(&self) -> u32 {
        let mut state = self.state.lock();
        let have = state.total + state.opening;
        let least = READY_MIN.min(state.max);
        let more = if have < least {
            least - have
        } else {
            u32::from(state.short && state.opening == 0 && have < state.max)
        };
        state.short = false;
        state.opening += more;
        more
    }

    /// Counts a connection that is opened whatever [`Pool::reserve`] says.
    pub(crate) fn reserve_one(&self) {
        self.state.lock().opening += 1;
    }

    /// Closes idle connections: the server is suspected, and so are they.
    pub(crate) fn drop_idle(&self) {
        let mut state = self.state.lock();
        let idle = std::mem::take(&mut state.idle);
        state.total = state.total.saturating_sub(idle.len() as u32);
        drop(state);
        drop(idle);
    }

    /// Closes idle connections whose pages have no way any more.
    pub(crate) fn drop_unusable(&self) {
        let mut state = self.state.lock();
        let idle = std::mem::take(&mut state.idle);
        let (good, bad): (Vec<_>, Vec<_>) = idle.into_iter().partition(|link| link.mover.is_usable());
        state.idle = good;
        state.total = state.total.saturating_sub(bad.len() as u32);
        let none = state.total == 0;
        drop(state);
        drop(bad);
        if none {
            self.wake_all();
        }
    }

    /// Adds an opened connection, unless there are enough by now. Idle ones of a lesser way make room for it.
    pub(crate) fn opened(&self, link: Box<Link>) {
        let mut state = self.state.lock();
        let mut closed = Vec::new();
        if link.generation == state.generation {
            state.opening = state.opening.saturating_sub(1);
            state.best = link.mover.way();
            let best = state.best;
            let (keep, lesser) =
                std::mem::take(&mut state.idle).into_iter().partition(|idle| idle.mover.way() >= best);
            (state.idle, closed) = (keep, lesser);
            state.total = state.total.saturating_sub(closed.len() as u32);
            if state.total < state.max {
                state.total += 1;
                state.idle.push(link);
            }
        }
        let for_stores = state.has_for_stores();
        drop(state);
        drop(closed);
        self.wake_one(for_stores);
    }

    /// A connection could not be opened.
    pub(crate) fn not_opened(&self, generation: u64) {
        let mut state = self.state.lock();
        if generation == state.generation {
            state.opening = state.opening.saturating_sub(1);
        }
    }
}

/// A borrowed connection. Dropped unfinished, it is closed.
pub(crate) struct Lease {
    server: Arc<Server>,
    link: Option<Box<Link>>,
}

impl Lease {
    pub(crate) fn new(server: Arc<Server>, link: Box<Link>) -> Self {
        Self { server, link: Some(link) }
    }

    pub(crate) fn server(&self) -> &Arc<Server> {
        &self.server
    }

    pub(crate) fn link(&mut self) -> &mut Link {
        self.link
            .as_mut()
            .expect("only `finish`, `replace` and drop take the link, and leave another or none to see")
    }

    pub(crate) fn shared_link(&self) -> &Link {
        self.link
            .as_ref()
            .expect("only `finish`, `replace` and drop take the link, and leave another or none to see")
    }

    /// Gives the connection back: no exchange is unfinished on it.
    pub(crate) fn finish(mut self) {
        if let Some(mut link) = self.link.take() {
            self.server.leave(std::mem::take(&mut link.permits));
            self.server.pool.put_back(link);
        }
    }

    /// Replaces a connection that turned out closed by another idle one, if there is one.
    pub(crate) fn replace(&mut self, kind: Kind) -> bool {
        match self.server.pool.take(kind) {
            Taken::Link(mut fresh) => {
                fresh.permits = self.shared_link().permits;
                if let Some(closed) = self.link.replace(fresh) {
                    self.server.pool.lost(closed.generation);
                    self.server.wake();
                }
                true
            }
            Taken::Busy | Taken::NotReady | Taken::SlowStores => false,
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(link) = self.link.take() {
            self.server.leave(link.permits);
            self.server.pool.lost(link.generation);
            drop(link);
            self.server.wake();
        }
    }
}
