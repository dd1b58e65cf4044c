//! Traces of requests in the Mooncake format: one JSON object a line.
//!
//! | field           | meaning                                                              |
//! |-----------------|----------------------------------------------------------------------|
//! | `timestamp`     | when the request came, in milliseconds                               |
//! | `input_length`  | tokens of the prompt                                                 |
//! | `output_length` | tokens of the answer; optional, not used                             |
//! | `hash_ids`      | one id per block of 512 tokens of the prompt, in order; equal ids are equal prefixes |

use memkv_eviction::Moment;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::HashMap;

/// Tokens of a block.
pub(crate) const BLOCK_TOKENS: u64 = 512;
/// The longest prompt; sums over all prompts of a trace stay far from overflowing.
const PROMPT_TOKENS_MAX: u64 = 1 << 32;

/// One line of a trace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Line {
    /// When the request came, in milliseconds. A fraction is cut off.
    #[serde(deserialize_with = "milliseconds")]
    pub timestamp: u64,
    /// Tokens of the prompt.
    pub input_length: u64,
    /// Tokens of the answer.
    #[serde(default)]
    pub output_length: u64,
    /// The blocks of the prompt.
    pub hash_ids: Vec<u64>,
}

/// A request, with blocks numbered from 0 in the order in which the trace first names them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub now: Moment,
    pub input_tokens: u64,
    pub blocks: Vec<u32>,
}

impl Request {
    /// Tokens of the first `blocks` blocks: the last block of a prompt may be a part of one.
    pub(crate) fn tokens(&self, blocks: usize) -> u64 {
        (blocks as u64 * BLOCK_TOKENS).min(self.input_tokens)
    }
}

/// A whole trace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Trace {
    pub requests: Vec<Request>,
    /// The ids that the trace gives the blocks.
    pub ids: Vec<u64>,
    /// Tokens of all prompts.
    pub input_tokens: u64,
}

/// What is wrong with a trace.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BadTrace {
    #[error(
        "line {line}: {why}; a line is {{\"timestamp\": 0, \"input_length\": 600, \"hash_ids\": [1, 2]}}"
    )]
    Line { line: usize, why: String },
    #[error("the trace has no requests")]
    Empty,
}

impl Trace {
    /// Reads a trace. Empty lines are passed over. Time that runs backwards stands still instead. Requests of one time are
    /// [spread](spread) until the next.
    pub(crate) fn parse(text: &str) -> Result<Self, BadTrace> {
        let mut lines = Vec::new();
        for (number, line) in (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty()) {
            let bad = |why: String| BadTrace::Line { line: number, why };
            let line: Line = serde_json::from_str(line).map_err(|error| bad(error.to_string()))?;
            check(&line).map_err(bad)?;
            lines.push(line);
        }
        Self::from_lines(lines)
    }

    /// Makes a trace of lines that are known to be right.
    pub(crate) fn from_lines(lines: Vec<Line>) -> Result<Self, BadTrace> {
        let (mut trace, mut numbers, mut now_ms) = (Self::default(), HashMap::new(), 0);
        for line in lines {
            now_ms = line.timestamp.max(now_ms);
            let mut blocks = Vec::with_capacity(line.hash_ids.len());
            for id in line.hash_ids {
                let next = u32::try_from(numbers.len()).expect("memory ends before 2^32 blocks");
                blocks.push(*numbers.entry(id).or_insert_with(|| {
                    trace.ids.push(id);
                    next
                }));
            }
            trace.input_tokens += line.input_length;
            trace.requests.push(Request { now: now_ms.into(), input_tokens: line.input_length, blocks });
        }
        spread(&mut trace.requests);
        if trace.requests.is_empty() { Err(BadTrace::Empty) } else { Ok(trace) }
    }

    /// The number of different blocks.
    pub(crate) fn distinct(&self) -> usize {
        self.ids.len()
    }
}

/// Many traces tell time in steps of a second or more, so requests seem to come at once which did not. Those of one step
/// are taken to come evenly until the next one, in their order; those of the last step as far apart as on average.
fn spread(requests: &mut [Request]) {
    let steps = requests.chunk_by(|a, b| a.now == b.now).count();
    let mean_ms = match requests {
        [first, .., last] if steps > 1 => (last.now.ms - first.now.ms) / (steps as u64 - 1),
        _ => requests.len() as u64,
    };
    let starts: Vec<u64> = requests.chunk_by(|a, b| a.now == b.now).map(|step| step[0].now.ms).collect();
    let mut ends = starts.into_iter().skip(1);
    for step in requests.chunk_by_mut(|a, b| a.now == b.now) {
        let (start, count) = (step[0].now, step.len() as u128);
        let length = Moment::from(ends.next().map_or(mean_ms, |end_ms| end_ms - start.ms)).number();
        for (number, request) in (0..).zip(step) {
            let later = u128::from(length) * number / count;
            request.now = Moment::from_number(start.number() + later as u64);
        }
    }
}

fn milliseconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let number = f64::deserialize(deserializer)?;
    if number >= 0.0 { Ok(number as u64) } else { Err(D::Error::custom("the timestamp is before 0")) }
}

/// A prompt of more blocks than it has ids for is taken as it is: the rest is never hit.
fn check(line: &Line) -> Result<(), String> {
    let (tokens, ids) = (line.input_length, line.hash_ids.len() as u64);
    if tokens > PROMPT_TOKENS_MAX {
        return Err(format!("{tokens} tokens are more than a prompt has ({PROMPT_TOKENS_MAX})"));
    }
    if tokens.div_ceil(BLOCK_TOKENS) < ids {
        return Err(format!(
            "{tokens} tokens are {} blocks of 512, not {ids}",
            tokens.div_ceil(BLOCK_TOKENS)
        ));
    }
    let mut ids = line.hash_ids.clone();
    ids.sort_unstable();
    match ids.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(format!("block {} comes twice in one prompt", pair[0])),
        None => Ok(()),
    }
}
