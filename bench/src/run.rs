//! The closed-loop run: one caller, one batch at a time, MemKV and its limit in turns.
//!
//! A round visits every page size, batch size and subject; the order of subjects rotates from round to round, so
//! that a slow minute of the machine hits all of them. The first round warms up (every
//! page of memory is touched) and does not count.

use crate::daemon::Daemon;
use crate::machine::{self, Machine};
use crate::raw::{self, elapsed_nanos};
use crate::report::{Cell, ExistsRow, Figures, GrpcRow, MemoryUse, Report, Settings};
use crate::stats::{Latency, Spread};
use crate::workload::{self, Workload};
use anyhow::{Context as _, ensure};
use memkv_client::blocking::{Client, Space};
use memkv_client::{Config, PageOutcome, Transport};
use memkv_core::SpaceDescription;
use std::path::PathBuf;
use std::time::{Duration, Instant};

const BATCHES: [usize; 3] = [1, 32, 128];
const EXISTS_KEYS: [usize; 3] = [1, 128, 1024];
/// Pages that exists asks about are small: it does not move them.
const EXISTS_PAGE_BYTES: usize = 4096;
const GRPC_PAGE_BYTES: usize = 1 << 20;
const GRPC_BATCH: usize = 32;
/// A bench must not time out on a busy machine: it measures, it does not judge.
const OP_TIMEOUT: Duration = Duration::from_secs(20);

/// What to run.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub working_set_bytes: usize,
    pub rounds: usize,
    pub page_bytes: Vec<usize>,
    pub server: PathBuf,
    pub command: String,
}

/// Who moves the pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Subject {
    MemKv,
    RawOne,
    RawTwo,
}

const SUBJECTS: [Subject; 3] = [Subject::MemKv, Subject::RawOne, Subject::RawTwo];
const OPS: [&str; 2] = ["get", "put"];

/// One pass over the working set.
pub(crate) struct Pass {
    bytes: usize,
    elapsed: Duration,
    client_cpu: Duration,
    server_cpu: Duration,
    batch_nanos: Vec<u64>,
}

/// The passes of one op, page size, batch size and subject, over all rounds.
#[derive(Default)]
pub(crate) struct Series {
    pub(crate) passes: Vec<Pass>,
}

impl Series {
    #[allow(clippy::cast_precision_loss, reason = "byte counts of a run stay far below 2^53")]
    pub(crate) fn figures(&self) -> anyhow::Result<Figures> {
        let speeds: Vec<f64> =
            self.passes.iter().map(|pass| pass.bytes as f64 / 1e9 / pass.elapsed.as_secs_f64()).collect();
        let gb: f64 = self.passes.iter().map(|pass| pass.bytes as f64 / 1e9).sum();
        let client: Duration = self.passes.iter().map(|pass| pass.client_cpu).sum();
        let server: Duration = self.passes.iter().map(|pass| pass.server_cpu).sum();
        let nanos: Vec<u64> = self.passes.iter().flat_map(|pass| &pass.batch_nanos).copied().collect();
        Ok(Figures {
            gb_per_s: Spread::of(&speeds).context("no round was measured")?,
            client_cpu_s_per_gb: client.as_secs_f64() / gb,
            server_cpu_s_per_gb: server.as_secs_f64() / gb,
            latency: Latency::of(&nanos).context("no op was measured")?,
        })
    }
}

/// All processes and memory of a run.
struct Bench {
    plan: Plan,
    daemon: Daemon,
    raw_server: raw::Server,
    raw_conns: Vec<raw::Conn>,
    client: Client,
    space: Space,
    workload: Workload,
}

