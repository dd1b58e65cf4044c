//! `cargo xtask sanitize`: what a nightly compiler can see that a test cannot.
//!
//! Each check is skipped, with its reason in one line, where its tools are missing. Everything is built in a folder of its own, since the
//! flags are different for each.

use crate::context::Context;
use crate::hardening::TRIPLE;
use crate::process::{probe, show_tail, step, watch};
use crate::ui::say;
use anyhow::{Result, bail};
use std::path::PathBuf;
use std::process::Command;

/// One thing that looks into memory.
struct Check {
    /// Its name on the command line.
    name: &'static str,
    about: &'static str,
    flags: &'static str,
    /// Whether the standard library has to be built with the same flags.
    with_std: bool,
    /// What is built before, with the same flags.
    first: Option<&'static [&'static str]>,
    args: &'static [&'static str],
    env: &'static [(&'static str, &'static str)],
}

/// What AddressSanitizer does with a finding: it ends the process, also for a leak at its end.
const ASAN: (&str, &str) = ("ASAN_OPTIONS", "detect_leaks=1:abort_on_error=0:exitcode=23");
/// What is no leak, and why.
const LEAKS: &str = "xtask/leaks.supp";
/// The crates that make up the engine: its tests are those of the arena, the drives and the tiers.
const ENGINE: [&str; 8] =
    ["test", "--package", "memkv-memory", "--package", "memkv-nvme", "--package", "memkv-storage", "--lib"];

/// The same without loom's models: they switch stacks, which ThreadSanitizer takes for damage.
const ENGINE_WITHOUT_LOOM: [&str; 11] = [
    "test",
    "--package",
    "memkv-memory",
    "--package",
    "memkv-nvme",
    "--package",
    "memkv-storage",
    "--lib",
    "--",
    "--skip",
    "state::model",
];

/// The tests of the arena, of its slots and tables, without those of files, of what only a kernel gives, and one that looks at a
/// thousand names. loom has a scheduler of its own.
const MIRI: [&str; 16] = [
    "miri",
    "test",
    "--package",
    "memkv-memory",
    "--lib",
    "--",
    "arena::",
    "state::tests",
    "slot::",
    "tables::",
    "--skip",
    "a_file_system_without_room",
    "--skip",
    "locked_memory",
    "--skip",
    "the_record_is_what_was_noted",
];

const CHECKS: &[Check] = &[
    Check {
        name: "load",
        about: "AddressSanitizer and leaks: servers and clients under a minute of load",
        flags: "-Zsanitizer=address",
        with_std: false,
        first: Some(&["build", "--package", "memkv-server", "--package", "memkv-tests", "--bins"]),
        args: &[
            "test",
            "--package",
            "memkv-server",
            "--package",
            "memkv-tests",
            "--test",
            "campaign",
            "--",
            "--nocapture",
            "servers_under_load_end_well",
        ],
        env: &[ASAN, ("MEMKV_LOAD_MINUTES", "1")],
    },
    Check {
        name: "corpus",
        about: "AddressSanitizer and leaks: every reader of foreign bytes, with every kept input",
        flags: "-Zsanitizer=address",
        with_std: false,
        first: None,
        args: &["test", "--package", "memkv-fuzz", "--test", "corpus"],
        env: &[ASAN],
    },
    Check {
        name: "address",
        about: "AddressSanitizer and leaks: the engine's tests",
        flags: "-Zsanitizer=address",
        with_std: false,
        first: None,
        args: &ENGINE,
        env: &[ASAN],
    },
    Check {
        name: "thread",
        about: "ThreadSanitizer: the engine's tests",
        flags: "-Zsanitizer=thread",
        with_std: true,
        first: None,
        args: &ENGINE_WITHOUT_LOOM,
        env: &[("TSAN_OPTIONS", "halt_on_error=1")],
    },
    Check {
        name: "miri",
        about: "Miri: the arena, over memory of the allocator",
        flags: "--cfg=rustix_use_libc",
        with_std: true,
        first: None,
        args: &MIRI,
        env: &[("MIRIFLAGS", "-Zmiri-disable-isolation"), ("PROPTEST_CASES", "4")],
    },
];

