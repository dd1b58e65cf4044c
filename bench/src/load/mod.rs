//! Load from real client processes: closed loop, or at a fixed rate whatever the answers do.
//!
//! A round is a burst and a check. In a burst all processes start together and each runs a fixed number of batches; with a
//! rate, batch n is due at its time, and its latency counts from then, so that a server that stalls cannot hide how long
//! the batches behind it waited. In the check everything that came is compared. Each process is this program again; their
//! histograms are merged here.

pub(crate) mod command;
mod crew;
mod endpoint;
pub(crate) mod keys;
pub(crate) mod orders;
pub(crate) mod worker;

use crate::machine;
use crate::stats::{Spread, Tail};
use anyhow::Context as _;
use crew::Crew;
use hdrhistogram::Histogram;
use keys::Choice;
use orders::{Answer, Endpoint, Job, Op, Order};
use serde::Serialize;
use std::time::Duration;

/// Time between an order and the begin of its burst: all processes must have read it.
const HEAD_START_NANOS: u64 = 20_000_000;

/// What every client process does.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub op: Op,
    pub page_bytes: usize,
    pub batch: usize,
    pub choice: Choice,
    /// Pages that are stored before.
    pub pages: u64,
    /// The most batches of one process in one burst.
    pub burst_batches: usize,
    pub seed: u64,
}

/// Client processes that are connected.
pub(crate) struct Load {
    crew: Crew,
    processes: usize,
    shape: Shape,
    server: Option<u32>,
}

/// What bursts came to.
pub(crate) struct Rounds {
    speeds: Vec<f64>,
    sum: Answer,
    nanos: u64,
    server_cpu: Duration,
    from_intended: Histogram<u64>,
    from_begin: Histogram<u64>,
}

/// What a load came to, in figures.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Figures {
    /// 10^9 bytes of pages a second, both ways together.
    pub gb_per_s: Spread,
    pub batches_per_s: f64,
    /// Shares of the keys that were asked for and were there.
    pub hit_ratio: Option<f64>,
    pub put_existing: u64,
    pub put_refused: u64,
    /// Pages that were compared with their source.
    pub pages_compared: u64,
    /// Latency of a batch from when it was due; equal to the next in a closed loop.
    pub from_intended: Tail,
    /// Latency of a batch from when it was sent.
    pub from_begin: Tail,
    pub client_cpu_s_per_gb: f64,
    pub server_cpu_s_per_gb: f64,
}

/// Of nanoseconds, up to an hour, to three digits.
fn histogram() -> anyhow::Result<Histogram<u64>> {
    Histogram::new_with_bounds(1, 3_600_000_000_000, 3).context("make a histogram")
}

impl Load {
    /// Starts and connects the processes. `server` is whose processor time is counted.
    ///
    /// # Errors
    ///
    /// If one cannot start or connect.
    pub(crate) fn start(
        endpoint: &Endpoint,
        server: Option<u32>,
        shape: &Shape,
        processes: usize,
    ) -> anyhow::Result<Self> {
        let jobs: Vec<Job> = (0..processes)
            .map(|index| Job {
                endpoint: endpoint.clone(),
                op: shape.op,
                page_bytes: shape.page_bytes,
                batch: shape.batch,
                choice: shape.choice.clone(),
                pages: shape.pages,
                burst_batches: shape.burst_batches,
                index,
                of: processes,
                seed: shape.seed,
            })
            .collect();
        Ok(Self { crew: Crew::start(&jobs)?, processes, shape: shape.clone(), server })
    }

    /// Stores all pages; returns how many were refused.
    ///
    /// # Errors
    ///
    /// If a put fails.
    pub(crate) fn fill(&mut self) -> anyhow::Result<u64> {
        Ok(self.crew.all(&Order::Fill)?.iter().map(|answer| answer.put_refused).sum())
    }

    /// Runs a burst and compares everything. `rate` is in batches a second of all processes together.
    ///
    /// # Errors
    ///
    /// If an op fails or wrong bytes came.
    pub(crate) fn round(
        &mut self,
        batches: usize,
        rate: Option<f64>,
        into: &mut Rounds,
    ) -> anyhow::Result<()> {
        let server_before = self.server.map(machine::cpu_of).transpose()?;
        let begin = machine::monotonic_nanos() + HEAD_START_NANOS;
        // Each process has a share of the rate, and begins a little after the one before it.
        let pace = rate.map(|rate| self.processes as f64 / rate * 1e9);
        let order = |index: usize| {
            #[allow(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a time of seconds, not negative"
            )]
            let [pace_nanos, late] = [pace, pace.map(|pace| pace * index as f64 / self.processes as f64)]
                .map(|time| time.map(|time| time as u64));
            Order::Burst {
                batches: batches.min(self.shape.burst_batches),
                begin_nanos: begin + late.unwrap_or(0),
                pace_nanos,
            }
        };
        let answers = self.crew.each(order)?;
        let server_after = self.server.map(machine::cpu_of).transpose()?;
        into.add(&answers)?;
        into.server_cpu +=
            server_after.zip(server_before).map_or(Duration::ZERO, |(b, a)| b.saturating_sub(a));
        into.sum.compared += self.crew.all(&Order::Check)?.iter().map(|answer| answer.compared).sum::<u64>();
        Ok(())
    }
}

