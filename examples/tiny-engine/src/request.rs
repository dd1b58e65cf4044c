//! What a caller asks for and what it gets.

use memkv_radix::Namespace;
use std::fmt;
use thiserror::Error;

/// Names a request for its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub(crate) u64);

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "request {}", self.0)
    }
}

/// A prompt to be continued.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// At least one token.
    pub prompt: Vec<u32>,
    /// How many tokens to generate at most; at least one.
    pub new_tokens_max: usize,
    /// Ends the answer when it is generated.
    pub stop: Option<u32>,
    /// Whom the request shares pages with: a salt per tenant keeps tenants apart.
    pub namespace: Namespace,
}

/// Why a request was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SubmitError {
    /// Nothing to compute.
    #[error("a request needs a prompt of at least one token and room for at least one new token")]
    Empty,
    /// A token that the model does not have.
    #[error("token {token} is not in the vocabulary of {vocabulary}")]
    UnknownToken {
        /// The token.
        token: u32,
        /// How many tokens there are.
        vocabulary: usize,
    },
    /// It could never run, not even alone.
    #[error("{pages} pages are needed, and the pool has {pool}; ask for less or give the pool more")]
    TooLong {
        /// Pages that prompt and answer may need.
        pages: usize,
        /// Pages there are.
        pool: usize,
    },
    /// Too many requests wait.
    #[error("{0} requests wait already; come back later")]
    Busy(usize),
}

/// What became of a request in one step.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A token was generated.
    Token {
        /// Whose.
        request: RequestId,
        /// The token.
        token: u32,
        /// What it was picked from: one number per token of the vocabulary.
        logits: Vec<f32>,
    },
    /// The answer is complete.
    Finished(Answer),
}

/// A complete answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Whose.
    pub request: RequestId,
    /// The generated tokens; the last one may be the stop token.
    pub tokens: Vec<u32>,
    /// Tokens of the prompt whose keys and values were found, the first time the request was admitted.
    pub cached_tokens: usize,
    /// How often the request had to give its pages back to others and start again from the cache.
    pub retractions: u32,
}
