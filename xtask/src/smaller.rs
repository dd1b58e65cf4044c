//! Commands of a few lines.

use crate::context::{Context, Profile};
use crate::process::{capture, step};
use crate::python::{Purpose, venv};
use crate::ui::say;
use crate::wheel;
use anyhow::{Context as _, Result, bail};

/// `cargo xtask bench ARGS`: the load generator, in release, on the terminal; `bench plugin`: the plugin beside it.
pub(crate) fn bench(context: &Context, args: &[String]) -> Result<()> {
    let packages = ["build", "--release", "-p", "memkv-server", "-p", "memkv-bench"];
    step(context, "build the daemon and memkv-bench (release)", "build-bench", context.cargo(&packages))?;
    if let Some((word, rest)) = args.split_first()
        && word == "plugin"
    {
        return beside_plugin(context, rest);
    }
    let mut command = context.command(context.binary(Profile::Release, "memkv-bench"));
    command.args(args).env("MEMKV_SERVER_BIN", context.binary(Profile::Release, "memkv-server"));
    let status = command.status().context("start memkv-bench")?;
    if status.success() { Ok(()) } else { bail!("memkv-bench ended with {status}") }
}

/// The plugin, in SGLang's own host pools, beside the load generator. Everything but the wheel has been built.
fn beside_plugin(context: &Context, args: &[String]) -> Result<()> {
    let venv = venv(context, Purpose::Sglang)?;
    let file = wheel::build(context, &venv, Profile::Release, false)?;
    wheel::install(context, &venv, &file)?;
    let mut command = venv.run(context, &["sglang-plugin/bench/beside_crate.py", "--bench"]);
    command.arg(context.binary(Profile::Release, "memkv-bench")).args(args);
    command.env("MEMKV_SERVER_BIN", context.binary(Profile::Release, "memkv-server"));
    let status = command.status().context("start Python")?;
    if status.success() { Ok(()) } else { bail!("the comparison ended with {status}") }
}

/// `cargo xtask docs`: writes the documents that are generated from code.
pub(crate) fn docs(context: &Context, args: &[String]) -> Result<()> {
    if !args.is_empty() {
        bail!("usage: cargo xtask docs");
    }
    for name in ["cli", "configuration-client"] {
        let command = context.cargo(&["run", "--quiet", "--package", "memkv-cli", "--", "reference", name]);
        let text = capture(context, "print a generated document", "docs", command)?;
        let path = context.root.join("docs").join(name).with_extension("md");
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        say(&format!("wrote docs/{name}.md"));
    }
    Ok(())
}
