//! I/O on the thread of whoever asks for it, for simulations: an operation is over some looks later, in any order.

use crate::disk::whole;
use crate::io::{Body, Device, Ended, Op};
use std::io;

/// Operations that wait for their turn.
pub(crate) struct Here {
    waiting: Vec<Op>,
    depth: usize,
}

impl Here {
    pub(crate) fn new(depth: usize) -> Self {
        Self { waiting: Vec::new(), depth }
    }
}

/// Chance, as the system tells it: a simulation has made the system's randomness its own.
fn chance() -> io::Result<u64> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(io::Error::other)?;
    Ok(u64::from_ne_bytes(bytes))
}

impl Device for Here {
    fn room(&self) -> usize {
        self.depth - self.waiting.len()
    }

    fn push(&mut self, op: Op) {
        self.waiting.push(op);
    }

    /// Does about half of what waits. Never waits.
    fn wait(&mut self, ended: &mut Vec<Ended>) -> io::Result<()> {
        let mut at = 0;
        while at < self.waiting.len() {
            if chance()?.is_multiple_of(2) {
                let mut op = self.waiting.swap_remove(at);
                let end = op.run(usize::MAX);
                ended.push((op, end));
            } else {
                at += 1;
            }
        }
        Ok(())
    }
}

impl Drop for Here {
    /// The process ends: of each write that was handed to the system, nothing, a part or all comes to pass.
    fn drop(&mut self) {
        for mut op in self.waiting.drain(..) {
            if !matches!(op.body, Body::Write(_)) {
                continue;
            }
            let left = op.bytes() - op.done;
            let part = chance().map_or(0, |chance| chance as usize % (left + left / 2 + 1));
            let part = whole(part, left);
            if part > 0 {
                // Whether it works is nobody's concern any more.
                op.run(part).ok();
            }
        }
    }
}
