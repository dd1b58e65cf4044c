//! Our own order: what is learned to be worth least goes first, and never a page before a deeper one of its chain.
//!
//! Pages of one moment of last use are taken for one chain. It also tells how the pages came that were used once: behind
//! a page of the same chain that had been used once or often, or with all of their chain. That is noted in their words
//! when they are first shown, as long as the chain is together; nothing of it costs a request anything.

use super::age;
use super::learn::Worth;
use super::word::{Birth, Known, last_use};
use crate::{Choice, Page, Want};

/// What a page that was used once is worth, of what it seems to be, if it came with all of its chain, or behind a page
/// that many had used. A long prompt that comes back is many uses at once, so what was learned of such pages is too good
/// for most of them. A conversation that goes on is not doubted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Doubt {
    new: f64,
    branch: f64,
}

impl Doubt {
    /// What is right for a store of few chains, and until more is known.
    pub(super) const CAREFUL: Self = Self { new: 0.1, branch: 0.3 };
    /// What is right for some traffic of many chains.
    pub(super) const BOLD: Self = Self { new: 0.5, branch: 1.0 };
}

/// A chain that starts at one of the first positions is whole: the pages of a chain are spread over the servers.
const WHOLE: u32 = 8;

/// A page among those that it was used together with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seat {
    last: u64,
    depth: u32,
    at: u32,
    worth: f64,
}

impl Seat {
    /// Which of the pages it is.
    pub(super) fn at(self) -> u32 {
        self.at
    }
}

/// Expected uses per ms.
pub(super) fn worth_of(worth: &Worth, page: &Page, now_ms: u64) -> f64 {
    let age = age::bucket(now_ms.saturating_sub(page.last_access_ms));
    worth_known(worth, Doubt::CAREFUL, Known::from_word(page.word), age)
}

fn worth_known(worth: &Worth, doubt: Doubt, known: Known, age: usize) -> f64 {
    let doubt = match (known.uses, known.birth) {
        (0 | 1, Birth::Unknown | Birth::New) => doubt.new,
        (0 | 1, Birth::Branch) => doubt.branch,
        _ => 1.0,
    };
    worth.of(known.class(), age) * doubt
}

/// Chooses by worth. Of equal worth the oldest goes first, and of equally old ones the deepest. The words are of pages
/// that stay and of pages that go.
pub(super) fn choose(
    (worth, doubt): (&Worth, Doubt),
    pages: &[Page],
    want: Want,
    now_ms: u64,
    seats: &mut Vec<Seat>,
    choice: &mut Choice,
) {
    choose_by((worth, doubt), pages, now_ms, seats, choice, |choice, seats| {
        let ranked =
            seats.iter().enumerate().map(|(rank, seat)| (seat.worth.to_bits(), rank as u64, seat.at));
        choice.smallest_of(pages, want, ranked);
    });
}

/// Lets `rank` choose among the pages, and notes how they came.
pub(super) fn choose_by(
    weigh: (&Worth, Doubt),
    pages: &[Page],
    now_ms: u64,
    seats: &mut Vec<Seat>,
    choice: &mut Choice,
    rank: impl FnOnce(&mut Choice, &[Seat]),
) {
    seat(pages, seats);
    let mut words = std::mem::take(&mut choice.words);
    words.clear();
    for chain in seats.chunk_by_mut(|a, b| a.last == b.last) {
        judge(weigh, pages, now_ms, chain, &mut words);
    }
    rank(choice, seats);
    choice.words = words;
}

/// Sorts the pages by their last use, those of one chain from the deepest to the first.
fn seat(pages: &[Page], seats: &mut Vec<Seat>) {
    seats.clear();
    for (at, page) in (0_u32..).zip(pages) {
        seats.push(Seat { last: last_use(page), depth: page.position, at, worth: 0.0 });
    }
    // All pages of a class are sorted in each round, and one number is compared more quickly than three.
    let number = |seat: &Seat| {
        let [last, depth, at] = [seat.last, u64::from(u32::MAX - seat.depth), seat.at.into()];
        u128::from(last) << 64 | u128::from(depth << 32 | at)
    };
    seats.sort_unstable_by_key(number);
}

/// Says what the pages of a chain are worth: none less than a deeper one. Notes how those came that were used once.
fn judge(
    (worth, doubt): (&Worth, Doubt),
    pages: &[Page],
    now_ms: u64,
    chain: &mut [Seat],
    words: &mut Vec<(u32, u64)>,
) {
    let Some((first, last_ms)) =
        chain.last().map(|seat| (seat.depth, pages[seat.at as usize].last_access_ms))
    else {
        return;
    };
    let age = age::bucket(now_ms.saturating_sub(last_ms));
    let mut before = None;
    for seat in chain.iter_mut().rev() {
        let seen = Known::from_word(pages[seat.at as usize].word);
        let known = born(seen, first, before);
        if known != seen {
            words.push((seat.at, known.word()));
        }
        if known.uses > 1 {
            before = Some((known, seat.depth));
        }
        seat.worth = worth_known(worth, doubt, known, age);
    }
    let mut most = 0.0;
    for seat in chain {
        most = f64::max(most, seat.worth);
        seat.worth = most;
    }
}

/// How a page came, in a chain that starts at position `first`, behind the page `before` that was used before, and its
/// position.
fn born(known: Known, first: u32, before: Option<(Known, u32)>) -> Known {
    if known.uses > 1 || known.birth == Birth::Branch {
        return known;
    }
    if known.birth != Birth::Unknown {
        // The pages before it were used again without it.
        let birth = if first > u32::from(known.anchor) { Birth::Branch } else { known.birth };
        return Known { birth, ..known };
    }
    let position = |depth: u32| u16::try_from(depth).unwrap_or(u16::MAX);
    match before {
        Some((parent, depth)) => {
            let birth = if parent.uses == 2 { Birth::Next } else { Birth::Branch };
            Known { birth, mean_gap: parent.mean_gap, anchor: position(depth), ..known }
        }
        None => {
            let birth = if first <= WHOLE { Birth::New } else { Birth::Branch };
            Known { birth, anchor: position(first), ..known }
        }
    }
}
