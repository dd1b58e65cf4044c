//! Which server gets which pages of a batch, round by round.
//!
//! A batch has one round while each page has one place ([`Members::is_simple`]). Otherwise:
//!
//! - an op that goes to all places of a page (put, delete, touch) has one round in which the page comes several times:
//!   page `p` of `n` is `p`, `p + n`, `p + 2n` …, once for each place ([`Scratch::plan_all`]);
//! - a read has rounds: each page goes to its first candidate, then, if that did not give it, to the next one
//!   ([`Scratch::plan_reads`], [`Scratch::next_round`]).
//!
//! Deliberately absent: clocks and sockets.

use crate::PageOutcome;
use crate::exchange::Exchange;
use crate::members::{Candidates, Members};
use crate::spread::Spread;
use memkv_core::page::key_digest;
use memkv_core::route::{self, Ranks};
use memkv_core::{Key, SpaceId};
use memkv_transport::frame::Op;
use parking_lot::Mutex;

/// Keys of a batch, whatever the caller keeps them in.
pub(crate) trait KeyList: Sync {
    fn count(&self) -> usize;
    fn key(&self, index: usize) -> &[u8];
}

impl<K: AsRef<[u8]> + Sync> KeyList for &[K] {
    fn count(&self) -> usize {
        self.len()
    }

    fn key(&self, index: usize) -> &[u8] {
        self[index].as_ref()
    }
}

/// A page without a server in this round.
const NOBODY: u32 = u32::MAX;

/// What a read knows of one page.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lookup {
    pub(crate) candidates: Candidates,
    /// The candidate that was asked last, plus one; 0 before the first round.
    pub(crate) asked: u8,
    /// Bit `i`: candidate `i` was asked.
    tried: u16,
    /// Bit `i`: candidate `i` said that it does not have the page.
    pub(crate) missed: u16,
    /// The outcome of the rounds before this one.
    before: PageOutcome,
}

/// Working memory of one op, reused from op to op.
#[derive(Default)]
pub(crate) struct Scratch {
    /// Digest of every key.
    pub(crate) digests: Vec<u64>,
    /// Page indices, grouped by server, ascending within a group.
    pub(crate) order: Vec<u32>,
    /// Where each server's group ends in `order`; it begins where the one before ends.
    pub(crate) ends: Vec<usize>,
    owners: Vec<u32>,
    /// The op's exchanges.
    pub(crate) exchanges: Vec<Exchange>,
    /// A read's pages.
    pub(crate) lookups: Vec<Lookup>,
    /// Outcomes of an op that goes to all places of a page.
    pub(crate) places: Vec<PageOutcome>,
    /// Whether ops may go to a server, for all that can be reached.
    pub(crate) available: Vec<bool>,
    ranks: Ranks,
    spread: Spread,
}

impl Scratch {
    /// Computes digests and groups; every page goes to its owner. Keys that no server owns (all weights are 0) are in no
    /// group. The digests stay 0 where nothing depends on them: with one server, for an op that moves no pages.
    pub(crate) fn plan(
        &mut self,
        members: &Members,
        op: Op,
        space: SpaceId,
        keys: &dyn KeyList,
    ) -> Result<(), BadKey> {
        let nodes = &members.nodes[..];
        let is_needed = nodes.len() > 1 || !members.is_simple() || matches!(op, Op::Get | Op::Put);
        let count = keys.count();
        self.digests.clear();
        self.owners.clear();
        self.lookups.clear();
        for index in 0..count {
            let key = Key::new(keys.key(index)).map_err(|error| BadKey { index, error })?;
            let digest = if is_needed { key_digest(space, key) } else { 0 };
            self.digests.push(digest);
            if !members.is_simple() {
                continue;
            }
            let owner = match nodes {
                [only] => (only.weight > 0).then_some(0),
                _ => route::owner(nodes, digest),
            };
            // There are far fewer than 2^32 servers.
            self.owners.push(owner.map_or(NOBODY, |owner| owner as u32));
        }
        self.group(members.reach.len());
        Ok(())
    }

