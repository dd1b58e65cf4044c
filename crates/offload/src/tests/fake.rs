//! A store in memory that fails as told, and waits at every page.

use crate::store::{Found, PageKey, PageStore};
use memkv_client::PageOutcome;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tokio::task::yield_now;

/// A call that the store got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    Exists(usize),
    Get(usize),
    /// Position of the first page, and how many.
    Put(usize, usize),
}

#[derive(Default)]
struct State {
    pages: BTreeMap<Vec<u8>, Vec<u8>>,
    calls: Vec<Call>,
    /// What becomes of these pages instead.
    bad: BTreeMap<Vec<u8>, PageOutcome>,
    /// What becomes of every page instead.
    all_bad: Option<PageOutcome>,
    frozen: bool,
    /// Pages that exist, but not any more when they are got.
    gone: BTreeSet<Vec<u8>>,
}

/// Clones are the same store.
#[derive(Clone, Default)]
pub(crate) struct Fake {
    state: Arc<Mutex<State>>,
}

impl Fake {
    /// How many pages there are.
    pub(crate) fn len(&self) -> usize {
        self.state.lock().pages.len()
    }

    pub(crate) fn page(&self, key: PageKey) -> Option<Vec<u8>> {
        self.state.lock().pages.get(key.as_ref()).cloned()
    }

    pub(crate) fn remove(&self, key: PageKey) {
        self.state.lock().pages.remove(key.as_ref());
    }

    /// Makes a page fail.
    pub(crate) fn spoil(&self, key: PageKey, outcome: PageOutcome) {
        self.state.lock().bad.insert(key.as_ref().to_vec(), outcome);
    }

    /// Makes a page exist, and be gone when it is got.
    pub(crate) fn lose_after_exists(&self, key: PageKey) {
        self.state.lock().gone.insert(key.as_ref().to_vec());
    }

    /// Makes every page fail, or none.
    pub(crate) fn break_all(&self, outcome: Option<PageOutcome>) {
        self.state.lock().all_bad = outcome;
    }

    /// Makes calls hang, also those that have begun, or go on.
    pub(crate) fn freeze(&self, frozen: bool) {
        self.state.lock().frozen = frozen;
    }

    pub(crate) fn take_calls(&self) -> Vec<Call> {
        std::mem::take(&mut self.state.lock().calls)
    }

    fn note(&self, call: Call) {
        self.state.lock().calls.push(call);
    }

    fn fault(&self, key: &PageKey) -> Option<PageOutcome> {
        let state = self.state.lock();
        state.all_bad.or_else(|| state.bad.get(key.as_ref()).copied())
    }

    async fn pause(&self) {
        yield_now().await;
        while self.state.lock().frozen {
            yield_now().await;
        }
    }
}

impl PageStore for Fake {
    async fn exists(&self, keys: &[PageKey]) -> Found {
        self.note(Call::Exists(keys.len()));
        self.pause().await;
        if self.state.lock().all_bad.is_some() {
            return Found { run: 0, failed: keys.len() };
        }
        let state = self.state.lock();
        let run = keys.iter().take_while(|key| state.pages.contains_key(key.as_ref())).count();
        Found { run, failed: 0 }
    }

    async fn get(&self, keys: &[PageKey], pages: &mut [&mut [u8]], outcomes: &mut [PageOutcome]) {
        self.note(Call::Get(keys.len()));
        for ((key, page), outcome) in keys.iter().zip(pages).zip(outcomes) {
            // Half of a page that never comes may be there all the same.
            page.fill(0xbb);
            self.pause().await;
            let gone = self.state.lock().gone.contains(key.as_ref());
            *outcome = match (self.fault(key), self.page(*key).filter(|_| !gone)) {
                (Some(fault), _) => fault,
                (None, None) => PageOutcome::Miss,
                (None, Some(bytes)) => {
                    page.copy_from_slice(&bytes);
                    PageOutcome::Hit
                }
            };
        }
    }

    async fn put(&self, start: usize, keys: &[PageKey], pages: &[&[u8]], outcomes: &mut [PageOutcome]) {
        self.note(Call::Put(start, keys.len()));
        for ((key, page), outcome) in keys.iter().zip(pages).zip(outcomes) {
            self.pause().await;
            *outcome = match self.fault(key) {
                Some(fault) => fault,
                None => match self.state.lock().pages.insert(key.as_ref().to_vec(), page.to_vec()) {
                    Some(_) => PageOutcome::Exists,
                    None => PageOutcome::Stored,
                },
            };
        }
    }
}
