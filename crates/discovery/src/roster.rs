//! From lists to the weights that routing uses: who is new takes its weight gradually, who is lost keeps its keys
//! for a while.
//!
//! | member | weight for routing |
//! |--------|--------------------|
//! | serving, with an age of at least the ramp | its own |
//! | serving, younger | a tenth of its own at once, then another tenth after every tenth of the ramp; at least 1 |
//! | draining or drained | 0: no new keys |
//! | lost: not in the list any more | as before, until the grace has passed; then it is gone |
//!
//! A member's age counts from the `since` that it registered, so that all clients see the same weight at the same
//! time, also those that have just started. Two exceptions keep this from hurting:
//! - members that began within a sixth of the ramp of the oldest one have no ramp: a cluster that starts as a whole
//!   has no keys that could move;
//! - with a clock that is wrong, the ramp ends at the latest its own length after the client first saw the member.
//!
//! A source that does not know `since` (DNS, a fixed list) gives no age; then the first list's members are old, and
//! later ones are as old as this client's knowledge of them.
//!
//! An empty list changes nothing: it is what a store that lost its data says, and no client is served by it.
//!
//! A pure function of lists and times.

use crate::{Member, MemberList};
use std::collections::BTreeMap;

/// Into how many steps a ramp is divided.
const STEPS: u64 = 10;
/// Which part of the ramp members may be apart and still have started together.
const FOUNDING_PART: u64 = 6;

/// How long a ramp and a grace are, milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Over which time a new member takes its weight; 0 for at once.
    pub ramp_ms: u64,
    /// How long a lost member keeps its keys; 0 for not at all.
    pub grace_ms: u64,
}

/// A time, by the two clocks that matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// A clock that never goes backwards, milliseconds since anything.
    pub steady_ms: u64,
    /// Unix time, milliseconds.
    pub unix_ms: u64,
}

/// One member's place in routing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seat {
    /// What the source said last.
    pub member: Member,
    /// The weight for routing now.
    pub weight: u32,
    /// It is not in the list any more and is waited for.
    pub lost: bool,
}

#[derive(Clone, Debug)]
struct Known {
    member: Member,
    /// When this client first saw it; `None` if that was with the first list.
    seen_ms: Option<u64>,
    lost_ms: Option<u64>,
}

/// The members that a client knows. See the module's text.
#[derive(Clone, Debug)]
pub struct Roster {
    rules: Rules,
    epoch: u64,
    begun: bool,
    known: BTreeMap<String, Known>,
}

impl Roster {
    /// A roster without members.
    #[must_use]
    pub fn new(rules: Rules) -> Self {
        Self { rules, epoch: 0, begun: false, known: BTreeMap::new() }
    }

    /// The epoch of the last list.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Takes a list over.
    pub fn update(&mut self, list: MemberList, now: Now) {
        self.epoch = list.epoch;
        if list.members.is_empty() {
            return;
        }
        for known in self.known.values_mut() {
            let lost = list.find(&known.member.id).is_none();
            known.lost_ms = lost.then(|| known.lost_ms.unwrap_or(now.steady_ms));
        }
        let seen_ms = self.begun.then_some(now.steady_ms);
        for member in list.members {
            match self.known.get_mut(&member.id) {
                Some(known) => known.member = member,
                None => {
                    let known = Known { member: member.clone(), seen_ms, lost_ms: None };
                    self.known.insert(member.id, known);
                }
            }
        }
        self.begun = true;
    }

    /// Everybody's place now, by id, and after how many milliseconds to ask again if no list comes before.
    pub fn seats(&mut self, now: Now) -> (Vec<Seat>, Option<u64>) {
        let grace = self.rules.grace_ms;
        let left = |known: &Known| known.lost_ms.map(|lost| (lost + grace).saturating_sub(now.steady_ms));
        self.known.retain(|_, known| left(known) != Some(0));
        let oldest =
            self.known.values().map(|known| known.member.since_unix_ms).filter(|since| *since > 0).min();
        let (mut seats, mut next) = (Vec::with_capacity(self.known.len()), None);
        for known in self.known.values() {
            let (weight, grows) = self.weight(known, oldest.unwrap_or(0), now);
            next = [next, grows, left(known)].into_iter().flatten().min();
            seats.push(Seat { member: known.member.clone(), weight, lost: known.lost_ms.is_some() });
        }
        (seats, next)
    }

