//! Many seeds, each in a process of its own: what one leaves behind cannot reach the next, and a run that never ends can
//! be ended.

use crate::cluster::{self, Report};
use anyhow::{Context as _, Result, bail};
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// How often a running seed is looked at, and after how many looks it is ended. Not after how long: a machine that stands
/// still, or this program with all its seeds, must not end a seed.
const LOOK: Duration = Duration::from_millis(5);
const LOOKS_MAX: u32 = 60_000;
/// Seeds after which it is told how far all is.
const TELL_EVERY: u64 = 500;
/// Failures after which nothing new is begun, if not said otherwise.
const FAILURES: u64 = 5;

const USAGE: &str =
    "usage: memkv-sim [--from SEED] [--seeds N] [--jobs N] [--failures N] | --seed SEED [--trace]";

/// What to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    /// One seed, here.
    One { seed: u64, trace: bool },
    /// Many, in processes.
    Many(Many),
}

/// Many seeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Many {
    from: u64,
    seeds: u64,
    /// Processes at a time.
    jobs: u64,
    /// Failures after which nothing new is begun.
    failures: u64,
}

impl Choice {
    /// Reads the command line.
    pub(crate) fn parse(args: &[String]) -> Result<Self> {
        let (mut one, mut trace) = (None, false);
        let jobs = std::thread::available_parallelism().map_or(1, usize::from) as u64;
        let mut many = Many { from: 0, seeds: 200, jobs, failures: FAILURES };
        let mut rest = args.iter();
        while let Some(arg) = rest.next() {
            let mut number = || -> Result<u64> {
                let text = rest.next().context(USAGE)?;
                text.parse().with_context(|| format!("{text:?} is not a number"))
            };
            match arg.as_str() {
                "--seed" => one = Some(number()?),
                "--from" => many.from = number()?,
                "--seeds" => many.seeds = number()?,
                "--jobs" => many.jobs = number()?.max(1),
                "--failures" => many.failures = number()?.max(1),
                "--trace" => trace = true,
                _ => bail!("{USAGE}"),
            }
        }
        Ok(match one {
            Some(seed) => Self::One { seed, trace },
            None => Self::Many(many),
        })
    }
}

/// Runs what was chosen.
pub(crate) fn run(choice: &Choice) -> Result<ExitCode> {
    match *choice {
        Choice::One { seed, trace } => one(seed, trace),
        Choice::Many(all) => many(all),
    }
}

/// A folder for the memory of servers, removed in the end.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        // Nobody misses it; a machine's own cleaning gets what stays.
        drop(std::fs::remove_dir_all(&self.0));
    }
}

/// Where folders for the memory of servers are made.
fn place() -> PathBuf {
    let shared_memory = PathBuf::from("/dev/shm");
    if shared_memory.is_dir() { shared_memory } else { std::env::temp_dir() }
}

/// Begins the name of a folder; the process and the seed follow.
const FOLDER: &str = "memkv-sim-";

/// Removes the folders of processes that were killed.
fn sweep(place: &Path) {
    let entries = std::fs::read_dir(place).into_iter().flatten().flatten();
    for entry in entries {
        let name = entry.file_name();
        let Some(rest) = name.to_str().and_then(|name| name.strip_prefix(FOLDER)) else { continue };
        let pid = rest.split('-').next().and_then(|pid| pid.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists()) {
            drop(Folder(entry.path()));
        }
    }
}

fn one(seed: u64, trace: bool) -> Result<ExitCode> {
    let folder = Folder(place().join(format!("{FOLDER}{}-{seed}", std::process::id())));
    let path = folder.0.clone();
    // A new thread has heard nothing of the machine's randomness yet.
    let run =
        std::thread::Builder::new().stack_size(16 << 20).spawn(move || cluster::run(seed, &path, trace));
    let Ok(report) = run.context("start a thread")?.join() else {
        println!("seed {seed} FAILED: it panicked");
        return Ok(ExitCode::FAILURE);
    };
    println!("{}", line(seed, &report));
    if report.wrong.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    println!("\nseed {seed} FAILED:");
    report.wrong.iter().for_each(|wrong| println!("  {wrong}"));
    println!("\nthe plan:\n{}\nthe last events:", report.plan);
    report.last.iter().for_each(|event| println!("{event}"));
    println!("\nsee it again: cargo xtask sim --seed {seed} --trace");
    Ok(ExitCode::FAILURE)
}

fn line(seed: u64, report: &Report) -> String {
    let Report { digest, events, ops, hits, evicted, recovered, simulated_ms, .. } = report;
    format!(
        "seed={seed} digest={digest:016x} events={events} ops={ops} hits={hits} evicted={evicted} recovered={recovered} simulated_ms={simulated_ms}"
    )
}

/// Sums of the numbers that every seed prints.
#[derive(Default)]
struct Sums {
    names: Vec<(String, u64)>,
}

impl Sums {
    fn add(&mut self, line: &str) {
        for (name, value) in line.split_whitespace().filter_map(|word| word.split_once('=')) {
            let Ok(value) = value.parse::<u64>() else { continue };
            match self.names.iter_mut().find(|(known, _)| known == name) {
                Some((_, sum)) => *sum += value,
                None if name != "seed" && name != "digest" => self.names.push((name.to_owned(), value)),
                None => {}
            }
        }
    }
}

