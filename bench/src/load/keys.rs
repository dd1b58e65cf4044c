//! Which pages a batch is about.
//!
//! Pages come in groups of one batch, as the pages of a prefix do. A made-up load draws a group, evenly or after Zipf; a trace
//! says itself which pages each of its requests is about.

use crate::simulate::trace::Trace;
use anyhow::{Context as _, ensure};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// How keys are chosen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Choice {
    /// All groups alike.
    Uniform,
    /// The group of rank r as often as 1 / r^theta.
    Zipf(f64),
    /// The requests of a trace in the Mooncake format, in their order.
    Trace(PathBuf),
}

impl std::str::FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "uniform" => Ok(Self::Uniform),
            None if text == "zipf" => Ok(Self::Zipf(0.99)),
            Some(("zipf", theta)) => match theta.parse() {
                Ok(theta) if (0.0..=5.0).contains(&theta) => Ok(Self::Zipf(theta)),
                _ => Err(format!("{theta:?} is no exponent; write zipf:0.99")),
            },
            Some(("trace", path)) if !path.is_empty() => Ok(Self::Trace(path.into())),
            _ => Err(format!("{text:?} is not known; write uniform, zipf:0.99 or trace:FILE")),
        }
    }
}

/// A sequence of numbers that a seed decides (splitmix64).
#[derive(Clone, Debug)]
pub(crate) struct Random(pub u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// At least 0, below 1.
    #[allow(clippy::cast_precision_loss, reason = "53 bits are what a float holds")]
    pub(crate) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Below `bound`.
    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }
}

/// Draws the pages of one batch after another.
pub(crate) enum Draw {
    Uniform { groups: u64, batch: u64 },
    Zipf { shares: Vec<f64>, batch: u64 },
    Trace { batches: Vec<Vec<u64>>, next: usize, step: usize },
}

impl Draw {
    /// A draw for worker `index` of `of`; `pages` are numbered from 0. A trace brings its own number of pages.
    ///
    /// # Errors
    ///
    /// If the trace cannot be read.
    pub(crate) fn new(
        choice: &Choice,
        pages: u64,
        batch: usize,
        index: usize,
        of: usize,
    ) -> anyhow::Result<Self> {
        let batch_pages = batch as u64;
        let groups = (pages / batch_pages).max(1);
        Ok(match choice {
            Choice::Uniform => Self::Uniform { groups, batch: batch_pages },
            Choice::Zipf(theta) => Self::Zipf { shares: shares(groups, *theta), batch: batch_pages },
            Choice::Trace(path) => {
                let text =
                    std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
                let trace = Trace::parse(&text).with_context(|| format!("read {}", path.display()))?;
                let blocks = |request: &crate::simulate::trace::Request| {
                    request
                        .blocks
                        .chunks(batch)
                        .map(|part| part.iter().map(|&id| u64::from(id)).collect())
                        .collect()
                };
                let batches: Vec<Vec<u64>> =
                    trace.requests.iter().flat_map(|request| -> Vec<Vec<u64>> { blocks(request) }).collect();
                ensure!(!batches.is_empty(), "{} asks for no pages", path.display());
                Self::Trace { batches, next: index, step: of.max(1) }
            }
        })
    }

    /// The pages of the next batch.
    pub(crate) fn next(&mut self, random: &mut Random) -> Vec<u64> {
        match self {
            Self::Uniform { groups, batch } => run(random.below(*groups), *batch),
            Self::Zipf { shares, batch } => {
                let at = random.unit();
                let rank = shares.partition_point(|&share| share <= at).min(shares.len() - 1) as u64;
                // The popular groups lie scattered, as they would by their hashes.
                let groups = shares.len() as u64;
                run(scatter(rank, groups), *batch)
            }
            Self::Trace { batches, next, step } => {
                let pages = batches[*next % batches.len()].clone();
                *next = (*next + *step) % batches.len().max(1);
                pages
            }
        }
    }
}

fn run(group: u64, batch: u64) -> Vec<u64> {
    (group * batch..(group + 1) * batch).collect()
}

/// Cumulated shares of the ranks.
#[allow(clippy::cast_precision_loss, reason = "ranks stay far below 2^53")]
fn shares(groups: u64, theta: f64) -> Vec<f64> {
    let mut sum = 0.0;
    let mut shares: Vec<f64> = (1..=groups)
        .map(|rank| {
            sum += (rank as f64).powf(-theta);
            sum
        })
        .collect();
    shares.iter_mut().for_each(|share| *share /= sum);
    shares
}

/// Another place for each rank: a multiplication that no factor of `groups` undoes.
fn scatter(rank: u64, groups: u64) -> u64 {
    let mut factor = 0x9e37_79b9_7f4a_7c15_u64 % groups.max(1);
    while gcd(factor, groups) != 1 {
        factor += 1;
    }
    u64::try_from(u128::from(rank) * u128::from(factor) % u128::from(groups)).unwrap_or(0)
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_read() {
        assert_eq!("uniform".parse(), Ok(Choice::Uniform));
        assert_eq!("zipf:0.5".parse(), Ok(Choice::Zipf(0.5)));
        assert_eq!("trace:a.jsonl".parse(), Ok(Choice::Trace("a.jsonl".into())));
        for wrong in ["zipf:x", "zipf:-1", "trace:", "even"] {
            assert!(wrong.parse::<Choice>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn scattering_loses_no_group() {
        for groups in [1, 2, 7, 96, 1000] {
            let mut places: Vec<u64> = (0..groups).map(|rank| scatter(rank, groups)).collect();
            places.sort_unstable();
            assert_eq!(places, (0..groups).collect::<Vec<_>>());
        }
    }

    #[test]
    fn zipf_prefers_few_groups_and_uniform_none() {
        let count = |choice: &Choice| {
            let mut draw = Draw::new(choice, 1000, 10, 0, 1).unwrap();
            let mut random = Random(7);
            let mut hits = vec![0; 100];
            for _ in 0..10_000 {
                let pages = draw.next(&mut random);
                assert!(pages.len() == 10 && pages[0].is_multiple_of(10) && pages[9] < 1000);
                hits[usize::try_from(pages[0] / 10).unwrap()] += 1;
            }
            hits.sort_unstable();
            hits[99]
        };
        // The first of a hundred ranks has a share of 1 / (1 + 1/2 + … + 1/100), about 0.19.
        assert!((1700..2100).contains(&count(&Choice::Zipf(1.0))));
        assert!(count(&Choice::Uniform) < 200);
    }

    #[test]
    fn a_trace_is_cut_into_batches_and_shared_by_workers() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t");
        let line = |ids: &str, tokens| {
            format!("{{\"timestamp\": 0, \"input_length\": {tokens}, \"hash_ids\": [{ids}]}}\n")
        };
        std::fs::write(&path, line("5, 6, 7", 1536) + &line("5, 8", 1024)).unwrap();
        let choice = Choice::Trace(path);
        let mut random = Random(1);
        let mut draw = |index, of, count| {
            let mut draw = Draw::new(&choice, 0, 2, index, of).unwrap();
            (0..count).map(|_| draw.next(&mut random)).collect::<Vec<_>>()
        };
        assert_eq!(draw(0, 1, 4), [vec![0, 1], vec![2], vec![0, 3], vec![0, 1]]);
        assert_eq!(draw(1, 2, 1), [vec![2]]);
    }
}
