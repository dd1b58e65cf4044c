//! What clients did to each page, and so what a read may find.
//!
//! - A hit has exactly the bytes that belong to the page's space and key, and somebody put the page before.
//! - A page whose removal was acknowledged is not hit again, unless a put may have stored it since: one that began before
//!   the removal ended or after it, or one of which its client never heard whether it was carried out. (Not checked where the
//!   owner of a key changes, because an earlier owner may still have it, nor where memory is torn.)
//! - In a calm run, without faults and evictions, a page that was stored is found.

use crate::rng::{Rng, mix};

/// Spaces of a run.
pub(crate) const SPACES: usize = 3;
/// Pages of a space.
pub(crate) const PAGES: usize = 64;

/// One page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Page {
    pub(crate) space: usize,
    pub(crate) number: usize,
}

impl Page {
    /// Its key: chains of eight pages.
    pub(crate) fn key(self) -> String {
        format!("chain-{}/{}", self.number / 8, self.number % 8)
    }

    /// Its position in its chain, from 1.
    pub(crate) fn position(self) -> u32 {
        self.number as u32 % 8 + 1
    }

    /// Its bytes: a function of space and key. Most spaces have pages of one size, one has many.
    pub(crate) fn bytes(self) -> Vec<u8> {
        let own = mix((self.space * 1000 + self.number) as u64 + 1);
        let len = match self.space {
            0 => 4096,
            1 => 24 << 10,
            _ => 1 + (own % (56 << 10)) as usize,
        };
        let mut rng = Rng::new(own, 0xB17E);
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            bytes.extend_from_slice(&rng.next().to_le_bytes());
        }
        bytes.truncate(len);
        bytes
    }
}

/// When an op ran, in moments of the run; `None`: nobody heard of its end.
#[derive(Clone, Copy, Debug)]
struct Span {
    begun: u64,
    ended: Option<u64>,
    /// The server promised to have the page from then on.
    promised: bool,
}

#[derive(Clone, Debug, Default)]
struct History {
    puts: Vec<Span>,
    removals: Vec<Span>,
}

/// The histories of all pages, and the pages themselves.
pub(crate) struct Book {
    histories: Vec<History>,
    pages: Vec<Vec<u8>>,
    /// Whether removals are checked.
    pub(crate) removals: bool,
}

/// A put that was begun.
#[derive(Clone, Copy)]
pub(crate) struct Put(usize);

/// A removal that was begun.
#[derive(Clone, Copy)]
pub(crate) struct Removal(usize);

impl Book {
    pub(crate) fn new(removals: bool) -> Self {
        let all = (0..SPACES).flat_map(|space| (0..PAGES).map(move |number| Page { space, number }));
        let pages = all.map(Page::bytes).collect();
        Self { histories: vec![History::default(); SPACES * PAGES], pages, removals }
    }

    /// The bytes of a page.
    pub(crate) fn bytes(&self, page: Page) -> &[u8] {
        &self.pages[page.space * PAGES + page.number]
    }

    fn of(&mut self, page: Page) -> &mut History {
        &mut self.histories[page.space * PAGES + page.number]
    }

    /// Notes that a put begins.
    pub(crate) fn begin_put(&mut self, page: Page, now: u64) -> Put {
        let puts = &mut self.of(page).puts;
        puts.push(Span { begun: now, ended: None, promised: false });
        Put(puts.len() - 1)
    }

    /// Notes that a put ended and that its page is there, and whether the server promised to keep it.
    pub(crate) fn end_put(&mut self, page: Page, put: Put, now: u64, promised: bool) {
        let put = &mut self.of(page).puts[put.0];
        (put.ended, put.promised) = (Some(now), promised);
    }

    /// Notes that a removal begins.
    pub(crate) fn begin_removal(&mut self, page: Page, now: u64) -> Removal {
        let removals = &mut self.of(page).removals;
        removals.push(Span { begun: now, ended: None, promised: false });
        Removal(removals.len() - 1)
    }

