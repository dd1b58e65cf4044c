//! Runs of tokens, narrow or wide.
//!
//! Nearly every token fits 32 bits, but the page hash also speaks of wider ones. A run therefore keeps the low
//! halves, and the high halves only if one of them is not zero: an empty `high` means that all are.

use std::ops::Range;

/// A borrowed run of tokens.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tokens<'a> {
    low: &'a [u32],
    /// Empty, or as long as `low`.
    high: &'a [u32],
}

impl<'a> Tokens<'a> {
    pub(crate) fn from_parts(low: &'a [u32], high: &'a [u32]) -> Self {
        debug_assert!(high.is_empty() || high.len() == low.len());
        Self { low, high }
    }

    /// How many tokens there are.
    pub fn len(&self) -> usize {
        self.low.len()
    }

    /// Whether there is no token.
    pub fn is_empty(&self) -> bool {
        self.low.is_empty()
    }

    /// The token at `index`, if there is one.
    pub fn get(&self, index: usize) -> Option<u64> {
        let low = u64::from(*self.low.get(index)?);
        Some(low | u64::from(self.high.get(index).copied().unwrap_or(0)) << 32)
    }

    /// The tokens one by one.
    pub fn iter(&self) -> impl Iterator<Item = u64> + use<'a> {
        let run = *self;
        (0..run.len()).filter_map(move |index| run.get(index))
    }

    /// A part of the run; what lies outside it is left out.
    pub fn slice(&self, range: Range<usize>) -> Tokens<'a> {
        let end = range.end.min(self.low.len());
        let start = range.start.min(end);
        let high = if self.high.is_empty() { self.high } else { &self.high[start..end] };
        Tokens { low: &self.low[start..end], high }
    }

    /// The low halves.
    pub(crate) fn low(&self) -> &'a [u32] {
        self.low
    }

    /// The high halves, or nothing if all are zero.
    pub(crate) fn high(&self) -> &'a [u32] {
        self.high
    }

    /// Whether a token needs more than 32 bits.
    pub fn is_wide(&self) -> bool {
        self.high.iter().any(|half| *half != 0)
    }

    /// Whether both runs hold the same tokens.
    pub fn same(&self, other: Tokens<'_>) -> bool {
        if self.low != other.low {
            return false;
        }
        match (self.high.is_empty(), other.high.is_empty()) {
            (true, true) => true,
            (false, false) => self.high == other.high,
            (true, false) => !other.is_wide(),
            (false, true) => !self.is_wide(),
        }
    }
}

impl<'a> From<&'a [u32]> for Tokens<'a> {
    fn from(low: &'a [u32]) -> Self {
        Tokens { low, high: &[] }
    }
}

impl<'a> From<&'a Vec<u32>> for Tokens<'a> {
    fn from(low: &'a Vec<u32>) -> Self {
        Tokens { low, high: &[] }
    }
}

impl<'a, const N: usize> From<&'a [u32; N]> for Tokens<'a> {
    fn from(low: &'a [u32; N]) -> Self {
        Tokens { low, high: &[] }
    }
}

impl<'a> From<&'a TokenBuf> for Tokens<'a> {
    fn from(buf: &'a TokenBuf) -> Self {
        buf.as_tokens()
    }
}

/// An owned run of tokens that grows at its end.
#[derive(Clone, Debug, Default)]
pub struct TokenBuf {
    low: Vec<u32>,
    high: Vec<u32>,
}

impl TokenBuf {
    /// A run from tokens of any width.
    pub fn from_wide(tokens: &[u64]) -> Self {
        let mut buf = Self::default();
        for token in tokens {
            buf.push(*token);
        }
        buf
    }

    /// Appends one token.
    pub fn push(&mut self, token: u64) {
        let high = (token >> 32) as u32;
        if high != 0 && self.high.is_empty() {
            self.high.resize(self.low.len(), 0);
            self.high.push(high);
        } else if !self.high.is_empty() {
            self.high.push(high);
        }
        self.low.push(token as u32);
    }

    /// Appends a run.
    pub fn extend(&mut self, tokens: Tokens<'_>) {
        if tokens.is_wide() && self.high.is_empty() {
            self.high.resize(self.low.len(), 0);
        }
        // An empty run that has just become wide still has an empty `high`, which resize leaves empty.
        if !self.high.is_empty() || tokens.is_wide() {
            match tokens.high {
                [] => self.high.resize(self.low.len() + tokens.len(), 0),
                high => self.high.extend_from_slice(high),
            }
        }
        self.low.extend_from_slice(tokens.low);
    }

    /// Forgets all tokens after the first `len`.
    pub fn truncate(&mut self, len: usize) {
        self.low.truncate(len);
        self.high.truncate(len);
    }

