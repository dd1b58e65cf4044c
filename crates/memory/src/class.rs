//! Size classes: which slot size a page length gets.
//!
//! Pages of one model all have one length, so the best class is that length itself, rounded up to
//! [`SLOT_ALIGN`]. Such classes are learned from traffic into a table of bounded size. When the table is full,
//! a length falls back to quarter steps: 2^k times 4/4, 5/4, 6/4 or 7/4, of which there are few.

use crate::SLOT_ALIGN;

/// The most classes that are learned from exact page lengths.
pub(crate) const LEARNED_MAX: usize = 64;

/// The exact class of a page: its length rounded up to [`SLOT_ALIGN`], at least one unit.
///
/// `None` if that does not fit 32 bits.
pub(crate) fn exact(len: u32) -> Option<u32> {
    len.max(1).checked_next_multiple_of(SLOT_ALIGN)
}

/// The quarter-step class of an exact class: the next 2^k·{4,5,6,7}/4, in whole units of [`SLOT_ALIGN`].
///
/// `exact` is a multiple of [`SLOT_ALIGN`] and at most 2 GiB. The result never exceeds the next power of two.
pub(crate) fn quarter_step(exact: u32) -> u32 {
    let power = 1_u32 << (31 - exact.leading_zeros());
    let step = (power / 4).max(SLOT_ALIGN);
    exact.next_multiple_of(step)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn exact_rounds_up_to_whole_units() {
        assert_eq!(exact(0), Some(4096));
        assert_eq!(exact(1), Some(4096));
        assert_eq!(exact(4096), Some(4096));
        assert_eq!(exact(4097), Some(8192));
        assert_eq!(exact(u32::MAX), None);
    }

    #[test]
    fn quarter_steps_are_the_listed_ones() {
        let kib = |n: u32| n * 1024;
        assert_eq!(quarter_step(kib(4)), kib(4));
        assert_eq!(quarter_step(kib(12)), kib(12));
        assert_eq!(quarter_step(kib(36)), kib(40));
        assert_eq!(quarter_step(kib(52)), kib(56));
        assert_eq!(quarter_step(kib(60)), kib(64));
        assert_eq!(quarter_step(kib(64)), kib(64));
        assert_eq!(quarter_step(1 << 31), 1 << 31);
    }

    proptest! {
        #[test]
        fn a_quarter_step_holds_the_page_and_wastes_at_most_a_quarter(units in 1_u32..=(1 << 19)) {
            let exact = units * SLOT_ALIGN;
            let step = quarter_step(exact);
            prop_assert!(step >= exact);
            prop_assert!(step.is_multiple_of(SLOT_ALIGN));
            prop_assert!(u64::from(step - exact) * 4 <= u64::from(exact) );
            prop_assert!(step <= exact.next_power_of_two());
        }
    }
}
