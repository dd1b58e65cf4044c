//! Reads what test runners print: Cargo's test binaries and pytest. Pure functions of text.

use std::time::Duration;

/// How the tests of one suite went.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Suite {
    /// What to call it.
    pub(crate) name: String,
    /// Tests that passed.
    pub(crate) passed: u64,
    /// Tests that failed.
    pub(crate) failed: u64,
    /// Tests that did not run on this machine.
    pub(crate) skipped: u64,
    /// How long it took.
    pub(crate) time: Duration,
    /// Which tests were skipped and why.
    pub(crate) reasons: Vec<String>,
}

/// Follows the output of `cargo test` line by line.
#[derive(Default)]
pub(crate) struct CargoReader {
    /// Suites that have ended.
    pub(crate) suites: Vec<Suite>,
    current: Option<Suite>,
}

impl CargoReader {
    /// Takes the next line; returns the suite that it ended.
    pub(crate) fn line(&mut self, line: &str) -> Option<&Suite> {
        let text = line.trim();
        if let Some(name) = suite_name(text) {
            // A suite without a result has crashed.
            self.close_crashed();
            self.current = Some(Suite { name, ..Suite::default() });
        } else if let Some((test, reason)) = ignored_test(text) {
            if let Some(current) = &mut self.current {
                current.reasons.push(format!("{test}: {reason}"));
            }
        } else if let Some(counts) = test_result(text) {
            let mut suite = self.current.take().unwrap_or_default();
            (suite.passed, suite.failed, suite.skipped, suite.time) = counts;
            self.suites.push(suite);
            return self.suites.last();
        }
        None
    }

    /// Ends the reading; a suite that printed no result counts as one failure.
    pub(crate) fn finish(mut self) -> Vec<Suite> {
        self.close_crashed();
        self.suites
    }

    fn close_crashed(&mut self) {
        if let Some(mut suite) = self.current.take() {
            suite.failed = 1;
            suite.reasons.push("ended without a result".to_owned());
            self.suites.push(suite);
        }
    }
}

/// `Running unittests src/lib.rs (target/debug/deps/memkv_core-0123)` → `memkv_core: unit`.
fn suite_name(line: &str) -> Option<String> {
    if let Some(package) = line.strip_prefix("Doc-tests ") {
        return Some(format!("{package}: doc"));
    }
    let rest = line.strip_prefix("Running ")?;
    let (what, binary) = rest.rsplit_once(" (")?;
    let file = binary.trim_end_matches(')').rsplit('/').next()?;
    let name = file.rsplit_once('-').map_or(file, |(name, _)| name);
    Some(if what.starts_with("unittests") {
        let part = if what.ends_with("lib.rs") { "unit" } else { "unit (binary)" };
        format!("{name}: {part}")
    } else {
        format!("tests: {name}")
    })
}

/// `test some::name ... ignored, why` → (name, why). Suites that find their tests when they run write `ignored (why)`.
fn ignored_test(line: &str) -> Option<(&str, &str)> {
    let (test, outcome) = line.strip_prefix("test ")?.split_once(" ... ")?;
    let rest = outcome.strip_prefix("ignored")?;
    let in_brackets = rest.strip_prefix(" (").and_then(|rest| rest.strip_suffix(')'));
    let reason = in_brackets.unwrap_or_else(|| rest.trim_start_matches(", "));
    Some((test.trim_end(), if reason.is_empty() { "no reason given" } else { reason }))
}

/// `test result: ok. 5 passed; 0 failed; 1 ignored; …; finished in 0.10s` → counts and time.
fn test_result(line: &str) -> Option<(u64, u64, u64, Duration)> {
    let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let count = |word: &str| {
        counts.split("; ").find_map(|part| part.strip_suffix(word)?.trim().parse().ok()).unwrap_or(0)
    };
    let time =
        counts.rsplit_once("finished in ").and_then(|(_, time)| time.trim_end_matches('s').parse().ok());
    Some((
        count(" passed"),
        count(" failed"),
        count(" ignored"),
        Duration::from_secs_f64(time.unwrap_or(0.0)),
    ))
}

/// Follows the output of pytest (run with `-rs`) line by line.
#[derive(Default)]
pub(crate) struct PytestReader {
    suite: Suite,
    ended: bool,
}

impl PytestReader {
    /// Takes the next line.
    pub(crate) fn line(&mut self, line: &str) {
        let text = line.trim();
        if let Some(reason) = text.strip_prefix("SKIPPED ") {
            self.suite.reasons.push(reason.to_owned());
        } else if let Some(summary) = pytest_summary(text) {
            self.ended = true;
            let count = |words: &[&str]| {
                let numbers = summary.split(", ").filter_map(|part| part.split_once(' '));
                numbers
                    .filter(|(_, word)| words.contains(word))
                    .filter_map(|(n, _)| n.parse::<u64>().ok())
                    .sum()
            };
            self.suite.passed = count(&["passed", "xfailed"]);
            self.suite.failed = count(&["failed", "error", "errors", "xpassed"]);
            self.suite.skipped = count(&["skipped"]);
        }
    }

    /// Ends the reading. No summary counts as one failure.
    pub(crate) fn finish(mut self, name: &str, time: Duration) -> Suite {
        self.suite.name = name.to_owned();
        self.suite.time = time;
        if !self.ended {
            self.suite.failed += 1;
            self.suite.reasons.push("ended without a summary".to_owned());
        }
        self.suite
    }
}