    /// After [`Scratch::plan`]: every page goes to all its places. Returns how often a page comes.
    pub(crate) fn plan_all(&mut self, members: &Members, op: Op) -> usize {
        let count = self.digests.len();
        self.lookups.clear();
        let mut times = 1;
        for page in 0..count {
            let candidates = members.candidates(self.digests[page], &mut self.ranks);
            times = times.max(goes_to(&candidates, op).count());
            self.lookups.push(Lookup { candidates, ..Lookup::new() });
        }
        self.owners.clear();
        self.owners.resize(count * times, NOBODY);
        for (page, lookup) in self.lookups.iter().enumerate() {
            for (time, place) in goes_to(&lookup.candidates, op).enumerate() {
                self.owners[time * count + page] = place;
            }
        }
        self.digests.reserve(count * (times - 1));
        for _ in 1..times {
            self.digests.extend_from_within(..count);
        }
        self.places.clear();
        self.places.resize(count * times, PageOutcome::Unavailable);
        self.group(members.reach.len());
        times
    }

    /// What an op that went to all places of each page came to: what the first place says where it succeeded, or else the
    /// first one that answered.
    pub(crate) fn merge_all(&self, outcomes: &mut [PageOutcome]) {
        let count = outcomes.len();
        for (page, outcome) in outcomes.iter_mut().enumerate() {
            let all = || (page..self.places.len()).step_by(count).map(|at| self.places[at]);
            let answered = |outcome: &PageOutcome| !is_silence(*outcome);
            let best = all().find(|outcome| outcome.is_success()).or_else(|| all().find(answered));
            *outcome = best.or_else(|| all().next()).unwrap_or(PageOutcome::Unavailable);
        }
    }

    /// After [`Scratch::plan`]: prepares the rounds of a read. `turn` is another number for each op of each client; who
    /// is the first of pages that many read depends on it.
    pub(crate) fn plan_reads(&mut self, members: &Members, turn: u64) {
        let reach = &members.reach;
        self.look(members);
        self.lookups.clear();
        self.spread.begin(reach.len(), turn);
        for &digest in &self.digests {
            let mut candidates = members.candidates(digest, &mut self.ranks);
            if let Some(copies) = candidates.hot() {
                let cost = |server: u32| {
                    let server = server as usize;
                    self.available[server].then(|| reach[server].read_cost.get())
                };
                let first = self.spread.choose(copies, cost);
                candidates.begin_with(first);
            }
            self.lookups.push(Lookup { candidates, ..Lookup::new() });
        }
        self.spread.end(|server| &reach[server].read_cost);
    }

    /// Looks who can be asked now. Before each round: while one server was asked, another may have come back.
    pub(crate) fn look(&mut self, members: &Members) {
        self.available.clear();
        self.available.extend(members.reach.iter().map(|server| server.is_available()));
    }

    /// Groups the pages that are not settled by their next candidates: the first that can be asked and was not. Returns
    /// how many there are, and how many of them have yet another candidate.
    pub(crate) fn next_round(&mut self, outcomes: &mut [PageOutcome]) -> (usize, usize) {
        self.owners.clear();
        let (mut pages, mut more) = (0, 0);
        for (lookup, outcome) in self.lookups.iter_mut().zip(outcomes) {
            let mut owner = NOBODY;
            if lookup.asked == 0 || goes_on(*outcome) {
                let list = lookup.candidates.as_slice();
                let tried = lookup.tried;
                let free = |at: &usize| tried >> at & 1 == 0 && self.available[list[*at] as usize];
                let mut untried = (0..list.len()).filter(free);
                if let Some(at) = untried.next() {
                    owner = list[at];
                    lookup.before = if lookup.asked == 0 { PageOutcome::Unavailable } else { *outcome };
                    lookup.asked = at as u8 + 1;
                    lookup.tried |= 1 << at;
                    *outcome = PageOutcome::Unavailable;
                    pages += 1;
                    more += usize::from(untried.next().is_some());
                }
            }
            self.owners.push(owner);
        }
        if pages > 0 {
            self.group(self.available.len());
        }
        (pages, more)
    }

    /// After a round: notes who did not have what, and keeps for each page what says most.
    pub(crate) fn end_round(&mut self, outcomes: &mut [PageOutcome], members: &Members) {
        for &page in &self.order {
            let page = page as usize;
            let lookup = &mut self.lookups[page];
            if matches!(outcomes[page], PageOutcome::Miss | PageOutcome::Corrupt) {
                lookup.missed |= 1 << (lookup.asked - 1);
                if lookup.candidates.hot().is_some() {
                    let server = lookup.candidates.as_slice()[usize::from(lookup.asked) - 1];
                    members.reach[server as usize].read_cost.missed();
                }
            }
            if says_less(outcomes[page], lookup.before) {
                outcomes[page] = lookup.before;
            }
        }
    }

