//! `cargo xtask test`: every test there is, and one closing line that counts them.
//!
//! Four levels: Rust (`cargo test`), Python (pytest against the real `sglang` package, with a wheel built from
//! this tree), the demos that need no Python, and the tests on RDMA devices, in a VM. Every Cargo call selects the same
//! packages in the same profile with the same features, so that nothing is built twice. A level that cannot run, or that
//! ran nothing, is a failure; but where RDMA is impossible its level is skipped, unless `MEMKV_REQUIRE_RDMA` is set.

use crate::context::{Context, Profile, SELECTION};
use crate::process::{show_tail, step, watch};
use crate::python::{Purpose, Venv, venv};
use crate::report::{CargoReader, PytestReader, Suite, closing_line, table};
use crate::ui::say;
use crate::{demo, engine, etcd, hosts, rdma, wheel};
use anyhow::{Context as _, Result, bail};
use std::path::Path;
use std::process::Command;
use std::time::Instant;
use tempfile::TempDir;

/// One level: its name, and what runs it.
type Level = (&'static str, fn(&Context, &Choice) -> Result<Vec<Suite>>);

/// Which tests are run.
#[derive(Debug, Default, PartialEq, Eq)]
struct Choice {
    /// Only those whose names contain this.
    filter: Option<String>,
    /// Whether tests that repeat something at random repeat it longer.
    long: bool,
    /// Why everything is built without RDMA, if it is.
    no_rdma: Option<String>,
}

impl Choice {
    fn parse(args: &[String]) -> Result<Self> {
        let mut choice = Self::default();
        let mut rest = args.iter();
        while let Some(arg) = rest.next() {
            match (arg.as_str(), rest.as_slice().first()) {
                ("--long", _) => choice.long = true,
                ("--filter", Some(text)) => {
                    choice.filter = Some(text.clone());
                    rest.next();
                }
                _ => bail!("usage: cargo xtask test [--long] [--filter TEXT]"),
            }
        }
        Ok(choice)
    }
}

impl Choice {
    fn features(&self) -> &'static [&'static str] {
        if self.no_rdma.is_none() { &rdma::FEATURES } else { &[] }
    }
}

const LEVELS: [Level; 4] = [("rust", rust), ("python", python), ("demo", demos), (RDMA, in_the_vm)];
/// The level that may be skipped.
const RDMA: &str = "rdma";

/// Runs all levels, also after one has failed.
pub(crate) fn run(context: &Context, args: &[String]) -> Result<()> {
    let mut choice = Choice::parse(args)?;
    choice.no_rdma = rdma::install_tools(context).err().map(|error| format!("{error:#}"));
    context.check_stop()?;
    let mut suites = Vec::new();
    for (name, level) in LEVELS {
        say(&format!("\n{name}"));
        let outcome = level(context, &choice);
        context.check_stop()?;
        suites.extend(judge(name, outcome, choice.filter.is_some() || name == RDMA));
    }
    let failed = suites.iter().any(|suite| suite.failed > 0);
    let ran_none = suites.iter().all(|suite| suite.passed == 0);
    say(&format!("\n{}", table(&suites)));
    if ran_none {
        say("no test ran");
    }
    say(&closing_line(&suites));
    // The closing line must stay the last one, so the failure has no text of its own.
    if failed || ran_none {
        std::process::exit(1)
    }
    Ok(())
}

/// Turns a level that could not run, or that ran nothing, into a failure.
fn judge(name: &str, outcome: Result<Vec<Suite>>, may_run_nothing: bool) -> Vec<Suite> {
    let failure = |reason: String| Suite {
        name: name.to_owned(),
        failed: 1,
        reasons: vec![reason],
        ..Suite::default()
    };
    match outcome {
        Ok(suites) if may_run_nothing || suites.iter().any(|suite| suite.passed + suite.failed > 0) => suites,
        Ok(_) => vec![failure("no test ran".to_owned())],
        Err(error) => {
            say(&format!("error: {error:#}"));
            vec![failure(format!("{error:#}"))]
        }
    }
}

