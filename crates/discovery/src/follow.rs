//! Asks a source for ever: passes its lists on, and waits a while after an error.

use crate::{MemberList, Source};
use parking_lot::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use tokio::sync::{Notify, watch};

/// The first pause after an error.
const PAUSE_MIN: Duration = Duration::from_millis(200);
/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// How the asking goes, for whoever looks.
#[derive(Debug, Default)]
pub struct Health {
    lists: AtomicU64,
    failures: AtomicU64,
    refreshes: AtomicU64,
    error: Mutex<Option<String>>,
    wanted: Notify,
}

impl Health {
    /// Lists received.
    #[must_use]
    pub fn lists(&self) -> u64 {
        self.lists.load(Relaxed)
    }

    /// Times that the source had no answer.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.failures.load(Relaxed)
    }

    /// Times that somebody wanted to know at once.
    #[must_use]
    pub fn refreshes(&self) -> u64 {
        self.refreshes.load(Relaxed)
    }

    /// Why there is no answer, while there is none.
    #[must_use]
    pub fn error(&self) -> Option<String> {
        self.error.lock().clone()
    }

    /// Has the source asked again at once.
    pub fn refresh(&self) {
        self.refreshes.fetch_add(1, Relaxed);
        self.wanted.notify_one();
    }
}

/// Passes the source's lists on until nobody listens any more. That the source is away, and that it is back, is
/// logged once each.
pub async fn follow(mut source: Box<dyn Source>, lists: watch::Sender<MemberList>, health: &Health) {
    let mut pauses = Pauses::default();
    loop {
        let answer = tokio::select! {
            answer = source.next() => answer,
            () = health.wanted.notified() => {
                source.refresh();
                continue;
            }
            () = lists.closed() => return,
        };
        match answer {
            Ok(list) => {
                health.lists.fetch_add(1, Relaxed);
                if health.error.lock().take().is_some() {
                    tracing::info!(
                        epoch = list.epoch,
                        members = list.members.len(),
                        "the source of members answers again"
                    );
                }
                pauses = Pauses::default();
                lists.send_replace(list);
            }
            Err(error) => {
                health.failures.fetch_add(1, Relaxed);
                let known = health.error.lock().replace(error.to_string());
                if known.is_none() {
                    tracing::warn!(%error, "the source of members does not answer; the members known so far stay");
                } else {
                    tracing::debug!(%error, "the source of members still does not answer");
                }
                // Whoever wants to know at once must not make a source that is away be asked more often.
                tokio::select! {
                    () = tokio::time::sleep(pauses.next()) => {}
                    () = lists.closed() => return,
                }
            }
        }
    }
}

/// The pauses between attempts: doubled each time, each between half and all of it, so that many clients do not
/// come back together.
#[derive(Debug, Default)]
pub(crate) struct Pauses {
    failures: u32,
}

impl Pauses {
    pub(crate) fn next(&mut self) -> Duration {
        let pause = PAUSE_MIN.saturating_mul(1 << self.failures.min(10)).min(PAUSE_MAX);
        self.failures = self.failures.saturating_add(1);
        // Without a random source, clients merely come back in step.
        let jitter = getrandom::u32().map_or(1.0, |n| f64::from(n) / f64::from(u32::MAX));
        pause.mul_f64(0.5 + 0.5 * jitter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Member, NextList, SourceError};
    use std::sync::Arc;

    /// Fails twice, then counts up whenever it is refreshed.
    struct Shy {
        failures: u32,
        epoch: u64,
        due: bool,
    }

    impl Source for Shy {
        fn next(&mut self) -> NextList<'_> {
            Box::pin(async {
                if self.failures > 0 {
                    self.failures -= 1;
                    return Err(SourceError::Dns { name: "x".to_owned(), text: "away".to_owned() });
                }
                if !std::mem::take(&mut self.due) {
                    std::future::pending::<()>().await;
                }
                self.epoch += 1;
                Ok(MemberList::new(self.epoch, vec![Member::new("a", "h", 1, 1)]))
            })
        }

        fn refresh(&mut self) {
            self.due = true;
        }
    }

    #[tokio::test]
    async fn errors_are_outlasted_and_wishes_heard() {
        let (tell, mut lists) = watch::channel(MemberList::default());
        let health = Arc::new(Health::default());
        let watched = Arc::clone(&health);
        let source = Box::new(Shy { failures: 2, epoch: 0, due: true });
        let following = tokio::spawn(async move { follow(source, tell, &watched).await });
        lists.wait_for(|list| list.epoch == 1).await.unwrap();
        assert_eq!((health.failures(), health.lists(), health.error()), (2, 1, None));
        health.refresh();
        lists.wait_for(|list| list.epoch == 2).await.unwrap();
        assert_eq!(health.refreshes(), 1);
        drop(lists);
        following.await.unwrap();
    }

    #[test]
    fn pauses_grow_to_their_bound() {
        let mut pauses = Pauses::default();
        assert!(pauses.next() <= PAUSE_MIN);
        let later = (0..20).map(|_| pauses.next()).last().unwrap();
        assert!(later >= PAUSE_MAX / 2 && later <= PAUSE_MAX);
    }
}
