//! One client process: takes orders on its standard input, runs bursts, and answers with histograms.
//!
//! Page `n` has the bytes of the source from a place on that `n` decides, so that a put needs no copy, and any page can be
//! compared with what it must be. Every batch of a burst arrives in memory of its own; it is compared when the burst is over.

use super::endpoint::{Named, Open};
use super::keys::{Draw, Random};
use super::orders::{Answer, Endpoint, Job, Op, Order};
use crate::machine;
use crate::pages::Pages;
use crate::workload;
use anyhow::{Context as _, ensure};
use hdrhistogram::Histogram;
use std::io::{BufRead as _, Write as _};
use std::time::Duration;

/// Bytes that pages are taken from, besides one page: a process's share of all pages, within these bounds. What is put is to come from
/// memory, as it does from an engine's host pool, and not from a cache that a smaller source fits into.
const SOURCE_BYTES: std::ops::RangeInclusive<u64> = 32 << 20..=256 << 20;
/// Places in the source are multiples of this.
const STEP_BYTES: usize = 64;
/// Before a batch's begin the clock is watched: sleeping is not that exact.
const WATCH: Duration = Duration::from_micros(80);
/// Pages of one batch when the store is filled.
const FILL_BYTES: usize = 32 << 20;

/// What one batch does, and what became of it.
struct Step {
    is_put: bool,
    named: Named,
    there: Vec<bool>,
}

struct Worker {
    job: Job,
    open: Open,
    draw: Draw,
    random: Random,
    source: Pages,
    target: Pages,
    steps: Vec<Step>,
}

/// Runs until the standard input ends.
///
/// # Errors
///
/// If an order is not understood; what goes wrong with the load is answered.
pub(crate) fn serve() -> anyhow::Result<()> {
    let mut lines = std::io::stdin().lock().lines();
    let job: Job = serde_json::from_str(&lines.next().context("wait for a job")??).context("read a job")?;
    let mut worker = match Worker::new(job) {
        Ok(worker) => worker,
        Err(error) => return say(&failed(&error)),
    };
    say(&Answer::default())?;
    for line in lines {
        let order: Order = serde_json::from_str(&line?).context("read an order")?;
        let answer = match order {
            Order::Fill => worker.fill(),
            Order::Burst { batches, begin_nanos, pace_nanos } => {
                worker.burst(batches, begin_nanos, pace_nanos)
            }
            Order::Check => worker.check(),
        };
        match answer {
            Ok(answer) => say(&answer)?,
            Err(error) => return say(&failed(&error)),
        }
    }
    worker.open.close();
    Ok(())
}

fn failed(error: &anyhow::Error) -> Answer {
    Answer { error: Some(format!("{error:#}")), ..Answer::default() }
}

fn say(answer: &Answer) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", serde_json::to_string(answer)?)?;
    Ok(out.flush()?)
}

/// Bytes of the source, the same in all processes of a job.
fn source_bytes(pages: u64, page_bytes: usize, processes: usize) -> usize {
    let share = pages.saturating_mul(page_bytes as u64) / processes.max(1) as u64;
    let bytes = share.clamp(*SOURCE_BYTES.start(), *SOURCE_BYTES.end()) as usize;
    bytes.next_multiple_of(STEP_BYTES) + page_bytes
}

/// Where the source has the bytes of a page.
fn place(id: u64, page_bytes: usize, source_bytes: usize) -> std::ops::Range<usize> {
    let places = ((source_bytes - page_bytes) / STEP_BYTES) as u64;
    let at = usize::try_from(Random(id).next() % places).unwrap_or(0) * STEP_BYTES;
    at..at + page_bytes
}

impl Worker {
    fn new(job: Job) -> anyhow::Result<Self> {
        let arrives = job.op != Op::Exists;
        let burst_bytes = if arrives { job.burst_batches * job.batch * job.page_bytes } else { 0 };
        let slots = if arrives { usize::try_from(job.pages)? * job.page_bytes + burst_bytes } else { 0 };
        let open = Open::new(&job.endpoint, slots).context("connect")?;
        let draw = Draw::new(&job.choice, job.pages, job.batch, job.index, job.of)?;
        let random = Random(job.seed ^ (job.index as u64) << 32);
        let mut source =
            Pages::new(source_bytes(job.pages, job.page_bytes, job.of)).context("find memory for pages")?;
        workload::fill(&mut source);
        let target = Pages::filled(burst_bytes, 0xee).context("find memory for pages")?;
        Ok(Self { job, open, draw, random, source, target, steps: Vec::new() })
    }

