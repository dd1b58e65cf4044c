//! Eviction policies: which page goes first.
//!
//! A [`Policy`] sees every page come, being asked for, and go, and chooses among pages when room is needed. It keeps a
//! word of 64 bits in each page's record, which nobody else reads, and little else; so a policy costs nothing per
//! page but that word.
//!
//! The storage engine and the simulator of `memkv-bench` call the same code, so what is measured on a trace is what
//! runs in a server.
//!
//! Invariants:
//! - a policy only ever chooses among the pages it is shown: what must stay is not shown;
//! - equal calls lead to equal choices: there is no randomness and no hidden time.
//!
//! Deliberately absent: clocks (time enters as milliseconds), I/O, threads, and parents of pages: the pages of one
//! chain are spread over the servers, so position, time and what was asked for together must do.

#![forbid(unsafe_code)]

mod chain;
mod kind;
mod lru;
mod page;
mod queue;
mod s3fifo;
mod sieve;
#[cfg(test)]
mod tests;

pub use kind::{PolicyKind, UnknownPolicy};
pub use page::{Choice, Moment, Page, Want};

/// Decides which pages go first.
///
/// The hooks are called from many threads at once, for one page possibly at the same time; a lost update of a page's
/// word must do no harm.
pub trait Policy: Send + Sync {
    /// A page came, at [`Page::created_ms`], with this [tag](Moment::tag). Returns its first word.
    fn inserted(&self, page: &Page, tag: u16) -> u64;

    /// A page is asked for; `page` tells what was known before. Returns its new word.
    ///
    /// On the path of requests: never waits, and in a large store seldom writes to memory that other pages share.
    fn accessed(&self, page: &Page, now: Moment) -> u64;

    /// A page went to make room.
    fn evicted(&self, page: &Page, now_ms: u64);

    /// How much a page is worth keeping at `now_ms`: comparable, and averaged, over all pages of a store.
    fn worth(&self, page: &Page, now_ms: u64) -> u64;

    /// Chooses the pages that go: as many as wanted, or all if there are fewer, the first to go first.
    ///
    /// The policy may also give new words to pages that stay.
    fn choose(&self, pages: &[Page], want: Want, now_ms: u64, choice: &mut Choice);

    /// Whether it is time for [`Policy::learn`].
    fn wants_lesson(&self) -> bool {
        false
    }

    /// Looks at all pages of the store, or as many as can be shown.
    fn learn(&self, _pages: &mut dyn Iterator<Item = Page>, _now_ms: u64) {}
}