fn many(all: Many) -> Result<ExitCode> {
    sweep(&place());
    let Many { from, seeds, jobs, failures: failures_max } = all;
    let next = AtomicU64::new(from);
    let (done, failures, sums) = (AtomicU64::new(0), Mutex::new(Vec::new()), Mutex::new(Sums::default()));
    let under_way = Mutex::new(BTreeSet::new());
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                loop {
                    let seed = {
                        let mut under_way = under_way.lock();
                        let seed = next.fetch_add(1, Relaxed);
                        under_way.insert(seed);
                        seed
                    };
                    if seed >= from + seeds || failures.lock().len() as u64 >= failures_max {
                        return;
                    }
                    match child(seed) {
                        Ok(output) => sums.lock().add(&output),
                        Err(error) => {
                            let text = format!("{error:#}");
                            println!("{text}");
                            failures.lock().push(seed);
                        }
                    }
                    let mut under_way = under_way.lock();
                    under_way.remove(&seed);
                    let done = done.fetch_add(1, Relaxed) + 1;
                    if done.is_multiple_of(TELL_EVERY) {
                        // Where another run would have to begin to go on.
                        let below = under_way.first().copied().unwrap_or(seed + 1);
                        let failed = failures.lock().len();
                        let seconds = begun.elapsed().as_secs();
                        println!("{done} seeds in {seconds} s, all below {below}; {failed} failed");
                    }
                }
            });
        }
    });
    let (done, failures) = (done.into_inner(), failures.into_inner());
    let sums: Vec<_> = sums.into_inner().names.iter().map(|(name, sum)| format!("{name} {sum}")).collect();
    println!("{done} seeds from {from} in {} s: {}", begun.elapsed().as_secs(), sums.join(", "));
    if failures.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    println!("FAILED seeds: {failures:?}");
    Ok(ExitCode::FAILURE)
}

/// Runs a seed in a process; its line, or all that it printed as an error.
fn child(seed: u64) -> Result<String> {
    let program = std::env::current_exe().context("find this program")?;
    let mut child = Command::new(program)
        .args(["--seed", &seed.to_string()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("start a process")?;
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let reader = |pipe: Option<Box<dyn std::io::Read + Send>>| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            // What was read until an error is shown all the same.
            let _read = pipe.map(|mut pipe| pipe.read_to_end(&mut bytes));
            String::from_utf8_lossy(&bytes).into_owned()
        })
    };
    let out = reader(out.map(|pipe| Box::new(pipe) as _));
    let err = reader(err.map(|pipe| Box::new(pipe) as _));
    let ended = wait(&mut child)?;
    let out = out.join().unwrap_or_default();
    let err = err.join().unwrap_or_default();
    match ended {
        Some(true) => Ok(out),
        Some(false) => bail!("{err}{out}"),
        None => bail!("seed {seed} FAILED: it did not end\n{err}{out}"),
    }
}

/// Whether the process succeeded; `None` if it had to be ended.
fn wait(child: &mut Child) -> Result<Option<bool>> {
    for _ in 0..LOOKS_MAX {
        if let Some(status) = child.try_wait().context("wait for a process")? {
            return Ok(Some(status.success()));
        }
        std::thread::sleep(LOOK);
    }
    child.kill().context("end a process")?;
    child.wait().context("wait for a process")?;
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_read() {
        let parse =
            |words: &[&str]| Choice::parse(&words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>());
        assert_eq!(parse(&["--seed", "7", "--trace"]).unwrap(), Choice::One { seed: 7, trace: true });
        let many = Choice::Many(Many { from: 5, seeds: 9, jobs: 1, failures: 2 });
        assert_eq!(parse(&["--from", "5", "--seeds", "9", "--jobs", "1", "--failures", "2"]).unwrap(), many);
        assert!(parse(&["--seeds"]).is_err());
        assert!(parse(&["--seeds", "many"]).is_err());
        assert!(parse(&["--what"]).is_err());
    }

    #[test]
    fn folders_of_processes_that_are_gone_are_removed() {
        let place = tempfile::tempdir().unwrap();
        // No process has this number: it is above the kernel's bound.
        let (gone, own) = (format!("{FOLDER}4194305-7"), format!("{FOLDER}{}-7", std::process::id()));
        for name in [gone.as_str(), own.as_str(), "memkv-sim-x-7", "else"] {
            std::fs::create_dir_all(place.path().join(name).join("s0")).unwrap();
        }
        sweep(place.path());
        let mut left: Vec<_> =
            std::fs::read_dir(place.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        let mut kept = [own.as_str(), "memkv-sim-x-7", "else"];
        kept.sort_unstable();
        assert_eq!(left, kept);
    }

    #[test]
    fn numbers_of_seeds_are_added_up() {
        let mut sums = Sums::default();
        sums.add("seed=1 digest=00ff ops=5 hits=2");
        sums.add("seed=2 digest=0011 ops=6 hits=0");
        assert_eq!(sums.names, [("ops".to_owned(), 11), ("hits".to_owned(), 2)]);
    }
}
