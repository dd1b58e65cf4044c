//! Batch operations of one space.
//!
//! A large batch is cut into runs of bounded bytes, each with a deadline of its own, so that neither a slow network
//! nor a huge node of the radix tree can make one operation miss its deadline as a whole. After a run that did not
//! succeed for every page the rest is not tried: SGLang uses only the leading run of successes.

use crate::client::Connection;
use crate::convert::{Keys, integers};
use crate::errors::{BadInputError, UnavailableError, to_python};
use crate::pages::PageMap;
use crate::raw::{Direction, Pieces};
use memkv_client::{BatchReport, Error, ErrorKind, PageOutcome, blocking};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How many bytes one run moves at most, unless a single page is larger.
const RUN_BYTES_MAX: usize = 256 << 20;
/// How many keys one run or one question has at most.
const RUN_KEYS_MAX: usize = 8_192;

/// What became of a batch.
#[pyclass(frozen, module = "memkv_sglang._native")]
pub struct BatchResult {
    flags: Vec<bool>,
    moved_pages: usize,
    moved_bytes: u64,
    failed: usize,
    reason: &'static str,
}

#[pymethods]
impl BatchResult {
    /// One flag per key: read, stored (now or before), found or removed.
    #[getter]
    fn flags(&self) -> Vec<bool> {
        self.flags.clone()
    }

    /// Pages whose bytes moved.
    #[getter]
    fn moved_pages(&self) -> usize {
        self.moved_pages
    }

    /// Bytes that moved.
    #[getter]
    fn moved_bytes(&self) -> u64 {
        self.moved_bytes
    }

    /// Keys that failed for another reason than a plain miss.
    #[getter]
    fn failed(&self) -> usize {
        self.failed
    }

    /// The most frequent reason of a failure; empty if nothing failed.
    #[getter]
    fn reason(&self) -> &'static str {
        self.reason
    }
}

impl BatchResult {
    fn of_flags(flags: Vec<bool>, failed: usize) -> Self {
        let reason = if failed == 0 { "" } else { "a server did not answer" };
        Self { flags, moved_pages: 0, moved_bytes: 0, failed, reason }
    }

    pub(crate) fn into_flags(self) -> Vec<bool> {
        self.flags
    }
}

/// One space of the store, over the connections of the client that opened it.
#[pyclass(frozen, module = "memkv_sglang._native")]
pub struct Space {
    connection: Arc<Connection>,
    space: blocking::Space,
}

#[pymethods]
impl Space {
    /// The space's identity, 32 hex digits.
    #[getter]
    fn id(&self) -> String {
        self.space.id().to_string()
    }

