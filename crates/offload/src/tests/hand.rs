//! An executor that a test turns by hand: every await of every transfer is a place to look, to stop or to drop.

use crate::executor::Task;
use parking_lot::Mutex;
use std::sync::Arc;
use std::task::{Context, Waker};

/// The transfers under way, in the order in which they began. Clones share the list.
#[derive(Clone, Default)]
pub(crate) struct Hand {
    tasks: Arc<Mutex<Vec<Task>>>,
}

impl Hand {
    pub(crate) fn spawn(&self, task: Task) {
        self.tasks.lock().push(task);
    }

    /// How many transfers are not over.
    pub(crate) fn len(&self) -> usize {
        self.tasks.lock().len()
    }

    /// Polls every transfer once; returns whether there was one.
    pub(crate) fn turn(&self) -> bool {
        let mut tasks = std::mem::take(&mut *self.tasks.lock());
        let any = !tasks.is_empty();
        tasks.retain_mut(|task| task.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        let mut list = self.tasks.lock();
        tasks.append(&mut list);
        *list = tasks;
        any
    }

    /// Drops every transfer where it is.
    pub(crate) fn drop_all(&self) {
        let tasks = std::mem::take(&mut *self.tasks.lock());
        drop(tasks);
    }
}
