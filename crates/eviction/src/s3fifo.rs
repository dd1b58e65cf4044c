//! S3-FIFO.

use crate::queue::{Stamps, Word, in_order};
use crate::{Choice, Moment, Page, Policy, Want};
use parking_lot::Mutex;
use std::collections::{HashMap, VecDeque};

/// The small queue holds one page in this many.
const SMALL_SHARE: usize = 10;
const USES_MAX: u8 = 3;
const USES: u8 = 3;
const MAIN: u8 = 4;

/// New pages stand in a small queue, from which they go unless they were asked for meanwhile; then they move to the
/// main queue, as does at once a page that comes back soon after it went. A page at the end of the main queue goes if
/// it was not asked for since it was there last, otherwise it starts again with one use less.
///
/// One use is enough to move to the main queue: on every trace we have that was better than two. The word is the page's
/// place in its queue, which queue, and up to three uses. Remembers the digests of as many pages that went as the main
/// queue holds: about 40 bytes for each of them.
#[derive(Debug)]
pub(crate) struct S3Fifo {
    stamps: Stamps,
    ghosts: Mutex<Ghosts>,
}

/// Digests of pages that went from the small queue.
#[derive(Debug)]
struct Ghosts {
    /// In the order in which they went, each with a number.
    order: VecDeque<(u64, u64)>,
    /// The number of each: an older entry in `order` counts for nothing.
    known: HashMap<u64, u64>,
    next: u64,
    most: usize,
    most_ever: usize,
}

impl Ghosts {
    fn add(&mut self, digest: u64) {
        self.next += 1;
        self.order.push_back((digest, self.next));
        self.known.insert(digest, self.next);
        while self.order.len() > self.most {
            let Some((oldest, number)) = self.order.pop_front() else { return };
            if self.known.get(&oldest) == Some(&number) {
                self.known.remove(&oldest);
            }
        }
    }
}

impl S3Fifo {
    pub(crate) fn new(pages_max: usize) -> Self {
        let (order, known) = Default::default();
        let ghosts = Ghosts { order, known, next: 0, most: pages_max, most_ever: pages_max };
        Self { stamps: Stamps::default(), ghosts: Mutex::new(ghosts) }
    }
}

impl Policy for S3Fifo {
    fn inserted(&self, page: &Page, tag: u16) -> u64 {
        let known = self.ghosts.lock().known.remove(&page.digest).is_some();
        Word::new(self.stamps.at(Moment { ms: page.created_ms, tag }), if known { MAIN } else { 0 }).0
    }

    fn accessed(&self, page: &Page, _: Moment) -> u64 {
        let word = Word(page.word);
        let uses = (word.byte() & USES).saturating_add(1).min(USES_MAX);
        word.with_byte(word.byte() & MAIN | uses).0
    }

    fn evicted(&self, page: &Page, _: u64) {
        if Word(page.word).byte() & MAIN == 0 {
            self.ghosts.lock().add(page.digest);
        }
    }

    fn worth(&self, page: &Page, _: u64) -> u64 {
        page.last_access_ms
    }

    fn choose(&self, pages: &[Page], want: Want, _: u64, choice: &mut Choice) {
        choice.clear();
        self.stamps.catch_up(pages);
        let small_pages = (pages.len() / SMALL_SHARE).max(1);
        {
            let mut ghosts = self.ghosts.lock();
            ghosts.most = (pages.len() - pages.len() / SMALL_SHARE).min(ghosts.most_ever);
        }
        let word = |at: u32| Word(pages[at as usize].word);
        let mut small = VecDeque::from(in_order(pages, |word| word.byte() & MAIN == 0));
        let mut main: VecDeque<(u32, Word)> =
            in_order(pages, |word| word.byte() & MAIN != 0).into_iter().map(|at| (at, word(at))).collect();
        let mut bytes = 0;
        while !want.is_met(choice.evict.len(), bytes) {
            if small.len() >= small_pages || main.is_empty() {
                let Some(at) = small.pop_front() else { break };
                if word(at).byte() & USES == 0 {
                    bytes += u64::from(pages[at as usize].bytes);
                    choice.evict.push(at);
                } else {
                    main.push_back((at, Word::new(self.stamps.next(), MAIN)));
                }
            } else if let Some((at, word)) = main.pop_front() {
                if word.byte() & USES == 0 {
                    bytes += u64::from(pages[at as usize].bytes);
                    choice.evict.push(at);
                } else {
                    main.push_back((at, Word::new(self.stamps.next(), word.byte() - 1)));
                }
            }
        }
        let changed = main.into_iter().filter(|&(at, now)| now != word(at));
        choice.words.extend(changed.map(|(at, word)| (at, word.0)));
    }
}
