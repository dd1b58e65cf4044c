//! What a batch costs besides time: system calls, bytes that they move, wake-ups and allocations, counted per batch on
//! both sides, beside what plain sockets need for the same.
//!
//! A child process is the client: it connects, warms up, says so, and repeats one batch when told. It counts its own
//! wake-ups and allocations; the server's wake-ups are read from outside. In a second round `strace` looks at both
//! processes between the same two moments, so connecting is in no figure. Under `strace` everything is slower, so
//! a reader sometimes finds less than it would have: calls of large batches are upper bounds.
//!
//! Deliberately absent: times (`run` measures those), and copies inside a process, which nothing outside can count.

mod trace;

use crate::compare::report;
use crate::daemon::{Daemon, find_server};
use crate::workload::Workload;
use crate::{command_line, counting, raw, warn_of_debug_build};
use anyhow::{Context as _, ensure};
use clap::Args;
use memkv_client::blocking::{Client, Space};
use memkv_client::{Config, ErrorKind, PageOutcome, Transport};
use memkv_core::SpaceDescription;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;
use trace::{MOVING, Trace, field};

/// A store for all pages of the largest case.
const DRAM_BYTES: u64 = 3 << 30;
/// Bytes that a case puts at most, over all its batches.
const CASE_BYTES_MAX: usize = 512 << 20;
/// The most batches of a case.
const BATCHES_MAX: usize = 100;
const WARM_UP: usize = 8;
const PATIENCE: Duration = Duration::from_secs(30);
const OP_TIMEOUT: Duration = Duration::from_secs(60);
const KEY_ENV: &str = "MEMKV_BENCH_KEY";

