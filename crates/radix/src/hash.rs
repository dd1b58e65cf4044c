//! The chain of page digests: what a page is called outside the tree.
//!
//! ```text
//! digest  = SHA-256( previous digest, if any || payload )
//! payload = each token as u32, little endian                  if every token of this page fits 32 bits
//!         = 0xFF || each token as u64, little endian          otherwise
//! pairs   : both tokens of each pair are written
//! first   : the "previous digest" of page 0 is the seed of its namespace, if it has one
//! ```
//!
//! A digest names the page and its whole prefix. The formulas are those of SGLang, so pages that one engine wrote
//! are found by the other.

use crate::tokens::{Shape, Tokens};
use sha2::{Digest as _, Sha256};
use std::fmt;

/// The name of a page with its whole prefix.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// The block id in events: the first eight bytes as a signed big-endian number.
    pub fn event_id(&self) -> i64 {
        i64::from_be_bytes(self.first())
    }

    /// Bits that are already as random as a hash function's.
    pub(crate) fn bits(&self) -> u64 {
        u64::from_be_bytes(self.first())
    }

    fn first(&self) -> [u8; 8] {
        let mut first = [0; 8];
        first.copy_from_slice(&self.0[..8]);
        first
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A page of 256 pairs of wide tokens after a digest and the mark.
const LARGEST_INPUT: usize = 32 + 1 + 256 * 2 * 8;

/// The input of one page digest, gathered so that the hash function sees one piece.
struct Input {
    bytes: [u8; LARGEST_INPUT],
    len: usize,
}

impl Input {
    fn put(&mut self, bytes: &[u8]) {
        self.bytes[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }

    fn put_narrow(&mut self, tokens: &[u32]) {
        let end = self.len + tokens.len() * 4;
        for (place, token) in self.bytes[self.len..end].as_chunks_mut::<4>().0.iter_mut().zip(tokens) {
            *place = token.to_le_bytes();
        }
        self.len = end;
    }

    /// Both tokens of each pair of neighbours.
    fn put_narrow_pairs(&mut self, tokens: &[u32]) {
        let end = self.len + tokens.len().saturating_sub(1) * 8;
        let places = self.bytes[self.len..end].as_chunks_mut::<8>().0;
        for (place, pair) in places.iter_mut().zip(tokens.windows(2)) {
            *place = (u64::from(pair[0]) | u64::from(pair[1]) << 32).to_le_bytes();
        }
        self.len = end;
    }
}

/// Hashes pages one after another.
pub struct PageChain {
    shape: Shape,
    prior: Option<Digest>,
    input: Box<Input>,
}

impl PageChain {
    /// A chain that continues after `prior`: a namespace seed, the digest of the page before, or nothing.
    pub fn new(shape: Shape, prior: Option<Digest>) -> Self {
        Self { shape, prior, input: Box::new(Input { bytes: [0; LARGEST_INPUT], len: 0 }) }
    }

    /// The digest of the next page; `page` holds its raw tokens, for pairs one more than it has units. A page
    /// may be short; more units than the shape's page are cut off.
    pub fn next(&mut self, page: Tokens<'_>) -> Digest {
        let page = page.slice(0..self.shape.page_tokens() + self.shape.overlap());
        let input = &mut *self.input;
        input.len = 0;
        if let Some(prior) = &self.prior {
            input.put(&prior.0);
        }
        let wide = page.is_wide();
        match (self.shape.is_bigram(), wide) {
            (false, false) => input.put_narrow(page.low()),
            (true, false) => input.put_narrow_pairs(page.low()),
            (pairs, true) => {
                input.put(&[0xff]);
                for at in 0..page.len().saturating_sub(self.shape.overlap()) {
                    for token in at..=at + usize::from(pairs) {
                        input.put(&page.get(token).unwrap_or(0).to_le_bytes());
                    }
                }
            }
        }
        let digest = Digest(Sha256::digest(&input.bytes[..input.len]).into());
        self.prior = Some(digest);
        digest
    }

    /// The digests of all whole pages of `tokens`.
    pub fn whole_pages(&mut self, tokens: Tokens<'_>) -> Vec<Digest> {
        let pages = self.shape.whole_pages(tokens.len());
        let shape = self.shape;
        (0..pages).map(|page| self.next(shape.pages(tokens, page..page + 1))).collect()
    }
}

/// A fast hash of a page's tokens, for the table of children.
///
/// Equal hashes prove nothing: the table always compares the tokens. `seed` only makes it harder to write prompts
/// that fall into one bucket.
pub(crate) fn page_bits(seed: u64, page: Tokens<'_>) -> u64 {
    let mut state = seed ^ 0x9e37_79b9_7f4a_7c15 ^ page.len() as u64;
    let (words, rest) = page.low().as_chunks::<4>();
    for [a, b, c, d] in words {
        let first = u64::from(*a) | u64::from(*b) << 32;
        let second = u64::from(*c) | u64::from(*d) << 32;
        state = fold(state ^ first, second ^ 0xa076_1d64_78bd_642f);
    }
    for token in rest {
        state = fold(state ^ u64::from(*token), 0xe703_7ed1_a0b4_28db);
    }
    if page.is_wide() {
        for half in page.high() {
            state = fold(state ^ u64::from(*half), 0x8ebc_6af0_9c88_c6e3);
        }
    }
    state
}

/// Mixes two words into one.
pub(crate) fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b ^ 0x5899_65cc_7537_4cc3);
    (product as u64) ^ (product >> 64) as u64 ^ b.rotate_left(23)
}