fn rust(context: &Context, choice: &Choice) -> Result<Vec<Suite>> {
    if let Err(error) = etcd::install(context) {
        say(&format!("  {error:#}; tests that need etcd fail without it"));
    }
    if let Err(error) = hosts::install(context) {
        say(&format!("  {error:#}; tests that filter packets are skipped without it"));
    }
    let mut build = context.cargo(&["build", "--bins", "--tests", "--examples"]);
    build.args(SELECTION).args(choice.features());
    step(context, "build programs and tests", "test-build", build)?;
    let mut command = context.cargo(&["test", "--no-fail-fast"]);
    command.args(SELECTION).args(choice.features());
    // The tests on RDMA devices are the last level's.
    command.env("MEMKV_TEST_RDMA", "elsewhere");
    if let Some(filter) = &choice.filter {
        command.args(["--", filter]);
    }
    if choice.long {
        command.env("MEMKV_TEST_LONG", "1");
    }
    use_programs(context, &mut command);
    let place = Place::new()?;
    command.env("TMPDIR", place.0.path());
    let log = context.logs.join("test-rust.log");
    let mut reader = CargoReader::default();
    let mut failures = Failures::default();
    let status = watch(context, "run the Rust tests", &log, command, |line| {
        failures.line(line);
        reader.line(line);
    })?;
    failures.show();
    let mut suites = reader.finish();
    suites.extend(place.judge());
    if !status.success() && suites.iter().all(|suite| suite.failed == 0) {
        show_tail(&log)?;
        bail!("cargo test failed before it ran every test ({status}); see {}", log.display());
    }
    Ok(suites)
}

/// Tells tests where the programs are, so that none of them builds its own.
fn use_programs(context: &Context, command: &mut Command) {
    command.env("MEMKV_SERVER_BIN", context.binary(Profile::Dev, "memkv-server"));
    command.env("MEMKV_CLI_BIN", context.binary(Profile::Dev, "memkv-cli"));
}

/// The folder for temporary files of a run; removed at its end, with what tests left in it.
struct Place(TempDir);

impl Place {
    fn new() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("memkv-test-").tempdir();
        Ok(Self(folder.context("make a folder for the tests' temporary files")?))
    }

    /// A suite that failed, if tests have left something.
    fn judge(&self) -> Option<Suite> {
        let left = std::fs::read_dir(self.0.path()).into_iter().flatten().flatten();
        let mut left: Vec<String> = left.map(|entry| inside(&entry.path())).collect();
        left.sort();
        if left.is_empty() {
            return None;
        }
        let reason = format!("tests left {} things behind: {}", left.len(), left.join("; "));
        say(&reason);
        Some(Suite {
            name: "temporary files".to_owned(),
            failed: 1,
            reasons: vec![reason],
            ..Suite::default()
        })
    }
}

/// A path's name, and of a folder the names of the first few things in it: they tell whose it is.
fn inside(path: &Path) -> String {
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    let names: Vec<String> = entries.take(4).map(|entry| name(&entry.path())).collect();
    if names.is_empty() { name(path) } else { format!("{} ({})", name(path), names.join(", ")) }
}

/// Keeps what failing tests printed, to show it after the run.
#[derive(Default)]
struct Failures {
    inside: bool,
    lines: Vec<String>,
}

impl Failures {
    fn line(&mut self, line: &str) {
        if line == "failures:" {
            self.inside = true;
        }
        if self.inside {
            self.lines.push(line.to_owned());
        }
        if line.starts_with("test result: ") {
            self.inside = false;
        }
    }

    fn show(&self) {
        for line in &self.lines {
            say(line);
        }
    }
}

fn python(context: &Context, choice: &Choice) -> Result<Vec<Suite>> {
    let venv = venv(context, Purpose::Sglang)?;
    say(&format!("  {}", venv.sglang));
    let wheel = wheel::build(context, &venv, Profile::Dev, choice.no_rdma.is_none())?;
    wheel::install(context, &venv, &wheel)?;
    let all = Pytest { name: "sglang-plugin: pytest", log: "test-python", transport: None, select: None };
    // Real tensors through both interfaces, by way of memory that client and server share.
    let tensors = Pytest {
        name: "sglang-plugin: pytest over shm",
        log: "test-python-shm",
        transport: Some("shm"),
        select: Some("test_pools.py and (test_v1 or test_v2)"),
    };
    Ok(vec![pytest(context, &venv, choice, &all)?, pytest(context, &venv, choice, &tensors)?])
}

/// One run of pytest.
struct Pytest {
    name: &'static str,
    log: &'static str,
    /// How pages move; the default if not said.
    transport: Option<&'static str>,
    /// Which tests, as pytest's `-k` takes it; all if not said.
    select: Option<&'static str>,
}

