//! The Python environment with the real `sglang` package.
//!
//! It is kept in `${MEMKV_CACHE_DIR:-${XDG_CACHE_HOME:-~/.cache}/memkv}/venv-<hash>`, where the hash covers the
//! requirement files and the interpreter. A marker file is written last, so a half-made environment is made
//! again. If the active Python already has `sglang`, only maturin and pytest are installed, in a small
//! environment that sees the active one.
//!
//! `PIP_*` variables of the machine are respected.

use crate::context::Context;
use crate::process::{probe, step};
use crate::ui::say;
use anyhow::{Context as _, Result, bail};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

const FULL: [&str; 3] = ["requirements-sglang.txt", "requirements-sglang-nodeps.txt", "requirements-dev.txt"];
const DEV: &str = "requirements-dev.txt";
const MARKER: &str = ".complete";

/// A Python environment that can build the wheel and, unless asked otherwise, import `sglang`.
pub(crate) struct Venv {
    root: PathBuf,
    /// What to tell the person about the `sglang` in use.
    pub(crate) sglang: String,
}

impl Venv {
    /// The environment's interpreter.
    pub(crate) fn python(&self) -> PathBuf {
        self.root.join("bin/python")
    }

    /// A command of the environment: `python ARGS`.
    pub(crate) fn run(&self, context: &Context, args: &[&str]) -> Command {
        let mut command = context.command(self.python());
        let path = std::env::var("PATH").unwrap_or_default();
        command
            .args(args)
            .env("PATH", format!("{}:{path}", self.root.join("bin").display()))
            .env("VIRTUAL_ENV", &self.root)
            .env("PYTHONUNBUFFERED", "1")
            .env_remove("PYTHONHOME");
        command
    }
}

/// What the environment is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Building the wheel: maturin is enough.
    Build,
    /// Running SGLang's code as well.
    Sglang,
}

/// Makes the environment, or finds the one made earlier.
///
/// # Errors
///
/// When there is no fitting Python, something cannot be installed, or somebody pressed Ctrl-C.
pub(crate) fn venv(context: &Context, purpose: Purpose) -> Result<Venv> {
    let python = find_python(context)?;
    let active = active_sglang(context, &python);
    let (files, sglang): (&[&str], String) = match (&active, purpose) {
        (Some(active), _) => (&[DEV], format!("sglang {} of the active Python", active.version)),
        (None, Purpose::Build) => (&[DEV], "no sglang".to_owned()),
        (None, Purpose::Sglang) => (&FULL, "sglang from the kept environment".to_owned()),
    };
    let mut identity = python.identity.clone();
    if let Some(active) = &active {
        identity.push_str(&active.site_packages.join("\n"));
    }
    for file in files {
        let path = requirement(context, file);
        identity
            .push_str(&std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?);
    }
    let cache = cache_dir()?;
    std::fs::create_dir_all(&cache).with_context(|| format!("create {}", cache.display()))?;
    let name = format!("venv-{}", &format!("{:016x}", fnv1a(identity.as_bytes()))[..12]);
    let venv = Venv { root: cache.join(&name), sglang };
    // Two commands at once must not both make it.
    let lock = File::create(cache.join(format!("{name}.lock"))).context("create the environment's lock")?;
    lock.lock().context("lock the environment")?;
    if !venv.root.join(MARKER).exists() {
        make(context, &python, &venv, active.as_ref(), files)?;
    }
    Ok(venv)
}

fn make(
    context: &Context,
    python: &Python,
    venv: &Venv,
    active: Option<&ActiveSglang>,
    files: &[&str],
) -> Result<()> {
    if files.len() == FULL.len() {
        say(&format!(
            "  The environment with the real sglang package is made once: about 3 GB of downloads, 6 GB on disk.\n  \
             It is kept in {} (MEMKV_CACHE_DIR moves it).",
            venv.root.display()
        ));
    }
    if venv.root.exists() {
        std::fs::remove_dir_all(&venv.root).context("remove a half-made environment")?;
    }
    ensure_venv_module(context, python)?;
    let mut create = context.command(&python.program);
    create.args(["-m", "venv"]).arg(&venv.root);
    step(context, "make the Python environment", "venv", create)?;
    for file in files {
        let mut args = vec!["-m", "pip", "install", "--no-input", "--progress-bar", "off"];
        if file.contains("nodeps") {
            args.push("--no-deps");
        }
        let mut install = venv.run(context, &args);
        install.arg("-r").arg(requirement(context, file));
        step(
            context,
            &format!("install {file}"),
            &format!("pip-{}", file.trim_end_matches(".txt")),
            install,
        )?;
    }
    // Last, or pip would take a maturin of the active Python for installed, and its script would be missing here.
    if let Some(active) = active {
        see_active_packages(context, venv, active)?;
    }
    std::fs::write(venv.root.join(MARKER), "").context("mark the environment as complete")
}

