//! What is done to servers, and to the ways to them. Each server suffers one fault at a time, all of them at once.

use anyhow::{Context as _, Result};
use memkv_tests::daemon::{Daemon, PATIENCE, Setup};
use memkv_tests::proxy::{Faults, Proxy, Way};
use memkv_tests::wait_for;
use std::fs;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A small generator (xorshift64*).
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed ^ 0x9e37_79b9_7f4a_7c15 | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    #[allow(clippy::cast_possible_truncation, reason = "the remainder fits what `most` fits")]
    pub(crate) fn below(&mut self, most: usize) -> usize {
        ((self.next() >> 16) % most as u64) as usize
    }
}

/// Something that is done to a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    Kill,
    KillAndFlipBits,
    RestartAtAnotherTime,
    Freeze,
    Partition,
    Stall,
    Delay,
    FlipOnTheWire,
    Cut,
    SlowWay,
    FlipInMemory,
    FullDisk,
    SlowReaders,
    Silence,
}

impl Fault {
    pub(crate) const ALL: [Self; 14] = [
        Self::Kill,
        Self::KillAndFlipBits,
        Self::RestartAtAnotherTime,
        Self::Freeze,
        Self::Partition,
        Self::Stall,
        Self::Delay,
        Self::FlipOnTheWire,
        Self::Cut,
        Self::SlowWay,
        Self::FlipInMemory,
        Self::FullDisk,
        Self::SlowReaders,
        Self::Silence,
    ];

    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Kill => "kill -9, then a start",
            Self::KillAndFlipBits => "kill -9, bits flipped in its files, then a start",
            Self::RestartAtAnotherTime => "stop, then a start with the clock hours away",
            Self::Freeze => "SIGSTOP, then SIGCONT",
            Self::Partition => "nothing passes to it or from it",
            Self::Stall => "its data connections stall",
            Self::Delay => "each piece of its data waits 20 ms",
            Self::FlipOnTheWire => "a bit flips on each data connection",
            Self::Cut => "its data connections are cut at a byte",
            Self::SlowWay => "its data passes at 2 MB/s",
            Self::FlipInMemory => "bits flip in the memory for pages while it serves",
            Self::FullDisk => "the file system of its drive is full",
            Self::SlowReaders => "clients that ask and do not read",
            Self::Silence => "200 connections that say nothing",
        }
    }
}

/// One fault and when it was.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Event {
    pub(crate) server: usize,
    pub(crate) fault: Fault,
    pub(crate) from: Duration,
    pub(crate) to: Duration,
}

/// One server, the way to it, and its files.
pub(crate) struct Server {
    number: usize,
    begun: Instant,
    daemon: Daemon,
    proxy: Proxy,
    folder: TempDir,
    /// Whether its drive has a file system of its own, which may be filled.
    own_file_system: bool,
    files_before: usize,
    events: Vec<Event>,
}

impl Server {
    fn start(number: usize, begun: Instant) -> Result<Self> {
        let shm = Path::new("/dev/shm");
        let folder = if shm.is_dir() { tempfile::tempdir_in(shm)? } else { tempfile::tempdir()? };
        let (memory, drive) = (folder.path().join("memory"), folder.path().join("drive"));
        fs::create_dir_all(&drive)?;
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=160m", "campaign"]).arg(&drive).output();
        let own_file_system = mounted.is_ok_and(|mounted| mounted.status.success());
        let args = [
            "--memory-backing",
            &memory.display().to_string(),
            "--nvme-paths",
            &format!("{}=96MiB", drive.display()),
            "--nvme-mode",
            if number == 0 { "write-through" } else { "demote" },
            "--limits-stall-time-max",
            "2s",
            "--limits-ping-interval",
            "500ms",
        ]
        .map(str::to_owned)
        .to_vec();
        let daemon = Daemon::start_with(Setup { dram: "32MiB".to_owned(), args, ..Setup::default() })?;
        // What is done to it may well be logged.
        daemon.allow("");
        let proxy = Proxy::start(daemon.addr())?;
        let files_before = daemon.open_files()?;
        Ok(Self { number, begun, daemon, proxy, folder, own_file_system, files_before, events: Vec::new() })
    }