fn pytest(context: &Context, venv: &Venv, choice: &Choice, run: &Pytest) -> Result<Suite> {
    let mut command = venv.run(context, &["-m", "pytest", "sglang-plugin/tests", "-rs", "-v", "--color=no"]);
    let wanted = run.select.into_iter().chain(choice.filter.as_deref());
    let wanted: Vec<_> = wanted.map(|words| format!("({words})")).collect();
    if !wanted.is_empty() {
        command.args(["-k", &wanted.join(" and ")]);
    }
    if let Some(transport) = run.transport {
        command.env("MEMKV_TEST_TRANSPORT", transport);
    }
    use_programs(context, &mut command);
    let log = context.logs.join(format!("{}.log", run.log));
    let started = Instant::now();
    let mut reader = PytestReader::default();
    let status = watch(context, &format!("run {}", run.name), &log, command, |line| reader.line(line))?;
    let mut suite = reader.finish(run.name, started.elapsed());
    // Status 5: nothing collected, which a filter may well do.
    let nothing = status.code() == Some(5);
    if !status.success() && !nothing {
        show_failures(&log)?;
        suite.failed = suite.failed.max(1);
    }
    Ok(suite)
}

/// Shows pytest's part about failures, or the log's tail if there is none.
fn show_failures(log: &std::path::Path) -> Result<()> {
    let text = std::fs::read_to_string(log).with_context(|| format!("read {}", log.display()))?;
    let start = text.lines().position(|line| line.contains("= FAILURES =") || line.contains("= ERRORS ="));
    let Some(start) = start else { return show_tail(log) };
    text.lines().skip(start).take(400).for_each(say);
    Ok(())
}

fn in_the_vm(context: &Context, choice: &Choice) -> Result<Vec<Suite>> {
    rdma::level(context, choice.filter.as_deref(), choice.no_rdma.as_deref())
}

fn demos(context: &Context, choice: &Choice) -> Result<Vec<Suite>> {
    if choice.filter.as_ref().is_some_and(|filter| !"demo".contains(filter.as_str())) {
        return Ok(Vec::new());
    }
    let timed = |name: &str, run: &dyn Fn() -> Result<()>| -> Result<Suite> {
        let started = Instant::now();
        run()?;
        Ok(Suite { name: name.to_owned(), passed: 1, time: started.elapsed(), ..Suite::default() })
    };
    Ok(vec![
        timed("demo --quick", &|| demo::quick(context, Profile::Dev, 128))?,
        timed("demo engine", &|| engine::story(context, Profile::Dev, 1024))?,
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_choice_is_read() {
        let parse =
            |words: &[&str]| Choice::parse(&words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>());
        assert_eq!(parse(&[]).unwrap(), Choice::default());
        let both = Choice { filter: Some("crash".to_owned()), long: true, no_rdma: None };
        assert_eq!(parse(&["--long", "--filter", "crash"]).unwrap(), both);
        assert_eq!(parse(&["--filter", "crash", "--long"]).unwrap(), both);
        assert!(parse(&["--filter"]).is_err());
        assert!(parse(&["--short"]).is_err());
    }

    #[test]
    fn a_level_that_ran_nothing_or_broke_is_a_failure() {
        let skipped = Suite { skipped: 1, ..Suite::default() };
        assert_eq!(judge("rdma", Ok(vec![skipped.clone()]), true), [skipped]);
        assert_eq!(judge("x", Ok(vec![]), false)[0].failed, 1);
        assert_eq!(judge("x", Ok(vec![Suite::default()]), false)[0].reasons, ["no test ran"]);
        assert_eq!(judge("x", Err(anyhow::anyhow!("broke")), true)[0].reasons, ["broke"]);
        assert!(judge("x", Ok(vec![]), true).is_empty());
        let fine = Suite { passed: 1, ..Suite::default() };
        assert_eq!(judge("x", Ok(vec![fine.clone()]), false), [fine]);
    }

    #[test]
    fn what_tests_leave_is_a_failure() {
        let place = Place::new().unwrap();
        assert_eq!(place.judge(), None);
        std::fs::create_dir(place.0.path().join("a")).unwrap();
        std::fs::write(place.0.path().join("a").join("memkv-drive"), "x").unwrap();
        let suite = place.judge().unwrap();
        assert_eq!((suite.passed, suite.failed), (0, 1));
        assert!(suite.reasons[0].contains("a (memkv-drive)"), "{:?}", suite.reasons);
    }

    #[test]
    fn failures_are_kept_from_their_heading_to_the_result() {
        let mut failures = Failures::default();
        for line in ["running 1 test", "failures:", "---- a stdout ----", "test result: FAILED. x", "other"] {
            failures.line(line);
        }
        assert_eq!(failures.lines, ["failures:", "---- a stdout ----", "test result: FAILED. x"]);
    }
}