impl Rounds {
    pub(crate) fn new() -> anyhow::Result<Self> {
        let empty = histogram()?;
        Ok(Self {
            speeds: Vec::new(),
            sum: Answer::default(),
            nanos: 0,
            server_cpu: Duration::ZERO,
            from_intended: empty.clone(),
            from_begin: empty,
        })
    }

    /// Bytes that moved so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.sum.got_bytes + self.sum.put_bytes
    }

    /// Adds one burst's answers.
    fn add(&mut self, answers: &[Answer]) -> anyhow::Result<()> {
        let begin = answers.iter().map(|answer| answer.begin_nanos).min().context("no process answered")?;
        let end = answers.iter().map(|answer| answer.end_nanos).max().context("no process answered")?;
        let nanos = end.saturating_sub(begin).max(1);
        let bytes: u64 = answers.iter().map(|answer| answer.got_bytes + answer.put_bytes).sum();
        self.nanos += nanos;
        self.speeds.push(bytes as f64 / nanos as f64);
        let sum = &mut self.sum;
        for answer in answers {
            sum.got_bytes += answer.got_bytes;
            sum.put_bytes += answer.put_bytes;
            sum.keys += answer.keys;
            sum.hits += answer.hits;
            sum.put_existing += answer.put_existing;
            sum.put_refused += answer.put_refused;
            sum.cpu_nanos += answer.cpu_nanos;
            for (from, to) in
                [(&answer.from_intended, &mut self.from_intended), (&answer.from_begin, &mut self.from_begin)]
            {
                for &(nanos, count) in from {
                    to.record_n(nanos, count).context("merge histograms")?;
                }
            }
        }
        Ok(())
    }

    /// Everything so far; `None` if nothing ran.
    #[allow(clippy::cast_precision_loss, reason = "counts of a run stay far below 2^53")]
    pub(crate) fn figures(&self) -> Option<Figures> {
        let (seconds, gb) = (self.nanos as f64 / 1e9, self.bytes() as f64 / 1e9);
        let per_gb = |time: Duration| if gb > 0.0 { time.as_secs_f64() / gb } else { 0.0 };
        Some(Figures {
            gb_per_s: Spread::of(&self.speeds)?,
            batches_per_s: self.from_begin.len() as f64 / seconds,
            hit_ratio: (self.sum.keys > 0).then(|| self.sum.hits as f64 / self.sum.keys as f64),
            put_existing: self.sum.put_existing,
            put_refused: self.sum.put_refused,
            pages_compared: self.sum.compared,
            from_intended: Tail::of(&self.from_intended),
            from_begin: Tail::of(&self.from_begin),
            client_cpu_s_per_gb: per_gb(Duration::from_nanos(self.sum.cpu_nanos)),
            server_cpu_s_per_gb: per_gb(self.server_cpu),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_processes_are_merged() {
        let mut rounds = Rounds::new().unwrap();
        let answer = |begin_nanos, end_nanos, latency| Answer {
            begin_nanos,
            end_nanos,
            got_bytes: 500,
            put_bytes: 500,
            keys: 4,
            hits: 3,
            cpu_nanos: 1000,
            from_intended: vec![(latency * 2, 1)],
            from_begin: vec![(latency, 1)],
            ..Answer::default()
        };
        rounds.add(&[answer(100, 900, 1000), answer(200, 1100, 3000)]).unwrap();
        let figures = rounds.figures().unwrap();
        // 2000 bytes between the first begin and the last end.
        assert_eq!(figures.gb_per_s.median, 2.0);
        assert_eq!(figures.hit_ratio, Some(0.75));
        assert_eq!(figures.from_begin.count, 2);
        assert!((figures.from_begin.max_us - 3.0).abs() < 0.01, "three digits: {figures:?}");
        assert!((figures.from_intended.max_us - 6.0).abs() < 0.01);
        assert_eq!(figures.client_cpu_s_per_gb, 1.0);
    }
}
