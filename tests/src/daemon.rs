//! `memkv-server` processes: start, stop, kill, freeze, and what they logged.
//!
//! A daemon is killed, by its process id, when its handle goes away; then its log is checked: any WARN or ERROR
//! line must contain one of the texts given to [`Daemon::allow`].

use crate::http::{self, Metrics};
use crate::{control::Control, program, random, wait_for};
use anyhow::{Context as _, bail};
use memkv_transport::auth::AuthKey;
use rustix::process::{Pid, Signal, kill_process};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::time::Duration;
use tempfile::TempDir;

/// The cluster's key in tests, as an operator would write it.
pub const KEY: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

/// How long a daemon may take to start or stop on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// What to start.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Size of the DRAM store.
    pub dram: String,
    /// The key, or none for an open server.
    pub key: Option<String>,
    /// A fixed port; otherwise a free one.
    pub port: Option<u16>,
    /// YAML for `--config`.
    pub config: Option<String>,
    /// More arguments.
    pub args: Vec<String>,
}

impl Default for Setup {
    fn default() -> Self {
        Self { dram: "64MiB".into(), key: Some(KEY.into()), port: None, config: None, args: Vec::new() }
    }
}

/// A running (or killed, or frozen) daemon.
#[derive(Debug)]
pub struct Daemon {
    setup: Setup,
    /// Variables of its environment from the next start on.
    env: BTreeMap<String, String>,
    port: u16,
    child: Child,
    folder: TempDir,
    allowed: Mutex<Vec<String>>,
}

impl Daemon {
    /// Starts a daemon with a key and a store of 64 MiB, and waits until it is ready.
    ///
    /// # Errors
    ///
    /// If it does not become ready; the error has its log.
    pub fn start() -> anyhow::Result<Self> {
        Self::start_with(Setup::default())
    }

    /// Starts a daemon and waits until it is ready.
    ///
    /// # Errors
    ///
    /// If it does not become ready; the error has its log.
    pub fn start_with(setup: Setup) -> anyhow::Result<Self> {
        // Another process may take the free port before the daemon does: then another one is tried.
        for attempt in 0..5 {
            let port = match setup.port {
                Some(port) => port,
                None => free_port_pair()?,
            };
            let folder = tempfile::tempdir().context("make a folder for the daemon")?;
            let child = spawn(&setup, &BTreeMap::new(), port, folder.path())?;
            let allowed = Mutex::default();
            let mut daemon =
                Self { setup: setup.clone(), env: BTreeMap::new(), port, child, folder, allowed };
            match daemon.wait_ready() {
                Ok(()) => return Ok(daemon),
                Err(_) if setup.port.is_none() && attempt < 4 && daemon.log().contains("in use") => {
                    daemon.allow("");
                }
                Err(error) => {
                    daemon.allow("");
                    return Err(error);
                }
            }
        }
        bail!("no free pair of ports")
    }

    /// Waits until `/readyz` answers 200.
    ///
    /// # Errors
    ///
    /// If it does not within [`PATIENCE`], or the process ended.
    pub fn wait_ready(&mut self) -> anyhow::Result<()> {
        let admin = self.admin_addr();
        let mut ended = None;
        let ready = wait_for("the daemon becomes ready", PATIENCE, || {
            ended = self.child.try_wait().ok().flatten();
            let ready = http::get(admin, "/readyz").is_ok_and(|(code, _)| code == 200);
            (ended.is_some() || ready).then_some(())
        });
        match (ended, ready) {
            (Some(status), _) => bail!("the daemon ended with {status}; its log:\n{}", self.log()),
            (None, Err(error)) => Err(error.context(format!("its log:\n{}", self.log()))),
            (None, Ok(())) => Ok(()),
        }
    }

