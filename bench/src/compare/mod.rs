//! The comparison: MemKV over each transport, what the machine can do, and other stores, all in one run and in turns.
//!
//! A round visits every page size, batch size and subject; the order of subjects rotates from round to round, so that a slow
//! minute of the machine hits all of them. The first round warms up (every page of memory is touched) and does not count.
//! A subject that is absent or fails is left out, with the reason.

mod crowd;
mod extras;
pub(crate) mod report;
pub(crate) mod tables;

use crate::daemon::Daemon;
use crate::machine::{self, Machine};
use crate::peer::Peer;
use crate::peer::install::Cache;
use crate::raw;
use crate::stats::{Latency, Spread};
use crate::subject::file::Files;
use crate::subject::ours::{self, Ours, Over};
use crate::subject::{Kind, Series, Subject, put_and_get, raw as raw_subject};
use crate::workload::{self, Workload};
use anyhow::{Context as _, ensure};
use crowd::Crowd;
use report::{About, Cell, ExistsRow, MemoryUse, Named, Report, Settings, Skipped};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Instant;

/// In figures, get comes first.
pub(crate) const OPS: [&str; 2] = ["get", "put"];
/// Pages that exists asks about are small: it does not move them.
const EXISTS_PAGE_BYTES: usize = 4096;
/// Batches of one page: enough of them for a median, and not more.
const SINGLES: usize = 1024;

/// What to run.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub working_set_bytes: usize,
    pub rounds: usize,
    /// Page sizes and batch sizes.
    pub cells: Vec<(usize, usize)>,
    /// Keys of one exists.
    pub exists: Vec<usize>,
    /// Requests of one exists in a round, of each subject.
    pub exists_times: usize,
    pub transports: Vec<Over>,
    pub peers: Vec<Peer>,
    /// Whether peers may be fetched, and with which Python.
    pub install: bool,
    pub python: Option<PathBuf>,
    /// Client processes that work at once; none: not measured.
    pub crowd: usize,
    /// Seconds to watch an idle server; 0: not watched.
    pub idle_seconds: f64,
    pub server: PathBuf,
    pub command: String,
}

/// Everybody who is compared, and what was measured of them.
struct Bench {
    plan: Plan,
    daemon: Daemon,
    raw_server: Rc<raw::Server>,
    subjects: Vec<Entry>,
    skipped: Vec<Skipped>,
    workload: Workload,
    /// What the server's process held before anybody connected.
    empty_bytes: u64,
}

struct Entry {
    subject: Box<dyn Subject>,
    /// By cell, then op.
    series: Vec<[Series; 2]>,
    /// Nanoseconds by number of keys.
    exists: Vec<Vec<u64>>,
}

/// Runs the plan; `progress` is told what comes next.
///
/// # Errors
///
/// If a baseline fails, or wrong bytes come from MemKV. A peer that fails is left out.
pub(crate) fn run(plan: Plan, progress: &dyn Fn(&str)) -> anyhow::Result<Report> {
    progress("starting servers and filling memory");
    let mut bench = Bench::start(plan)?;
    for skipped in &bench.skipped {
        progress(&format!("skipped: {}: {}", skipped.subject, skipped.reason));
    }
    let growth = extras::growth(&mut bench)?;
    let mut crowd = Crowd::start(&bench)?;
    let mut copies: [Vec<f64>; 2] = Default::default();
    let rounds = bench.plan.rounds;
    for round in 0..=rounds {
        let counts = round > 0;
        progress(&if counts { format!("round {round} of {rounds}") } else { "warm-up".into() });
        for cell in 0..bench.plan.cells.len() {
            bench.cell(cell, round, counts)?;
        }
        for keys in 0..bench.plan.exists.len() {
            bench.exists(keys, round, counts)?;
        }
        extras::copy(&mut bench.workload, &mut copies, counts);
        crowd.round(counts)?;
    }
    let crowd = crowd.report()?;
    let idle_cores = extras::idle(&bench)?;
    bench.report(growth, &copies, crowd, idle_cores)
}

