//! The storage tier: what the tiers ask of it, and MemKV's answer.
//!
//! One page of the engine is one value. Its key is the page's digest as 64 lower-case hex digits, in ASCII: the
//! text that SGLang names the page with. Everything else that decides whether two engines may share the page is the
//! space's ([`EngineSpace`](crate::EngineSpace)).

use memkv_client::{Error, PageOutcome, Space};
use memkv_radix::Digest;

/// The key of a page in the store.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PageKey([u8; 64]);

impl From<Digest> for PageKey {
    fn from(digest: Digest) -> Self {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = [0; 64];
        for (pair, byte) in text.as_chunks_mut::<2>().0.iter_mut().zip(digest.0) {
            *pair = [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]];
        }
        Self(text)
    }
}

impl AsRef<[u8]> for PageKey {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Debug for PageKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}

/// The answer to the question which pages are there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// How many pages from the first on are there without a gap.
    pub run: usize,
    /// How many pages could not be asked for.
    pub failed: usize,
}

/// A store of pages. [`memkv_client::Space`] is one; tests have others.
///
/// No call fails as a whole: what could not be done is said per page. Every call ends by itself in bounded time.
/// A future may be dropped at any point; then the store no longer touches the memory.
pub trait PageStore: Send + Sync + 'static {
    /// Asks which pages are there.
    fn exists(&self, keys: &[PageKey]) -> impl Future<Output = Found> + Send;

    /// Reads pages into the slices of the same places. Only [`PageOutcome::Hit`] says that a page is there whole.
    fn get(
        &self,
        keys: &[PageKey],
        pages: &mut [&mut [u8]],
        outcomes: &mut [PageOutcome],
    ) -> impl Future<Output = ()> + Send;

    /// Stores pages; the first is page `start` of its chain, counted from 0.
    fn put(
        &self,
        start: usize,
        keys: &[PageKey],
        pages: &[&[u8]],
        outcomes: &mut [PageOutcome],
    ) -> impl Future<Output = ()> + Send;
}

/// No store: everything is a miss, and nothing is kept. For engines with host memory alone; leave
/// [`storage`](memkv_radix::Config::storage) off then.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoStore;

impl PageStore for NoStore {
    async fn exists(&self, _keys: &[PageKey]) -> Found {
        Found::default()
    }

    async fn get(&self, _keys: &[PageKey], _pages: &mut [&mut [u8]], outcomes: &mut [PageOutcome]) {
        outcomes.fill(PageOutcome::Miss);
    }

    async fn put(&self, _start: usize, _keys: &[PageKey], _pages: &[&[u8]], outcomes: &mut [PageOutcome]) {
        outcomes.fill(PageOutcome::Unavailable);
    }
}

/// The client refuses a call only if it was closed; then no page came or went.
fn unless_closed<T>(result: Result<T, Error>, outcomes: &mut [PageOutcome]) {
    if let Err(error) = result {
        tracing::debug!(%error, "the client refused the call");
        outcomes.fill(PageOutcome::Unavailable);
    }
}

impl PageStore for Space {
    async fn exists(&self, keys: &[PageKey]) -> Found {
        let mut found = vec![false; keys.len()];
        match Space::exists(self, keys, &mut found).await {
            Ok(report) => {
                Found { run: found.iter().take_while(|found| **found).count(), failed: report.failed }
            }
            Err(_) => Found { run: 0, failed: keys.len() },
        }
    }

    async fn get(&self, keys: &[PageKey], pages: &mut [&mut [u8]], outcomes: &mut [PageOutcome]) {
        let result = self.get_into(keys, pages, outcomes).await;
        unless_closed(result, outcomes);
    }

    async fn put(&self, start: usize, keys: &[PageKey], pages: &[&[u8]], outcomes: &mut [PageOutcome]) {
        let position = u32::try_from(start + 1).unwrap_or(0);
        let result = self.at_position(position).put_from(keys, pages, outcomes).await;
        unless_closed(result, outcomes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_the_digest_as_sglang_writes_it() {
        let digest = Digest(std::array::from_fn(|index| (index as u8).wrapping_mul(29)));
        assert_eq!(PageKey::from(digest).as_ref(), digest.to_string().as_bytes());
        assert_eq!(format!("{:?}", PageKey::from(digest)), digest.to_string());
    }
}
