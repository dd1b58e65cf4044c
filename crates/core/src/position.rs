//! Where in its chain a page is, as it travels and rests in 32 bits.
//!
//! | number | meaning |
//! |---|---|
//! | 0 | nothing is known |
//! | 1 to 2^31 - 1 | the place in the chain, counted from 1 |
//! | 2^31 + `n` | nobody said where in the chain the batch begins; the page came as the `n`-th of it, counted from 1 |
//!
//! Pages that are put together follow each other in one chain, so even without knowing where it begins a server knows
//! which of them are deeper.

/// The position counts from the first page of the batch.
const IN_BATCH: u32 = 1 << 31;
/// The deepest page that is told from those behind it.
const MAX: u32 = IN_BATCH - 1;

/// The position of page `index` of a batch whose first page is at `first` of its chain, from 1; 0 if that is unknown.
#[must_use]
pub fn of(first: u32, index: usize) -> u32 {
    let index = u32::try_from(index).unwrap_or(MAX);
    match first {
        0 => IN_BATCH | index.saturating_add(1).min(MAX),
        first => first.saturating_add(index).min(MAX),
    }
}

/// The place in the chain, from 1; 0 if it is unknown.
#[must_use]
pub fn in_chain(position: u32) -> u32 {
    if position & IN_BATCH == 0 { position } else { 0 }
}

/// How deep the page is among those that it came with: of one chain, or of one batch.
#[must_use]
pub fn depth(position: u32) -> u32 {
    position & MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_follow_each_other_wherever_they_begin() {
        for (first, known) in [(1, 1), (40, 40), (0, 0)] {
            let positions: Vec<u32> = (0..3).map(|index| of(first, index)).collect();
            let known: Vec<u32> = (0..3).map(|index| if known == 0 { 0 } else { known + index }).collect();
            assert_eq!(positions.iter().map(|&position| in_chain(position)).collect::<Vec<_>>(), known);
            let depths: Vec<u32> = positions.iter().map(|&position| depth(position)).collect();
            assert_eq!(depths, [0, 1, 2].map(|index| first.max(1) + index));
        }
        assert_eq!((in_chain(0), depth(0)), (0, 0));
    }

    #[test]
    fn the_deepest_stay_what_they_are() {
        assert_eq!(of(MAX, 5), MAX);
        assert_eq!(of(u32::MAX, 0), MAX, "no position of a caller says that it counts from the batch");
        assert_eq!(of(0, usize::MAX), u32::MAX);
        assert_eq!((in_chain(u32::MAX), depth(u32::MAX)), (0, MAX));
    }
}