/// Lets the environment import what the active Python has: `--system-site-packages` would show the packages of
/// the base interpreter, not those of an active environment.
fn see_active_packages(context: &Context, venv: &Venv, active: &ActiveSglang) -> Result<()> {
    let ask = venv.run(context, &["-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]);
    let site = probe(ask).context("ask the new environment for its package directory")?;
    let lines: Vec<String> =
        active.site_packages.iter().map(|dir| format!("import site; site.addsitedir({dir:?})\n")).collect();
    std::fs::write(Path::new(&site).join("active_python.pth"), lines.concat()).context("write a .pth file")
}

struct Python {
    program: PathBuf,
    /// Version and location: a change makes another environment.
    identity: String,
}

fn find_python(context: &Context) -> Result<Python> {
    const ASK: &str = "import sys; print(sys.version_info >= (3, 11), sys.version.split()[0], sys.prefix)";
    let wanted = std::env::var_os("MEMKV_PYTHON").map(PathBuf::from);
    let usual = ["python3", "python3.11", "python3.12", "python3.13"].map(PathBuf::from);
    for program in wanted.into_iter().chain(usual) {
        let mut command = context.command(&program);
        command.args(["-c", ASK]);
        if let Some(identity) = probe(command).filter(|answer| answer.starts_with("True")) {
            return Ok(Python { program, identity });
        }
    }
    bail!("no Python of version 3.11 or later was found; install it, or set MEMKV_PYTHON to its path")
}

struct ActiveSglang {
    version: String,
    site_packages: Vec<String>,
}

fn active_sglang(context: &Context, python: &Python) -> Option<ActiveSglang> {
    const ASK: &str = "import importlib.metadata as m, site, sys
print(m.version('sglang'))
for path in site.getsitepackages() + ([site.getusersitepackages()] if site.ENABLE_USER_SITE else []): print(path)
import sglang";
    let mut command = context.command(&python.program);
    command.args(["-c", ASK]);
    let answer = probe(command)?;
    let mut lines = answer.lines().map(str::to_owned);
    Some(ActiveSglang { version: lines.next()?, site_packages: lines.collect() })
}

/// Debian splits `venv` off from Python; everywhere else it is there.
fn ensure_venv_module(context: &Context, python: &Python) -> Result<()> {
    let has = |module: &str| {
        let mut command = context.command(&python.program);
        command.args(["-c", &format!("import {module}")]);
        probe(command).is_some()
    };
    if has("venv") && has("ensurepip") {
        return Ok(());
    }
    apt_install(context, &["python3-venv"])
}

/// Installs Debian packages, if this is Debian and we may.
pub(crate) fn apt_install(context: &Context, packages: &[&str]) -> Result<()> {
    let names = packages.join(" ");
    let apt = Path::new("/usr/bin/apt-get");
    if !rustix::process::geteuid().is_root() || !apt.exists() {
        bail!("this machine lacks {names}; install it as root, for example with: apt-get install {names}");
    }
    let mut update = context.command(apt);
    update.args(["update", "-q"]);
    step(context, "apt-get update", "apt-update", update)?;
    let mut install = context.command(apt);
    install.env("DEBIAN_FRONTEND", "noninteractive");
    install.args(["install", "-y", "-q", "--no-install-recommends"]).args(packages);
    step(context, &format!("apt-get install {names}"), "apt-install", install)
}

fn cache_dir() -> Result<PathBuf> {
    let from = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(dir) = from("MEMKV_CACHE_DIR") {
        return std::path::absolute(dir).context("resolve MEMKV_CACHE_DIR");
    }
    let base = from("XDG_CACHE_HOME").or_else(|| from("HOME").map(|home| home.join(".cache")));
    Ok(base.context("neither MEMKV_CACHE_DIR, XDG_CACHE_HOME nor HOME is set")?.join("memkv"))
}

fn requirement(context: &Context, file: &str) -> PathBuf {
    context.root.join("sglang-plugin").join(file)
}

/// FNV-1a, 64 bits: names a directory, protects nothing.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_fnv_1a() {
        assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"a"), 0xaf63_dc4c_8601_ec8c);
    }
}