    /// The fields of the space's description.
    #[getter]
    fn description<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let fields = PyDict::new(py);
        for (name, value) in self.space.description().fields() {
            fields.set_item(name, value)?;
        }
        Ok(fields)
    }

    /// Which of the keys are stored.
    pub(crate) fn exists(&self, py: Python<'_>, keys: &Bound<'_, PyAny>) -> PyResult<BatchResult> {
        let keys = Keys::from_python(keys)?;
        self.ask(py, &keys, |space, keys, found| space.exists(keys, found))
    }

    /// How many keys from the first on are stored without a gap.
    pub(crate) fn exists_prefix(&self, py: Python<'_>, keys: &Bound<'_, PyAny>) -> PyResult<usize> {
        let flags = self.exists(py, keys)?.flags;
        Ok(flags.iter().take_while(|&&found| found).count())
    }

    /// Removes the keys; a flag is true if the key was there.
    pub(crate) fn remove(&self, py: Python<'_>, keys: &Bound<'_, PyAny>) -> PyResult<BatchResult> {
        let keys = Keys::from_python(keys)?;
        self.ask(py, &keys, |space, keys, removed| space.delete(keys, removed))
    }

    /// Reads one page per key into the pool.
    fn get_pages(
        &self,
        py: Python<'_>,
        keys: &Bound<'_, PyAny>,
        pages: &PageMap,
        first_slots: &[u8],
        seconds: f64,
    ) -> PyResult<BatchResult> {
        let pieces = pages.pieces(first_slots)?;
        self.transfer(py, Direction::Get, &Keys::from_python(keys)?, &pieces, Some(seconds))
    }

    /// Writes one page per key from the pool. The first key is the page at `position` of its chain, from 1; 0 if that
    /// is not known.
    #[pyo3(signature = (keys, pages, first_slots, seconds, position=0))]
    fn put_pages(
        &self,
        py: Python<'_>,
        keys: &Bound<'_, PyAny>,
        pages: &PageMap,
        first_slots: &[u8],
        seconds: f64,
        position: u32,
    ) -> PyResult<BatchResult> {
        let pieces = pages.pieces(first_slots)?;
        let space = self.at_position(position);
        space.transfer(py, Direction::Put, &Keys::from_python(keys)?, &pieces, Some(seconds))
    }

    /// Reads one page per key to `len(ptrs) / len(keys)` pieces of memory each.
    #[pyo3(signature = (keys, ptrs, sizes, seconds=None))]
    pub(crate) fn get_into(
        &self,
        py: Python<'_>,
        keys: &Bound<'_, PyAny>,
        ptrs: &Bound<'_, PyAny>,
        sizes: &Bound<'_, PyAny>,
        seconds: Option<f64>,
    ) -> PyResult<BatchResult> {
        let keys = Keys::from_python(keys)?;
        let pieces = pieces_from_python(&keys, ptrs, sizes)?;
        self.transfer(py, Direction::Get, &keys, &pieces, seconds)
    }

    /// Writes one page per key from `len(ptrs) / len(keys)` pieces of memory each; `position` as in
    /// `put_pages`.
    #[pyo3(signature = (keys, ptrs, sizes, seconds=None, position=0))]
    pub(crate) fn put_from(
        &self,
        py: Python<'_>,
        keys: &Bound<'_, PyAny>,
        ptrs: &Bound<'_, PyAny>,
        sizes: &Bound<'_, PyAny>,
        seconds: Option<f64>,
        position: u32,
    ) -> PyResult<BatchResult> {
        let keys = Keys::from_python(keys)?;
        let pieces = pieces_from_python(&keys, ptrs, sizes)?;
        self.at_position(position).transfer(py, Direction::Put, &keys, &pieces, seconds)
    }

    /// Removes every page of the space from every server; returns pages and bytes.
    fn clear(&self, py: Python<'_>) -> PyResult<(u64, u64)> {
        self.connection.check()?;
        let report = py.detach(|| self.space.clear()).map_err(|error| to_python(&error))?;
        if report.failed.is_empty() {
            return Ok((report.removed_pages, report.removed_bytes));
        }
        let failed: Vec<String> =
            report.failed.iter().map(|(server, error)| format!("{server}: {error}")).collect();
        Err(UnavailableError::new_err(format!(
            "{} pages are cleared, but not those of {}",
            report.removed_pages,
            failed.join("; ")
        )))
    }
}

impl Space {
    /// The same space for pages that begin at this place of their chain.
    fn at_position(&self, position: u32) -> Self {
        Self { connection: Arc::clone(&self.connection), space: self.space.at_position(position) }
    }

    /// A space over the given connection.
    pub(crate) fn new(connection: Arc<Connection>, space: blocking::Space) -> Self {
        Self { connection, space }
    }

