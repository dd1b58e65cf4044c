//! Where things are, and whether somebody wants us to stop.

use anyhow::{Context as _, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// What tests select in every Cargo call: another selection would turn on other features and build everything
/// again. The wheel's crate links against an interpreter; pytest covers it.
pub(crate) const SELECTION: [&str; 3] = ["--workspace", "--exclude", "memkv-sglang"];

/// What every command works with.
pub(crate) struct Context {
    /// The repository.
    pub(crate) root: PathBuf,
    /// Cargo's target directory.
    pub(crate) target: PathBuf,
    /// Logs of noisy steps.
    pub(crate) logs: PathBuf,
    stop: Arc<AtomicBool>,
}

/// How Cargo builds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Profile {
    /// Fast to build; for tests.
    Dev,
    /// Fast to run; for the demo and measurements.
    Release,
    /// Fast to run, with every assertion; for long runs of the simulation.
    Sim,
}

impl Profile {
    /// The profile's name for `--profile`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Dev => "dev",
            Self::Release => "release",
            Self::Sim => "sim",
        }
    }

    /// Its directory below the target directory.
    pub(crate) fn directory(self) -> &'static str {
        match self {
            Self::Dev => "debug",
            Self::Release => "release",
            Self::Sim => "sim",
        }
    }
}

impl Context {
    /// Finds the repository, makes the log directory and starts to listen for Ctrl-C.
    pub(crate) fn new() -> Result<Self> {
        let manifest = std::env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let root = manifest.parent().context("xtask is not inside the repository")?.to_owned();
        let target =
            std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |dir| root.join(dir));
        let logs = target.join("xtask");
        std::fs::create_dir_all(&logs).with_context(|| format!("create {}", logs.display()))?;
        let stop = Arc::new(AtomicBool::new(false));
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
            // The second signal ends the process at once, in case cleaning up hangs.
            signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(&stop))?;
            signal_hook::flag::register(signal, Arc::clone(&stop))?;
        }
        Ok(Self { root, target, logs, stop })
    }

    /// A context whose logs go to `dir`.
    #[cfg(test)]
    pub(crate) fn for_tests(dir: &Path) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        Self { root: dir.to_owned(), target: dir.to_owned(), logs: dir.to_owned(), stop }
    }

    /// Acts as if somebody pressed Ctrl-C.
    #[cfg(test)]
    pub(crate) fn press_stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Fails once somebody pressed Ctrl-C, so that what was started is stopped on the way out.
    pub(crate) fn check_stop(&self) -> Result<()> {
        if self.stop.load(Ordering::Relaxed) { bail!("interrupted") } else { Ok(()) }
    }

    /// A binary that Cargo has built.
    pub(crate) fn binary(&self, profile: Profile, name: &str) -> PathBuf {
        self.target.join(profile.directory()).join(name)
    }

    /// A `cargo` command in the repository.
    pub(crate) fn cargo(&self, args: &[&str]) -> Command {
        let mut command =
            self.command(std::env::var_os("CARGO").map_or_else(|| "cargo".into(), PathBuf::from));
        command.args(args);
        command
    }

    /// A command in the repository, without what `cargo run` put into our environment.
    pub(crate) fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(program.as_ref());
        command.current_dir(&self.root).env("CARGO_TARGET_DIR", &self.target);
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
                command.env_remove(&name);
            }
        }
        command
    }
}