    /// One fault after the other until the time is over.
    pub(crate) fn suffer(&mut self, random: &mut Rng, over: Instant) {
        while Instant::now() + Duration::from_secs(3) < over {
            let fault = Fault::ALL[random.below(Fault::ALL.len())];
            if fault == Fault::FullDisk && !self.own_file_system {
                continue;
            }
            let from = self.begun.elapsed();
            let hold = Duration::from_millis(300 + random.below(2200) as u64);
            if let Err(error) = self.strike(fault, random, hold) {
                panic!("server {}: {}: {error:#}", self.number, fault.text());
            }
            self.events.push(Event { server: self.number, fault, from, to: self.begun.elapsed() });
            std::thread::sleep(Duration::from_millis(200 + random.below(1500) as u64));
        }
    }

    fn strike(&mut self, fault: Fault, random: &mut Rng, hold: Duration) -> Result<()> {
        let way = if random.below(2) == 0 { Way::Up } else { Way::Down };
        let at = random.below(200_000) as u64;
        let on_the_way = |faults: Faults| {
            self.proxy.set(faults);
            std::thread::sleep(hold);
            self.proxy.set(Faults::default());
            Ok(())
        };
        match fault {
            Fault::Kill => {
                self.daemon.kill()?;
                std::thread::sleep(hold);
                self.daemon.restart()
            }
            Fault::KillAndFlipBits => {
                self.daemon.kill()?;
                for file in self.files()? {
                    let bits = 1 + random.below(20);
                    flip(&file, random, bits)?;
                }
                self.daemon.restart()
            }
            Fault::RestartAtAnotherTime => {
                self.daemon.stop()?;
                let hours = random.below(72) as i64 - 36;
                self.daemon.set_env("MEMKV_TEST_CLOCK_SHIFT_MS", &(hours * 3_600_000).to_string());
                self.daemon.restart()?;
                std::thread::sleep(hold);
                self.daemon.stop()?;
                self.daemon.set_env("MEMKV_TEST_CLOCK_SHIFT_MS", "0");
                self.daemon.restart()
            }
            Fault::Freeze => {
                self.daemon.freeze()?;
                std::thread::sleep(hold);
                self.daemon.thaw()
            }
            Fault::Partition => on_the_way(Faults { dark: true, ..Faults::default() }),
            Fault::Stall => on_the_way(Faults { stall: true, ..Faults::default() }),
            Fault::Delay => on_the_way(Faults { delay: Duration::from_millis(20), ..Faults::default() }),
            Fault::FlipOnTheWire => on_the_way(Faults { flip: Some((way, at)), ..Faults::default() }),
            Fault::Cut => on_the_way(Faults { cut: Some((way, at)), ..Faults::default() }),
            Fault::SlowWay => on_the_way(Faults { rate: Some((way, 2 << 20)), ..Faults::default() }),
            Fault::FlipInMemory => {
                let memory = self.folder.path().join("memory").join("memkv.arena");
                flip_pages(&memory, random, 200)?;
                std::thread::sleep(hold);
                Ok(())
            }
            Fault::FullDisk => self.fill_up(hold),
            Fault::SlowReaders => self.slow_readers(hold),
            Fault::Silence => {
                let silent: Vec<_> =
                    (0..200).map_while(|_| TcpStream::connect(self.daemon.addr()).ok()).collect();
                std::thread::sleep(hold);
                drop(silent);
                Ok(())
            }
        }
    }

    /// The memory file and the segments.
    fn files(&self) -> Result<Vec<PathBuf>> {
        let mut files = vec![self.folder.path().join("memory").join("memkv.arena")];
        for entry in fs::read_dir(self.folder.path().join("drive"))? {
            files.push(entry?.path());
        }
        files.retain(|file| file.is_file());
        Ok(files)
    }

    fn fill_up(&self, hold: Duration) -> Result<()> {
        let filler = self.folder.path().join("drive").join("filler");
        let mut file = fs::File::create(&filler)?;
        while file.write_all(&[1; 1 << 20]).is_ok() {}
        std::thread::sleep(hold);
        fs::remove_file(&filler).context("remove the filler")
    }

    /// Clients that ask for pages and read nothing of the answer.
    fn slow_readers(&self, hold: Duration) -> Result<()> {
        let control = self.daemon.control()?;
        let space = control.open_space("campaign")?;
        let session = control.session()?;
        let mut readers = Vec::new();
        for chain in 0..8_u32 {
            let keys: Vec<Vec<u8>> = (0..16).map(|at| format!("chain/{chain}/{at}").into_bytes()).collect();
            let wanted: Vec<(&[u8], u32)> = keys.iter().map(|key| (key.as_slice(), 1 << 20)).collect();
            let mut reader = session.attach()?;
            let id = reader.id();
            reader.send(&memkv_tests::wire::get_frame(id, space, &wanted, false))?;
            readers.push(reader);
        }
        std::thread::sleep(hold);
        Ok(())
    }