    /// Reads one page of unknown length. A server that does not answer is a miss.
    pub(crate) fn get_one(&self, py: Python<'_>, key: &Keys) -> PyResult<Option<Vec<u8>>> {
        self.connection.check()?;
        match py.detach(|| self.space.get(key.slices()[0])) {
            Ok(page) => Ok(page),
            Err(error) if matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Timeout) => Ok(None),
            Err(error) => Err(to_python(&error)),
        }
    }

    /// Stores one page; false if it could not be stored.
    pub(crate) fn set_one(&self, py: Python<'_>, key: &Keys, page: &[u8]) -> PyResult<bool> {
        self.connection.check()?;
        let outcome =
            py.detach(|| self.space.put(key.slices()[0], page)).map_err(|error| to_python(&error))?;
        Ok(outcome.is_success())
    }

    /// Runs a question over all keys in pieces of bounded size.
    fn ask(
        &self,
        py: Python<'_>,
        keys: &Keys,
        question: impl Fn(&blocking::Space, &[&[u8]], &mut [bool]) -> Result<BatchReport, Error> + Sync,
    ) -> PyResult<BatchResult> {
        self.connection.check()?;
        let mut flags = vec![false; keys.len()];
        let space = &self.space;
        let asked = py.detach(|| {
            let mut failed = 0;
            let slices = keys.slices();
            for (keys, flags) in slices.chunks(RUN_KEYS_MAX).zip(flags.chunks_mut(RUN_KEYS_MAX)) {
                failed += question(space, keys, flags)?.failed;
                if failed > 0 {
                    break;
                }
            }
            Ok(failed)
        });
        let failed = asked.map_err(|error: Error| to_python(&error))?;
        Ok(BatchResult::of_flags(flags, failed))
    }

    /// Moves pages in runs of bounded bytes until all are moved, a run fails, or the time is up.
    fn transfer(
        &self,
        py: Python<'_>,
        direction: Direction,
        keys: &Keys,
        pieces: &Pieces,
        seconds: Option<f64>,
    ) -> PyResult<BatchResult> {
        self.connection.check()?;
        if pieces.ptrs.len() != keys.len() * pieces.per_page {
            return Err(BadInputError::new_err(format!(
                "{} pages for {} keys",
                pieces.ptrs.len() / pieces.per_page.max(1),
                keys.len()
            )));
        }
        if let Some(address) = pieces.overlap().filter(|_| matches!(direction, Direction::Get)) {
            return Err(BadInputError::new_err(format!("two destinations share the memory at {address:#x}")));
        }
        let pace = Pace::new(seconds, self.connection.op_timeout());
        let moved = py.detach(|| {
            let mut outcomes = vec![PageOutcome::Miss; keys.len()];
            let mut moved_bytes = 0;
            let mut tried = 0;
            let slices = keys.slices();
            for run in runs(pieces, keys.len()) {
                if !pace.allows_another() {
                    break;
                }
                tried = run.end;
                let out = &mut outcomes[run.clone()];
                moved_bytes +=
                    pieces.transfer(direction, &self.space, &slices[run.clone()], run.start, out)?.bytes;
                if !out.iter().all(|outcome| outcome.is_success()) {
                    break;
                }
            }
            Ok(summary(&outcomes, tried, moved_bytes))
        });
        moved.map_err(|error: Error| to_python(&error))
    }
}

/// The time that one call may take.
struct Pace {
    until: Option<Instant>,
    op_timeout: Duration,
}

impl Pace {
    fn new(seconds: Option<f64>, op_timeout: Duration) -> Self {
        let left = seconds.map(|seconds| Duration::try_from_secs_f64(seconds).unwrap_or_default());
        Self { until: left.map(|left| Instant::now() + left), op_timeout }
    }

    /// Whether one more operation can run to its own deadline.
    fn allows_another(&self) -> bool {
        self.until.is_none_or(|until| Instant::now() + self.op_timeout <= until)
    }
}

/// Cuts the pages `0..count` into runs of bounded bytes and keys.
fn runs(pieces: &Pieces, count: usize) -> Vec<Range<usize>> {
    let mut runs = Vec::new();
    let mut start = 0;
    let mut bytes = 0;
    for index in 0..count {
        let page = pieces.page_bytes(index);
        let full = index - start >= RUN_KEYS_MAX || bytes + page > RUN_BYTES_MAX;
        if full && index > start {
            runs.push(start..index);
            start = index;
            bytes = 0;
        }
        bytes = page.saturating_add(bytes);
    }
    if start < count {
        runs.push(start..count);
    }
    runs
}