impl Bench {
    fn start(plan: Plan) -> anyhow::Result<Self> {
        let bytes = plan.working_set_bytes;
        // Room enough that nothing is evicted: eviction is another measurement.
        let room = bytes as u64 * 3 / 2 + (512 << 20);
        let daemon = Daemon::start(&plan.server, room)?;
        let empty_bytes = machine::settled_resident_bytes(daemon.pid());
        let mut bench = Self {
            workload: Workload::new(bytes)?,
            plan,
            daemon,
            raw_server: Rc::new(raw::Server::start()?),
            subjects: Vec::new(),
            skipped: Vec::new(),
            empty_bytes,
        };
        for transport in bench.plan.transports.clone() {
            let memory = bench.workload.memory();
            let subject = Ours::new(&bench.daemon, transport, memory);
            bench.add(&ours::name(transport), subject.map(|subject| Box::new(subject) as Box<dyn Subject>));
        }
        for conns in [1, 2] {
            let subject = raw_subject::subject(&bench.raw_server, conns, bytes)?;
            bench.add(raw_subject::name(conns), Ok(Box::new(subject)));
        }
        let files = Files::new()?;
        bench.add(files.name().to_owned().as_str(), Ok(Box::new(files)));
        if !bench.plan.peers.is_empty() {
            let cache = Cache::new(bench.plan.install, bench.plan.python.clone())?;
            for peer in bench.plan.peers.clone() {
                // Some keep what was overwritten for a while.
                let started = peer.start(&cache, 2 * bytes as u64 + (256 << 20));
                bench.add(peer.name(), started);
            }
        }
        ensure!(
            bench.subjects.iter().any(|entry| entry.subject.kind() == Kind::Memkv),
            "no transport works here: {:?}",
            bench.skipped
        );
        Ok(bench)
    }

    fn add(&mut self, name: &str, subject: anyhow::Result<Box<dyn Subject>>) {
        match subject {
            Ok(subject) => {
                subject.turn(false);
                self.subjects.push(Entry {
                    subject,
                    series: self.plan.cells.iter().map(|_| Default::default()).collect(),
                    exists: vec![Vec::new(); self.plan.exists.len()],
                });
            }
            Err(error) => self.skip(name, &error),
        }
    }

    fn skip(&mut self, name: &str, error: &anyhow::Error) {
        self.skipped.push(Skipped { subject: name.to_owned(), reason: format!("{error:#}") });
    }

    /// Does one thing with every subject, in this round's order; a peer that fails is left out from then on.
    fn each(
        &mut self,
        round: usize,
        mut act: impl FnMut(&mut Entry, &mut Workload) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let count = self.subjects.len();
        let mut failed = Vec::new();
        for turn in 0..count {
            let which = (turn + round) % count;
            let entry = &mut self.subjects[which];
            entry.subject.turn(true);
            let acted = act(entry, &mut self.workload);
            entry.subject.turn(false);
            if let Err(error) = acted {
                let name = entry.subject.name().to_owned();
                ensure!(entry.subject.kind() == Kind::Peer, "{name}: {error:#}");
                eprintln!("{name} failed and is left out: {error:#}");
                failed.push((which, name, error));
            }
        }
        failed.sort_by_key(|(which, ..)| *which);
        for (which, name, error) in failed.into_iter().rev() {
            self.subjects.remove(which);
            self.skip(&name, &error);
        }
        Ok(())
    }

    fn cell(&mut self, cell: usize, round: usize, counts: bool) -> anyhow::Result<()> {
        let (page, batch) = self.plan.cells[cell];
        let bytes = self.plan.working_set_bytes;
        let most = if batch == 1 { SINGLES.min(bytes / 2 / page).max(1) } else { bytes / page };
        ensure!(
            batch * page <= bytes,
            "a batch of {batch} pages of {page} bytes does not fit the working set"
        );
        let count = most / batch * batch;
        let keys = workload::keys(&format!("{page}-{batch}"), count);
        self.each(round, |entry, workload| {
            if !entry.subject.takes(batch) {
                return Ok(());
            }
            let passes = put_and_get(&mut *entry.subject, workload, &keys, page, batch)?;
            if counts {
                for (series, pass) in entry.series[cell].iter_mut().zip(passes) {
                    series.passes.push(pass);
                }
            }
            Ok(())
        })
    }

