//! Our own order: what is learned to be worth least goes first, and never a page before a deeper one of its chain.

use super::age;
use super::learn::Table;
use super::word::Known;
use crate::{Choice, Page, Want};

/// What a page that was used once is worth, of what it seems to be. A long prompt that comes back is many uses at
/// once, so what was learned of pages used once is too good for most of them.
const ONCE: f64 = 0.1;

/// A page among those that it was used together with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seat {
    last_ms: u64,
    depth: u32,
    at: u32,
    worth: f64,
}

/// Expected uses per ms.
pub(super) fn worth_of(worth: &Table, page: &Page, now_ms: u64) -> f64 {
    let age = age::bucket(now_ms.saturating_sub(page.last_access_ms));
    let known = Known::from_word(page.word);
    worth[known.class()][age] * if known.uses == 1 { ONCE } else { 1.0 }
}

/// Chooses by worth. Of equal worth the oldest goes first, and of equally old ones the deepest.
pub(super) fn choose(
    worth: &Table,
    pages: &[Page],
    want: Want,
    now_ms: u64,
    seats: &mut Vec<Seat>,
    choice: &mut Choice,
) {
    seat(worth, pages, now_ms, seats);
    let ranked = seats.iter().enumerate().map(|(rank, seat)| (seat.worth.to_bits(), rank as u64, seat.at));
    choice.smallest_of(pages, want, ranked);
}

/// Lets no page be worth less than a deeper one of its chain, and sorts the pages that way.
fn seat(worth: &Table, pages: &[Page], now_ms: u64, seats: &mut Vec<Seat>) {
    seats.clear();
    for (at, page) in (0_u32..).zip(pages) {
        let (last_ms, depth) = (page.last_access_ms, page.position);
        seats.push(Seat { last_ms, depth, at, worth: worth_of(worth, page, now_ms) });
    }
    seats.sort_unstable_by_key(|seat| (seat.last_ms, u32::MAX - seat.depth, seat.at));
    let (mut last_ms, mut most) = (None, 0.0);
    for seat in seats {
        if last_ms.replace(seat.last_ms) != Some(seat.last_ms) {
            most = 0.0;
        }
        most = f64::max(most, seat.worth);
        seat.worth = most;
    }
}
