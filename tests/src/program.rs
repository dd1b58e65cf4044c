//! Finds the programs under test beside the test binary, and builds them if they are absent or out of date.
//!
//! A test of one package does not get another package's binary from cargo. `MEMKV_SERVER_BIN` (and
//! `MEMKV_CLI_BIN`) name a binary to use as it is.

use anyhow::{Context as _, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::SystemTime;

/// Where the sources of the programs live, relative to the workspace.
const SOURCES: [&str; 5] = ["server", "cli", "client", "crates", "proto"];

/// One build at a time in this process.
static BUILDING: Mutex<()> = Mutex::new(());

/// The `memkv-server` to test.
///
/// # Errors
///
/// If it is absent and cannot be built.
pub fn server() -> anyhow::Result<PathBuf> {
    find("memkv-server", "MEMKV_SERVER_BIN")
}

/// The `memkv-cli` to test.
///
/// # Errors
///
/// If it is absent and cannot be built.
pub fn cli() -> anyhow::Result<PathBuf> {
    find("memkv-cli", "MEMKV_CLI_BIN")
}

fn find(name: &str, variable: &str) -> anyhow::Result<PathBuf> {
    if let Some(path) = std::env::var_os(variable) {
        return Ok(path.into());
    }
    let _one_at_a_time = BUILDING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    // The test runs from target/<profile>/deps.
    let test = std::env::current_exe().context("find this test's binary")?;
    let folder = test.parent().and_then(Path::parent).context("find the target directory")?;
    let path = folder.join(name);
    if !is_fresh(&path) {
        build(name, folder)?;
    }
    ensure!(path.exists(), "{} is absent after its build", path.display());
    Ok(path)
}

fn build(name: &str, folder: &Path) -> anyhow::Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let profile = match folder.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(other) => other,
    };
    let target = folder.parent().context("find the target directory")?;
    let mut command = Command::new(cargo);
    command.current_dir(workspace()).env("CARGO_TARGET_DIR", target);
    command.args(["build", "--quiet", "--package", name, "--profile", profile]);
    let status = command.status().context("run cargo")?;
    ensure!(status.success(), "cargo could not build {name}");
    // An unchanged binary keeps its old time, and would be looked at again by every test.
    let path = folder.join(name);
    let file = std::fs::File::options().append(true).open(&path).context("open the new binary")?;
    file.set_modified(SystemTime::now()).context("mark the new binary as fresh")
}

/// The root of the workspace.
#[must_use]
pub fn workspace() -> PathBuf {
    let mut path = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    path.pop();
    path
}

fn is_fresh(binary: &Path) -> bool {
    let Ok(built) = binary.metadata().and_then(|meta| meta.modified()) else { return false };
    SOURCES.iter().all(|folder| newest(&workspace().join(folder)).is_none_or(|changed| changed <= built))
}

fn newest(folder: &Path) -> Option<SystemTime> {
    let entries = std::fs::read_dir(folder).ok()?;
    let times = entries.flatten().filter_map(|entry| {
        let path = entry.path();
        if path.is_dir() {
            return newest(&path);
        }
        let counts = path.extension().is_some_and(|ext| ["rs", "toml", "proto"].iter().any(|e| ext == *e));
        if counts { entry.metadata().and_then(|meta| meta.modified()).ok() } else { None }
    });
    times.max()
}