    /// Stores this process's share. The raw baseline has an array a connection: each fills all of its own.
    fn fill(&mut self) -> anyhow::Result<Answer> {
        let batch = (FILL_BYTES / self.job.page_bytes).max(1) as u64;
        let raw = matches!(self.job.endpoint, Endpoint::Raw { .. });
        let (index, of) = if raw { (0, 1) } else { (self.job.index as u64, self.job.of as u64) };
        let mut answer = Answer::default();
        if raw && self.job.op == Op::Exists {
            return Ok(answer);
        }
        for group in (0..self.job.pages.div_ceil(batch)).filter(|group| group % of == index) {
            let ids = (group * batch..((group + 1) * batch).min(self.job.pages)).collect();
            let named = Named::new(ids);
            let told = put(&mut self.open, &self.source, self.job.page_bytes, &named)?;
            answer.put_refused += told.refused;
            answer.put_existing += told.existing;
        }
        Ok(answer)
    }

    /// Decides what the batches of a burst do.
    fn plan(&mut self, batches: usize) {
        let raw = matches!(self.job.endpoint, Endpoint::Raw { .. });
        let (own, batch) = (if raw { 0 } else { self.job.index as u64 }, self.job.batch as u64);
        let new_pages = self.job.pages + own * self.job.burst_batches as u64 * batch;
        self.steps.clear();
        for number in 0..batches as u64 {
            // Half of the processes begin with a put, or all would do the same at the same time.
            let is_put = match self.job.op {
                Op::Put => true,
                Op::Get | Op::Exists | Op::Cache => false,
                Op::Mixed => (number + self.job.index as u64) % 2 == 1,
            };
            let ids = if is_put {
                (new_pages + number * batch..new_pages + (number + 1) * batch).collect()
            } else {
                self.draw.next(&mut self.random)
            };
            let there = vec![false; ids.len()];
            self.steps.push(Step { is_put, named: Named::new(ids), there });
        }
    }

    fn burst(&mut self, batches: usize, begin: u64, pace: Option<u64>) -> anyhow::Result<Answer> {
        ensure!(batches <= self.job.burst_batches, "a burst of {batches} batches has no memory");
        self.plan(batches);
        self.target.fill(0xee);
        let mut from_intended = super::histogram()?;
        let mut from_begin = from_intended.clone();
        let mut answer = Answer::default();
        wait_until(begin);
        let cpu = machine::own_cpu();
        answer.begin_nanos = machine::monotonic_nanos();
        for number in 0..batches {
            let intended = pace.map(|pace| begin + number as u64 * pace);
            intended.into_iter().for_each(wait_until);
            let begun = machine::monotonic_nanos();
            self.step(number, &mut answer)?;
            let end = machine::monotonic_nanos();
            from_begin.saturating_record(end.saturating_sub(begun).max(1));
            from_intended.saturating_record(end.saturating_sub(intended.unwrap_or(begun)).max(1));
        }
        answer.end_nanos = machine::monotonic_nanos();
        answer.cpu_nanos = u64::try_from((machine::own_cpu() - cpu).as_nanos()).unwrap_or(u64::MAX);
        answer.from_intended = counts(&from_intended);
        answer.from_begin = counts(&from_begin);
        Ok(answer)
    }

    fn step(&mut self, number: usize, answer: &mut Answer) -> anyhow::Result<()> {
        let (op, page) = (self.job.op, self.job.page_bytes);
        let Step { is_put, named, there } = &mut self.steps[number];
        let bytes = |there: &[bool]| there.iter().filter(|&&there| there).count() as u64 * page as u64;
        if *is_put {
            let told = put_marked(&mut self.open, &self.source, page, named, there)?;
            answer.put_existing += told.existing;
            answer.put_refused += told.refused;
            answer.put_bytes += bytes(there) - told.existing * page as u64;
            return Ok(());
        }
        answer.keys += named.ids.len() as u64;
        if op == Op::Exists {
            self.open.exists(named, there)?;
            answer.hits += there.iter().filter(|&&there| there).count() as u64;
            return Ok(());
        }
        let region = number * self.job.batch * page;
        let target = &mut self.target[region..region + named.ids.len() * page];
        let mut pages: Vec<&mut [u8]> = target.chunks_exact_mut(page).collect();
        self.open.get(named, &mut pages, there)?;
        answer.hits += there.iter().filter(|&&there| there).count() as u64;
        answer.got_bytes += bytes(there);
        if op == Op::Cache && there.contains(&false) {
            let absent = named.ids.iter().zip(there.iter()).filter(|(_, there)| !**there);
            let absent = Named::new(absent.map(|(&id, _)| id).collect());
            let told = put(&mut self.open, &self.source, page, &absent)?;
            answer.put_existing += told.existing;
            answer.put_refused += told.refused;
            let stored = absent.ids.len() as u64 - told.existing - told.refused;
            answer.put_bytes += stored * page as u64;
        }
        Ok(())
    }

