//! Who stores pages and gives them back: MemKV over each transport, plain sockets, files, and other programs.
//!
//! All of them do the same: a pass puts the working set in batches, another gets it back. A pass is timed batch by batch
//! and in order; filling, spoiling and comparing happen outside of the timed regions.

pub(crate) mod conns;
pub(crate) mod file;
pub(crate) mod ours;
pub(crate) mod raw;
#[allow(
    unsafe_code,
    reason = "registered memory must outlive its region, which only the one who has both can see"
)]
mod region;

use crate::machine;
use crate::stats::{Latency, Spread};
use crate::workload::Workload;
use anyhow::{Context as _, ensure};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// What a subject is compared as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    /// MemKV itself.
    Memkv,
    /// What the machine can do.
    Baseline,
    /// Another store.
    Peer,
}

/// Somebody who stores pages.
pub(crate) trait Subject {
    /// Its name in tables.
    fn name(&self) -> &str;

    fn kind(&self) -> Kind;

    /// What it is, for people: version and shape.
    fn note(&self) -> String;

    /// The processes that serve it; their processor time is counted.
    fn servers(&self) -> &[u32];

    /// The process that is its client, if that is not this one.
    fn client(&self) -> Option<u32> {
        None
    }

    /// Whether it has pages of its own, and compares them itself.
    fn compares_itself(&self) -> bool {
        false
    }

    /// Whether it can do such a batch.
    fn takes(&self, batch: usize) -> bool {
        batch > 0
    }

    /// Its turn begins or is over. Between turns a peer's servers are stopped if they can be: some use a processor even when
    /// nobody asks anything of them, and that must not slow down the others.
    fn turn(&self, begins: bool) {
        let _ = begins;
    }

    /// Forgets everything.
    ///
    /// # Errors
    ///
    /// If it cannot.
    fn clear(&mut self) -> anyhow::Result<()>;

    /// Stores all pages, a batch at a time; returns each batch's nanoseconds.
    ///
    /// # Errors
    ///
    /// If a page was not stored.
    fn put_pass(&mut self, batch: usize, keys: &[Vec<u8>], pages: &[&[u8]]) -> anyhow::Result<Vec<u64>>;

    /// Reads all pages, a batch at a time; returns each batch's nanoseconds.
    ///
    /// # Errors
    ///
    /// If a page did not come back.
    fn get_pass(
        &mut self,
        batch: usize,
        keys: &[Vec<u8>],
        pages: &mut [&mut [u8]],
    ) -> anyhow::Result<Vec<u64>>;

    /// Asks for the same keys, which are all there, so many times; returns each request's nanoseconds.
    ///
    /// # Errors
    ///
    /// If one is not there.
    fn exists(&mut self, keys: &[Vec<u8>], times: usize) -> anyhow::Result<Vec<u64>>;
}

/// One pass over the working set.
#[derive(Debug)]
pub(crate) struct Pass {
    pub bytes: usize,
    pub client_cpu: Duration,
    pub server_cpu: Duration,
    pub batch_nanos: Vec<u64>,
}

impl Pass {
    #[allow(clippy::cast_precision_loss, reason = "bytes and nanoseconds of a pass stay far below 2^53")]
    fn figures(&self) -> Round {
        let per_gb = |cpu: Duration| cpu.as_secs_f64() / (self.bytes as f64 / 1e9);
        Round {
            gb_per_s: self.bytes as f64 / self.batch_nanos.iter().sum::<u64>().max(1) as f64,
            client_cpu_s_per_gb: per_gb(self.client_cpu),
            server_cpu_s_per_gb: per_gb(self.server_cpu),
        }
    }
}

/// The passes of one op, page size, batch size and subject, over all rounds.
#[derive(Default)]
pub(crate) struct Series {
    pub passes: Vec<Pass>,
}

/// One subject's figures in one cell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Figures {
    /// 10^9 bytes of pages a second.
    pub gb_per_s: Spread,
    /// Processor seconds for 10^9 bytes, of the client and of the servers.
    pub client_cpu_s_per_gb: f64,
    pub server_cpu_s_per_gb: f64,
    /// Time of one batch.
    pub latency: Latency,
    /// What each round had: a median hides that a machine has two speeds.
    #[serde(default)]
    pub by_round: Vec<Round>,
}

/// One round of [`Figures`], in the same units.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Round {
    pub gb_per_s: f64,
    pub client_cpu_s_per_gb: f64,
    pub server_cpu_s_per_gb: f64,
}

