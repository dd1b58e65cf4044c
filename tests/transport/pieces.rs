//! Pages that lie in the caller's memory as several pieces at any address.

use crate::ops::{assert_all, assert_hits};
use crate::rig::{Rig, tests};
use memkv_client::blocking::Space;
use memkv_client::{PageOutcome, RawPieces};
use memkv_tests::pages::{keys, page};

tests![
    pieces_at_odd_addresses_round_trip,
    many_small_pieces_round_trip,
    pieces_of_a_missed_page_stay_untouched,
    pieces_of_another_total_are_a_mismatch,
    asynchronous_calls_take_pieces_too,
];

/// What fills the memory around and between pieces.
const GAP: u8 = 0xa5;

/// Memory that holds pages as pieces with gaps between them.
struct Pool {
    memory: Vec<u8>,
    /// Where each piece begins, and its length.
    places: Vec<(usize, usize)>,
    per_page: usize,
}

impl Pool {
    /// Room for `count` pages whose pieces have these lengths, each piece `gap` bytes behind the one before.
    fn new(count: usize, lens: &[usize], gap: usize) -> Self {
        let mut places = Vec::new();
        let mut at = gap;
        for _ in 0..count {
            for len in lens {
                places.push((at, *len));
                at += len + gap;
            }
        }
        Self { memory: vec![GAP; at], places, per_page: lens.len() }
    }

    /// With these pages in it.
    fn holding(mut self, pages: &[Vec<u8>]) -> Self {
        for (pieces, page) in self.places.chunks(self.per_page).zip(pages) {
            let mut rest = &page[..];
            for (at, len) in pieces {
                let (now, later) = rest.split_at(*len);
                self.memory[*at..at + len].copy_from_slice(now);
                rest = later;
            }
        }
        self
    }

    /// The page in place `index`.
    fn page(&self, index: usize) -> Vec<u8> {
        let pieces = &self.places[index * self.per_page..(index + 1) * self.per_page];
        pieces.iter().flat_map(|(at, len)| &self.memory[*at..at + len]).copied().collect()
    }

    /// Whether all bytes between the pieces are as they were.
    fn gaps_are_whole(&self) -> bool {
        let mut end = 0;
        let gaps = self.places.iter().map(|(at, len)| std::mem::replace(&mut end, at + len)..*at);
        gaps.into_iter().all(|gap| self.memory[gap].iter().all(|byte| *byte == GAP))
    }