/// `cargo xtask sanitize [NAME]`: all checks, or one.
pub(crate) fn run(context: &Context, args: &[String]) -> Result<()> {
    let chosen = choose(args)?;
    let Some(sysroot) = probe(nightly(context, &["rustc", "--print", "sysroot"])) else {
        say("skipped: sanitizers and Miri need a nightly compiler (rustup toolchain install nightly)");
        return Ok(());
    };
    let has_source = PathBuf::from(&sysroot).join("lib/rustlib/src/rust/library/std").is_dir();
    let has_miri = probe(nightly(context, &["cargo", "miri", "--version"])).is_some();
    let mut failed = Vec::new();
    for check in chosen {
        if let Some(missing) = missing(check, has_source, has_miri) {
            say(&format!("skipped: {}: {missing}", check.about));
            continue;
        }
        let outcome = run_one(context, check);
        context.check_stop()?;
        if let Err(error) = outcome {
            say(&format!("{error:#}"));
            failed.push(check.name);
        }
    }
    if failed.is_empty() { Ok(()) } else { bail!("failed: {}", failed.join(", ")) }
}

fn choose(args: &[String]) -> Result<Vec<&'static Check>> {
    let names = || CHECKS.iter().map(|check| check.name).collect::<Vec<_>>().join("|");
    match args {
        [] => Ok(CHECKS.iter().collect()),
        [name] if CHECKS.iter().any(|check| check.name == name) => {
            Ok(CHECKS.iter().filter(|check| check.name == name).collect())
        }
        _ => bail!("usage: cargo xtask sanitize [{}]", names()),
    }
}

/// What a check needs and does not find.
fn missing(check: &Check, has_source: bool, has_miri: bool) -> Option<&'static str> {
    if check.with_std && !has_source {
        return Some("needs the library's source (rustup component add rust-src --toolchain nightly)");
    }
    (check.name == "miri" && !has_miri)
        .then_some("needs Miri (rustup component add miri --toolchain nightly)")
}

/// A command with the nightly compiler, whatever compiler this program was started with.
fn nightly(context: &Context, args: &[&str]) -> Command {
    let mut command = context.command("rustup");
    command.args(["run", "nightly"]).args(args);
    for name in ["CARGO", "RUSTC", "RUSTDOC", "RUSTUP_TOOLCHAIN"] {
        command.env_remove(name);
    }
    command
}

fn run_one(context: &Context, check: &Check) -> Result<()> {
    let folder = context.target.join("sanitize");
    let cargo = |args: &[&str]| {
        let mut command = nightly(context, &["cargo"]);
        let (verb, rest) = args.split_first().map_or(("", args), |(verb, rest)| (*verb, rest));
        command.arg(verb);
        if verb != "miri" {
            command.args(["--target", TRIPLE]);
            if check.with_std {
                command.arg("-Zbuild-std");
            }
        }
        command.args(rest).env("CARGO_TARGET_DIR", &folder).env("RUSTFLAGS", check.flags);
        command.env("MEMKV_SERVER_BIN", folder.join(TRIPLE).join("debug").join("memkv-server"));
        command.envs(check.env.iter().copied());
        command.env("LSAN_OPTIONS", format!("suppressions={}", context.root.join(LEAKS).display()));
        command
    };
    if let Some(first) = check.first {
        step(context, &format!("build for {}", check.name), "sanitize-build", cargo(first))?;
    }
    let log = context.logs.join(format!("sanitize-{}.log", check.name));
    let mut results = Vec::new();
    let status = watch(context, check.about, &log, cargo(check.args), |line| {
        if line.starts_with("test result: ") || line.contains(" wrong") || line.contains("Sanitizer: ") {
            results.push(line.to_owned());
        }
    })?;
    results.iter().for_each(|line| say(&format!("  {line}")));
    if status.success() {
        return Ok(());
    }
    show_tail(&log)?;
    bail!("{} failed ({status}); its log is {}", check.about, log.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_check_or_all_are_chosen() {
        assert_eq!(choose(&[]).unwrap().len(), CHECKS.len());
        assert_eq!(choose(&["thread".to_owned()]).unwrap()[0].name, "thread");
        assert!(choose(&["threads".to_owned()]).is_err());
    }

    #[test]
    fn a_check_without_its_tools_says_what_is_missing() {
        let named = |name: &str| CHECKS.iter().find(|check| check.name == name).unwrap();
        assert!(missing(named("thread"), false, true).unwrap().contains("rust-src"));
        assert!(missing(named("miri"), true, false).unwrap().contains("miri"));
        assert_eq!(missing(named("load"), false, false), None);
    }
}
