//! Too little memory for a server, without harm to the machine: by a limit of its process, and by a group of its own.

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use std::fs;
use std::path::{Path, PathBuf};

/// A number of a process's status, in bytes: `VmSize`, `RssAnon`.
pub(crate) fn status_bytes(pid: u32, name: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.split(':').next() == Some(name))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

/// From now on the process gets no address it does not have already; allocations that need one fail.
pub(crate) fn stop_growth(pid: u32) -> Result<()> {
    let size = status_bytes(pid, "VmSize").context("read the size of the process")?;
    limit(pid, Some(size))
}

/// Ends [`stop_growth`]. A process that is gone needs nothing.
pub(crate) fn allow_growth(pid: u32) {
    drop(limit(pid, None));
}

fn limit(pid: u32, bytes: Option<u64>) -> Result<()> {
    let pid = Pid::from_raw(i32::try_from(pid)?).context("a process has a number")?;
    prlimit(Some(pid), Resource::As, Rlimit { current: bytes, maximum: None })
        .context("limit the process")?;
    Ok(())
}

/// A group of processes with a limit of its own. Once it is reached they wait for memory, as under a host that swaps.
pub(crate) struct Cage {
    folder: PathBuf,
    limit: &'static str,
    usage: &'static str,
    none: &'static str,
}

impl Cage {
    /// Makes a group; `None` if this process may not, as in most containers.
    pub(crate) fn new(name: &str) -> Option<Self> {
        let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
        let own = |prefix: &str| {
            groups.lines().find_map(|line| line.split_once(':')?.1.strip_prefix(prefix)?.strip_prefix('/'))
        };
        let first = |path: &str| Path::new("/sys/fs/cgroup").join(path);
        let cage = match own("memory:") {
            Some(own) => Self {
                folder: first("memory").join(own).join(name),
                limit: "memory.limit_in_bytes",
                usage: "memory.usage_in_bytes",
                none: "-1",
            },
            None => Self {
                folder: first(own(":")?).join(name),
                limit: "memory.high",
                usage: "memory.current",
                none: "max",
            },
        };
        fs::create_dir(&cage.folder).ok()?;
        // Version 1 kills who reaches the limit unless it is told to let them wait; version 2 lets them wait.
        let waits = cage.limit == "memory.high" || cage.write("memory.oom_control", "1").is_ok();
        (waits && cage.release().is_ok()).then_some(cage)
    }

    /// Takes a process in; what it has already counts for whoever had it before.
    pub(crate) fn take(&self, pid: u32) -> Result<()> {
        self.write("cgroup.procs", &pid.to_string())
    }

    /// Lets those inside wait for each further page.
    pub(crate) fn squeeze(&self) -> Result<()> {
        let usage = fs::read_to_string(self.folder.join(self.usage)).context("read what the group uses")?;
        self.write(self.limit, usage.trim())
    }

    /// Ends [`Cage::squeeze`].
    pub(crate) fn release(&self) -> Result<()> {
        self.write(self.limit, self.none)
    }

    fn write(&self, file: &str, text: &str) -> Result<()> {
        let path = self.folder.join(file);
        fs::write(&path, text).with_context(|| format!("write {text} to {}", path.display()))
    }
}

impl Drop for Cage {
    fn drop(&mut self) {
        // A group that still has a process stays; nothing depends on its end.
        drop(fs::remove_dir(&self.folder));
    }
}
