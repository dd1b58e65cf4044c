//! Which copy of a hot page a read begins with.
//!
//! Each client follows, for each server, how long a byte of its reads took lately ([`Cost`]); that has the server's
//! queue and its network card in it. A read begins with the copy that costs least, with the pages of the same batch that
//! go there counted in. Of equal ones any may be the first, so that clients that know nothing yet do not go the
//! same way. Turning through the copies instead would do just that: clients that begin together stay together, and all of
//! them wait for one server after the other.
//!
//! A server that is passed over becomes a little cheaper each time. So a slow one is tried again now and then.
//!
//! Deliberately absent: clocks, and any look at this by pages that are not hot.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

/// Being passed over once makes a server cheaper by one part in so many.
const FADE: u32 = 128;
/// A copy that was not there costs at least this; see [`Cost::missed`].
const MISS_MIN: u32 = 1 << 10;

/// How long reads from one server took lately, in nanoseconds for 1 KiB; 0 if nothing is known.
#[derive(Debug, Default)]
pub(crate) struct Cost {
    nanos_per_kib: AtomicU32,
}

impl Cost {
    pub(crate) fn get(&self) -> u32 {
        self.nanos_per_kib.load(Relaxed)
    }

    /// Notes a read of so many bytes. Two at once may lose one note.
    pub(crate) fn note(&self, bytes: u64, took: Duration) {
        if bytes == 0 {
            return;
        }
        let now = took.as_nanos().saturating_mul(1024) / u128::from(bytes);
        let now = u32::try_from(now).unwrap_or(u32::MAX).max(1);
        let before = self.get();
        let after = if before == 0 { now } else { before / 2 + now / 2 };
        self.nanos_per_kib.store(after.max(1), Relaxed);
    }

    /// A copy was not there. Until it has been filled, or if it never is, others are the better choice.
    pub(crate) fn missed(&self) {
        self.nanos_per_kib.store(self.get().saturating_mul(2).max(MISS_MIN), Relaxed);
    }

    /// Another server was the better choice.
    fn fade(&self) {
        let before = self.get();
        if before > 1 {
            self.nanos_per_kib.store(before - before.div_ceil(FADE), Relaxed);
        }
    }
}

/// What one op has given to whom so far. Reused from op to op.
#[derive(Debug, Default)]
pub(crate) struct Spread {
    /// Hot pages for each server.
    given: Vec<u32>,
    passed: Vec<bool>,
    state: u64,
}

impl Spread {
    /// Begins an op. `turn` is another number for each op and each client.
    pub(crate) fn begin(&mut self, servers: usize, turn: u64) {
        self.given.clear();
        self.given.resize(servers, 0);
        self.passed.clear();
        self.passed.resize(servers, false);
        self.state = turn;
    }

    /// Which of a hot page's copies is read first: an index into `copies`, which are servers. Those for which `cost` is
    /// `None` cannot be asked now.
    pub(crate) fn choose(&mut self, copies: &[u32], cost: impl Fn(u32) -> Option<u32>) -> usize {
        let count = copies.len();
        if count < 2 {
            return 0;
        }
        self.state = mix(self.state);
        let first = (self.state % count as u64) as usize;
        let expected = |at: usize| {
            let server = copies[at];
            cost(server).map(|cost| (u64::from(cost) * (u64::from(self.given[server as usize]) + 1), at))
        };
        // The first one of several that cost the same, beginning anywhere.
        let around = (0..count).map(|step| (first + step) % count);
        let best = around.filter_map(expected).reduce(|best, next| if next.0 < best.0 { next } else { best });
        let Some((_, best)) = best else { return 0 };
        for (at, &server) in copies.iter().enumerate() {
            self.passed[server as usize] |= at != best;
        }
        self.given[copies[best] as usize] += 1;
        best
    }