    /// Where clients connect.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// Where metrics and health are.
    #[must_use]
    pub fn admin_addr(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port + 1).into()
    }

    /// The main port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The key as the protocol uses it; the open key if there is none.
    ///
    /// # Panics
    ///
    /// If the setup's key is not a key.
    #[must_use]
    pub fn auth_key(&self) -> AuthKey {
        match &self.setup.key {
            Some(hex) => AuthKey::from_hex(hex).expect("a started daemon has read this key"),
            None => AuthKey::open(),
        }
    }

    /// The gRPC plane, with the right key.
    ///
    /// # Errors
    ///
    /// If no connection can be made.
    pub fn control(&self) -> anyhow::Result<Control> {
        Control::connect(self.addr(), Some(self.auth_key()))
    }

    /// Scrapes the metrics.
    ///
    /// # Errors
    ///
    /// If the admin port does not answer.
    pub fn metrics(&self) -> anyhow::Result<Metrics> {
        Metrics::scrape(self.admin_addr())
    }

    /// Accepts WARN and ERROR lines that contain `text`.
    pub fn allow(&self, text: &str) {
        self.allowed.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(text.to_owned());
    }

    /// Everything logged so far, over all restarts.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(log_path(self.folder.path())).unwrap_or_default()
    }

    /// WARN and ERROR lines that the test does not expect.
    #[must_use]
    pub fn unexpected_log_lines(&self) -> Vec<String> {
        let allowed = self.allowed.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        unexpected(&self.log(), &allowed)
    }

    /// Sends a signal.
    ///
    /// # Errors
    ///
    /// If the process is gone.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).with_context(|| format!("send {signal:?}"))
    }

    /// Whether the process has ended by itself.
    ///
    /// # Errors
    ///
    /// If the system does not say.
    pub fn has_ended(&mut self) -> anyhow::Result<bool> {
        Ok(self.child.try_wait().context("look at the daemon")?.is_some())
    }

    /// `kill -9`; returns when the process is gone.
    ///
    /// # Errors
    ///
    /// If the process cannot be killed.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill().context("kill the daemon")?;
        self.child.wait().context("wait for the killed daemon")?;
        Ok(())
    }

    /// Freezes the process: its sockets stay open and silent.
    ///
    /// # Errors
    ///
    /// If the process is gone.
    pub fn freeze(&self) -> anyhow::Result<()> {
        self.signal(Signal::STOP)?;
        // The signal is only sent by now; on a busy machine threads may still run for a while.
        wait_for("all threads stop", PATIENCE, || self.all_threads_are_stopped().then_some(()))
    }

    fn all_threads_are_stopped(&self) -> bool {
        let Ok(tasks) = fs::read_dir(format!("/proc/{}/task", self.pid())) else { return false };
        let stopped = |stat: String| stat.rsplit_once(')').is_some_and(|(_, rest)| rest.starts_with(" T"));
        tasks.flatten().all(|task| fs::read_to_string(task.path().join("stat")).is_ok_and(stopped))
    }

    /// Ends a freeze.
    ///
    /// # Errors
    ///
    /// If the process is gone.
    pub fn thaw(&self) -> anyhow::Result<()> {
        self.signal(Signal::CONT)
    }

    /// SIGTERM, then waits for the end.
    ///
    /// # Errors
    ///
    /// If the process does not end within [`PATIENCE`].
    pub fn stop(&mut self) -> anyhow::Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        let child = &mut self.child;
        wait_for("the daemon stops", PATIENCE, || child.try_wait().ok().flatten())
    }

    /// Starts a killed or stopped daemon again, on the same port, with the same log file.
    ///
    /// # Errors
    ///
    /// If it does not become ready.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        self.child = spawn(&self.setup, &self.env, self.port, self.folder.path())?;
        self.wait_ready()
    }

    /// Sets a variable of the environment for the next [`Daemon::restart`].
    pub fn set_env(&mut self, name: &str, value: &str) {
        self.env.insert(name.to_owned(), value.to_owned());
    }

    /// The process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How many file descriptors the process holds.
    ///
    /// # Errors
    ///
    /// If the process is gone.
    pub fn open_files(&self) -> anyhow::Result<usize> {
        Ok(fs::read_dir(format!("/proc/{}/fd", self.pid())).context("list the daemon's files")?.count())
    }

    /// What the file descriptors of the process point at, and how many of them at each: a path, or `socket` and the like without
    /// their numbers. A file whose name is gone ends in ` (deleted)`.
    ///
    /// # Errors
    ///
    /// If the process is gone.
    pub fn descriptors(&self) -> anyhow::Result<BTreeMap<String, usize>> {
        let mut found = BTreeMap::new();
        for entry in fs::read_dir(format!("/proc/{}/fd", self.pid())).context("list the daemon's files")? {
            // One that was closed since the listing is of no interest.
            let Ok(target) = fs::read_link(entry?.path()) else { continue };
            let target = target.display().to_string();
            let kind = target.split_once(":[").map_or(target.as_str(), |(kind, _)| kind);
            *found.entry(kind.to_owned()).or_default() += 1;
        }
        Ok(found)
    }

    /// Memory that the process holds, in bytes.
    ///
    /// # Errors
    ///
    /// If the process is gone.
    pub fn resident_bytes(&self) -> anyhow::Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).context("read its status")?;
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("find VmRSS")?;
        let kib: u64 = line.split_whitespace().nth(1).context("find the number")?.parse()?;
        Ok(kib * 1024)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Both fail only if the process is gone already.
        self.child.kill().ok();
        self.child.wait().ok();
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<_> = log.lines().rev().take(40).collect();
            let tail: Vec<_> = tail.into_iter().rev().collect();
            eprintln!("--- log of the daemon on port {}:\n{}\n---", self.port, tail.join("\n"));
            return;
        }
        let lines = self.unexpected_log_lines();
        assert!(lines.is_empty(), "the daemon logged what the test did not expect:\n{}", lines.join("\n"));
    }
}

