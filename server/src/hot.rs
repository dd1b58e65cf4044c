//! Notices pages that are read so often that one server is too little for them.
//!
//! About one in [`SAMPLE`] keys of gets is counted, in a table of fixed size: a key that is not in a full table takes
//! one from every count instead (Misra and Gries), so what is read often stays and what is read once goes. Counts are
//! halved every second, which makes them twice the samples of a second. From them follow the hot pages and how many
//! copies each should have; every pong carries them to the clients, which act on it.
//!
//! Invariants:
//! - a request takes the lock at most once, and only if one of its keys is sampled and nobody else has it;
//! - a page whose reads spread over copies is judged by what all copies together are asked for, so that the copies do
//!   not take away the reason for themselves;
//! - a hot page stays hot until half of the rate that made it so, so that it does not come and go.
//!
//! Deliberately absent: copying. A server knows no other servers; clients fill the copies that they miss.

use memkv_core::SpaceId;
use memkv_storage::HashedKey;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;

/// One in so many keys is counted.
const SAMPLE: u32 = 16;
/// Counted keys. A key with more than one in so many of all reads is never missed.
const KEYS_MAX: usize = 2048;
/// The most pages that are announced.
const PAGES_MAX: usize = 1024;
/// The most copies that are announced for a page.
const COPIES_MAX: u32 = 8;
/// The time between two halvings, in milliseconds.
const TICK_MS: u64 = 1000;
/// After this many of them at once nothing is left of any count.
const TICKS_MAX: u64 = 32;

/// A page that is hot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HotPage {
    pub(crate) space: SpaceId,
    pub(crate) digest: u64,
    pub(crate) copies: u8,
}

/// Which keys of one connection's gets are counted.
#[derive(Debug)]
pub(crate) struct Sampler {
    /// Keys until the next one.
    left: u32,
    state: u64,
}

impl Sampler {
    pub(crate) fn new() -> Self {
        Self { left: 0, state: u64::from_le_bytes(crate::random::bytes()) | 1 }
    }

    /// The distance to the next sample. Random: batches of one length must not have the same places counted every time.
    fn jump(&mut self) -> u32 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        1 + (self.state >> 33) as u32 % (2 * SAMPLE - 1)
    }
}

/// The counts and what follows from them.
pub(crate) struct Hot {
    /// Reads in a second that make a page hot; 0 for never.
    rate: u32,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    counts: HashMap<u64, (SpaceId, u32)>,
    ticked_ms: u64,
    hot: Arc<Vec<HotPage>>,
}

impl Hot {
    /// Pages with this many reads in a second are hot; 0 for none.
    pub(crate) fn new(rate: u32) -> Self {
        Self { rate, table: Mutex::default() }
    }

    /// Counts some of the keys of a get.
    pub(crate) fn note(&self, space: SpaceId, keys: &[HashedKey<'_>], sampler: &mut Sampler, now_ms: u64) {
        if self.rate == 0 {
            return;
        }
        let mut at = sampler.left as usize;
        if at >= keys.len() {
            // There are fewer keys than 2^32 in a request.
            sampler.left -= keys.len() as u32;
            return;
        }
        // A sample that would have to wait is none.
        let mut table = self.table.try_lock();
        while at < keys.len() {
            if let Some(table) = &mut table {
                table.count(space, keys[at].digest);
            }
            at += sampler.jump() as usize;
        }
        sampler.left = (at - keys.len()) as u32;
        if let Some(table) = &mut table {
            table.tick(self.rate, now_ms);
        }
    }

    /// The pages that are hot now.
    pub(crate) fn pages(&self, now_ms: u64) -> Arc<Vec<HotPage>> {
        let mut table = self.table.lock();
        if self.rate > 0 {
            table.tick(self.rate, now_ms);
        }
        Arc::clone(&table.hot)
    }
}

impl Table {
    fn count(&mut self, space: SpaceId, digest: u64) {
        if let Some((_, count)) = self.counts.get_mut(&digest) {
            *count = count.saturating_add(1);
        } else if self.counts.len() < KEYS_MAX {
            self.counts.insert(digest, (space, 1));
        } else {
            self.counts.retain(|_, (_, count)| {
                *count -= 1;
                *count > 0
            });
        }
    }

    /// Judges and halves, if a second has passed.
    fn tick(&mut self, rate: u32, now_ms: u64) {
        let ticks = (now_ms.saturating_sub(self.ticked_ms) / TICK_MS).min(TICKS_MAX);
        if ticks == 0 {
            return;
        }
        self.ticked_ms = now_ms;
        for _ in 0..ticks {
            if self.counts.is_empty() && self.hot.is_empty() {
                return;
            }
            self.judge(rate);
            self.counts.retain(|_, (_, count)| {
                *count /= 2;
                *count > 0
            });
        }
    }