    /// Calls `each` with the pieces as a call takes them.
    fn lend<T>(&mut self, each: impl FnOnce(RawPieces<'_>) -> T) -> T {
        let base = self.memory.as_mut_ptr();
        let ptrs: Vec<_> = self.places.iter().map(|(at, _)| base.wrapping_add(*at)).collect();
        let lens: Vec<_> = self.places.iter().map(|(_, len)| *len).collect();
        each(RawPieces { ptrs: &ptrs, lens: &lens, per_page: self.per_page })
    }

    fn put(&mut self, space: &Space, keys: &[Vec<u8>]) -> Vec<PageOutcome> {
        let mut out = vec![PageOutcome::TimedOut; keys.len()];
        self.lend(|pieces| {
            // SAFETY: the pieces lie inside `memory`, which is borrowed exclusively until the call returns.
            unsafe { space.put_from_raw(keys, pieces, &mut out) }.unwrap()
        });
        out
    }

    fn get(&mut self, space: &Space, keys: &[Vec<u8>]) -> Vec<PageOutcome> {
        let mut out = vec![PageOutcome::TimedOut; keys.len()];
        self.lend(|pieces| {
            // SAFETY: as for `put`; the pieces are disjoint, because each begins behind the end of the one before.
            unsafe { space.get_into_raw(keys, pieces, &mut out) }.unwrap()
        });
        out
    }
}

/// Puts pages as pieces of some lengths and gets them as pieces of others, and as one.
fn round_trip(rig: &Rig, count: usize, there: &[usize], back: &[usize], gap: usize) {
    let len = there.iter().sum();
    assert_eq!(len, back.iter().sum::<usize>());
    let daemon = rig.daemon();
    let (client, space) = rig.space(&[&daemon], "pieces");
    let keys = keys("pieces", count);
    let pages: Vec<_> = keys.iter().map(|key| page(key, len)).collect();
    let mut source = Pool::new(count, there, gap).holding(&pages);
    assert_all(&source.put(&space, &keys), PageOutcome::Stored);
    assert_hits(&space, &keys, len);
    let mut target = Pool::new(count, back, gap);
    assert_all(&target.get(&space, &keys), PageOutcome::Hit);
    for (index, page) in pages.iter().enumerate() {
        assert!(target.page(index) == *page, "page {index} has wrong bytes");
        assert!(source.page(index) == *page, "a put changed its source");
    }
    assert!(target.gaps_are_whole(), "bytes between the pieces were written");
    client.close();
}

fn pieces_at_odd_addresses_round_trip(rig: &Rig) {
    // Four layers of keys and values; then one page in two halves.
    round_trip(rig, 40, &[9216; 8], &[36_864; 2], 13);
    round_trip(rig, 5, &[600_001, 599_999], &[1, 4095, 4097, 1_191_807], 7);
}

fn many_small_pieces_round_trip(rig: &Rig) {
    // More pieces than one system call takes.
    round_trip(rig, rig.pick(30, 12), &[65; 120], &[39; 200], 1);
}

fn pieces_of_a_missed_page_stay_untouched(rig: &Rig) {
    let daemon = rig.daemon();
    let (client, space) = rig.space(&[&daemon], "missed");
    let all = keys("missed", 9);
    let stored: Vec<_> = all.iter().step_by(2).cloned().collect();
    let lens = [3000, 1, 7999];
    let pages: Vec<_> = stored.iter().map(|key| page(key, 11_000)).collect();
    assert_all(&Pool::new(5, &lens, 3).holding(&pages).put(&space, &stored), PageOutcome::Stored);
    let mut target = Pool::new(9, &lens, 3);
    for (index, outcome) in target.get(&space, &all).into_iter().enumerate() {
        if index % 2 == 0 {
            assert_eq!(outcome, PageOutcome::Hit);
            assert!(target.page(index) == page(&all[index], 11_000));
        } else {
            assert_eq!(outcome, PageOutcome::Miss);
            assert!(target.page(index).iter().all(|byte| *byte == GAP), "a miss was written");
        }
    }
    assert!(target.gaps_are_whole());
    client.close();
}

fn pieces_of_another_total_are_a_mismatch(rig: &Rig) {
    let daemon = rig.daemon();
    let (client, space) = rig.space(&[&daemon], "total");
    let keys = keys("total", 3);
    let pages: Vec<_> = keys.iter().map(|key| page(key, 10_000)).collect();
    assert_all(&Pool::new(3, &[4000, 6000], 5).holding(&pages).put(&space, &keys), PageOutcome::Stored);
    for lens in [[4000, 5999], [4000, 6001]] {
        let mut target = Pool::new(3, &lens, 5);
        assert_all(&target.get(&space, &keys), PageOutcome::SizeMismatch);
        assert!(target.memory.iter().all(|byte| *byte == GAP), "a mismatch was written");
    }
    client.close();
}

fn asynchronous_calls_take_pieces_too(rig: &Rig) {
    let daemon = rig.daemon();
    let (client, space) = rig.space(&[&daemon], "async");
    let runtime = crate::calls::runtime();
    let keys = keys("async", 10);
    let pages: Vec<_> = keys.iter().map(|key| page(key, 100_000)).collect();
    let mut out = vec![PageOutcome::TimedOut; 10];
    let mut source = Pool::new(10, &[30_000, 70_000], 9).holding(&pages);
    source.lend(|pieces| {
        // SAFETY: the pieces lie inside `memory`, which is borrowed exclusively until the future has completed.
        let put = unsafe { space.asynchronous().put_from_raw(&keys, pieces, &mut out) };
        runtime.block_on(put).unwrap()
    });
    assert_all(&out, PageOutcome::Stored);
    let mut target = Pool::new(10, &[99_999, 1], 9);
    target.lend(|pieces| {
        // SAFETY: as above; the pieces are disjoint.
        let get = unsafe { space.asynchronous().get_into_raw(&keys, pieces, &mut out) };
        runtime.block_on(get).unwrap()
    });
    assert_all(&out, PageOutcome::Hit);
    assert!(pages.iter().enumerate().all(|(index, page)| target.page(index) == *page));
    assert!(target.gaps_are_whole());
    client.close();
}