/// Runs the plan; `progress` is told what comes next.
pub(crate) fn run(plan: Plan, progress: &dyn Fn(&str)) -> anyhow::Result<Report> {
    progress("starting servers and filling memory");
    let mut bench = Bench::start(plan)?;
    let rounds = bench.plan.rounds;
    let cells: Vec<(usize, usize)> =
        bench.plan.page_bytes.iter().flat_map(|&page| BATCHES.map(|batch| (page, batch))).collect();
    // Indexed by cell, then op, then subject.
    let mut series: Vec<[[Series; 3]; 2]> = cells.iter().map(|_| Default::default()).collect();
    let mut exists: Vec<[Vec<u64>; 2]> = EXISTS_KEYS.iter().map(|_| Default::default()).collect();
    let mut copies: [Vec<f64>; 2] = Default::default();
    for round in 0..=rounds {
        let counts = round > 0;
        progress(&if counts { format!("round {round} of {rounds}") } else { "warm-up".into() });
        for (&(page, batch), series) in cells.iter().zip(&mut series) {
            for turn in 0..SUBJECTS.len() {
                let which = (turn + round) % SUBJECTS.len();
                let subject = SUBJECTS[which];
                if subject == Subject::RawTwo && batch == 1 {
                    continue;
                }
                let [get, put] = bench.put_and_get(subject, page, batch)?;
                if counts {
                    series[0][which].passes.push(get);
                    series[1][which].passes.push(put);
                }
            }
        }
        for (&keys, nanos) in EXISTS_KEYS.iter().zip(&mut exists) {
            bench.exists(keys, nanos, counts)?;
        }
        bench.copy(&mut copies, counts);
    }
    progress("gRPC transport");
    let grpc = bench.grpc()?;
    bench.report(&cells, &series, &exists, &copies, grpc)
}

impl Bench {
    fn start(plan: Plan) -> anyhow::Result<Self> {
        let working_set = plan.working_set_bytes as u64;
        // Room enough that nothing is evicted: eviction is another measurement.
        let daemon = Daemon::start(&plan.server, working_set * 3 / 2 + (512 << 20))?;
        let raw_server = raw::Server::start()?;
        let bytes = plan.working_set_bytes;
        let raw_conns = vec![raw_server.connect(bytes)?, raw_server.connect(bytes)?];
        let client = connect(&daemon, Transport::Tcp)?;
        let space = client.space(SpaceDescription::named("bench")?)?;
        let workload = Workload::new(bytes);
        Ok(Self { plan, daemon, raw_server, raw_conns, client, space, workload })
    }

    /// Stores the working set, then reads it back; returns the get and the put.
    fn put_and_get(&mut self, subject: Subject, page: usize, batch: usize) -> anyhow::Result<[Pass; 2]> {
        let count = (self.workload.bytes() / page / batch).max(1) * batch;
        let bytes = count * page;
        ensure!(bytes <= self.workload.bytes(), "a batch of {batch} pages does not fit the working set");
        self.workload.spoil(bytes);
        let keys = workload::keys(&format!("{page}-{batch}"), count);
        let server = if subject == Subject::MemKv { self.daemon.pid() } else { self.raw_server.pid() };
        if subject == Subject::MemKv {
            self.space.clear()?;
        }

        let source = self.workload.source_pages(page, count);
        let put = timed(bytes, server, || match subject {
            Subject::MemKv => put_pass(&self.space, &keys, &source, batch),
            Subject::RawOne => raw::put_pass(&mut self.raw_conns[..1], &source, batch),
            Subject::RawTwo => raw::put_pass(&mut self.raw_conns, &source, batch),
        })?;
        let mut target = self.workload.target_pages(page, count);
        let get = timed(bytes, server, || match subject {
            Subject::MemKv => get_pass(&self.space, &keys, &mut target, batch),
            Subject::RawOne => raw::get_pass(&mut self.raw_conns[..1], &mut target, batch),
            Subject::RawTwo => raw::get_pass(&mut self.raw_conns, &mut target, batch),
        })?;
        self.workload.verify(bytes, &format!("{subject:?}, pages of {page} bytes, batches of {batch}"))?;
        Ok([get, put])
    }

