//! What the coordinator and its client processes say to each other: one JSON object a line.

use super::keys::Choice;
use serde::{Deserialize, Serialize};

/// What a batch does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
pub(crate) enum Op {
    /// Reads pages that were stored before.
    Get,
    /// Stores new pages.
    Put,
    /// Asks whether pages are there.
    Exists,
    /// In turns a get and a put of new pages.
    Mixed,
    /// Reads pages and stores those that are missing, as an engine does.
    Cache,
}

/// Whom a client process talks to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Endpoint {
    Memkv {
        servers: String,
        key: Option<String>,
        transport: String,
    },
    /// The raw baseline, over one connection.
    Raw {
        address: String,
    },
}

/// The first line to a client process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Job {
    pub endpoint: Endpoint,
    pub op: Op,
    pub page_bytes: usize,
    pub batch: usize,
    pub choice: Choice,
    /// Pages that there are; they are named by their numbers.
    pub pages: u64,
    /// The most batches of one burst: each has memory of its own to arrive in.
    pub burst_batches: usize,
    /// This process among the others.
    pub index: usize,
    pub of: usize,
    pub seed: u64,
}

/// Every further line to a client process. Each is answered with an [`Answer`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Order {
    /// Store this process's share of the pages.
    Fill,
    /// Run so many batches. With a pace: batch n is to begin `n * pace_nanos` after `begin_nanos` of the monotonic clock.
    Burst { batches: usize, begin_nanos: u64, pace_nanos: Option<u64> },
    /// Compare what came, read back what was put, and remove it unless it is to stay.
    Check,
}

/// What a client process answers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Answer {
    /// What went wrong, if anything did; the process ends then.
    pub error: Option<String>,
    /// Times on the monotonic clock.
    pub begin_nanos: u64,
    pub end_nanos: u64,
    pub cpu_nanos: u64,
    pub got_bytes: u64,
    pub put_bytes: u64,
    /// Keys that were asked for, and those of them that were there.
    pub keys: u64,
    pub hits: u64,
    /// Pages of puts that were there already, or refused as the store was busy.
    pub put_existing: u64,
    pub put_refused: u64,
    /// Pages that were compared with their source.
    pub compared: u64,
    /// Latency in nanoseconds and how often: from the intended begin of each batch, and from its real one.
    pub from_intended: Vec<(u64, u64)>,
    pub from_begin: Vec<(u64, u64)>,
}