    /// Compares all pages of the last burst.
    fn check(&mut self) -> anyhow::Result<Answer> {
        let page = self.job.page_bytes;
        let mut answer = Answer::default();
        if self.job.op == Op::Exists {
            return Ok(answer);
        }
        for (number, mut step) in std::mem::take(&mut self.steps).into_iter().enumerate() {
            let region = number * self.job.batch * page;
            let target = &mut self.target[region..region + step.named.ids.len() * page];
            let mut pages: Vec<&mut [u8]> = target.chunks_exact_mut(page).collect();
            let kept = step.there.clone();
            if step.is_put {
                self.open.get(&step.named, &mut pages, &mut step.there)?;
            }
            for (at, (page_now, &id)) in pages.iter().zip(&step.named.ids).enumerate() {
                // What a put stored may have been evicted since; what came must be right.
                if kept[at] && step.there[at] {
                    ensure!(
                        **page_now == self.source[place(id, page, self.source.len())],
                        "wrong bytes in page {id}"
                    );
                    answer.compared += 1;
                }
            }
            if step.is_put {
                self.open.delete(&step.named)?;
            }
        }
        Ok(answer)
    }
}

fn put(open: &mut Open, source: &[u8], page: usize, named: &Named) -> anyhow::Result<super::endpoint::Told> {
    put_marked(open, source, page, named, &mut vec![false; named.ids.len()])
}

fn put_marked(
    open: &mut Open,
    source: &[u8],
    page: usize,
    named: &Named,
    kept: &mut [bool],
) -> anyhow::Result<super::endpoint::Told> {
    let pages: Vec<&[u8]> = named.ids.iter().map(|&id| &source[place(id, page, source.len())]).collect();
    open.put(named, &pages, kept)
}

/// Sleeps until shortly before the time, then watches the clock.
fn wait_until(nanos: u64) {
    loop {
        let left = Duration::from_nanos(nanos.saturating_sub(machine::monotonic_nanos()));
        if left.is_zero() {
            return;
        }
        match left.checked_sub(WATCH) {
            Some(time) => std::thread::sleep(time),
            None => std::hint::spin_loop(),
        }
    }
}

fn counts(histogram: &Histogram<u64>) -> Vec<(u64, u64)> {
    histogram.iter_recorded().map(|value| (value.value_iterated_to(), value.count_at_value())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_lie_within_the_source_and_differ() {
        const MIB: usize = 1 << 20;
        let source = source_bytes(1000, MIB, 10);
        assert_eq!(source, 101 * MIB);
        let mut places: Vec<_> = (0..1000).map(|id| place(id, MIB, source)).collect();
        assert!(places.iter().all(|place| place.start % STEP_BYTES == 0 && place.end <= source));
        let last = places.iter().map(|place| place.end).max().unwrap();
        assert!(last > 99 * MIB, "all of the source is used, not only {last} bytes");
        assert_eq!([(1, 1), (u64::MAX, 1)].map(|(pages, of)| source_bytes(pages, MIB, of) / MIB), [33, 257]);
        let mut starts: Vec<usize> = places.drain(..).map(|place| place.start).collect();
        starts.sort_unstable();
        starts.dedup();
        assert!(starts.len() > 990, "{} places of 1000 pages", starts.len());
    }

    #[test]
    fn nothing_begins_before_its_time() {
        let at = machine::monotonic_nanos() + 2_000_000;
        wait_until(at);
        assert!(machine::monotonic_nanos() >= at);
        wait_until(0);
    }

    #[test]
    fn a_histogram_keeps_its_counts_on_the_way() {
        let mut histogram = super::super::histogram().unwrap();
        for value in [5, 5, 1_000_000] {
            histogram.record(value).unwrap();
        }
        let counts = counts(&histogram);
        assert_eq!(counts[0], (5, 2));
        assert!(counts[1].1 == 1 && counts[1].0.abs_diff(1_000_000) < 1000);
    }
}
