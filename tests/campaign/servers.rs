//! The servers, the ways to them, and what they suffer. Each server suffers one fault at a time, all of them at once.

use crate::faults::{Event, Fault, Rng};
use crate::flips::{flip, flip_pages, flip_somewhere};
use crate::pressure::{Cage, allow_growth, status_bytes, stop_growth};
use anyhow::{Context as _, Result, ensure};
use memkv_tests::daemon::{Daemon, PATIENCE, Setup};
use memkv_tests::proxy::{Faults, Proxy, Way};
use memkv_tests::wait_for;
use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// One server, the way to it, and its files.
pub(crate) struct Server {
    number: usize,
    daemon: Daemon,
    proxy: Proxy,
    folder: TempDir,
    cage: Option<Cage>,
    /// The process, for those who look at it meanwhile.
    pid: Arc<AtomicU32>,
    /// Whether its drive has a file system of its own, which may be filled.
    own_file_system: bool,
    /// Descriptors after its start, without those of its drive's segments.
    others_before: usize,
    events: Vec<Event>,
}

impl Server {
    fn start(number: usize) -> Result<Self> {
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
            &format!("{}:96MiB", drive.display()),
            "--nvme-segment",
            "8MiB",
            "--nvme-mode",
            if number == 0 { "write-through" } else { "demote" },
            "--limits-stall-time-max",
            "2s",
            "--limits-ping-interval",
            "500ms",
        ]
        .map(str::to_owned)
        .to_vec();
        let mut daemon = Daemon::start_with(Setup { dram: "32MiB".to_owned(), args, ..Setup::default() })?;
        // What is done to it may well be logged.
        daemon.allow("");
        daemon.set_env("MEMKV_TEST_CLOCK", &folder.path().join("clock").display().to_string());
        daemon.stop()?;
        daemon.restart()?;
        ensure!(fs::read_dir(&drive)?.next().is_some(), "the server does not use its drive");
        let proxy = Proxy::start(daemon.addr())?;
        let others_before = Descriptors::of(&daemon, folder.path())?.others;
        let server = Self {
            number,
            proxy,
            own_file_system,
            others_before,
            cage: Cage::new(&format!("memkv-campaign-{}-{number}", std::process::id())),
            pid: Arc::default(),
            events: Vec::new(),
            daemon,
            folder,
        };
        server.look()?;
        Ok(server)
    }

    /// Starts the daemon again after its end.
    fn restart(&mut self) -> Result<()> {
        self.daemon.restart()?;
        self.look()
    }

    /// Notes which process it is now.
    fn look(&self) -> Result<()> {
        self.pid.store(self.daemon.pid(), Ordering::Relaxed);
        self.cage.as_ref().map_or(Ok(()), |cage| cage.take(self.daemon.pid()))
    }

    /// Ends the daemon as an operator does.
    pub(crate) fn stop(&mut self) -> Result<ExitStatus> {
        self.daemon.stop()
    }

    /// What must be there for a fault to be possible.
    fn can_suffer(&self, fault: Fault) -> bool {
        match fault {
            Fault::FullDisk => self.own_file_system,
            Fault::Squeeze => self.cage.is_some(),
            _ => true,
        }
    }

    /// One fault after the other until the time is over; from `lasting` on only such as the process survives.
    pub(crate) fn suffer(&mut self, random: &mut Rng, begun: Instant, lasting: Instant, over: Instant) {
        while Instant::now() + Duration::from_secs(3) < over {
            let fault = Fault::ALL[random.below(Fault::ALL.len())];
            if !self.can_suffer(fault) || (Instant::now() > lasting && !fault.is_survived()) {
                continue;
            }
            let from = begun.elapsed();
            let hold = Duration::from_millis(300 + random.below(2200) as u64);
            if let Err(error) = self.strike(fault, random, hold) {
                panic!("server {}: {}: {error:#}", self.number, fault.text());
            }
            self.events.push(Event { server: self.number, fault, from, to: begun.elapsed() });
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
                self.restart()
            }
            Fault::KillAndFlipBits => {
                self.daemon.kill()?;
                for file in self.files()? {
                    let bits = 1 + random.below(20);
                    flip(&file, random, bits)?;
                }
                self.restart()
            }
            Fault::RestartAtAnotherTime => {
                self.daemon.stop()?;
                self.set_clock(random)?;
                self.restart()?;
                std::thread::sleep(hold);
                self.daemon.stop()?;
                fs::remove_file(self.clock())?;
                self.restart()
            }
            Fault::ClockJump => {
                self.set_clock(random)?;
                std::thread::sleep(hold);
                fs::remove_file(self.clock()).context("set the clock right")
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
            Fault::FlipOnDisk => {
                let bits = 1 + random.below(40);
                flip_somewhere(&self.folder.path().join("drive"), random, bits)?;
                std::thread::sleep(hold);
                Ok(())
            }
            Fault::FullDisk => self.fill_up(hold),
            Fault::NoMoreMemory => self.starve(hold),
            Fault::Squeeze => self.cage.as_ref().map_or(Ok(()), |cage| {
                cage.squeeze()?;
                std::thread::sleep(hold);
                cage.release()
            }),
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

    /// The file from which the daemon learns how far its clock is off.
    fn clock(&self) -> PathBuf {
        self.folder.path().join("clock")
    }

    fn set_clock(&self, random: &mut Rng) -> Result<()> {
        let hours = i64::try_from(random.below(72))? - 36;
        fs::write(self.clock(), (hours * 3_600_000).to_string()).context("move the clock")
    }

    /// Memory that is asked for is not given. A process that cannot do without ends; then it is started again.
    fn starve(&mut self, hold: Duration) -> Result<()> {
        stop_growth(self.daemon.pid())?;
        std::thread::sleep(hold);
        allow_growth(self.daemon.pid());
        if self.daemon.has_ended()? || self.daemon.metrics().is_err() {
            self.daemon.kill()?;
            self.restart()?;
        }
        Ok(())
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
        let files = || {
            let open = Descriptors::of(&self.daemon, self.folder.path()).ok()?;
            (open.others <= self.others_before + 32 && open.removed == 0).then_some(())
        };
        if wait_for("files", PATIENCE, files).is_err() {
            left.push(match Descriptors::of(&self.daemon, self.folder.path()) {
                Ok(open) => format!(
                    "server {number}: {} descriptors and {} of removed segments, {} after its start: {:?}",
                    open.others, open.removed, self.others_before, open.all
                ),
                Err(error) => format!("server {number}: {error:#}"),
            });
        }
        left
    }
}

/// What a daemon's descriptors point at. Those of segments are as many as its drive has of them: each start leaves a short one, and short
/// ones may be many within a quota. What counts is that none is held open whose name is gone.
struct Descriptors {
    all: BTreeMap<String, usize>,
    /// Those of no segment.
    others: usize,
    /// Those of segments that were removed.
    removed: usize,
}

impl Descriptors {
    fn of(daemon: &Daemon, folder: &Path) -> Result<Self> {
        let all = daemon.descriptors()?;
        let drive = folder.join("drive").display().to_string();
        let (mut others, mut removed) = (0, 0);
        for (target, count) in &all {
            if !(target.starts_with(&drive) && target.contains(".segment")) {
                others += count;
            } else if target.ends_with(" (deleted)") {
                removed += count;
            }
        }
        Ok(Self { all, others, removed })
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

/// Looks at one server's process.
pub(crate) struct Eye(Arc<AtomicU32>);

impl Eye {
    /// The memory that is its own, so without the file that holds pages; 0 while there is no process.
    pub(crate) fn own_bytes(&self) -> u64 {
        status_bytes(self.0.load(Ordering::Relaxed), "RssAnon").unwrap_or(0)
    }
}

/// Three servers.
pub(crate) struct Cluster {
    pub(crate) servers: Vec<Server>,
}

impl Cluster {
    pub(crate) fn start() -> Result<Self> {
        let servers: Result<Vec<Server>> = (0..3).map(Server::start).collect();
        Ok(Self { servers: servers? })
    }

    /// The servers as clients are told of them: by the ways that can be disturbed.
    pub(crate) fn addresses(&self) -> String {
        let each = self.servers.iter().map(|server| format!("s{}={}", server.number, server.proxy.addr()));
        each.collect::<Vec<_>>().join(",")
    }

    /// What looks at the memory of each server while it suffers.
    pub(crate) fn eyes(&self) -> Vec<Eye> {
        self.servers.iter().map(|server| Eye(Arc::clone(&server.pid))).collect()
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