    /// A counting sort of the page indices by owner.
    fn group(&mut self, servers: usize) {
        self.ends.clear();
        self.ends.resize(servers, 0);
        for &owner in &self.owners {
            if let Some(end) = self.ends.get_mut(owner as usize) {
                *end += 1;
            }
        }
        let mut total = 0;
        for end in &mut self.ends {
            let begin = total;
            total += *end;
            *end = begin;
        }
        self.order.clear();
        self.order.resize(total, 0);
        for (index, &owner) in self.owners.iter().enumerate() {
            if let Some(next) = self.ends.get_mut(owner as usize) {
                self.order[*next] = u32::try_from(index).expect("a batch has fewer than 2^32 keys");
                *next += 1;
            }
        }
    }
}

impl Lookup {
    fn new() -> Self {
        let before = PageOutcome::Unavailable;
        Self { candidates: Candidates::default(), asked: 0, tried: 0, missed: 0, before }
    }
}

/// Where an op on all places of a page goes: puts to its homes, others wherever it may be.
fn goes_to(candidates: &Candidates, op: Op) -> impl Iterator<Item = u32> + '_ {
    let all = candidates.as_slice().iter().copied().enumerate();
    all.filter(move |(at, _)| op != Op::Put || candidates.is_home(*at)).map(|(_, place)| place)
}

/// Whether another server may know better.
fn goes_on(outcome: PageOutcome) -> bool {
    match outcome {
        PageOutcome::Miss
        | PageOutcome::Busy
        | PageOutcome::Corrupt
        | PageOutcome::Unavailable
        | PageOutcome::TimedOut => true,
        PageOutcome::Hit
        | PageOutcome::Stored
        | PageOutcome::Exists
        | PageOutcome::SizeMismatch
        | PageOutcome::TooLarge
        | PageOutcome::Denied => false,
    }
}

/// Whether the server said nothing about the page.
fn is_silence(outcome: PageOutcome) -> bool {
    matches!(outcome, PageOutcome::Unavailable | PageOutcome::TimedOut)
}

/// Whether a round's outcome says less about a page than the one before it: nothing is less than a miss, and a miss less
/// than a damaged page.
fn says_less(now: PageOutcome, before: PageOutcome) -> bool {
    let weight = |outcome| match outcome {
        PageOutcome::Unavailable => 0,
        PageOutcome::TimedOut => 1,
        PageOutcome::Busy => 2,
        PageOutcome::Miss => 3,
        PageOutcome::Corrupt => 4,
        PageOutcome::Hit
        | PageOutcome::Stored
        | PageOutcome::Exists
        | PageOutcome::SizeMismatch
        | PageOutcome::TooLarge
        | PageOutcome::Denied => 5,
    };
    weight(now) < weight(before)
}

/// A key that is none.
#[derive(Debug)]
pub(crate) struct BadKey {
    pub(crate) index: usize,
    pub(crate) error: memkv_core::KeyError,
}

/// The most working memories kept.
const KEPT: usize = 64;

/// Working memories that wait for the next op.
#[derive(Default)]
#[allow(clippy::vec_box, reason = "an op takes a box out and gives it back without moving what is in it")]
pub(crate) struct ScratchPool {
    idle: Mutex<Vec<Box<Scratch>>>,
    outcomes: Mutex<Vec<Vec<PageOutcome>>>,
}

impl ScratchPool {
    pub(crate) fn take(&self) -> Box<Scratch> {
        self.idle.lock().pop().unwrap_or_default()
    }

    pub(crate) fn give(&self, mut scratch: Box<Scratch>) {
        scratch.exchanges.clear();
        let mut idle = self.idle.lock();
        if idle.len() < KEPT {
            idle.push(scratch);
        }
    }

    /// Outcomes for an op whose caller asked for less.
    pub(crate) fn take_outcomes(&self, count: usize) -> Vec<PageOutcome> {
        let mut outcomes = self.outcomes.lock().pop().unwrap_or_default();
        outcomes.clear();
        outcomes.resize(count, PageOutcome::Unavailable);
        outcomes
    }

    pub(crate) fn give_outcomes(&self, outcomes: Vec<PageOutcome>) {
        let mut idle = self.outcomes.lock();
        if idle.len() < KEPT {
            idle.push(outcomes);
        }
    }
}

#[cfg(test)]
mod tests;
