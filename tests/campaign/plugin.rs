//! The plugin as a load: processes of Python that run SGLang's host pools and cache stack over the built wheel.
//!
//! They are there when `MEMKV_CAMPAIGN_PYTHON` names an interpreter with `sglang` and the wheel; `cargo xtask campaign` does. What they
//! do is in `sglang-plugin/tests/campaign_load.py`.

use crate::load::Counts;
use anyhow::{Context as _, Result, ensure};
use memkv_tests::daemon::{KEY, clean_command};
use memkv_tests::{program, wait_for};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// The kinds of load; each is a process.
const KINDS: [&str; 2] = ["pools", "engine"];
/// How long `torch` and `sglang` may take to be imported, and a backend to be attached, on a busy machine.
const START: Duration = Duration::from_secs(180);
/// How long the last round of calls may take.
const END: Duration = Duration::from_secs(90);

/// What a process has said last.
#[derive(Clone, Copy, Debug, Default)]
struct Said {
    counts: Counts,
    resident: u64,
    lines: u64,
}

/// One process of the plugin.
struct Process {
    kind: &'static str,
    child: Child,
    said: Arc<Mutex<Said>>,
    reader: JoinHandle<()>,
}

impl Process {
    fn start(python: &Path, kind: &'static str, servers: &str, seed: u64) -> Result<Self> {
        let script = program::workspace().join("sglang-plugin").join("tests").join("campaign_load.py");
        let mut command = clean_command(python);
        command.arg(&script).args([kind, &seed.to_string()]);
        command.env("MEMKV_SERVERS", servers).env("MEMKV_AUTH_KEY", KEY).env("MEMKV_OP_TIMEOUT", "1s");
        // Memory that threads of their own gave back is not a leak.
        command.env("OMP_NUM_THREADS", "1").env("MALLOC_ARENA_MAX", "2");
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context("start the plugin's load")?;
        let stdout = child.stdout.take().context("read what the plugin's load says")?;
        let said = Arc::new(Mutex::new(Said::default()));
        let shared = Arc::clone(&said);
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                // SGLang may print something of its own.
                let Some((counts, resident)) = read(&line) else { continue };
                let mut said = shared.lock().unwrap_or_else(PoisonError::into_inner);
                *said = Said { counts, resident, lines: said.lines + 1 };
            }
        });
        Ok(Self { kind, child, said, reader })
    }

    fn said(&self) -> Said {
        *self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells it to end, and waits until it has.
    fn stop(mut self) -> Result<Said> {
        drop(self.child.stdin.take());
        let child = &mut self.child;
        let ended = wait_for("the plugin's load ends", END, || child.try_wait().ok().flatten());
        if ended.is_err() {
            self.child.kill().context("kill the plugin's load")?;
        }
        let status = ended?;
        self.reader.join().expect("a reader of lines does not panic");
        let said = *self.said.lock().unwrap_or_else(PoisonError::into_inner);
        ensure!(status.success(), "the plugin's load ({}) ended with {status}", self.kind);
        Ok(said)
    }
}

/// Reads a line of counters.
fn read(line: &str) -> Option<(Counts, u64)> {
    let values: serde_json::Value = serde_json::from_str(line).ok()?;
    let number = |name: &str| values.get(name)?.as_u64();
    let counts = Counts {
        calls: number("calls")?,
        hits: number("hits")?,
        misses: number("misses")?,
        stored: number("stored")?,
        bytes: number("bytes")?,
        unavailable: number("unavailable")?,
        refused: 0,
        wrong: number("wrong")?,
        late: number("late")?,
        raised: number("exceptions")?,
    };
    Some((counts, number("resident")?))
}

/// The running processes; none without an interpreter.
#[derive(Default)]
pub(crate) struct Plugin {
    processes: Vec<Process>,
}

impl Plugin {
    /// Starts the processes, and waits until all of them read and write.
    pub(crate) fn start(servers: &str, seed: u64) -> Result<Self> {
        let Some(python) = std::env::var_os("MEMKV_CAMPAIGN_PYTHON").map(PathBuf::from) else {
            println!("without the plugin: MEMKV_CAMPAIGN_PYTHON names no interpreter");
            return Ok(Self::default());
        };
        let processes = KINDS.map(|kind| Process::start(&python, kind, servers, seed & 0xffff_ffff));
        let mut plugin = Self { processes: processes.into_iter().collect::<Result<_>>()? };
        for process in &mut plugin.processes {
            let mut ended = None;
            wait_for("the plugin's load begins", START, || {
                ended = process.child.try_wait().ok().flatten();
                (ended.is_some() || process.said().counts.hits > 0).then_some(())
            })?;
            ensure!(ended.is_none(), "the plugin's load ({}) ended before it began", process.kind);
        }
        Ok(plugin)
    }

    /// Whether there is a plugin.
    pub(crate) fn is_there(&self) -> bool {
        !self.processes.is_empty()
    }

    /// What all processes have counted so far.
    pub(crate) fn counts(&self) -> Counts {
        self.processes.iter().fold(Counts::default(), |sum, process| sum.and(&process.said().counts))
    }

    /// Memory that each process holds, by its name.
    pub(crate) fn resident(&self) -> Vec<(String, u64)> {
        let one = |process: &Process| (format!("plugin ({})", process.kind), process.said().resident);
        self.processes.iter().map(one).collect()
    }

    /// Ends all processes.
    pub(crate) fn stop(mut self) -> Result<Counts> {
        std::mem::take(&mut self.processes)
            .into_iter()
            .try_fold(Counts::default(), |sum, process| Ok(sum.and(&process.stop()?.counts)))
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        for process in &mut self.processes {
            // It may have ended already.
            process.child.kill().ok();
            process.child.wait().ok();
        }
    }
}