    /// Works out which pages are hot.
    fn judge(&mut self, rate: u32) {
        let before: HashMap<u64, u8> = self.hot.iter().map(|page| (page.digest, page.copies)).collect();
        let mut hot = Vec::new();
        for (&digest, &(space, count)) in &self.counts {
            let copies = before.get(&digest).copied();
            let reads = u64::from(count) * u64::from(SAMPLE) / 2 * u64::from(copies.unwrap_or(1));
            let least = if copies.is_some() { rate / 2 } else { rate };
            if reads >= u64::from(least.max(1)) {
                let copies = (1 + reads / u64::from(rate)).clamp(2, COPIES_MAX.into());
                hot.push((reads, HotPage { space, digest, copies: copies as u8 }));
            }
        }
        hot.sort_unstable_by_key(|&(reads, page)| (std::cmp::Reverse(reads), page.digest));
        hot.truncate(PAGES_MAX);
        // In an order of their own, so that clients see whether anything changed.
        hot.sort_unstable_by_key(|(_, page)| page.digest);
        let hot: Vec<HotPage> = hot.into_iter().map(|(_, page)| page).collect();
        if *self.hot != hot {
            self.hot = Arc::new(hot);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use memkv_core::Key;

    const SPACE: SpaceId = SpaceId([7; 16]);

    fn hashed(names: &[String]) -> Vec<HashedKey<'_>> {
        names.iter().map(|name| HashedKey::new(SPACE, Key::new(name.as_bytes()).unwrap())).collect()
    }

    /// Reads `batch` `times` times in the second that begins at `second`.
    fn read(hot: &Hot, batch: &[HashedKey<'_>], sampler: &mut Sampler, times: usize, second: u64) {
        for _ in 0..times {
            hot.note(SPACE, batch, sampler, second * TICK_MS);
        }
    }

    #[test]
    fn what_is_read_often_becomes_hot_and_cools_down() {
        let (hot, mut sampler) = (Hot::new(100), Sampler::new());
        let (loud, quiet) = (["loud".to_owned()], ["quiet".to_owned()]);
        for second in 1..8 {
            read(&hot, &hashed(&loud), &mut sampler, 1000, second);
            read(&hot, &hashed(&quiet), &mut sampler, 10, second);
        }
        let pages = hot.pages(8 * TICK_MS);
        assert_eq!(pages.len(), 1, "{pages:?}");
        assert_eq!(pages[0].digest, hashed(&loud)[0].digest);
        assert_eq!((pages[0].space, u32::from(pages[0].copies)), (SPACE, COPIES_MAX));
        assert!(hot.pages(60 * TICK_MS).is_empty());
    }

    #[test]
    fn copies_do_not_take_away_their_reason() {
        let (hot, mut sampler) = (Hot::new(200), Sampler::new());
        let names = ["page".to_owned()];
        for second in 1..5 {
            read(&hot, &hashed(&names), &mut sampler, 1500, second);
        }
        let copies = hot.pages(5 * TICK_MS)[0].copies;
        assert!(copies > 4, "{copies}");
        // From now on this server is asked for its share only.
        for second in 5..30 {
            read(&hot, &hashed(&names), &mut sampler, 1500 / usize::from(copies), second);
        }
        let pages = hot.pages(30 * TICK_MS);
        assert!(pages.len() == 1 && pages[0].copies > 2, "{pages:?}");
    }

    #[test]
    fn among_many_keys_the_often_read_ones_are_found() {
        let (hot, mut sampler) = (Hot::new(200), Sampler::new());
        let prefix: Vec<String> = (0..64).map(|i| format!("prefix {i}")).collect();
        let prefix = hashed(&prefix);
        let mut next = 0;
        for second in 1..6 {
            for _ in 0..400 {
                read(&hot, &prefix, &mut sampler, 1, second);
                let rest: Vec<String> = (0..256).map(|i| format!("other {}", next + i)).collect();
                next += 256;
                read(&hot, &hashed(&rest), &mut sampler, 1, second);
            }
        }
        let pages = hot.pages(6 * TICK_MS);
        let found = prefix.iter().filter(|key| pages.iter().any(|page| page.digest == key.digest)).count();
        assert!(found >= 60, "{found} of 64");
        assert!(pages.len() <= 64, "{} pages", pages.len());
    }

    #[test]
    fn the_table_stays_small() {
        let (hot, mut sampler) = (Hot::new(1), Sampler::new());
        let names: Vec<String> = (0..200_000).map(|i| format!("{i}")).collect();
        for batch in hashed(&names).chunks(256) {
            read(&hot, batch, &mut sampler, 1, 1);
        }
        assert!(hot.table.lock().counts.len() <= KEYS_MAX);
        assert!(hot.pages(2 * TICK_MS).len() <= PAGES_MAX);
    }

    #[test]
    fn without_a_rate_nothing_is_counted() {
        let (hot, mut sampler) = (Hot::new(0), Sampler::new());
        let names = ["page".to_owned()];
        read(&hot, &hashed(&names), &mut sampler, 1000, 1);
        assert!(hot.pages(5 * TICK_MS).is_empty() && hot.table.lock().counts.is_empty());
    }
}