/// What to count.
#[derive(Args)]
pub(crate) struct CallsArgs {
    /// The memkv-server to start; the one beside this program by default.
    #[arg(long)]
    server: Option<PathBuf>,
    /// Transports to count; one that does not work here is left out with its reason.
    #[arg(long, value_delimiter = ',', default_value = "tcp,shm")]
    transports: Vec<Transport>,
    /// Also writes everything to this file, as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// What the client process of one case does.
#[derive(Args, Clone, Debug)]
pub(crate) struct ClientArgs {
    /// A transport, or `raw`.
    #[arg(long)]
    subject: String,
    #[arg(long)]
    op: String,
    #[arg(long)]
    keys: usize,
    #[arg(long)]
    page: usize,
    #[arg(long)]
    batches: usize,
    #[arg(long)]
    address: String,
    /// Keeps the keys of one case from those of another.
    #[arg(long)]
    name: String,
}

/// One batch: op, keys, bytes of a page.
const CASES: [(&str, usize, usize); 9] = [
    ("exists", 1, 4096),
    ("exists", 128, 4096),
    ("exists", 1024, 4096),
    ("get", 1, 64 << 10),
    ("get", 128, 64 << 10),
    ("get", 32, 1 << 20),
    ("put", 1, 64 << 10),
    ("put", 128, 64 << 10),
    ("put", 32, 1 << 20),
];

/// What one process did in a case, per batch.
#[derive(Clone, Debug, Default, Serialize)]
struct Side {
    /// By name; absent without strace.
    calls: Option<BTreeMap<String, f64>>,
    /// Bytes that calls moved (through sockets, or out of another process), per byte of the batch's pages.
    moved_bytes: Option<f64>,
    wake_ups: f64,
    /// Only the client counts them.
    allocations: Option<f64>,
}

#[derive(Clone, Debug, Serialize)]
struct Row {
    op: String,
    keys: usize,
    page_bytes: usize,
    subject: String,
    batches: usize,
    client: Side,
    server: Side,
}

#[derive(Serialize)]
struct Counted {
    command: String,
    /// Why there are no system calls, if there are none.
    without_strace: Option<String>,
    left_out: Vec<String>,
    rows: Vec<Row>,
}

/// What the client process says of itself when it is done.
#[derive(Deserialize, Serialize)]
struct Own {
    wake_ups: u64,
    allocations: u64,
}

/// Counts all cases and prints the table.
pub(crate) fn run(args: CallsArgs) -> anyhow::Result<()> {
    warn_of_debug_build();
    let program = find_server(args.server)?;
    let daemon = Daemon::start(&program, DRAM_BYTES)?;
    let (mut subjects, mut left_out) = (vec!["raw".to_owned()], Vec::new());
    for transport in args.transports {
        match lack(&daemon, transport) {
            None => subjects.push(transport.to_string()),
            Some(reason) => left_out.push(format!("{transport}: {reason}")),
        }
    }
    let without_strace =
        Command::new("strace").arg("-V").output().err().map(|error| format!("strace: {error}"));
    let mut rows = Vec::new();
    for (op, keys, page_bytes) in CASES {
        for subject in &subjects {
            eprintln!("{op} {keys} x {} over {subject} …", report::size(page_bytes));
            let case = Case { daemon: &daemon, subject, op, keys, page_bytes };
            rows.push(case.count(without_strace.is_none())?);
        }
    }
    let counted = Counted { command: command_line(), without_strace, left_out, rows };
    println!("{}", table(&counted));
    if let Some(path) = args.json {
        let text = serde_json::to_string_pretty(&counted).context("write JSON")?;
        std::fs::write(&path, text + "\n").with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

/// Why a transport cannot be counted here.
fn lack(daemon: &Daemon, transport: Transport) -> Option<String> {
    match connect(&daemon.address(), daemon.key(), transport) {
        Ok(client) => {
            client.close();
            None
        }
        Err(error) => Some(format!("{error:#}")),
    }
}

fn connect(address: &str, key: &str, transport: Transport) -> anyhow::Result<Client> {
    let config = Config::builder().without_environment().servers(address).auth_key_hex(key);
    let config = config.transport(transport).op_timeout(OP_TIMEOUT).build()?;
    let client = Client::connect(config).map_err(|error| match error.kind() {
        ErrorKind::NotSupported => anyhow::anyhow!("{error}"),
        _ => anyhow::Error::new(error).context("connect"),
    })?;
    let used = client.servers()[0].transport;
    ensure!(used == transport, "pages move by {used}");
    Ok(client)
}

struct Case<'a> {
    daemon: &'a Daemon,
    subject: &'a str,
    op: &'a str,
    keys: usize,
    page_bytes: usize,
}

impl Case<'_> {
    fn batches(&self) -> usize {
        let bytes = if self.op == "exists" { 1 } else { self.keys * self.page_bytes };
        (CASE_BYTES_MAX / bytes).clamp(4, BATCHES_MAX)
    }

    /// Runs the case once to count wake-ups and allocations, and once under strace.
    fn count(&self, strace: bool) -> anyhow::Result<Row> {
        let batches = self.batches();
        let per_batch = |total: u64| total as f64 / batches as f64;
        let mut process = self.start("plain")?;
        let before = wake_ups(process.server)?;
        let own = process.go()?;
        let server_wake_ups = wake_ups(process.server)?.saturating_sub(before);
        drop(process);
        let mut row = Row {
            op: self.op.to_owned(),
            keys: self.keys,
            page_bytes: self.page_bytes,
            subject: self.subject.to_owned(),
            batches,
            client: Side {
                wake_ups: per_batch(own.wake_ups),
                allocations: Some(per_batch(own.allocations)),
                ..Side::default()
            },
            server: Side { wake_ups: per_batch(server_wake_ups), ..Side::default() },
        };
        if strace {
            let mut process = self.start("strace")?;
            let folder = tempfile::tempdir().context("make a folder for strace")?;
            let pids = [process.child.id(), process.server];
            let traces = pids.map(|pid| Trace::start(pid, folder.path()));
            let [client, server] = traces;
            let (client, server) = (client?, server?);
            process.go()?;
            let page_bytes = (self.keys * self.page_bytes * batches) as f64;
            for (side, trace) in [(&mut row.client, client), (&mut row.server, server)] {
                let (calls, bytes) = trace.end()?;
                side.calls = Some(calls.into_iter().map(|(name, count)| (name, per_batch(count))).collect());
                side.moved_bytes = (self.op != "exists").then_some(bytes as f64 / page_bytes);
            }
        }
        Ok(row)
    }

    fn start(&self, round: &str) -> anyhow::Result<Process> {
        let mut command = Command::new(std::env::current_exe().context("find this program")?);
        command.args(["calls-client", "--subject", self.subject, "--op", self.op]);
        command.args(["--keys", &self.keys.to_string(), "--page", &self.page_bytes.to_string()]);
        command.args(["--batches", &self.batches().to_string(), "--address", &self.daemon.address()]);
        command.args([
            "--name",
            &format!("{round} {} {} {}", self.subject, self.op, self.keys * self.page_bytes),
        ]);
        command.env(KEY_ENV, self.daemon.key()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context("start a client")?;
        let stdout = child.stdout.take().context("read what the client says")?;
        let mut process = Process { child, stdout: BufReader::new(stdout), server: 0 };
        let line = process.line()?;
        let server = line.strip_prefix("ready ").context("the client does not say that it is ready")?;
        process.server = match server.parse().context("read the server's process id")? {
            0 => self.daemon.pid(),
            raw => raw,
        };
        Ok(process)
    }
}

/// The client process of a case; it ends with this handle.
struct Process {
    child: Child,
    stdout: BufReader<ChildStdout>,
    /// Process id of the server that it uses.
    server: u32,
}

impl Process {
    fn line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        self.stdout.read_line(&mut line).context("read what the client says")?;
        ensure!(!line.is_empty(), "the client ended early");
        Ok(line.trim_end().to_owned())
    }

    /// Lets it repeat its batch; what it counted.
    fn go(&mut self) -> anyhow::Result<Own> {
        self.child.stdin.as_mut().context("tell the client to begin")?.write_all(b"go\n")?;
        let line = self.line()?;
        serde_json::from_str(&line).with_context(|| format!("read what the client counted: {line}"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already; there is nothing to do about either failure.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// How often the threads of a process have given up a processor to wait for something.
fn wake_ups(pid: u32) -> anyhow::Result<u64> {
    let mut sum = 0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).context("list a process's threads")?.flatten()
    {
        // A thread may end meanwhile.
        let Ok(status) = std::fs::read_to_string(task.path().join("status")) else { continue };
        sum += field(&status, "voluntary_ctxt_switches:");
    }
    Ok(sum)
}

/// The client process: connects, warms up, and repeats the batch when told.
pub(crate) fn client(args: &ClientArgs) -> anyhow::Result<()> {
    if args.subject == "raw" {
        return raw_client(args);
    }
    let transport = args.subject.parse().map_err(anyhow::Error::msg)?;
    let key = std::env::var(KEY_ENV).context("read the key")?;
    let client = connect(&args.address, &key, transport)?;
    let space = client.space(SpaceDescription::named(&args.name)?)?;
    // A put has keys of its own for each batch; others come back to the same ones.
    let of = |batch: usize| (0..args.keys).map(|i| format!("{batch}-{i:096}")).collect::<Vec<_>>();
    let rounds = WARM_UP + args.batches;
    let names: Vec<_> = (0..if args.op == "put" { rounds } else { 1 }).map(of).collect();
    let mut load = Workload::new(args.keys * args.page)?;
    let (source, target) = load.halves();
    let sources: Vec<&[u8]> = source.chunks_exact(args.page).collect();
    let mut targets: Vec<&mut [u8]> = target.chunks_exact_mut(args.page).collect();
    let (mut out, mut found) = (vec![PageOutcome::Busy; args.keys], vec![false; args.keys]);
    if args.op != "put" {
        ensure!(space.put_from(&names[0], &sources, &mut out)?.ok == args.keys, "a page was not stored");
    }
    let mut batch = |space: &Space, round: usize| -> anyhow::Result<()> {
        let report = match args.op.as_str() {
            "get" => space.get_into(&names[0], &mut targets, &mut out)?,
            "put" => space.put_from(&names[round], &sources, &mut out)?,
            _ => space.exists(&names[0], &mut found)?,
        };
        ensure!(report.ok == args.keys, "only {} of {} pages: {:?}", report.ok, args.keys, out.first());
        Ok(())
    };
    perform(0, args.batches, |round| batch(&space, round))?;
    client.close();
    if args.op == "get" { load.verify(args.keys * args.page, "get") } else { Ok(()) }
}

/// The same with plain sockets.
fn raw_client(args: &ClientArgs) -> anyhow::Result<()> {
    let server = raw::Server::start()?;
    let mut conns = [server.connect(args.keys * args.page)?];
    let mut load = Workload::new(args.keys * args.page)?;
    let (source, target) = load.halves();
    let sources: Vec<&[u8]> = source.chunks_exact(args.page).collect();
    let mut targets: Vec<&mut [u8]> = target.chunks_exact_mut(args.page).collect();
    // As many bytes as MemKV sends for such keys.
    conns[0].prepare_exists(&vec![vec![0; 98]; args.keys]);
    perform(server.pid(), args.batches, |_| match args.op.as_str() {
        "get" => conns[0].get(0, &mut targets),
        "put" => conns[0].put(0, &sources),
        _ => conns[0].exists(args.keys),
    })
}

/// Warms up, waits for the word, repeats the batch, and says what it took.
fn perform(
    server: u32,
    batches: usize,
    mut batch: impl FnMut(usize) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    for round in 0..WARM_UP {
        batch(round)?;
    }
    let mut word = String::with_capacity(16);
    println!("ready {server}");
    std::io::stdin().read_line(&mut word).context("wait for the word to begin")?;
    let own = std::process::id();
    let before = (wake_ups(own)?, counting::allocations());
    for round in 0..batches {
        batch(WARM_UP + round)?;
    }
    let allocations = counting::allocations() - before.1;
    let counted = Own { wake_ups: wake_ups(own)?.saturating_sub(before.0), allocations };
    println!("{}", serde_json::to_string(&counted)?);
    // Ends when the parent has looked.
    std::io::stdin().read_line(&mut word).context("wait for the end")?;
    Ok(())
}

fn table(counted: &Counted) -> String {
    let mut text = String::from(
        "| batch | by | client: system calls | server: system calls | bytes moved by calls, per byte of pages (c, s) | \
         wake-ups (c, s) | allocations (c) |\n|---|---|---|---|---|---|---:|\n",
    );
    let number =
        |value: f64| if value.fract() < 0.005 { format!("{value:.0}") } else { format!("{value:.2}") };
    let maybe = |value: Option<f64>| value.map_or("–".to_owned(), number);
    for row in &counted.rows {
        let batch = match row.op.as_str() {
            "exists" => format!("exists {}", row.keys),
            op => format!("{op} {} × {}", row.keys, report::size(row.page_bytes)),
        };
        let (client, server) = (&row.client, &row.server);
        text.push_str(&format!(
            "| {batch} | {} | {} | {} | {}, {} | {}, {} | {} |\n",
            row.subject,
            calls_text(client),
            calls_text(server),
            maybe(client.moved_bytes),
            maybe(server.moved_bytes),
            number(client.wake_ups),
            number(server.wake_ups),
            maybe(client.allocations),
        ));
    }
    for reason in counted.without_strace.iter().chain(&counted.left_out) {
        text.push_str(&format!("\nnot counted: {reason}\n"));
    }
    text
}

/// The calls that a process makes at least every tenth batch, most frequent first, with their sum in front. What
/// neither moves bytes nor waits is summed up.
fn calls_text(side: &Side) -> String {
    const SHOWN: [&str; 7] = ["ppoll", "poll", "epoll_wait", "futex", "read", "write", "getpid"];
    let Some(calls) = &side.calls else { return "–".to_owned() };
    let often = calls.iter().filter(|(_, count)| **count >= 0.1);
    let is_shown = |name: &str| MOVING.contains(&name) || SHOWN.contains(&name);
    let (mut shown, others): (Vec<_>, Vec<_>) = often.partition(|(name, _)| is_shown(name));
    shown.sort_by(|a, b| b.1.total_cmp(a.1));
    let sum = |of: &[(&String, &f64)]| of.iter().map(|(_, count)| **count).sum::<f64>();
    let mut each: Vec<_> = shown.iter().map(|(name, count)| format!("{count:.1} {name}")).collect();
    if !others.is_empty() {
        each.push(format!("{:.1} others", sum(&others)));
    }
    if each.is_empty() {
        "none".to_owned()
    } else {
        format!("{:.1}: {}", sum(&shown) + sum(&others), each.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wake_ups_of_this_process_are_found() {
        let before = wake_ups(std::process::id()).unwrap();
        std::thread::sleep(Duration::from_millis(1));
        assert!(wake_ups(std::process::id()).unwrap() > before);
    }

    #[test]
    fn rare_calls_are_left_out_of_the_text() {
        let calls = [("sendmsg", 1.0), ("mmap", 0.01), ("readv", 9.5), ("clone3", 1.0), ("prctl", 2.0)];
        let calls = calls.map(|(name, count)| (name.to_owned(), count));
        let side = Side { calls: Some(calls.into()), ..Side::default() };
        assert_eq!(calls_text(&side), "13.5: 9.5 readv, 1.0 sendmsg, 3.0 others");
        assert_eq!(calls_text(&Side::default()), "–");
    }
}