    /// After the last page: notes which servers were passed over.
    pub(crate) fn end<'c>(&self, cost: impl Fn(usize) -> &'c Cost) {
        let passed = self.passed.iter().zip(&self.given).enumerate();
        passed
            .filter(|(_, (passed, given))| **passed && **given == 0)
            .for_each(|(server, _)| cost(server).fade());
    }
}

/// The finaliser of SplitMix64, with its step.
fn mix(state: u64) -> u64 {
    let x = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: u64 = 1024;

    fn costs(list: [u32; 4]) -> [Cost; 4] {
        list.map(|nanos| Cost { nanos_per_kib: nanos.into() })
    }

    /// Which servers the pages of one op go to.
    fn op(spread: &mut Spread, costs: &[Cost; 4], pages: usize, turn: u64) -> Vec<usize> {
        spread.begin(4, turn);
        let cost = |server: u32| Some(costs[server as usize].get());
        let chosen = (0..pages).map(|_| spread.choose(&[0, 1, 2, 3], cost)).collect();
        spread.end(|server| &costs[server]);
        chosen
    }

    #[test]
    fn who_knows_nothing_begins_anywhere() {
        let (mut spread, costs) = (Spread::default(), costs([0; 4]));
        let mut seen = [0; 4];
        (0..400).for_each(|turn| seen[op(&mut spread, &costs, 1, turn)[0]] += 1);
        assert!(seen.iter().all(|seen| *seen > 60), "{seen:?}");
        // And nobody follows anybody else.
        let of_client = |client: u64| {
            let mut spread = Spread::default();
            (0..20).map(|turn| op(&mut spread, &costs, 1, client << 32 | turn)[0]).collect::<Vec<_>>()
        };
        assert_ne!(of_client(1), of_client(2));
    }

    #[test]
    fn the_pages_of_an_op_go_to_servers_as_these_are_fast() {
        let mut spread = Spread::default();
        for turn in 0..50 {
            let mut seen = [0; 4];
            op(&mut spread, &costs([10; 4]), 8, turn).into_iter().for_each(|server| seen[server] += 1);
            assert_eq!(seen, [2; 4]);
            let mut seen = [0; 4];
            op(&mut spread, &costs([10, 10, 10, 30]), 10, turn).into_iter().for_each(|s| seen[s] += 1);
            assert_eq!(seen, [3, 3, 3, 1]);
        }
    }

    #[test]
    fn a_slow_server_is_left_alone_and_tried_again_in_time() {
        let (mut spread, costs) = (Spread::default(), costs([1000, 4000, 1000, 1000]));
        let tried = (0..2000).position(|turn| {
            let chosen = op(&mut spread, &costs, 1, turn)[0];
            if chosen != 1 {
                costs[chosen].note(KIB, Duration::from_nanos(1000));
            }
            chosen == 1
        });
        assert!((100..1000).contains(&tried.unwrap()), "{tried:?}");
    }

    #[test]
    fn who_cannot_be_asked_is_not_chosen() {
        let mut spread = Spread::default();
        for turn in 0..100 {
            spread.begin(4, turn);
            assert_eq!(spread.choose(&[3, 1], |server| (server == 1).then_some(9000)), 1);
            assert_eq!(spread.choose(&[3, 1], |_| None), 0);
        }
    }

    #[test]
    fn a_copy_that_is_not_there_is_no_good_choice() {
        let (mut spread, costs) = (Spread::default(), costs([1000, 0, 1000, 1000]));
        assert_eq!(op(&mut spread, &costs, 1, 1), [1], "nothing is known of it");
        costs[1].missed();
        (0..4).for_each(|_| costs[1].missed());
        assert_ne!(op(&mut spread, &costs, 1, 1), [1]);
        assert!(costs[1].get() > 1000);
        costs[1].note(64 * KIB, Duration::from_micros(64));
        costs[1].note(0, Duration::from_secs(9));
        assert!(costs[1].get() > 1000 && costs[1].get() < 20_000, "{}", costs[1].get());
    }
}
