//! Processes that this program starts, and that end with it, however it ends.
//!
//! Each of them is at first this program once more, which tells the kernel to kill it when its parent dies and then becomes what was asked
//! for. A signal that ends the program in good order also removes what is in its folder for temporary files; after `kill -9` that stays.
//!
//! Invariant: such processes are started by the program's main thread, since the kernel means the thread, not the process.

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, getppid, kill_process, set_parent_process_death_signal};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, exit};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long killed processes may take to end.
const PATIENCE: Duration = Duration::from_secs(5);

/// `memkv-bench child`: becomes another program.
#[derive(clap::Args)]
pub(crate) struct ChildArgs {
    /// The process that started this one.
    parent: u32,
    /// The program and its arguments.
    #[arg(required = true, num_args = 1.., trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<OsString>,
}

/// The same program with the same arguments, variables and folder, which ends with this process.
///
/// # Errors
///
/// If this program's own file is not known.
pub(crate) fn kept(command: &Command) -> anyhow::Result<Command> {
    // The program of the unit tests has no commands.
    let mut kept = if cfg!(test) {
        Command::new(command.get_program())
    } else {
        let mut own = Command::new(std::env::current_exe().context("find this program")?);
        own.args(["child", &std::process::id().to_string(), "--"]).arg(command.get_program());
        own
    };
    kept.args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => kept.env(name, value),
            None => kept.env_remove(name),
        };
    }
    if let Some(folder) = command.get_current_dir() {
        kept.current_dir(folder);
    }
    Ok(kept)
}

/// Becomes the program, which ends with the parent. Returns only if that is impossible.
///
/// # Errors
///
/// The reason.
pub(crate) fn become_it(args: &ChildArgs) -> anyhow::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL)).context("end with the parent")?;
    let parent = getppid().map(Pid::as_raw_nonzero).and_then(|pid| u32::try_from(pid.get()).ok());
    if parent != Some(args.parent) {
        bail!("the parent has ended already");
    }
    let (program, rest) = args.command.split_first().context("name a program")?;
    let error = Command::new(program).args(rest).exec();
    Err(error).with_context(|| format!("start {}", Path::new(program).display()))
}

/// Stops a process that this one has started, until it is let go on.
pub(crate) fn set_stopped(pid: u32, stopped: bool) {
    let signal = if stopped { Signal::STOP } else { Signal::CONT };
    // It may have ended; whoever uses it next finds out.
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        kill_process(pid, signal).ok();
    }
}

/// Gives this program a folder for all its temporary files, and removes it when a signal ends the program. Processes that it started
/// are killed first, or they would go on writing there.
///
/// # Errors
///
/// If there is no folder, or no thread.
pub(crate) fn end_in_order() -> anyhow::Result<TempDir> {
    let folder = tempfile::Builder::new().prefix("memkv-bench-").tempdir().context("make a folder")?;
    if tempfile::env::override_temp_dir(folder.path()).is_err() {
        bail!("the folder for temporary files was chosen before");
    }
    let mut signals = Signals::new([SIGINT, SIGTERM]).context("listen for signals")?;
    let path = folder.path().to_owned();
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            if let Some(signal) = signals.forever().next() {
                clear(&path);
                exit(128 + signal);
            }
        })
        .context("start a thread")?;
    Ok(folder)
}

/// Kills the processes that this one has started, and removes the folder once they are gone.
fn clear(folder: &Path) {
    let begun = Instant::now();
    loop {
        let running = children();
        for pid in &running {
            // It may have ended since.
            kill_process(*pid, Signal::KILL).ok();
        }
        // A killed process is waited for by whoever started it, or by nobody: what counts is that it runs no more.
        let ended = running.iter().all(|pid| !is_alive(*pid));
        if ended || begun.elapsed() > PATIENCE {
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    // Another thread may just have made a file.
    while std::fs::remove_dir_all(folder).is_err() && folder.exists() && begun.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The processes that any thread of this one has started and not waited for.
fn children() -> Vec<Pid> {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    let lists: Vec<String> = lists.collect();
    let pids = lists.iter().flat_map(|list| list.split_whitespace()).filter_map(|pid| pid.parse().ok());
    pids.filter_map(Pid::from_raw).collect()
}

fn is_alive(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X']))
}