/// The counts in `==== 3 passed, 1 skipped in 2.10s ====`, with or without the rulers.
fn pytest_summary(line: &str) -> Option<&str> {
    let text = line.trim_matches(|c| c == '=' || c == ' ');
    let (counts, time) = text.rsplit_once(" in ")?;
    let is_time = time.split_once('s').is_some_and(|(number, _)| number.parse::<f64>().is_ok());
    let is_counts = counts == "no tests ran"
        || counts.split(", ").all(|part| {
            part.split_once(' ').is_some_and(|(n, word)| n.parse::<u64>().is_ok() && !word.contains(' '))
        });
    (is_time && is_counts).then_some(counts)
}

/// The table of all suites that ran at least one test.
pub(crate) fn table(suites: &[Suite]) -> String {
    let ran = |suite: &&Suite| suite.passed + suite.failed + suite.skipped > 0;
    let shown: Vec<&Suite> = suites.iter().filter(ran).collect();
    let width = shown.iter().map(|suite| suite.name.chars().count()).max().unwrap_or(5).max(5);
    let mut text = format!("{:width$}  passed  failed  skipped      time\n", "suite");
    for suite in &shown {
        text.push_str(&format!(
            "{:width$}  {:>6}  {:>6}  {:>7}  {:>8}\n",
            suite.name,
            suite.passed,
            suite.failed,
            suite.skipped,
            crate::ui::seconds(suite.time)
        ));
    }
    let reasons: Vec<String> = shown
        .iter()
        .flat_map(|suite| suite.reasons.iter().map(move |reason| format!("  {}: {reason}\n", suite.name)))
        .collect();
    if !reasons.is_empty() {
        text.push_str("\nnot run:\n");
        text.push_str(&reasons.concat());
    }
    text
}

/// The one line that says how all of it went.
pub(crate) fn closing_line(suites: &[Suite]) -> String {
    let sum = |of: fn(&Suite) -> u64| suites.iter().map(of).sum::<u64>();
    let (passed, failed, skipped) = (sum(|s| s.passed), sum(|s| s.failed), sum(|s| s.skipped));
    if skipped == 0 {
        format!("{passed} passed, {failed} failed")
    } else {
        format!("{passed} passed, {failed} failed, {skipped} skipped")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CARGO: &str = "\
   Compiling memkv-core v0.1.0
     Running unittests src/lib.rs (target/debug/deps/memkv_core-01ab23)
running 3 tests
test a ... ok
test b ... ignored, needs RDMA
test c    ... ignored (no device (none))
test result: ok. 2 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.25s
     Running tidy/main.rs (target/debug/deps/tidy-77)
test result: FAILED. 4 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.50s
     Running e2e/main.rs (/elsewhere/debug/deps/e2e-99)
running 2 tests
   Doc-tests memkv_core
test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s";

    fn read(text: &str) -> Vec<Suite> {
        let mut reader = CargoReader::default();
        for line in text.lines() {
            reader.line(line);
        }
        reader.finish()
    }

    #[test]
    fn reasons_are_read_from_both_harnesses() {
        assert_eq!(ignored_test("test a ... ignored, no NIC"), Some(("a", "no NIC")));
        assert_eq!(ignored_test("test a::b   ... ignored (no NIC (yet))"), Some(("a::b", "no NIC (yet)")));
        assert_eq!(ignored_test("test a ... ignored"), Some(("a", "no reason given")));
        assert_eq!(ignored_test("test a ... ok"), None);
    }

    #[test]
    fn cargo_suites_are_named_and_counted_and_a_crash_is_a_failure() {
        let suites = read(CARGO);
        let seen: Vec<_> = suites.iter().map(|s| (s.name.as_str(), s.passed, s.failed, s.skipped)).collect();
        assert_eq!(
            seen,
            [
                ("memkv_core: unit", 2, 0, 2),
                ("tests: tidy", 4, 1, 0),
                ("tests: e2e", 0, 1, 0),
                ("memkv_core: doc", 1, 0, 0)
            ]
        );
        assert_eq!(suites[0].reasons, ["b: needs RDMA", "c: no device (none)"]);
        assert_eq!(suites[1].time, Duration::from_millis(1500));
        assert_eq!(closing_line(&suites), "7 passed, 2 failed, 2 skipped");
        assert_eq!(closing_line(&suites[3..]), "1 passed, 0 failed");
    }

    fn pytest(text: &str) -> Suite {
        let mut reader = PytestReader::default();
        text.lines().for_each(|line| reader.line(line));
        reader.finish("py", Duration::ZERO)
    }

    #[test]
    fn pytest_is_counted_with_errors_and_skips() {
        let suite = pytest(
            "x\nSKIPPED [1] test_a.py:3: no GPU\n== 2 failed, 5 passed, 1 skipped, 1 error in 3.20s ==",
        );
        assert_eq!((suite.passed, suite.failed, suite.skipped), (5, 3, 1));
        assert_eq!(suite.reasons, ["[1] test_a.py:3: no GPU"]);
        let long = pytest("45 passed, 3 warnings in 75.02s (0:01:15)");
        assert_eq!((long.passed, long.failed, long.skipped), (45, 0, 0));
    }

    #[test]
    fn pytest_without_tests_or_summary_has_passed_nothing() {
        assert_eq!(pytest("no tests ran in 0.01s").passed, 0);
        let crashed = pytest("Segmentation fault in 3 places");
        assert_eq!((crashed.passed, crashed.failed), (0, 1));
    }

    #[test]
    fn the_table_leaves_out_empty_suites() {
        let empty = Suite { name: "empty".into(), ..Suite::default() };
        let full = Suite {
            name: "full".into(),
            passed: 2,
            skipped: 1,
            reasons: vec!["why".into()],
            ..Suite::default()
        };
        let text = table(&[empty, full]);
        assert!(!text.contains("empty"));
        assert!(text.contains("full ") && text.contains("  full: why"));
    }
}
