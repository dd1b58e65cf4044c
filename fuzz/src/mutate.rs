//! The built-in search: changes kept inputs at random, without looking at coverage.
//!
//! It is what runs where the guided one cannot be built, and where counting matters more than finding: it adds a few nanoseconds to a
//! target. An input is its number: the same seed gives the same inputs.

/// A small fast generator (xorshift64*). Not for secrets.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// From a seed; 0 is as good as any other.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed ^ 0x9e37_79b9_7f4a_7c15 | 1)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `most`, which is not 0.
    #[allow(clippy::cast_possible_truncation, reason = "the remainder fits what `most` fits")]
    pub fn below(&mut self, most: usize) -> usize {
        ((self.number() >> 16) % most as u64) as usize
    }
}

/// Values at which readers tend to go wrong.
const EDGES: [u64; 10] =
    [0, 1, 0x7f, 0xff, 0x7fff, 0xffff, 0x7fff_ffff, 0xffff_ffff, 0x7fff_ffff_ffff_ffff, u64::MAX];

/// Changes `input` in one to eight ways, and keeps it at most `most` bytes long.
pub fn mutate(input: &mut Vec<u8>, others: &[Vec<u8>], most: usize, random: &mut Random) {
    let ways = 1 + random.below(4) * random.below(3);
    for _ in 0..ways {
        once(input, others, random);
    }
    input.truncate(most);
}

fn once(input: &mut Vec<u8>, others: &[Vec<u8>], random: &mut Random) {
    if input.is_empty() {
        input.push(random.number().to_le_bytes()[0]);
        return;
    }
    let at = random.below(input.len());
    match random.below(9) {
        0 => input[at] ^= 1 << random.below(8),
        1 => input[at] = random.number().to_le_bytes()[0],
        2 => input[at] = input[at].wrapping_add(1),
        3 => {
            // A field of 2, 4 or 8 bytes at an edge, or next to one.
            let width = 2 << random.below(3);
            let edge = EDGES[random.below(EDGES.len())].wrapping_add(random.number() % 2);
            let end = input.len().min(at + width);
            input[at..end].copy_from_slice(&edge.to_le_bytes()[..end - at]);
        }
        4 => input.truncate(at),
        5 => {
            let end = input.len().min(at + 1 + random.below(16));
            input.drain(at..end);
        }
        6 => {
            let end = input.len().min(at + 1 + random.below(64));
            let copied = input[at..end].to_vec();
            let to = random.below(input.len());
            input.splice(to..to, copied);
        }
        7 => {
            let bytes = random.number().to_le_bytes();
            input.splice(at..at, bytes[..1 + random.below(8)].iter().copied());
        }
        _ => {
            // The front of this one and the end of another.
            if let Some(other) =
                others.get(random.below(others.len().max(1))).filter(|other| !other.is_empty())
            {
                input.truncate(at);
                input.extend_from_slice(&other[random.below(other.len())..]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_inputs_and_they_stay_short() {
        let inputs = |seed| {
            let mut random = Random::new(seed);
            let others = [b"other".to_vec()];
            let each = |_| {
                let mut input = b"some input".to_vec();
                mutate(&mut input, &others, 24, &mut random);
                input
            };
            (0..1000).map(each).collect::<Vec<_>>()
        };
        assert_eq!(inputs(1), inputs(1));
        assert_ne!(inputs(1), inputs(2));
        assert!(inputs(3).iter().all(|input| input.len() <= 24));
        assert!(inputs(3).iter().any(|input| input != b"some input"));
    }
}
