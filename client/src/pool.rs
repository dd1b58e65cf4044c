//! The ready data connections to one server.
//!
//! Ops borrow a connection exclusively ([`Lease`]). A lease that is dropped unfinished closes its connection: bytes
//! of an abandoned exchange can never reach another op. Connections are opened in the background only.
//!
//! A pool serves one session at a time, counted by `generation`; connections of an earlier one are closed when they
//! come back.

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

#[derive(Default)]
pub(crate) struct Pool {
    state: Mutex<State>,
    returned: Event,
}

/// What a pool has for an op.
pub(crate) enum Taken {
    Link(Box<Link>),
    /// All connections are lent.
    Busy,
    /// There is no session.
    NotReady,
}

impl Pool {
    /// Takes an idle connection, if there is one.
    pub(crate) fn take(&self) -> Taken {
        let mut state = self.state.lock();
        if !state.ready {
            return Taken::NotReady;
        }
        match state.idle.pop() {
            Some(link) => Taken::Link(link),
            None => {
                state.short = true;
                Taken::Busy
            }
        }
    }

    /// Notified whenever a connection may be had, and when the session ends.
    pub(crate) fn returned(&self) -> &Event {
        &self.returned
    }

    fn put_back(&self, link: Box<Link>) {
        let mut state = self.state.lock();
        let current = link.generation == state.generation;
        let mut lesser = None;
        if state.ready && current && link.mover.way() >= state.best {
            state.idle.push(link);
        } else {
            state.total = state.total.saturating_sub(u32::from(current));
            lesser = Some(link);
        }
        drop(state);
        drop(lesser);
        self.returned.notify(1);
    }

    fn lost(&self, generation: u64) {
        let mut state = self.state.lock();
        if generation == state.generation {
            state.total = state.total.saturating_sub(1);
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
        self.returned.notify(usize::MAX);
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
        self.returned.notify(usize::MAX);
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
        drop(state);
        drop(closed);
        self.returned.notify(1);
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
        if let Some(link) = self.link.take() {
            self.server.pool.put_back(link);
        }
    }

    /// Replaces a connection that turned out closed by another idle one, if there is one.
    pub(crate) fn replace(&mut self) -> bool {
        match self.server.pool.take() {
            Taken::Link(fresh) => {
                if let Some(closed) = self.link.replace(fresh) {
                    self.server.pool.lost(closed.generation);
                    self.server.wake();
                }
                true
            }
            Taken::Busy | Taken::NotReady => false,
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(link) = self.link.take() {
            self.server.pool.lost(link.generation);
            drop(link);
            self.server.wake();
        }
    }
}
