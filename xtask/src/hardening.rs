//! `cargo xtask fuzz` and `campaign`: what looks for faults longer than a test may.

use crate::context::{Context, Profile};
use crate::process::{probe, show_tail, step, watch};
use crate::python::{Purpose, venv};
use crate::ui::say;
use crate::{rdma, wheel};
use anyhow::{Context as _, Result, bail};
use std::path::PathBuf;

/// Counters at every edge and the operands of comparisons, without a sanitizer: what libFuzzer is led by. A stable compiler has this.
const COVERAGE: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares";
/// Naming the target keeps build scripts and macros free of the flags above.
pub(crate) const TRIPLE: &str = "x86_64-unknown-linux-gnu";
/// The largest input is the targets' own matter; this is above all of them.
const INPUT_BYTES_MAX: &str = "32768";

/// A target, if any, and `--minutes N`; `also` may be said as well.
fn parse<'a>(args: &'a [String], also: &str, usage: &str) -> Result<(Option<&'a str>, f64, bool)> {
    let (mut target, mut minutes, mut said) = (None, 1.0, false);
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        match arg.as_str() {
            "--minutes" => {
                let number = rest.next().and_then(|text| text.parse().ok());
                minutes = number.filter(|minutes: &f64| *minutes > 0.0).with_context(|| usage.to_owned())?;
            }
            word if word == also => said = true,
            word if !word.starts_with('-') && target.is_none() => target = Some(word),
            _ => bail!("{usage}"),
        }
    }
    Ok((target, minutes, said))
}

/// `cargo xtask fuzz TARGET --minutes N [--plain]`: searches for an input that breaks a target.
pub(crate) fn fuzz(context: &Context, args: &[String]) -> Result<()> {
    let usage =
        "usage: cargo xtask fuzz TARGET [--minutes N] [--plain]; cargo xtask fuzz list names the targets";
    let (target, minutes, plain) = parse(args, "--plain", usage)?;
    let target = target.with_context(|| usage.to_owned())?;
    let build = ["build", "--profile", "fuzz", "--package", "memkv-fuzz", "--bin", "memkv-fuzz"];
    step(context, "build the fuzzer", "fuzz-build", context.cargo(&build))?;
    let program = context.target.join("fuzz").join("memkv-fuzz");
    let own = |arguments: &[&str]| {
        let mut command = context.command(&program);
        command.args(arguments);
        command
    };
    if target == "list" {
        let listed = probe(own(&["list"])).context("memkv-fuzz did not name its targets")?;
        say(&listed);
        return Ok(());
    }
    if !plain {
        match guided(context, target, minutes) {
            Ok(()) => return Ok(()),
            Err(Guided::Failed(error)) => return Err(error),
            Err(Guided::NotBuilt(error)) => {
                say(&format!(
                    "the guided search cannot be built here ({error:#}); the built-in one does the work"
                ));
            }
        }
    }
    let artifacts = context.logs.display().to_string();
    let minutes = minutes.to_string();
    let search = own(&["run", target, "--minutes", &minutes, "--artifacts", &artifacts]);
    let log = context.logs.join(format!("fuzz-{target}.log"));
    let mut result = String::new();
    let status = watch(context, &format!("fuzz {target}, built-in search"), &log, search, |line| {
        if line.contains("executions") {
            line.clone_into(&mut result);
        }
    })?;
    say(&result);
    if status.success() {
        return Ok(());
    }
    show_tail(&log)?;
    bail!("{target} failed; the input is in {artifacts}")
}

/// Why there was no guided search, or what it found.
enum Guided {
    NotBuilt(anyhow::Error),
    Failed(anyhow::Error),
}

