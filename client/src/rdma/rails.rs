//! Which NIC of ours and which of a server's a new queue pair connects.
//!
//! Near NICs come before far ones, on either side, and those of equal distance take turns. A NIC whose port is down is
//! left out until it is up again.
//!
//! Deliberately absent: clocks, and NICs.

use memkv_proto::v1;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

/// What is known of one NIC of ours.
#[derive(Debug)]
pub(super) struct Rail {
    ethernet: bool,
    near: bool,
    down: AtomicBool,
}

impl Rail {
    pub(super) fn new(ethernet: bool, near: bool) -> Self {
        Self { ethernet, near, down: AtomicBool::new(false) }
    }
}

/// All NICs of ours, by their places.
#[derive(Debug)]
pub(super) struct Rails {
    own: Vec<Rail>,
    turn: AtomicUsize,
}

impl Rails {
    pub(super) fn new(own: Vec<Rail>) -> Self {
        Self { own, turn: AtomicUsize::new(0) }
    }

    /// Enters whether a NIC can be used. Whether that is news.
    pub(super) fn set_down(&self, nic: usize, down: bool) -> bool {
        self.own[nic].down.swap(down, Relaxed) != down
    }

    /// Whether a NIC cannot be used now.
    pub(super) fn is_down(&self, nic: usize) -> bool {
        self.own[nic].down.load(Relaxed)
    }

    /// Whether any NIC of ours, up or down, is on a network of one of the server's.
    pub(super) fn reach(&self, offer: &v1::RdmaOffer) -> bool {
        self.own.iter().any(|own| offer.nics.iter().any(|nic| nic.ethernet == own.ethernet))
    }

    /// The pairs of NICs that can reach each other, best first: of ours and of the server's. Begins with another one each
    /// time, as far as there are equally good ones.
    pub(super) fn pairs(&self, offer: &v1::RdmaOffer) -> Vec<(usize, u32)> {
        let turn = self.turn.fetch_add(1, Relaxed);
        let own = |near: bool| -> Vec<usize> {
            let is = |place: &usize| self.own[*place].near == near && !self.is_down(*place);
            (0..self.own.len()).filter(is).collect()
        };
        let other = |near: bool| -> Vec<usize> {
            (0..offer.nics.len()).filter(|&place| offer.nics[place].far != near).collect()
        };
        let mut pairs = Vec::new();
        for (own, other) in [
            (own(true), other(true)),
            (own(true), other(false)),
            (own(false), other(true)),
            (own(false), other(false)),
        ] {
            // Both sides move on at once, so that two rails are used as two; each round shifts one against the other.
            let (own, other) = (&own, &other);
            let steps = (0..other.len()).flat_map(|round| {
                (0..own.len()).map(move |step| {
                    let at = turn.wrapping_add(step);
                    (own[at % own.len()], other[at.wrapping_add(round) % other.len()])
                })
            });
            let fits = steps.filter(|&(own, other)| self.own[own].ethernet == offer.nics[other].ethernet);
            pairs.extend(fits.filter_map(|(own, other)| Some((own, u32::try_from(other).ok()?))));
        }
        pairs
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn offer(nics: &[(bool, bool)]) -> v1::RdmaOffer {
        let nic =
            |&(ethernet, near): &(bool, bool)| v1::RdmaNic { name: String::new(), ethernet, far: !near };
        v1::RdmaOffer { nics: nics.iter().map(nic).collect(), ..v1::RdmaOffer::default() }
    }

    fn rails(nics: &[(bool, bool)]) -> Rails {
        Rails::new(nics.iter().map(|&(ethernet, near)| Rail::new(ethernet, near)).collect())
    }

    #[test]
    fn two_rails_are_used_as_two_and_every_pair_is_named_once() {
        let (rails, offer) = (rails(&[(true, true); 2]), offer(&[(true, true); 2]));
        assert_eq!(rails.pairs(&offer), [(0, 0), (1, 1), (0, 1), (1, 0)]);
        assert_eq!(rails.pairs(&offer)[0], (1, 1), "the next turn begins with the other rail");
        for (own, other) in [(1, 3), (3, 1), (2, 3), (3, 3), (4, 2)] {
            let pairs = super::Rails::new((0..own).map(|_| Rail::new(true, true)).collect())
                .pairs(&self::offer(&vec![(true, true); other]));
            assert_eq!(pairs.iter().collect::<BTreeSet<_>>().len(), own * other, "{own} {other}");
        }
    }

    #[test]
    fn near_ones_come_first_and_take_turns_among_themselves() {
        let nics = [(true, true), (true, false), (true, true)];
        let (rails, offer) = (rails(&nics), offer(&nics));
        let firsts: Vec<_> = (0..4).map(|_| rails.pairs(&offer)[0]).collect();
        assert_eq!(firsts, [(0, 0), (2, 2), (0, 0), (2, 2)]);
        let pairs = rails.pairs(&offer);
        assert_eq!(pairs.len(), 9);
        assert_eq!(pairs[8], (1, 1), "both are far");
        assert!(pairs[..4].iter().all(|&(own, other)| own != 1 && other != 1));
    }

    #[test]
    fn a_nic_that_is_down_is_left_out_until_it_is_up() {
        let (rails, offer) = (rails(&[(true, true); 2]), offer(&[(true, true)]));
        assert!(rails.set_down(0, true) && !rails.set_down(0, true), "once it is news");
        assert!(rails.is_down(0) && !rails.is_down(1));
        assert_eq!(rails.pairs(&offer), [(1, 0)]);
        assert!(rails.set_down(1, true));
        assert_eq!(rails.pairs(&offer), []);
        assert!(rails.reach(&offer), "once they are up");
        assert!(rails.set_down(0, false));
        assert_eq!(rails.pairs(&offer), [(0, 0)]);
    }

    #[test]
    fn networks_do_not_mix() {
        let (rails, offer) = (rails(&[(false, true), (true, false)]), offer(&[(true, true)]));
        assert_eq!(rails.pairs(&offer), [(1, 0)]);
        assert!(rails.reach(&offer) && !rails.reach(&self::offer(&[])));
        assert_eq!(rails.pairs(&self::offer(&[])), []);
    }
}