/// Flags, counts and the most frequent failure; pages that were not tried ran out of time only if none failed.
fn summary(outcomes: &[PageOutcome], tried: usize, moved_bytes: u64) -> BatchResult {
    let mut reasons: Vec<(&'static str, usize)> = Vec::new();
    let mut moved_pages = 0;
    for outcome in &outcomes[..tried] {
        match failure(*outcome) {
            Some(reason) => match reasons.iter_mut().find(|(known, _)| *known == reason) {
                Some((_, count)) => *count += 1,
                None => reasons.push((reason, 1)),
            },
            None => moved_pages += usize::from(matches!(outcome, PageOutcome::Hit | PageOutcome::Stored)),
        }
    }
    let stopped_early = outcomes[..tried].iter().any(|outcome| !outcome.is_success());
    if tried < outcomes.len() && !stopped_early {
        reasons.push(("the call's time was up", outcomes.len() - tried));
    }
    let failed = reasons.iter().map(|(_, count)| count).sum();
    let reason = reasons.iter().max_by_key(|(_, count)| *count).map_or("", |(reason, _)| reason);
    let flags = outcomes.iter().map(|outcome| outcome.is_success()).collect();
    BatchResult { flags, moved_pages, moved_bytes, failed, reason }
}

/// Why a page failed, or `None` for a success and for a plain miss.
fn failure(outcome: PageOutcome) -> Option<&'static str> {
    match outcome {
        PageOutcome::Hit | PageOutcome::Stored | PageOutcome::Exists | PageOutcome::Miss => None,
        PageOutcome::SizeMismatch => Some("the stored page has another size"),
        PageOutcome::TooLarge => Some("the page is larger than the server allows"),
        PageOutcome::Busy => Some("the server is full or busy"),
        PageOutcome::Corrupt => Some("the checksum did not match"),
        PageOutcome::Unavailable => Some("the server is not reachable"),
        PageOutcome::TimedOut => Some("the server did not answer in time"),
        PageOutcome::Denied => Some("the server refused it"),
    }
}

/// Pieces from flat lists of addresses and sizes.
fn pieces_from_python(keys: &Keys, ptrs: &Bound<'_, PyAny>, sizes: &Bound<'_, PyAny>) -> PyResult<Pieces> {
    let (ptrs, sizes) = (integers("ptrs", ptrs)?, integers("sizes", sizes)?);
    if ptrs.len() != sizes.len()
        || (keys.len() == 0) != ptrs.is_empty()
        || ptrs.len() % keys.len().max(1) != 0
    {
        return Err(BadInputError::new_err(format!(
            "{} ptrs and {} sizes for {} keys; give the same number of pieces for every key",
            ptrs.len(),
            sizes.len(),
            keys.len()
        )));
    }
    let invalid = |(&ptr, &size): (&usize, &usize)| ptr == 0 || size == 0 || ptr.checked_add(size).is_none();
    if let Some(index) = ptrs.iter().zip(&sizes).position(invalid) {
        return Err(BadInputError::new_err(format!(
            "piece {index} is no memory: address {:#x}, {} bytes",
            ptrs[index], sizes[index]
        )));
    }
    let per_page = ptrs.len() / keys.len().max(1);
    Ok(Pieces { ptrs, sizes, per_page })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages(sizes: &[usize]) -> Pieces {
        Pieces { ptrs: vec![1; sizes.len()], sizes: sizes.to_vec(), per_page: 1 }
    }

    #[test]
    fn runs_cover_every_page_once_and_stay_small() {
        let half = RUN_BYTES_MAX / 2;
        assert_eq!(runs(&pages(&[half, half, half]), 3), [0..2, 2..3]);
        assert_eq!(runs(&pages(&[RUN_BYTES_MAX + 1, 1]), 2), [0..1, 1..2]);
        assert_eq!(runs(&pages(&[]), 0), Vec::<Range<usize>>::new());
        let many = vec![1; RUN_KEYS_MAX + 1];
        assert_eq!(runs(&pages(&many), many.len()), [0..RUN_KEYS_MAX, RUN_KEYS_MAX..RUN_KEYS_MAX + 1]);
    }

    #[test]
    fn a_miss_is_no_failure_and_ends_the_batch_quietly() {
        let result = summary(&[PageOutcome::Hit, PageOutcome::Miss, PageOutcome::Miss], 2, 7);
        assert_eq!((result.flags, result.failed, result.reason), (vec![true, false, false], 0, ""));
        assert_eq!((result.moved_pages, result.moved_bytes), (1, 7));
    }

    #[test]
    fn the_most_frequent_reason_is_told() {
        let outcomes = [PageOutcome::Busy, PageOutcome::TimedOut, PageOutcome::TimedOut, PageOutcome::Exists];
        let result = summary(&outcomes, 4, 0);
        assert_eq!((result.failed, result.reason), (3, "the server did not answer in time"));
        assert_eq!((result.flags, result.moved_pages), (vec![false, false, false, true], 0));
    }

    #[test]
    fn pages_left_over_are_a_failure() {
        let result = summary(&[PageOutcome::Stored, PageOutcome::Miss], 1, 5);
        assert_eq!((result.failed, result.reason), (1, "the call's time was up"));
    }
}