fn guided(context: &Context, target: &str, minutes: f64) -> Result<(), Guided> {
    let folder = context.target.join("guided");
    let mut build =
        context.cargo(&["build", "--profile", "fuzz", "--target", TRIPLE, "--package", "memkv-fuzz"]);
    build.args(["--features", "guided", "--bin", "memkv-fuzz-guided", "--target-dir"]).arg(&folder);
    build.env("RUSTFLAGS", COVERAGE);
    step(context, "build the guided fuzzer", "fuzz-build-guided", build).map_err(Guided::NotBuilt)?;
    let grown = folder.join("corpus").join(target);
    std::fs::create_dir_all(&grown).map_err(|error| Guided::NotBuilt(error.into()))?;
    let mut search = context.command(folder.join(TRIPLE).join("fuzz").join("memkv-fuzz-guided"));
    // What is found goes to the first folder; the kept inputs are only read.
    search.arg(&grown).arg(context.root.join("fuzz").join("corpus").join(target));
    search.arg(format!("-max_total_time={:.0}", minutes * 60.0)).arg(format!("-max_len={INPUT_BYTES_MAX}"));
    search.arg(format!("-artifact_prefix={}/", context.logs.display())).arg("-print_final_stats=1");
    search.env("MEMKV_FUZZ_TARGET", target);
    let log = context.logs.join(format!("fuzz-{target}.log"));
    let mut result = Vec::new();
    let status = watch(context, &format!("fuzz {target}, guided by coverage"), &log, search, |line| {
        if line.starts_with("Done")
            || line.starts_with("stat::number_of_executed_units")
            || line.contains(" DONE ")
        {
            result.push(line.to_owned());
        }
    });
    let status = status.map_err(Guided::Failed)?;
    result.iter().for_each(|line| say(line));
    if status.success() {
        return Ok(());
    }
    drop(show_tail(&log));
    Err(Guided::Failed(anyhow::anyhow!("{target} failed; the input is in {}", context.logs.display())))
}

/// `cargo xtask campaign --minutes N`: random faults over a cluster under load of the plugin and of clients in Rust; the report goes to
/// `docs/campaigns`.
pub(crate) fn campaign(context: &Context, args: &[String]) -> Result<()> {
    let usage = "usage: cargo xtask campaign [--minutes N] [--keep] [--no-plugin]";
    let (no_plugin, args): (Vec<_>, Vec<_>) = args.iter().cloned().partition(|arg| arg == "--no-plugin");
    let (_, minutes, keep) = parse(&args, "--keep", usage)?;
    let with_rdma = rdma::install_tools(context).is_ok();
    let features: &[&str] = if with_rdma { &rdma::FEATURES } else { &[] };
    let packages = ["memkv-server", "memkv-client", "memkv-cli", "memkv-tests"];
    let selection = packages.iter().flat_map(|name| ["--package", *name]).collect::<Vec<_>>();
    let mut build = context.cargo(&["build", "--bins", "--test", "campaign"]);
    build.args(&selection).args(features);
    step(context, "build the daemon and the campaign", "campaign-build", build)?;
    let python = if no_plugin.is_empty() {
        let venv = venv(context, Purpose::Sglang)?;
        let wheel = wheel::build(context, &venv, Profile::Dev, with_rdma)?;
        wheel::install(context, &venv, &wheel)?;
        Some(venv.python())
    } else {
        None
    };
    let out: PathBuf =
        if keep { context.root.join("docs").join("campaigns") } else { context.logs.join("campaigns") };
    let mut command = context.cargo(&["test", "--test", "campaign"]);
    command.args(&selection).args(features).args(["--", "--nocapture"]);
    if let Some(python) = python {
        command.env("MEMKV_CAMPAIGN_PYTHON", python);
    }
    command.env("MEMKV_SERVER_BIN", context.binary(Profile::Dev, "memkv-server"));
    command.env("MEMKV_CAMPAIGN_MINUTES", minutes.to_string()).env("MEMKV_CAMPAIGN_OUT", &out);
    let log = context.logs.join("campaign.log");
    let mut result = String::new();
    let status = watch(context, &format!("{minutes} minutes of faults"), &log, command, |line| {
        if line.contains(" faults; ") {
            line.clone_into(&mut result);
        }
    })?;
    say(&result);
    if !status.success() {
        show_tail(&log)?;
        bail!("the campaign found something; its log is {}", log.display());
    }
    say(&format!("the report is in {}", out.display()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_read() {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let all = words(&["frame", "--minutes", "0.5", "--plain"]);
        assert_eq!(parse(&all, "--plain", "x").unwrap(), (Some("frame"), 0.5, true));
        assert_eq!(parse(&[], "--plain", "x").unwrap(), (None, 1.0, false));
        for wrong in [&["--minutes"][..], &["--minutes", "-1"], &["--loud"], &["a", "b"]] {
            assert!(parse(&words(wrong), "--plain", "x").is_err(), "{wrong:?}");
        }
    }
}