impl Figures {
    /// Processor seconds for 10^9 bytes, of both sides.
    pub(crate) fn cpu(&self) -> f64 {
        self.client_cpu_s_per_gb + self.server_cpu_s_per_gb
    }
}

impl Series {
    /// Medians over the passes; `None` if there are none.
    #[allow(clippy::cast_precision_loss, reason = "byte counts of a run stay far below 2^53")]
    pub(crate) fn figures(&self) -> Option<Figures> {
        let by_round: Vec<Round> = self.passes.iter().map(Pass::figures).collect();
        let speeds: Vec<f64> = by_round.iter().map(|round| round.gb_per_s).collect();
        let gb: f64 = self.passes.iter().map(|pass| pass.bytes as f64 / 1e9).sum();
        let client: Duration = self.passes.iter().map(|pass| pass.client_cpu).sum();
        let server: Duration = self.passes.iter().map(|pass| pass.server_cpu).sum();
        let nanos: Vec<u64> = self.passes.iter().flat_map(|pass| &pass.batch_nanos).copied().collect();
        Some(Figures {
            gb_per_s: Spread::of(&speeds)?,
            client_cpu_s_per_gb: client.as_secs_f64() / gb,
            server_cpu_s_per_gb: server.as_secs_f64() / gb,
            latency: Latency::of(&nanos)?,
            by_round,
        })
    }
}

/// Stores `count` pages of `page` bytes and reads them back; returns the get and the put.
///
/// # Errors
///
/// If a page was not stored, did not come back, or came back wrong.
pub(crate) fn put_and_get(
    subject: &mut dyn Subject,
    workload: &mut Workload,
    keys: &[Vec<u8>],
    page: usize,
    batch: usize,
) -> anyhow::Result<[Pass; 2]> {
    let bytes = keys.len() * page;
    ensure!(bytes <= workload.bytes(), "{} pages of {page} bytes do not fit the working set", keys.len());
    let what = format!("{}, pages of {page} bytes, batches of {batch}", subject.name());
    workload.spoil(bytes);
    subject.clear().with_context(|| format!("clear: {what}"))?;
    let source = workload.source_pages(page, keys.len());
    let put = timed(subject, bytes, |subject| subject.put_pass(batch, keys, &source));
    let put = put.with_context(|| format!("put: {what}"))?;
    let mut target = workload.target_pages(page, keys.len());
    let get = timed(subject, bytes, |subject| subject.get_pass(batch, keys, &mut target));
    let get = get.with_context(|| format!("get: {what}"))?;
    if !subject.compares_itself() {
        workload.verify(bytes, &what)?;
    }
    subject.clear().with_context(|| format!("clear: {what}"))?;
    Ok([get, put])
}

/// Counts the processor time of both sides of a pass.
fn timed(
    subject: &mut dyn Subject,
    bytes: usize,
    pass: impl FnOnce(&mut dyn Subject) -> anyhow::Result<Vec<u64>>,
) -> anyhow::Result<Pass> {
    let before = cpu(subject)?;
    let batch_nanos = pass(subject)?;
    let after = cpu(subject)?;
    let [client_cpu, server_cpu] = [0, 1].map(|side| after[side].saturating_sub(before[side]));
    Ok(Pass { bytes, client_cpu, server_cpu, batch_nanos })
}

/// Processor time of the client and of the servers so far.
fn cpu(subject: &dyn Subject) -> anyhow::Result<[Duration; 2]> {
    let client = match subject.client() {
        Some(pid) => machine::cpu_of(pid)?,
        None => machine::own_cpu(),
    };
    let mut servers = Duration::ZERO;
    for &pid in subject.servers() {
        servers += machine::cpu_of(pid)?;
    }
    Ok([client, servers])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_every_round_beside_their_median() {
        let pass = |millis: u64, client: u64, server: u64| Pass {
            bytes: 1_000_000_000,
            client_cpu: Duration::from_millis(client),
            server_cpu: Duration::from_millis(server),
            batch_nanos: vec![millis * 400_000, millis * 600_000],
        };
        let passes = vec![pass(200, 100, 300), pass(125, 50, 100), pass(500, 150, 200)];
        let figures = Series { passes }.figures().unwrap();
        let round = |gb_per_s, client_cpu_s_per_gb, server_cpu_s_per_gb| Round {
            gb_per_s,
            client_cpu_s_per_gb,
            server_cpu_s_per_gb,
        };
        assert_eq!(figures.by_round, [round(5.0, 0.1, 0.3), round(8.0, 0.05, 0.1), round(2.0, 0.15, 0.2)]);
        assert_eq!(figures.gb_per_s.median, 5.0);
    }
}