    /// How many tokens there are.
    pub fn len(&self) -> usize {
        self.low.len()
    }

    /// Whether there is no token.
    pub fn is_empty(&self) -> bool {
        self.low.is_empty()
    }

    /// The whole run.
    pub fn as_tokens(&self) -> Tokens<'_> {
        Tokens { low: &self.low, high: &self.high }
    }
}

impl From<Tokens<'_>> for TokenBuf {
    fn from(tokens: Tokens<'_>) -> Self {
        let high = if tokens.is_wide() { tokens.high.to_vec() } else { Vec::new() };
        Self { low: tokens.low.to_vec(), high }
    }
}

/// How tokens become pages: the page size and whether keys are pairs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Units per page, 1..=256.
    page: usize,
    /// Whether unit `i` is the pair of tokens `i` and `i + 1` (speculative decoding with a draft model).
    bigram: bool,
}

impl Shape {
    /// A shape, if the page has 1 to 256 units.
    pub fn new(page_tokens: usize, bigram: bool) -> Option<Self> {
        (1..=256).contains(&page_tokens).then_some(Self { page: page_tokens, bigram })
    }

    /// Units per page.
    pub fn page_tokens(&self) -> usize {
        self.page
    }

    /// Whether units are pairs of neighbouring tokens.
    pub fn is_bigram(&self) -> bool {
        self.bigram
    }

    /// How many tokens a page shares with the next one.
    pub(crate) fn overlap(&self) -> usize {
        usize::from(self.bigram)
    }

    /// How many whole pages `tokens` raw tokens make.
    pub fn whole_pages(&self, tokens: usize) -> usize {
        tokens.saturating_sub(self.overlap()) / self.page
    }

    /// How many raw tokens `pages` pages read, including the one they share with the next page.
    pub fn raw_tokens(&self, pages: usize) -> usize {
        if pages == 0 { 0 } else { pages * self.page + self.overlap() }
    }

    /// The raw tokens of pages `range`.
    pub(crate) fn pages<'a>(&self, tokens: Tokens<'a>, range: Range<usize>) -> Tokens<'a> {
        if range.is_empty() {
            return Tokens::default();
        }
        tokens.slice(range.start * self.page..range.end * self.page + self.overlap())
    }

    /// How many leading whole pages two runs of whole pages have in common.
    pub(crate) fn common_pages(&self, a: Tokens<'_>, b: Tokens<'_>) -> usize {
        let pages = self.whole_pages(a.len().min(b.len()));
        let raw = self.raw_tokens(pages);
        if a.slice(0..raw).same(b.slice(0..raw)) {
            return pages;
        }
        (0..pages)
            .position(|page| !self.pages(a, page..page + 1).same(self.pages(b, page..page + 1)))
            .unwrap_or(pages)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wide_token_makes_the_run_wide_from_its_place_on() {
        let mut buf = TokenBuf::default();
        buf.push(1);
        assert!(!buf.as_tokens().is_wide());
        buf.push((1 << 32) + 1);
        buf.push(2);
        assert_eq!(buf.as_tokens().iter().collect::<Vec<_>>(), [1, (1 << 32) + 1, 2]);
        assert!(!buf.as_tokens().same(Tokens::from(&[1u32, 1, 2])));
        assert!(buf.as_tokens().slice(2..3).same(Tokens::from(&[2u32])));
    }

    #[test]
    fn extending_keeps_the_halves_in_step() {
        let mut buf = TokenBuf::default();
        buf.extend(TokenBuf::from_wide(&[1 << 40, 5]).as_tokens());
        buf.extend(Tokens::from(&[7u32, 8]));
        assert_eq!(buf.as_tokens().iter().collect::<Vec<_>>(), [1 << 40, 5, 7, 8]);
        let mut late = TokenBuf::from_wide(&[3, 4]);
        late.extend(buf.as_tokens());
        assert_eq!(late.as_tokens().iter().collect::<Vec<_>>(), [3, 4, 1 << 40, 5, 7, 8]);
    }

    #[test]
    fn pairs_share_a_token_between_pages() {
        let shape = Shape::new(2, true).unwrap();
        assert_eq!(shape.whole_pages(6), 2);
        assert_eq!(shape.raw_tokens(2), 5);
        let run = [1u32, 2, 3, 4, 5, 6];
        assert_eq!(shape.pages(Tokens::from(&run), 1..2).low(), &[3, 4, 5]);
        // The pairs (1,2), (2,3) are alike, the pair (3,4) is not.
        assert_eq!(shape.common_pages(Tokens::from(&run), Tokens::from(&[1u32, 2, 3, 9, 5])), 1);
        assert_eq!(Shape::new(0, false), None);
        assert_eq!(Shape::new(257, false), None);
    }
}