    /// A member's weight now, and after how many milliseconds it is another.
    fn weight(&self, known: &Known, oldest: u64, now: Now) -> (u32, Option<u64>) {
        let (member, ramp) = (&known.member, self.rules.ramp_ms);
        if !member.state.takes_keys() || member.weight == 0 {
            return (0, None);
        }
        let by_sight = known.seen_ms.map(|seen| now.steady_ms.saturating_sub(seen));
        let age = match member.since_unix_ms {
            0 => by_sight.unwrap_or(ramp),
            since if since - oldest <= ramp / FOUNDING_PART => ramp,
            since => now.unix_ms.saturating_sub(since).max(by_sight.unwrap_or(0)),
        };
        let step = age.saturating_mul(STEPS).checked_div(ramp).map_or(STEPS, |step| step + 1);
        if step >= STEPS {
            return (member.weight, None);
        }
        let weight = u64::from(member.weight) * step / STEPS;
        let until = (step * ramp).div_ceil(STEPS) - age;
        // The part of a 32-bit number is one.
        (u32::try_from(weight).unwrap_or(u32::MAX).max(1), Some(until.max(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemberState;

    const RULES: Rules = Rules { ramp_ms: 30_000, grace_ms: 10_000 };
    /// When the cluster began.
    const BEGAN: u64 = 1_790_000_000_000;

    fn at(ms: u64) -> Now {
        Now { steady_ms: 5_000 + ms, unix_ms: BEGAN + ms }
    }

    fn member(id: &str, since_ms: u64) -> Member {
        Member { since_unix_ms: BEGAN + since_ms, ..Member::new(id, "h", 1, 100) }
    }

    fn list(epoch: u64, members: &[Member]) -> MemberList {
        MemberList::new(epoch, members.to_vec())
    }

    fn weights(roster: &mut Roster, now: Now) -> Vec<(String, u32)> {
        roster.seats(now).0.into_iter().map(|seat| (seat.member.id, seat.weight)).collect()
    }

    fn is(expected: &[(&str, u32)]) -> Vec<(String, u32)> {
        expected.iter().map(|(id, weight)| ((*id).to_owned(), *weight)).collect()
    }

    #[test]
    fn a_new_member_takes_its_weight_in_steps() {
        let mut roster = Roster::new(RULES);
        roster.update(list(1, &[member("a", 0)]), at(0));
        roster.update(list(2, &[member("a", 0), member("b", 60_000)]), at(60_000));
        let (mut now, mut seen) = (60_000, Vec::new());
        while let (seats, next) = roster.seats(at(now))
            && seen.len() < 20
        {
            assert_eq!(seats[0].weight, 100, "who is old keeps its weight");
            seen.push((now, seats[1].weight));
            match next {
                Some(ms) => now += ms,
                None => break,
            }
        }
        let expected: Vec<_> = (0..10).map(|i| (60_000 + i * 3_000, 10 * (i as u32 + 1))).collect();
        assert_eq!(seen, expected);
    }

    #[test]
    fn all_clients_agree_also_one_that_starts_in_the_middle() {
        let both = list(2, &[member("a", 0), member("b", 60_000)]);
        let mut early = Roster::new(RULES);
        early.update(list(1, &[member("a", 0)]), at(0));
        early.update(both.clone(), at(60_500));
        for ms in [61_000, 64_000, 70_000, 86_999, 90_000, 200_000] {
            let mut late = Roster::new(RULES);
            late.update(both.clone(), at(ms));
            assert_eq!(weights(&mut early, at(ms)), weights(&mut late, at(ms)), "at {ms}");
        }
    }

    #[test]
    fn a_cluster_that_starts_as_a_whole_has_no_ramp() {
        let mut roster = Roster::new(RULES);
        roster.update(list(1, &[member("a", 0), member("b", 4_000), member("c", 5_001)]), at(6_000));
        assert_eq!(weights(&mut roster, at(6_000)), is(&[("a", 100), ("b", 100), ("c", 10)]));
    }

    #[test]
    fn a_wrong_clock_cannot_hold_a_ramp_back_for_ever() {
        let mut roster = Roster::new(RULES);
        roster.update(list(1, &[member("a", 0)]), at(0));
        roster.update(list(2, &[member("a", 0), member("b", 9_999_999)]), at(60_000));
        assert_eq!(weights(&mut roster, at(60_000))[1].1, 10);
        assert_eq!(weights(&mut roster, at(90_000))[1].1, 100);
    }

    #[test]
    fn a_lost_member_keeps_its_keys_for_the_grace() {
        let mut roster = Roster::new(RULES);
        roster.update(list(1, &[member("a", 0), member("b", 0)]), at(0));
        roster.update(list(2, &[member("a", 0)]), at(1_000));
        roster.update(list(3, &[member("a", 0)]), at(5_000));
        let (seats, next) = roster.seats(at(6_000));
        assert_eq!((seats[1].weight, seats[1].lost, next), (100, true, Some(5_000)));
        assert_eq!(weights(&mut roster, at(11_000)), is(&[("a", 100)]));
        assert_eq!(roster.epoch(), 3);
    }

    #[test]
    fn who_comes_back_in_time_was_never_away() {
        let mut roster = Roster::new(RULES);
        let (a, b) = (member("a", 0), member("b", 0));
        roster.update(list(1, &[a.clone(), b.clone()]), at(0));
        roster.update(list(2, std::slice::from_ref(&a)), at(100_000));
        let elsewhere = Member { port: 7, ..b };
        roster.update(list(3, &[a, elsewhere]), at(105_000));
        let (seats, next) = roster.seats(at(200_000));
        assert_eq!((seats[1].weight, seats[1].lost, seats[1].member.port, next), (100, false, 7, None));
    }

    #[test]
    fn an_empty_list_changes_nothing() {
        let mut roster = Roster::new(RULES);
        roster.update(list(9, &[member("a", 0)]), at(0));
        roster.update(list(1, &[]), at(1));
        assert_eq!(weights(&mut roster, at(100_000)), is(&[("a", 100)]));
    }

    #[test]
    fn who_drains_takes_nothing() {
        let mut roster = Roster::new(RULES);
        let draining = Member { state: MemberState::Draining, ..member("b", 0) };
        let weightless = Member { weight: 0, ..member("c", 0) };
        roster.update(list(1, &[member("a", 0), draining, weightless]), at(0));
        assert_eq!(weights(&mut roster, at(0)), is(&[("a", 100), ("b", 0), ("c", 0)]));
    }

    #[test]
    fn without_a_known_age_the_first_list_is_old() {
        let plain = |id: &str| Member::new(id, "h", 1, 100);
        let mut roster = Roster::new(RULES);
        roster.update(list(1, &[plain("a")]), at(0));
        roster.update(list(2, &[plain("a"), plain("b")]), at(50_000));
        assert_eq!(weights(&mut roster, at(53_000)), is(&[("a", 100), ("b", 20)]));
        assert_eq!(weights(&mut roster, at(80_000)), is(&[("a", 100), ("b", 100)]));
    }

    #[test]
    fn small_weights_and_no_rules_work_too() {
        let mut roster = Roster::new(Rules { ramp_ms: 0, grace_ms: 0 });
        let small = Member { weight: 3, ..member("b", 60_000) };
        roster.update(list(1, &[member("a", 0), small.clone()]), at(60_000));
        assert_eq!(weights(&mut roster, at(60_000)), is(&[("a", 100), ("b", 3)]));
        roster.update(list(2, &[member("a", 0)]), at(60_001));
        assert_eq!(weights(&mut roster, at(60_001)), is(&[("a", 100)]));
        let mut slow = Roster::new(RULES);
        slow.update(list(1, &[member("a", 0), small]), at(60_000));
        assert_eq!(weights(&mut slow, at(60_000))[1].1, 1);
    }
}
