//! SIEVE.

use crate::queue::{Stamps, Word, in_order};
use crate::{Choice, Moment, Page, Policy, Want};
use std::sync::atomic::{AtomicU64, Ordering};

const VISITED: u8 = 1;

/// Pages stand in one queue in the order in which they came, and never move. A hand goes from the oldest to the newest
/// and around again: it takes the mark from a page that was asked for, and evicts a page that has none.
///
/// The word is the page's place in the queue, and the mark.
#[derive(Debug, Default)]
pub(crate) struct Sieve {
    stamps: Stamps,
    /// The stamp at which the hand stands.
    hand: AtomicU64,
}

impl Policy for Sieve {
    fn inserted(&self, page: &Page, tag: u16) -> u64 {
        Word::new(self.stamps.at(Moment { ms: page.created_ms, tag }), 0).0
    }

    fn accessed(&self, page: &Page, _: Moment) -> u64 {
        Word(page.word).with_byte(VISITED).0
    }

    fn evicted(&self, _: &Page, _: u64) {}

    fn worth(&self, page: &Page, _: u64) -> u64 {
        page.last_access_ms
    }

    fn choose(&self, pages: &[Page], want: Want, _: u64, choice: &mut Choice) {
        choice.clear();
        self.stamps.catch_up(pages);
        let order = in_order(pages, |_| true);
        let hand = self.hand.load(Ordering::Relaxed);
        let start = order.partition_point(|&at| Word(pages[at as usize].word).stamp() < hand);
        let mut bytes = 0;
        // The second time around no page has a mark: those of the first were taken.
        let mut marked = Vec::new();
        let around = order[start..].iter().chain(&order[..start]);
        for &at in around {
            if want.is_met(choice.evict.len(), bytes) {
                self.hand.store(Word(pages[at as usize].word).stamp(), Ordering::Relaxed);
                break;
            }
            if Word(pages[at as usize].word).byte() == VISITED {
                marked.push(at);
            } else {
                bytes += u64::from(pages[at as usize].bytes);
                choice.evict.push(at);
            }
        }
        for at in marked {
            if want.is_met(choice.evict.len(), bytes) {
                choice.words.push((at, Word(pages[at as usize].word).with_byte(0).0));
            } else {
                bytes += u64::from(pages[at as usize].bytes);
                choice.evict.push(at);
                // The next to be looked at is the one behind.
                self.hand.store(Word(pages[at as usize].word).stamp() + 1, Ordering::Relaxed);
            }
        }
    }
}