    /// Notes that a removal was acknowledged.
    pub(crate) fn end_removal(&mut self, page: Page, removal: Removal, now: u64) {
        self.of(page).removals[removal.0].ended = Some(now);
    }

    /// Whether somebody put the page, or tried to.
    pub(crate) fn was_put(&mut self, page: Page) -> bool {
        !self.of(page).puts.is_empty()
    }

    /// What a hit of a read that began at `begun` has brought back, if it has.
    pub(crate) fn revived(&mut self, page: Page, begun: u64) -> Option<String> {
        let removals = self.removals;
        let history = self.of(page);
        let before = |span: &&Span| span.ended.is_some_and(|ended| ended < begun);
        let removal = history.removals.iter().filter(before).max_by_key(|span| span.begun)?;
        let stored_since = history.puts.iter().any(|put| put.ended.is_none_or(|end| end >= removal.begun));
        (removals && !stored_since)
            .then(|| format!("{page:?} was hit at {begun}, though it was removed: {history:?}"))
    }

    /// Whether the page was, or may have been, removed at `since` or later.
    pub(crate) fn removed_since(&mut self, page: Page, since: u64) -> bool {
        self.of(page).removals.iter().any(|removal| removal.ended.is_none_or(|end| end >= since))
    }

    /// Whether a read that began at `begun` had to find the page, if nothing was evicted or lost.
    pub(crate) fn must_be_there(&mut self, page: Page, begun: u64, ended: u64) -> bool {
        let history = self.of(page);
        let Some(put) =
            history.puts.iter().find(|put| put.promised && put.ended.is_some_and(|end| end < begun))
        else {
            return false;
        };
        !history
            .removals
            .iter()
            .any(|removal| removal.begun < ended && removal.ended.is_none_or(|end| end > put.begun))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: Page = Page { space: 1, number: 3 };

    #[test]
    fn bytes_belong_to_space_and_key() {
        assert_eq!(PAGE.bytes(), PAGE.bytes());
        assert_ne!(PAGE.bytes(), Page { number: 4, ..PAGE }.bytes());
        assert_ne!(PAGE.bytes()[..4096], Page { space: 0, ..PAGE }.bytes()[..]);
    }

    #[test]
    fn a_hit_after_a_removal_needs_a_put_that_may_have_come_later() {
        let mut book = Book::new(true);
        assert!(!book.was_put(PAGE));
        let put = book.begin_put(PAGE, 10);
        assert!(book.was_put(PAGE));
        assert_eq!(book.revived(PAGE, 15), None);
        book.end_put(PAGE, put, 20, true);
        let removal = book.begin_removal(PAGE, 30);
        book.end_removal(PAGE, removal, 40);
        // A read that began before the removal ended may have been first.
        assert_eq!(book.revived(PAGE, 35), None);
        assert!(book.revived(PAGE, 41).is_some());
        let unheard = book.begin_put(PAGE, 25);
        assert_eq!(book.revived(PAGE, 41), None);
        book.end_put(PAGE, unheard, 28, true);
        assert!(book.revived(PAGE, 41).is_some());
        book.removals = false;
        assert_eq!(book.revived(PAGE, 41), None);
    }

    #[test]
    fn a_stored_page_must_be_there_until_its_removal_begins() {
        let mut book = Book::new(true);
        assert!(!book.must_be_there(PAGE, 1, 2));
        let put = book.begin_put(PAGE, 10);
        assert!(!book.must_be_there(PAGE, 11, 12));
        let found = book.begin_put(PAGE, 10);
        book.end_put(PAGE, found, 12, false);
        assert!(!book.must_be_there(PAGE, 15, 16));
        book.end_put(PAGE, put, 20, true);
        assert!(!book.must_be_there(PAGE, 19, 22));
        assert!(book.must_be_there(PAGE, 21, 22));
        let removal = book.begin_removal(PAGE, 30);
        assert!(!book.must_be_there(PAGE, 29, 31));
        book.end_removal(PAGE, removal, 40);
        assert!(!book.must_be_there(PAGE, 29, 31));
        assert!(!book.must_be_there(PAGE, 45, 46));
    }
}