    /// Asks for the same keys again and again, MemKV and raw in turns.
    fn exists(&mut self, count: usize, nanos: &mut [Vec<u64>; 2], counts: bool) -> anyhow::Result<()> {
        let keys = workload::keys("exists", count);
        let page = vec![7; EXISTS_PAGE_BYTES];
        let pages = vec![&page[..]; count];
        self.space.clear()?;
        put_pass(&self.space, &keys, &pages, count)?;
        let mut key_list = Vec::new();
        for key in &keys {
            key_list.extend_from_slice(&u16::try_from(key.len())?.to_le_bytes());
            key_list.extend_from_slice(key);
        }
        let mut found = vec![false; count];
        let repeats = if count > 200 { 100 } else { 400 };
        for _ in 0..5 {
            for _ in 0..repeats {
                found.fill(false);
                let start = Instant::now();
                self.space.exists(&keys, &mut found)?;
                let took = elapsed_nanos(start);
                ensure!(found.iter().all(|&found| found), "exists lost a key");
                if counts {
                    nanos[0].push(took);
                }
            }
            for _ in 0..repeats {
                let start = Instant::now();
                self.raw_conns[0].exists(count, &key_list)?;
                let took = elapsed_nanos(start);
                if counts {
                    nanos[1].push(took);
                }
            }
        }
        Ok(())
    }

    /// Copies the working set on one thread, then on two.
    fn copy(&mut self, speeds: &mut [Vec<f64>; 2], counts: bool) {
        let (source, target) = self.workload.halves();
        #[allow(clippy::cast_precision_loss, reason = "a working set stays far below 2^53 bytes")]
        let gb = source.len() as f64 / 1e9;
        for (threads, speeds) in speeds.iter_mut().enumerate() {
            let part = source.len().div_ceil(threads + 1);
            let start = Instant::now();
            std::thread::scope(|scope| {
                for (from, to) in source.chunks(part).zip(target.chunks_mut(part)) {
                    scope.spawn(move || to.copy_from_slice(from));
                }
            });
            if counts {
                speeds.push(gb / start.elapsed().as_secs_f64());
            }
        }
    }

    /// A short look at the gRPC transport, over a quarter of the working set.
    fn grpc(&mut self) -> anyhow::Result<Vec<GrpcRow>> {
        let client = connect(&self.daemon, Transport::Grpc)?;
        let space = client.space(SpaceDescription::named("bench")?)?;
        let batch = GRPC_BATCH.min(self.workload.bytes() / GRPC_PAGE_BYTES);
        let count = (self.workload.bytes() / 4 / GRPC_PAGE_BYTES / batch).max(1) * batch;
        let bytes = count * GRPC_PAGE_BYTES;
        let keys = workload::keys("grpc", count);
        let mut series: [Series; 2] = Default::default();
        for _ in 0..self.plan.rounds {
            space.clear()?;
            self.workload.spoil(bytes);
            let source = self.workload.source_pages(GRPC_PAGE_BYTES, count);
            let put = timed(bytes, self.daemon.pid(), || put_pass(&space, &keys, &source, batch))?;
            let mut target = self.workload.target_pages(GRPC_PAGE_BYTES, count);
            let get = timed(bytes, self.daemon.pid(), || get_pass(&space, &keys, &mut target, batch))?;
            self.workload.verify(bytes, "gRPC transport")?;
            series[0].passes.push(get);
            series[1].passes.push(put);
        }
        let rows = OPS.iter().zip(&series).map(|(&op, series)| {
            Ok(GrpcRow { op, page_bytes: GRPC_PAGE_BYTES, batch, memkv: series.figures()? })
        });
        let rows = rows.collect();
        client.close();
        rows
    }

