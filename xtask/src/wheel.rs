//! Builds the wheel `memkv-sglang` and installs it into an environment.

use crate::context::{Context, Profile};
use crate::process::step;
use crate::python::{Purpose, Venv, venv};
use crate::rdma::install_tools;
use crate::ui::say;
use anyhow::{Context as _, Result, bail};
use std::path::{Path, PathBuf};

/// `cargo xtask wheel [--dev]`.
pub(crate) fn run(context: &Context, args: &[String]) -> Result<()> {
    let profile = match args {
        [] => Profile::Release,
        [flag] if flag == "--dev" => Profile::Dev,
        _ => bail!("usage: cargo xtask wheel [--dev]"),
    };
    let venv = venv(context, Purpose::Build)?;
    // A wheel for others works with RDMA where there is one, so building it takes more than running the demo.
    let with_rdma = profile == Profile::Release;
    if with_rdma {
        install_tools(context)?;
    }
    let wheel = build(context, &venv, profile, with_rdma)?;
    say(&format!("\nInstall it with: pip install {}", wheel.display()));
    Ok(())
}

/// Builds the wheel into `target/wheels` and returns its path.
pub(crate) fn build(context: &Context, venv: &Venv, profile: Profile, with_rdma: bool) -> Result<PathBuf> {
    // One directory for each profile: the wheel's name does not tell how it was built.
    let out = match profile {
        Profile::Release => context.target.join("wheels"),
        Profile::Dev | Profile::Sim => context.target.join("wheels-dev"),
    };
    if out.exists() {
        std::fs::remove_dir_all(&out).context("remove old wheels")?;
    }
    let mut command = venv.run(context, &["-m", "maturin", "build", "--profile", profile.name()]);
    command.args(["--manifest-path", "sglang-plugin/Cargo.toml", "--out"]).arg(&out);
    command.arg("--interpreter").arg(venv.python());
    if with_rdma {
        // These take the place of the features in pyproject.toml.
        command.args(["--features", "extension-module,rdma"]);
    }
    step(context, &format!("build the wheel ({})", profile.name()), "wheel", command)?;
    let entries = std::fs::read_dir(&out).with_context(|| format!("read {}", out.display()))?;
    let mut wheels: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    wheels.retain(|path| path.extension().is_some_and(|extension| extension == "whl"));
    match <[PathBuf; 1]>::try_from(wheels) {
        Ok([wheel]) => Ok(wheel),
        Err(found) => bail!("expected one wheel in {}, found {}", out.display(), found.len()),
    }
}

/// Puts the wheel into the environment in place of an earlier one.
pub(crate) fn install(context: &Context, venv: &Venv, wheel: &Path) -> Result<()> {
    let args = ["-m", "pip", "install", "--no-input", "--force-reinstall", "--no-deps", "--no-index"];
    let mut command = venv.run(context, &args);
    command.arg(wheel);
    step(context, "install the wheel", "wheel-install", command)
}
