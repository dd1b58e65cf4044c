//! Where transfers run.

use std::pin::Pin;
use std::time::Instant;
use tokio::runtime::{Builder, Handle, Runtime};

pub(crate) type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Threads of our own, a runtime of the engine's, or a test's list.
pub(crate) enum Executor {
    /// Nothing only after the drop has begun.
    Own(Option<Runtime>),
    Borrowed(Handle),
    #[cfg(test)]
    ByHand(crate::tests::hand::Hand),
}

impl Executor {
    pub(crate) fn own(threads: usize) -> std::io::Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(threads.max(1))
            .thread_name("memkv-offload")
            .enable_time()
            .build()?;
        Ok(Self::Own(Some(runtime)))
    }

    pub(crate) fn spawn(&self, task: Task) {
        match self {
            Self::Own(Some(runtime)) => drop(runtime.spawn(task)),
            Self::Own(None) => drop(task),
            Self::Borrowed(handle) => drop(handle.spawn(task)),
            #[cfg(test)]
            Self::ByHand(hand) => hand.spawn(task),
        }
    }

    /// A future that resolves at `deadline`. Any executor may poll it.
    pub(crate) async fn sleep_until(&self, deadline: Instant) {
        let handle = match self {
            Self::Own(runtime) => runtime.as_ref().map(Runtime::handle),
            Self::Borrowed(handle) => Some(handle),
            #[cfg(test)]
            Self::ByHand(_) => None,
        };
        let Some(handle) = handle else { return std::future::pending().await };
        let sleep = {
            let _context = handle.enter();
            tokio::time::sleep_until(deadline.into())
        };
        sleep.await;
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        if let Self::Own(runtime) = self
            && let Some(runtime) = runtime.take()
        {
            // Does not wait, so it may be called from inside any runtime.
            runtime.shutdown_background();
        }
    }
}