    fn report(
        self,
        cells: &[(usize, usize)],
        series: &[[[Series; 3]; 2]],
        exists: &[[Vec<u64>; 2]],
        copies: &[Vec<f64>; 2],
        grpc: Vec<GrpcRow>,
    ) -> anyhow::Result<Report> {
        let mut rows = Vec::new();
        for (which_op, op) in OPS.into_iter().enumerate() {
            for (&(page_bytes, batch), series) in cells.iter().zip(series) {
                let [memkv, one, two] = &series[which_op];
                rows.push(Cell {
                    op,
                    page_bytes,
                    batch,
                    memkv: memkv.figures()?,
                    raw_one_connection: one.figures()?,
                    raw_two_connections: (batch > 1).then(|| two.figures()).transpose()?,
                });
            }
        }
        let exists = EXISTS_KEYS.iter().zip(exists).map(|(&keys, [memkv, raw])| {
            let latency = |nanos: &[u64]| Latency::of(nanos).context("no exists was measured");
            Ok(ExistsRow { keys, memkv: latency(memkv)?, raw: latency(raw)? })
        });
        let exists = exists.collect::<anyhow::Result<_>>()?;
        let copy = |speeds: &[f64]| Spread::of(speeds).context("no copy was measured");
        let report = Report {
            command: self.plan.command.clone(),
            machine: Machine::describe(),
            settings: Settings {
                working_set_bytes: self.plan.working_set_bytes as u64,
                rounds: self.plan.rounds,
                server: self.plan.server.display().to_string(),
                transport: "tcp",
                checksums: true,
                authentication: true,
            },
            memory: MemoryUse {
                server_resident_bytes: machine::resident_bytes(self.daemon.pid()),
                server_huge_page_bytes: machine::huge_page_bytes(self.daemon.pid()),
                raw_huge_page_bytes: machine::huge_page_bytes(self.raw_server.pid()),
            },
            memcpy: [copy(&copies[0])?, copy(&copies[1])?],
            cells: rows,
            exists,
            grpc,
        };
        self.client.close();
        Ok(report)
    }
}

pub(crate) fn connect(daemon: &Daemon, transport: Transport) -> anyhow::Result<Client> {
    let config = Config::builder()
        .servers(daemon.address())
        .auth_key_hex(daemon.key())
        .transport(transport)
        .op_timeout(OP_TIMEOUT)
        .build()?;
    Ok(Client::connect(config)?)
}

/// Times one pass and counts the processor time of both sides.
pub(crate) fn timed(bytes: usize, server: u32, pass: impl FnOnce() -> anyhow::Result<Vec<u64>>) -> anyhow::Result<Pass> {
    let (client_before, server_before) = (machine::own_cpu(), machine::cpu_of(server)?);
    let start = Instant::now();
    let batch_nanos = pass()?;
    let elapsed = start.elapsed();
    let client_cpu = machine::own_cpu() - client_before;
    let server_cpu = machine::cpu_of(server)?.saturating_sub(server_before);
    Ok(Pass { bytes, elapsed, client_cpu, server_cpu, batch_nanos })
}

pub(crate) fn put_pass(space: &Space, keys: &[Vec<u8>], pages: &[&[u8]], batch: usize) -> anyhow::Result<Vec<u64>> {
    let mut outcomes = vec![PageOutcome::Miss; batch];
    let mut nanos = Vec::with_capacity(keys.len() / batch);
    for (keys, pages) in keys.chunks(batch).zip(pages.chunks(batch)) {
        let start = Instant::now();
        space.put_from(keys, pages, &mut outcomes[..keys.len()])?;
        nanos.push(elapsed_nanos(start));
        let bad = outcomes[..keys.len()].iter().find(|&&outcome| outcome != PageOutcome::Stored);
        ensure!(bad.is_none(), "a page was not stored: {bad:?}");
    }
    Ok(nanos)
}

pub(crate) fn get_pass(
    space: &Space,
    keys: &[Vec<u8>],
    pages: &mut [&mut [u8]],
    batch: usize,
) -> anyhow::Result<Vec<u64>> {
    let mut outcomes = vec![PageOutcome::Miss; batch];
    let mut nanos = Vec::with_capacity(keys.len() / batch);
    for (keys, pages) in keys.chunks(batch).zip(pages.chunks_mut(batch)) {
        let start = Instant::now();
        space.get_into(keys, pages, &mut outcomes[..keys.len()])?;
        nanos.push(elapsed_nanos(start));
        let bad = outcomes[..keys.len()].iter().find(|&&outcome| outcome != PageOutcome::Hit);
        ensure!(bad.is_none(), "a page was not found: {bad:?}");
    }
    Ok(nanos)
}
