//! `cargo xtask fuzz`, `campaign` and `sanitize`: what looks for faults longer than a test may.

use crate::context::{Context, Profile};
use crate::process::{probe, show_tail, step, watch};
use crate::ui::say;
use anyhow::{Context as _, Result, bail};
use std::path::PathBuf;
use std::process::Command;

/// Counters at every edge and the operands of comparisons, without a sanitizer: what libFuzzer is led by. A stable compiler has this.
const COVERAGE: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares";
/// Naming the target keeps build scripts and macros free of the flags above.
const TRIPLE: &str = "x86_64-unknown-linux-gnu";
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

/// `cargo xtask campaign --minutes N`: random faults over a cluster under load; the report goes to `docs/campaigns`.
pub(crate) fn campaign(context: &Context, args: &[String]) -> Result<()> {
    let usage = "usage: cargo xtask campaign [--minutes N] [--keep]";
    let (_, minutes, keep) = parse(args, "--keep", usage)?;
    let build = ["build", "--package", "memkv-server", "--bins"];
    step(context, "build the daemon", "campaign-build", context.cargo(&build))?;
    let out: PathBuf =
        if keep { context.root.join("docs").join("campaigns") } else { context.logs.join("campaigns") };
    let mut command =
        context.cargo(&["test", "--package", "memkv-tests", "--test", "campaign", "--", "--nocapture"]);
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

/// One thing that looks into memory: its name, what it needs, and how it is run.
struct Check {
    name: &'static str,
    flags: &'static str,
    /// Whether the standard library has to be built with the same flags.
    with_std: bool,
    args: &'static [&'static str],
    env: &'static [(&'static str, &'static str)],
}

const CHECKS: [Check; 4] = [
    Check {
        name: "AddressSanitizer and leaks: a campaign's load on the engine and the data connections",
        flags: "-Zsanitizer=address",
        with_std: false,
        args: &["test", "--package", "memkv-fuzz", "--test", "corpus"],
        env: &[("ASAN_OPTIONS", "detect_leaks=1")],
    },
    Check {
        name: "AddressSanitizer and leaks: the engine's tests",
        flags: "-Zsanitizer=address",
        with_std: false,
        args: &["test", "--package", "memkv-storage", "--package", "memkv-memory", "--lib"],
        env: &[("ASAN_OPTIONS", "detect_leaks=1")],
    },
    Check {
        name: "ThreadSanitizer: the engine's tests",
        flags: "-Zsanitizer=thread",
        with_std: true,
        args: &["test", "--package", "memkv-storage", "--package", "memkv-memory", "--lib"],
        env: &[],
    },
    Check {
        name: "Miri: the arena",
        flags: "",
        with_std: true,
        args: &["miri", "test", "--package", "memkv-memory", "--lib"],
        env: &[("MIRIFLAGS", "-Zmiri-disable-isolation")],
    },
];

/// `cargo xtask sanitize`: what a nightly compiler can see that a test cannot. What cannot run is skipped and says why.
pub(crate) fn sanitize(context: &Context, args: &[String]) -> Result<()> {
    if !args.is_empty() {
        bail!("usage: cargo xtask sanitize");
    }
    let nightly = || {
        let mut command = Command::new("rustup");
        command.args(["run", "nightly", "rustc", "--print", "sysroot"]);
        probe(command)
    };
    let Some(sysroot) = nightly() else {
        say("skipped: sanitizers and Miri need a nightly compiler (rustup toolchain install nightly)");
        return Ok(());
    };
    let has_source = PathBuf::from(&sysroot).join("lib/rustlib/src/rust/library/std").is_dir();
    let mut failed = Vec::new();
    for check in CHECKS {
        if check.with_std && !has_source {
            say(&format!(
                "skipped: {}: needs rust-src (rustup component add rust-src --toolchain nightly)",
                check.name
            ));
            continue;
        }
        let mut command = context.command("rustup");
        command.args(["run", "nightly", "cargo"]).args(check.args);
        if check.args[0] != "miri" {
            command.args(["--target", TRIPLE]).env("RUSTFLAGS", check.flags);
            if check.with_std {
                command.args(["-Zbuild-std"]);
            }
        }
        command
            .env("CARGO_TARGET_DIR", context.target.join("sanitize"))
            .env_remove("CARGO")
            .env_remove("RUSTUP_TOOLCHAIN");
        command.envs(check.env.iter().copied());
        let outcome = step(context, check.name, "sanitize", command);
        context.check_stop()?;
        if outcome.is_err() {
            failed.push(check.name);
        }
    }
    if failed.is_empty() { Ok(()) } else { bail!("failed: {}", failed.join(", ")) }
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