/// Runs the server to its end, for tests of what it refuses; returns status and everything it wrote.
///
/// # Errors
///
/// If it does not end within [`PATIENCE`].
pub fn run_server(args: &[&str], env: &[(&str, &str)]) -> anyhow::Result<(ExitStatus, String)> {
    let folder = tempfile::tempdir().context("make a folder")?;
    let mut command = clean_command(&program::server()?);
    command.args(args).envs(env.iter().copied());
    redirect(&mut command, folder.path())?;
    let mut child = command.spawn().context("start memkv-server")?;
    let ended = wait_for("memkv-server ends", PATIENCE, || child.try_wait().ok().flatten());
    if ended.is_err() {
        child.kill().context("kill memkv-server")?;
        child.wait().context("wait for memkv-server")?;
    }
    let text = fs::read_to_string(log_path(folder.path())).context("read what it wrote")?;
    Ok((ended.with_context(|| format!("it wrote:\n{text}"))?, text))
}

/// A command without any of the caller's `MEMKV_*` settings.
#[must_use]
pub fn clean_command(program: &Path) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("MEMKV_") {
            command.env_remove(name);
        }
    }
    command.env_remove("RUST_LOG").env("NO_COLOR", "1").stdin(Stdio::null());
    command
}

fn spawn(setup: &Setup, env: &BTreeMap<String, String>, port: u16, folder: &Path) -> anyhow::Result<Child> {
    let mut command = clean_command(&program::server()?);
    command.args(["--listen", &format!("127.0.0.1:{port}"), "--dram", &setup.dram]);
    if let Some(yaml) = &setup.config {
        let path = folder.join("memkv.yaml");
        fs::write(&path, yaml).context("write the config")?;
        command.arg("--config").arg(path);
    }
    command.args(&setup.args).envs(env);
    if let Some(key) = &setup.key {
        command.env("MEMKV_SERVER_AUTH_KEY", key);
    }
    redirect(&mut command, folder)?;
    command.spawn().context("start memkv-server")
}

fn redirect(command: &mut Command, folder: &Path) -> anyhow::Result<()> {
    let log = File::options().create(true).append(true).open(log_path(folder)).context("open the log")?;
    command.stdout(log.try_clone().context("share the log")?).stderr(log);
    Ok(())
}

fn log_path(folder: &Path) -> PathBuf {
    folder.join("memkv-server.log")
}

/// The WARN and ERROR lines of `log` that contain none of the allowed texts.
fn unexpected(log: &str, allowed: &[String]) -> Vec<String> {
    let bad = |line: &str| {
        let mut words = line.split_whitespace().take(2);
        words.any(|word| word == "WARN" || word == "ERROR") || line.contains("panicked at")
    };
    // What a sanitizer says is a fault in any test.
    let never = |line: &str| line.contains("Sanitizer: ");
    let unexpected =
        |line: &&str| never(line) || (bad(line) && !allowed.iter().any(|text| line.contains(text)));
    log.lines().filter(unexpected).map(str::to_owned).collect()
}

/// A port whose successor is free too. Below the ports that the system gives to outgoing connections.
///
/// # Errors
///
/// If none is found.
pub fn free_port_pair() -> anyhow::Result<u16> {
    for _ in 0..1000 {
        let port = 12_000 + u16::from_le_bytes(random()) % 20_000;
        let both = [port, port + 1].map(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)));
        if both.iter().all(Result::is_ok) {
            return Ok(port);
        }
    }
    bail!("no free pair of ports")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_must_be_expected() {
        let log = "2026-01-01T00:00:00Z  INFO a: ERROR in words later on\n\
                   2026-01-01T00:00:00Z  WARN a: slow\n2026-01-01T00:00:00Z ERROR a: bad\nthread panicked at x";
        assert_eq!(unexpected(log, &["slow".into()]).len(), 2);
        assert_eq!(unexpected(log, &["".into()]).len(), 0);
        let log = "==7==ERROR: AddressSanitizer: heap-use-after-free\n==8==ERROR: LeakSanitizer: detected memory leaks";
        assert_eq!(unexpected(log, &["".into()]).len(), 2);
    }
}