    /// What it holds although nobody asks any more.
    fn left_behind(&self) -> Vec<String> {
        let number = self.number;
        let gauges =
            ["memkv_sessions", "memkv_data_connections", "memkv_requests_in_flight", "memkv_shm_lent_pages"];
        let mut left: Vec<String> = gauges
            .iter()
            .filter_map(|name| {
                let zero = || self.daemon.metrics().is_ok_and(|now| now.sum(name, &[]) == 0.0).then_some(());
                wait_for(name, PATIENCE, zero).err().map(|error| format!("server {number}: {error}"))
            })
            .collect();
        let slots = || {
            let now = self.daemon.metrics().ok()?;
            // What is in use is pages that can be found, and the rounding of their slots.
            (now.sum("memkv_dram_used_bytes", &[]) <= 1.5 * now.sum("memkv_dram_page_bytes", &[]) + 1e6)
                .then_some(())
        };
        left.extend(
            wait_for("slots", PATIENCE, slots).err().map(|error| format!("server {number}: {error}")),
        );
        let files = || (self.daemon.open_files().ok()? <= self.files_before + 32).then_some(());
        left.extend(
            wait_for("files", PATIENCE, files).err().map(|error| format!("server {number}: {error}")),
        );
        left
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The daemon's files have to be closed before the file system goes.
        let _killed = self.daemon.kill();
        if self.own_file_system {
            let _unmounted = Command::new("umount").arg("-l").arg(self.folder.path().join("drive")).status();
        }
    }
}

/// Flips bits anywhere in a file.
fn flip(path: &Path, random: &mut Rng, bits: usize) -> Result<()> {
    let mut file = fs::File::options().read(true).write(true).open(path)?;
    let len = file.metadata()?.len();
    for _ in 0..bits.min(usize::try_from(len).unwrap_or(usize::MAX)) {
        let at = random.next() % len;
        let mut byte = [0];
        file.seek(SeekFrom::Start(at))?;
        file.read_exact(&mut byte)?;
        byte[0] ^= 1 << random.below(8);
        file.seek(SeekFrom::Start(at))?;
        file.write_all(&byte)?;
    }
    Ok(())
}

/// Flips bits in the pages of a memory file that is in use: the tables before them are the server's own memory, and a
/// server whose own memory is wrong may do anything.
fn flip_pages(path: &Path, random: &mut Rng, bits: usize) -> Result<()> {
    let file = fs::File::options().read(true).write(true).open(path)?;
    let mut head = [0; 64];
    file.read_exact_at(&mut head, 0)?;
    // The eighth word says where pages begin.
    let data = u64::from_le_bytes(head[56..64].try_into().context("a word has eight bytes")?);
    let len = file.metadata()?.len();
    for _ in 0..bits {
        let at = data + random.next() % (len - data);
        let mut byte = [0];
        file.read_exact_at(&mut byte, at)?;
        // A place that holds nothing stays as it is: its memory should not be taken for this.
        if byte[0] != 0 {
            byte[0] ^= 1 << random.below(8);
            file.write_all_at(&byte, at)?;
        }
    }
    Ok(())
}

/// Three servers.
pub(crate) struct Cluster {
    pub(crate) servers: Vec<Server>,
}

impl Cluster {
    pub(crate) fn start(begun: Instant) -> Result<Self> {
        let servers: Result<Vec<Server>> = (0..3).map(|number| Server::start(number, begun)).collect();
        Ok(Self { servers: servers? })
    }

    /// The servers as clients are told of them: by the ways that can be disturbed.
    pub(crate) fn addresses(&self) -> String {
        let each = self.servers.iter().map(|server| format!("s{}={}", server.number, server.proxy.addr()));
        each.collect::<Vec<_>>().join(",")
    }

    /// Makes sure that all servers serve. Returns how many pages each has.
    pub(crate) fn heal(&mut self) -> Result<Vec<f64>> {
        let pages = self.servers.iter_mut().map(|server| {
            server.daemon.wait_ready()?;
            Ok(server.daemon.metrics()?.sum("memkv_dram_pages", &[]))
        });
        pages.collect()
    }

    /// All faults in the order of their beginning.
    pub(crate) fn events(&self) -> Vec<Event> {
        let mut events: Vec<Event> = self.servers.iter().flat_map(|server| server.events.clone()).collect();
        events.sort_by_key(|event| event.from);
        events
    }

    /// What servers hold although nobody asks any more.
    pub(crate) fn left_behind(&self) -> Vec<String> {
        self.servers.iter().flat_map(Server::left_behind).collect()
    }
}