    /// Asks for the same keys again and again, all subjects in turns.
    fn exists(&mut self, which: usize, round: usize, counts: bool) -> anyhow::Result<()> {
        const TURNS: usize = 4;
        let count = self.plan.exists[which];
        let keys = workload::keys("exists", count);
        self.each(round, |entry, workload| {
            let pages = workload.source_pages(EXISTS_PAGE_BYTES, count);
            ensure!(pages.len() == count, "the working set is too small for {count} keys");
            entry.subject.clear()?;
            entry.subject.put_pass(count, &keys, &pages).map(drop)
        })?;
        for turn in 0..TURNS {
            let times = (self.plan.exists_times / TURNS).max(1);
            self.each(round + turn, |entry, _| {
                if !entry.subject.takes(1) {
                    return Ok(());
                }
                let nanos = entry.subject.exists(&keys, times)?;
                if counts {
                    entry.exists[which].extend(nanos);
                }
                Ok(())
            })?;
        }
        self.each(round, |entry, _| entry.subject.clear())
    }

    fn report(
        self,
        growth: Option<f64>,
        copies: &[Vec<f64>; 2],
        crowd: Option<report::Crowd>,
        idle_cores: Option<f64>,
    ) -> anyhow::Result<Report> {
        let mut cells = Vec::new();
        for (which_op, op) in OPS.into_iter().enumerate() {
            for (which, &(page_bytes, batch)) in self.plan.cells.iter().enumerate() {
                let of = |entry: &Entry| {
                    let value = entry.series[which][which_op].figures()?;
                    Some(Named { subject: entry.subject.name().to_owned(), value })
                };
                let figures = self.subjects.iter().filter_map(of).collect();
                cells.push(Cell { op: op.to_owned(), page_bytes, batch, figures });
            }
        }
        let exists = self.plan.exists.iter().enumerate().map(|(which, &keys)| ExistsRow {
            keys,
            latencies: self
                .subjects
                .iter()
                .filter_map(|entry| {
                    let value = Latency::of(&entry.exists[which])?;
                    Some(Named { subject: entry.subject.name().to_owned(), value })
                })
                .collect(),
        });
        let copy = |speeds: &[f64]| Spread::of(speeds).context("no copy was measured");
        let about = |entry: &Entry| About {
            subject: entry.subject.name().to_owned(),
            kind: entry.subject.kind(),
            note: entry.subject.note(),
        };
        Ok(Report {
            command: self.plan.command.clone(),
            machine: Machine::describe(),
            settings: Settings {
                working_set_bytes: self.plan.working_set_bytes as u64,
                rounds: self.plan.rounds,
                debug_build: cfg!(debug_assertions),
            },
            subjects: self.subjects.iter().map(about).collect(),
            memcpy: [copy(&copies[0])?, copy(&copies[1])?],
            cells,
            exists: exists.collect(),
            crowd,
            memory: MemoryUse {
                server_resident_bytes: machine::resident_bytes(self.daemon.pid()),
                server_huge_page_bytes: machine::huge_page_bytes(self.daemon.pid()),
                raw_huge_page_bytes: machine::huge_page_bytes(self.raw_server.pid()),
                growth_per_stored_byte: growth,
            },
            idle_cores,
            skipped: self.skipped,
        })
    }
}

/// Nanoseconds as gigabytes a second.
#[allow(clippy::cast_precision_loss, reason = "a working set stays far below 2^53 bytes")]
fn speed(bytes: usize, start: Instant) -> f64 {
    bytes as f64 / 1e9 / start.elapsed().as_secs_f64()
}
