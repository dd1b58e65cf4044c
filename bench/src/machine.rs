//! What the figures were measured on, and the processor time that processes used.

use anyhow::Context as _;
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use std::fs;
use std::time::Duration;

/// The machine, in the words of its kernel.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Machine {
    pub cpu: String,
    pub cores: usize,
    pub kernel: String,
    pub memory_bytes: u64,
    /// The kernel's setting of transparent huge pages.
    pub huge_pages: String,
}

impl Machine {
    pub(crate) fn describe() -> Self {
        let uname = rustix::system::uname();
        Self {
            cpu: field("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown".into()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            kernel: format!(
                "{} {} {}",
                uname.sysname().to_string_lossy(),
                uname.release().to_string_lossy(),
                uname.machine().to_string_lossy()
            ),
            memory_bytes: kib_field("/proc/meminfo", "MemTotal").unwrap_or(0),
            huge_pages: fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled")
                .ok()
                .and_then(|text| Some(text.split_once('[')?.1.split_once(']')?.0.to_owned()))
                .unwrap_or_else(|| "unknown".into()),
        }
    }
}

impl Machine {
    /// One line for people.
    pub(crate) fn line(&self) -> String {
        #[allow(clippy::cast_precision_loss, reason = "shown with one decimal")]
        let gib = self.memory_bytes as f64 / (1_u64 << 30) as f64;
        format!(
            "{}, {} cores, {}, {gib:.1} GiB memory, transparent huge pages: {}",
            self.cpu, self.cores, self.kernel, self.huge_pages
        )
    }
}

/// How much of a process's memory lies on huge pages, in bytes.
pub(crate) fn huge_page_bytes(pid: u32) -> u64 {
    let bytes = |kind| kib_field(&format!("/proc/{pid}/smaps_rollup"), kind).unwrap_or(0);
    bytes("AnonHugePages") + bytes("ShmemPmdMapped")
}

/// Memory that a process holds, in bytes.
pub(crate) fn resident_bytes(pid: u32) -> u64 {
    kib_field(&format!("/proc/{pid}/status"), "VmRSS").unwrap_or(0)
}

/// [`resident_bytes`] as soon as they stay the same, or after some seconds: a server makes memory resident ahead of its use,
/// beside its requests, and a figure from the middle of that is one of chance.
pub(crate) fn settled_resident_bytes(pid: u32) -> u64 {
    const LOOKS_MAX: u32 = 100;
    const SAME: u32 = 5;
    const NOISE_BYTES: u64 = 1 << 20;
    let (mut last, mut same) = (resident_bytes(pid), 0);
    for _ in 0..LOOKS_MAX {
        std::thread::sleep(Duration::from_millis(50));
        let now = resident_bytes(pid);
        same = if now.abs_diff(last) <= NOISE_BYTES { same + 1 } else { 0 };
        last = now;
        if same == SAME {
            break;
        }
    }
    last
}

fn kib_field(path: &str, name: &str) -> Option<u64> {
    let text = field(path, name)?;
    Some(text.strip_suffix(" kB")?.trim().parse::<u64>().ok()? * 1024)
}

fn field(path: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.split(':').next().is_some_and(|key| key.trim() == name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// User and system time of this process so far.
pub(crate) fn own_cpu() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Nanoseconds of a clock that all processes share and that never runs backwards.
pub(crate) fn monotonic_nanos() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}

/// Processor time of all threads that a process has now, to the nanosecond; threads that have ended are not in it.
pub(crate) fn thread_time(pid: u32) -> anyhow::Result<Duration> {
    let mut nanos = 0;
    for entry in fs::read_dir(format!("/proc/{pid}/task")).context("list a server's threads")? {
        let path = entry?.path().join("schedstat");
        // A thread may end meanwhile.
        let text = fs::read_to_string(path).unwrap_or_default();
        nanos += text.split_whitespace().next().and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(Duration::from_nanos(nanos))
}

/// User and system time of a process so far; the kernel counts in ticks of 10 ms.
pub(crate) fn cpu_of(pid: u32) -> anyhow::Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).context("read a server's processor time")?;
    let ticks = ticks(&stat).context("understand a server's processor time")?;
    Ok(Duration::from_secs(ticks) / u32::try_from(rustix::param::clock_ticks_per_second()).unwrap_or(100))
}

/// utime plus stime of a line of `/proc/<pid>/stat`. The program's name, in parentheses, may hold anything.
fn ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_found_behind_any_name() {
        let stat = "42 (a) b) S 1 2 3 4 5 6 7 8 9 10 70 30 0 0 20 0";
        assert_eq!(ticks(stat), Some(100));
    }

    #[test]
    fn own_time_grows_with_work() {
        let before = own_cpu();
        let mut sum = 0_u64;
        while own_cpu() - before < Duration::from_millis(2) {
            sum = std::hint::black_box(sum + 1);
        }
        assert!(sum > 0 && cpu_of(std::process::id()).is_ok());
    }

    #[test]
    fn the_machine_is_described() {
        let machine = Machine::describe();
        assert!(machine.cores > 0 && machine.memory_bytes > 0 && machine.kernel.starts_with("Linux"));
    }
}
