//! Several client processes at once, half of their batches gets and half puts: MemKV over TCP and the raw baseline.

use super::Bench;
use super::report::{self, Named};
use crate::load::keys::Choice;
use crate::load::orders::{Endpoint, Op};
use crate::load::{Load, Rounds, Shape};
use crate::subject::ours::{self, Over};
use memkv_client::Transport;

const PAGE_BYTES: usize = 1 << 20;
const BATCH: usize = 16;
/// Batches of one process in one burst.
const BURST_BATCHES: usize = 8;
/// What raw is called here: a connection a process.
const RAW: &str = "raw";

/// The processes of each subject.
pub(super) struct Crowd {
    processes: usize,
    members: Vec<(String, Load, Rounds)>,
}

impl Crowd {
    /// Starts and fills them; nobody if the plan says so.
    ///
    /// # Errors
    ///
    /// If a process cannot start or connect.
    pub(super) fn start(bench: &Bench) -> anyhow::Result<Self> {
        let processes = bench.plan.crowd;
        let mut crowd = Self { processes, members: Vec::new() };
        if processes == 0 {
            return Ok(crowd);
        }
        let pages = (bench.plan.working_set_bytes / PAGE_BYTES / 4 / BATCH).clamp(1, 8) * BATCH;
        let shape = Shape {
            op: Op::Mixed,
            page_bytes: PAGE_BYTES,
            batch: BATCH,
            choice: Choice::Uniform,
            pages: pages as u64,
            burst_batches: (pages / BATCH).clamp(2, BURST_BATCHES),
            seed: 1,
        };
        let (daemon, raw) = (&bench.daemon, &bench.raw_server);
        let memkv = Endpoint::Memkv {
            servers: daemon.address(),
            key: Some(daemon.key().to_owned()),
            transport: Transport::Tcp.to_string(),
        };
        let raw_endpoint = Endpoint::Raw { address: raw.addr().to_string() };
        for (name, endpoint, server) in [
            (ours::name(Over::Plain(Transport::Tcp)), memkv, daemon.pid()),
            (RAW.to_owned(), raw_endpoint, raw.pid()),
        ] {
            let mut load = Load::start(&endpoint, Some(server), &shape, processes)?;
            load.fill()?;
            crowd.members.push((name, load, Rounds::new()?));
        }
        Ok(crowd)
    }

    /// A burst of each.
    ///
    /// # Errors
    ///
    /// If an op fails or wrong bytes came.
    pub(super) fn round(&mut self, counts: bool) -> anyhow::Result<()> {
        let mut warm = Rounds::new()?;
        for (_, load, rounds) in &mut self.members {
            load.round(BURST_BATCHES, None, if counts { rounds } else { &mut warm })?;
        }
        // The next round begins with another.
        let by = 1.min(self.members.len());
        self.members.rotate_left(by);
        Ok(())
    }

    /// What came of it.
    ///
    /// # Errors
    ///
    /// If nothing ran.
    pub(super) fn report(self) -> anyhow::Result<Option<report::Crowd>> {
        let gb_per_s = self.members.iter().filter_map(|(name, _, rounds)| {
            Some(Named { subject: name.clone(), value: rounds.figures()?.gb_per_s })
        });
        let gb_per_s: Vec<_> = gb_per_s.collect();
        Ok((!gb_per_s.is_empty()).then_some(report::Crowd {
            processes: self.processes,
            page_bytes: PAGE_BYTES,
            batch: BATCH,
            gb_per_s,
        }))
    }
}
