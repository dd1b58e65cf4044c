//! A process under strace: which calls its threads make between two moments, and the bytes that they move.

use super::PATIENCE;
use anyhow::{Context as _, bail, ensure};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A running strace.
pub(super) struct Trace {
    strace: Child,
    output: PathBuf,
}

impl Trace {
    /// Attaches to all threads of a process; returns when it has.
    pub(super) fn start(pid: u32, folder: &Path) -> anyhow::Result<Self> {
        let output = folder.join(format!("{pid}.strace"));
        let mut command = Command::new("strace");
        // With -y, what a descriptor is stands beside it.
        command
            .args(["-f", "-q", "-y", "-s", "0", "-e", "signal=none", "-p", &pid.to_string(), "-o"])
            .arg(&output);
        let mut strace =
            command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().context("start strace")?;
        let start = Instant::now();
        while !is_traced(pid)? {
            if let Some(status) = strace.try_wait()? {
                bail!(
                    "strace ended with {status}: it needs the right to trace (root, or kernel.yama.ptrace_scope=0)"
                );
            }
            ensure!(start.elapsed() < PATIENCE, "strace did not attach to process {pid}");
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(Self { strace, output })
    }

    /// Detaches; calls by name, and bytes through sockets.
    pub(super) fn end(mut self) -> anyhow::Result<(BTreeMap<String, u64>, u64)> {
        let status = Command::new("kill").args(["-INT", &self.strace.id().to_string()]).status();
        ensure!(status.context("stop strace")?.success(), "strace cannot be stopped");
        self.strace.wait().context("wait for strace")?;
        let text = std::fs::read(&self.output).context("read what strace saw")?;
        Ok(read_trace(&String::from_utf8_lossy(&text)))
    }
}

fn is_traced(pid: u32) -> anyhow::Result<bool> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).context("list a process's threads")?;
    let traced = |task: std::fs::DirEntry| {
        let status = std::fs::read_to_string(task.path().join("status")).unwrap_or_default();
        field(&status, "TracerPid:") != 0
    };
    Ok(tasks.flatten().all(traced))
}

/// Calls that move bytes and return how many.
pub(super) const MOVING: [&str; 8] =
    ["sendmsg", "sendto", "recvmsg", "recvfrom", "readv", "writev", "process_vm_readv", "process_vm_writev"];

/// Calls by name, and the sum of what those that move bytes returned. The waits for the word to begin and for the
/// end belong to the measurement, as do the calls that count and tell.
fn read_trace(text: &str) -> (BTreeMap<String, u64>, u64) {
    let (mut calls, mut bytes) = (BTreeMap::<_, u64>::new(), 0);
    for line in text.lines() {
        let Some((_, call)) = line.split_once(' ') else { continue };
        let call = call.trim_start();
        let returned =
            || call.rsplit_once("= ").and_then(|(_, value)| value.split(' ').next()?.parse::<u64>().ok());
        if let Some(resumed) = call.strip_prefix("<... ") {
            // Counted when it began; what it returned is known only now.
            let name = resumed.split(' ').next().unwrap_or_default();
            bytes += if MOVING.contains(&name) { returned().unwrap_or(0) } else { 0 };
            continue;
        }
        let Some((name, rest)) = call.split_once('(') else { continue };
        if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') || is_ours(name, rest) {
            continue;
        }
        *calls.entry(name.to_owned()).or_default() += 1;
        bytes += if MOVING.contains(&name) { returned().unwrap_or(0) } else { 0 };
    }
    (calls, bytes)
}

/// Whether a call belongs to the measurement and not to what is measured.
fn is_ours(name: &str, rest: &str) -> bool {
    let of_proc = rest.contains("</proc/")
        || rest.contains("\"/proc/")
        || (name == "openat" && rest.contains("\"\"..."));
    let of_pipes = matches!(name, "read" | "write") && (rest.starts_with("0<") || rest.starts_with("1<"));
    of_proc || of_pipes || matches!(name, "restart_syscall" | "exit" | "exit_group")
}

/// A number of a process' or a thread's status.
pub(super) fn field(status: &str, name: &str) -> u64 {
    let value = status.lines().find_map(|line| line.strip_prefix(name));
    value.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_counted() {
        let text = "\
12 sendmsg(7, {msg_name=NULL}, MSG_NOSIGNAL) = 300
12 ppoll([{fd=7, events=POLLIN}], 1, NULL, NULL, 8 <unfinished ...>
13 epoll_wait(3, [], 1024, 5) = 0
12 <... ppoll resumed>) = 1 ([{fd=7, revents=POLLIN}])
12 readv(7, [{iov_base=\"\"..., iov_len=65536}], 1 <unfinished ...>
12 <... readv resumed>) = 65536
12 recvfrom(7, 0x7f, 64, 0, NULL, NULL) = -1 EAGAIN (Resource temporarily unavailable)
12 read(0<pipe:[1]>, \"\"..., 8192) = 3
12 openat(AT_FDCWD</x>, \"/proc/self/status\", O_RDONLY|O_CLOEXEC) = 5</proc/12/status>
12 read(5</proc/12/status>, \"\"..., 8192) = 40
12 write(1<pipe:[2]>, \"\"..., 40) = 40
12 +++ exited with 0 +++";
        let (calls, bytes) = read_trace(text);
        let calls: Vec<_> = calls.iter().map(|(name, count)| (name.as_str(), *count)).collect();
        assert_eq!(calls, [("epoll_wait", 1), ("ppoll", 1), ("readv", 1), ("recvfrom", 1), ("sendmsg", 1)]);
        assert_eq!(bytes, 300 + 65_536);
    }
}
