//! The plugin's tensor tests in the VM: SGLang's own host pools on tensors in memory, written and read through both
//! interfaces by real verbs. Every byte is compared, and nothing of a pool that has addresses may be copied.
//!
//! The guest sees the environment with the plugin where it is on this machine. Importing PyTorch and SGLang takes minutes
//! on emulated processors, so they run beside the other tests, and their lines are marked.

use crate::context::{Context, Profile};
use crate::python::{Purpose, Venv, venv};
use crate::report::{PytestReader, Suite};
use crate::wheel;
use anyhow::Result;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What selects these tests among the others of the VM.
const WORD: &str = "tensors";
/// Begins every line that they print.
const MARK: &str = "tensors| ";
/// Which tests, as pytest's `-k` takes it.
const SELECT: &str = "test_v1 or test_v2";

/// Whether a filter lets them run. They take minutes before the first test, so of all filters only their own word does.
pub(super) fn is_selected(filter: Option<&str>) -> bool {
    filter.is_none_or(|filter| filter == WORD)
}

/// Builds the plugin with RDMA and installs it into the environment.
pub(super) fn install(context: &Context) -> Result<()> {
    let venv = environment(context)?;
    let wheel = wheel::build(context, &venv, Profile::Dev, true)?;
    wheel::install(context, &venv, &wheel)
}

/// The interpreter whose environment has the plugin.
pub(super) fn python(context: &Context) -> Result<PathBuf> {
    Ok(environment(context)?.python())
}

fn environment(context: &Context) -> Result<Venv> {
    venv(context, Purpose::Sglang)
}

/// The lines that begin them, and the line that waits for them.
pub(super) fn script(python: &Path) -> (String, &'static str) {
    let begin = format!(
        "MEMKV_TEST_TRANSPORT=rdma MEMKV_TEST_SMALL=1 '{}' -m pytest sglang-plugin/tests/test_pools.py -k '{SELECT}' \
         -rs -v --color=no -p no:cacheprovider 2>&1 | sed -u 's/^/{MARK}/' &\ntensors=$!\n",
        python.display()
    );
    (begin, "wait $tensors\n")
}

/// Reads what they print.
#[derive(Default)]
pub(super) struct Reader {
    /// Set if they are part of the run: that nothing comes of them is a failure then.
    is_expected: bool,
    pytest: PytestReader,
    lines: Vec<String>,
    times: Option<(Instant, Instant)>,
}

impl Reader {
    pub(super) fn new(is_expected: bool) -> Self {
        Self { is_expected, ..Self::default() }
    }

    pub(super) fn is_expected(&self) -> bool {
        self.is_expected
    }

    /// Takes a line, if it is theirs.
    pub(super) fn line(&mut self, line: &str) -> bool {
        let Some(text) = line.strip_prefix(MARK) else { return false };
        let now = Instant::now();
        let begun = self.times.map_or(now, |(begun, _)| begun);
        self.times = Some((begun, now));
        self.pytest.line(text);
        self.lines.push(text.to_owned());
        true
    }

    /// How they went, and what is to be shown of that.
    pub(super) fn finish(self) -> (Option<Suite>, Vec<String>) {
        if !self.is_expected && self.lines.is_empty() {
            return (None, Vec::new());
        }
        let time = self.times.map_or(Duration::ZERO, |(begun, ended)| ended - begun);
        let suite = self.pytest.finish("rdma: sglang-plugin tensors", time);
        let is_heading = |line: &String| line.contains("= FAILURES =") || line.contains("= ERRORS =");
        let show = if suite.failed == 0 {
            Vec::new()
        } else if self.lines.iter().any(is_heading) {
            self.lines.into_iter().skip_while(|line| !is_heading(line)).collect()
        } else {
            self.lines
        };
        (Some(suite), show)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marked_lines_are_read_as_pytest_prints_them() {
        let mut reader = Reader::default();
        assert!(!reader.line("test result: ok. 3 passed; 0 failed"));
        for line in ["collected 4", "=== FAILURES ===", "E assert", "=== 3 passed, 1 failed in 2.10s ==="] {
            assert!(reader.line(&format!("{MARK}{line}")));
        }
        let (suite, show) = reader.finish();
        let suite = suite.unwrap();
        assert_eq!((suite.passed, suite.failed, show.len()), (3, 1, 3));
        let (begin, end) = script(Path::new("/v/bin/python"));
        assert!(begin.contains("MEMKV_TEST_TRANSPORT=rdma MEMKV_TEST_SMALL=1 '/v/bin/python' -m pytest"));
        assert!(
            begin.contains(&format!("s/^/{MARK}/"))
                && begin.contains("tensors=$!")
                && end.contains("$tensors")
        );
    }

    #[test]
    fn that_nothing_comes_is_a_failure_where_something_was_expected() {
        assert_eq!(Reader::default().finish().0, None);
        let mut reader = Reader::new(true);
        assert!(reader.line(&format!("{MARK}ModuleNotFoundError: No module named 'torch'")));
        let (suite, show) = reader.finish();
        assert_eq!((suite.unwrap().failed, show.len()), (1, 1));
    }

    #[test]
    fn of_all_filters_only_their_own_word_selects_them() {
        assert!(is_selected(Some("tensors")) && is_selected(None));
        assert!(!is_selected(Some("rdma::bounds")) && !is_selected(Some("")));
    }
}
