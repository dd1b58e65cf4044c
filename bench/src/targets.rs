//! The targets, as ratios within one run, and what a run reached of them.
//!
//! "Raw" is the faster of one and two raw connections in the same cell. Latencies and processor time are compared with the
//! raw baseline as well; shared memory with copies on one thread and with files.

use crate::compare::report::{Cell, Named, Report, of, size};
use crate::stats::Latency;
use crate::subject::ours::Over;
use crate::subject::{Kind, file, ours, raw};
use memkv_client::Transport;
use serde::Serialize;

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
/// The batch of all rows about large batches.
pub(crate) const BATCH: usize = 128;
/// Page sizes of the rows about large batches, and of those about single pages.
pub(crate) const PAGES: [usize; 4] = [64 * KIB, 256 * KIB, MIB, 4 * MIB];
pub(crate) const SINGLE_PAGES: [usize; 3] = [64 * KIB, MIB, 4 * MIB];
/// Keys of the rows about exists.
pub(crate) const EXISTS: [usize; 3] = [1, 128, 1024];
/// Client processes at once.
pub(crate) const CROWD: usize = 4;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Quantity {
    /// Speed over TCP, of raw.
    Speed(&'static str, usize),
    /// Processor time over TCP, of raw.
    Cpu(&'static str, usize),
    /// Median time of exists over TCP, of raw.
    Exists(usize),
    /// Median time of a single get over TCP, of raw.
    Single(usize),
    /// Speed of several processes over TCP, of raw.
    Crowd,
    /// Speed through shared memory, of memcpy on one thread.
    ShmOfMemcpy(&'static str, usize),
    /// Speed through shared memory, of a file per page.
    ShmOfFile(&'static str, usize),
    /// Growth of the server's memory for each byte stored.
    Growth,
    /// Cores of an idle server.
    Idle,
    /// Speed over TCP, of the fastest peer.
    SpeedOfPeers(&'static str, usize),
    /// Median time of exists over TCP, of the quickest peer.
    ExistsOfPeers(usize),
    /// Median time of a single get over TCP, of the quickest peer.
    SingleOfPeers(usize),
    /// Speed through the plugin for SGLang, of the crate.
    Plugin,
}

/// What a ratio should be.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Goal {
    AtLeast(f64),
    AtMost(f64),
}
use Goal::{AtLeast, AtMost};
use Quantity::{
    Cpu, Crowd, Exists, ExistsOfPeers, Growth, Idle, Plugin, ShmOfFile, ShmOfMemcpy, Single, SingleOfPeers,
    Speed, SpeedOfPeers,
};

/// Quantity, target, stretch.
type Target = (Quantity, Option<Goal>, Option<Goal>);

const fn both(quantity: Quantity, target: Goal, stretch: Goal) -> Target {
    (quantity, Some(target), Some(stretch))
}

const fn at_least(quantity: Quantity, target: f64) -> Target {
    (quantity, Some(AtLeast(target)), None)
}

/// All targets.
const TARGETS: &[Target] = &[
    both(Speed("get", 64 * KIB), AtLeast(0.90), AtLeast(1.00)),
    both(Speed("get", 256 * KIB), AtLeast(0.88), AtLeast(0.95)),
    both(Speed("get", MIB), AtLeast(0.93), AtLeast(0.97)),
    both(Speed("get", 4 * MIB), AtLeast(0.90), AtLeast(0.97)),
    both(Speed("put", 64 * KIB), AtLeast(0.75), AtLeast(0.90)),
    both(Speed("put", 256 * KIB), AtLeast(0.85), AtLeast(0.92)),
    both(Speed("put", MIB), AtLeast(0.90), AtLeast(0.95)),
    both(Speed("put", 4 * MIB), AtLeast(0.90), AtLeast(0.95)),
    both(Cpu("get", 64 * KIB), AtMost(1.25), AtMost(1.1)),
    both(Cpu("get", MIB), AtMost(1.10), AtMost(1.0)),
    both(Cpu("get", 4 * MIB), AtMost(1.10), AtMost(1.0)),
    both(Cpu("put", 64 * KIB), AtMost(1.25), AtMost(1.1)),
    both(Cpu("put", MIB), AtMost(1.10), AtMost(1.0)),
    both(Cpu("put", 4 * MIB), AtMost(1.10), AtMost(1.0)),
    both(Exists(1), AtMost(1.2), AtMost(1.05)),
    both(Exists(128), AtMost(1.5), AtMost(1.2)),
    both(Exists(1024), AtMost(1.7), AtMost(1.3)),
    both(Single(64 * KIB), AtMost(1.2), AtMost(1.1)),
    both(Single(MIB), AtMost(1.1), AtMost(1.0)),
    both(Single(4 * MIB), AtMost(1.0), AtMost(0.95)),
    both(Crowd, AtLeast(0.75), AtLeast(0.90)),
    (ShmOfMemcpy("get", MIB), Some(AtLeast(0.80)), None),
    (ShmOfMemcpy("put", MIB), Some(AtLeast(0.80)), None),
    (ShmOfFile("get", 64 * KIB), None, Some(AtLeast(1.0))),
    (ShmOfFile("get", 256 * KIB), None, Some(AtLeast(1.0))),
    (ShmOfFile("get", MIB), None, Some(AtLeast(1.0))),
    (ShmOfFile("get", 4 * MIB), None, Some(AtLeast(1.0))),
    (ShmOfFile("put", 64 * KIB), None, Some(AtLeast(1.0))),
    (ShmOfFile("put", 256 * KIB), None, Some(AtLeast(1.0))),
    (ShmOfFile("put", MIB), None, Some(AtLeast(1.0))),
    (ShmOfFile("put", 4 * MIB), None, Some(AtLeast(1.0))),
    both(Growth, AtMost(1.02), AtMost(1.01)),
    both(Idle, AtMost(0.005), AtMost(0.005)),
    at_least(SpeedOfPeers("get", 64 * KIB), 1.0),
    at_least(SpeedOfPeers("get", 256 * KIB), 1.0),
    at_least(SpeedOfPeers("get", MIB), 1.05),
    at_least(SpeedOfPeers("get", 4 * MIB), 1.05),
    at_least(SpeedOfPeers("put", 64 * KIB), 1.0),
    at_least(SpeedOfPeers("put", 256 * KIB), 1.0),
    at_least(SpeedOfPeers("put", MIB), 1.0),
    at_least(SpeedOfPeers("put", 4 * MIB), 1.0),
    (ExistsOfPeers(1), Some(AtMost(1.0)), None),
    (ExistsOfPeers(128), Some(AtMost(1.0)), None),
    (ExistsOfPeers(1024), Some(AtMost(1.0)), None),
    (SingleOfPeers(64 * KIB), Some(AtMost(1.0)), None),
    (SingleOfPeers(MIB), Some(AtMost(1.0)), None),
    (SingleOfPeers(4 * MIB), Some(AtMost(1.0)), None),
    both(Plugin, AtLeast(0.95), AtLeast(0.98)),
];

/// What became of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    Stretch,
    Target,
    Missed,
    /// There is only a stretch, and it was not reached.
    Below,
    /// Not measured.
    Skipped,
}

/// One line of the table.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Line {
    pub quantity: String,
    pub reached: Option<f64>,
    pub target: Option<String>,
    pub stretch: Option<String>,
    pub verdict: Verdict,
    /// Why it was not measured; or the peer that was compared with.
    pub note: Option<String>,
}

impl Goal {
    fn holds(self, value: f64) -> bool {
        match self {
            AtLeast(bound) => value >= bound,
            AtMost(bound) => value <= bound,
        }
    }

    fn text(self) -> String {
        match self {
            AtLeast(bound) => format!("≥ {bound}"),
            AtMost(bound) => format!("≤ {bound}"),
        }
    }
}

/// Every target, and what the run reached.
pub(crate) fn judge(report: &Report) -> Vec<Line> {
    TARGETS.iter().map(|target| line(report, target)).collect()
}

fn line(report: &Report, &(quantity, target, stretch): &Target) -> Line {
    let measured = measure(report, quantity);
    let (reached, note) = match measured {
        Ok((value, note)) => (Some(value), note),
        Err(why) => (None, Some(why)),
    };
    let holds = |goal: Option<Goal>| reached.zip(goal).is_some_and(|(value, goal)| goal.holds(value));
    let verdict = match reached {
        None => Verdict::Skipped,
        Some(_) if holds(stretch) => Verdict::Stretch,
        Some(_) if holds(target) => Verdict::Target,
        Some(_) if target.is_none() => Verdict::Below,
        Some(_) => Verdict::Missed,
    };
    Line {
        quantity: name(quantity),
        reached,
        target: target.map(Goal::text),
        stretch: stretch.map(Goal::text),
        verdict,
        note,
    }
}

fn name(quantity: Quantity) -> String {
    match quantity {
        Speed(op, page) => format!("{op} {}, speed, of raw", size(page)),
        Cpu(op, page) => format!("{op} {}, CPU s/GB, of raw", size(page)),
        Exists(keys) => format!("exists of {keys}, p50, of raw"),
        Single(page) => format!("single get {}, p50, of raw", size(page)),
        Crowd => format!("{CROWD} client processes, mixed, speed, of raw"),
        ShmOfMemcpy(op, page) => format!("shm {op} {}, speed, of memcpy on one thread", size(page)),
        ShmOfFile(op, page) => format!("shm {op} {}, speed, of a file in the page cache", size(page)),
        Growth => "server memory, growth per byte stored".into(),
        Idle => "server idle, cores".into(),
        SpeedOfPeers(op, page) => format!("{op} {}, speed, of the fastest peer", size(page)),
        ExistsOfPeers(keys) => format!("exists of {keys}, p50, of the quickest peer"),
        SingleOfPeers(page) => format!("single get {}, p50, of the quickest peer", size(page)),
        Plugin => "through the plugin for SGLang, speed, of the crate".into(),
    }
}

/// The value and a note, or why there is none.
type Measured = Result<(f64, Option<String>), String>;

fn measure(report: &Report, quantity: Quantity) -> Measured {
    let tcp = &ours::name(Over::Plain(Transport::Tcp));
    match quantity {
        Speed(op, page) => {
            let cell = cell(report, op, page, BATCH)?;
            let own = figures(report, cell, tcp)?;
            let limit = cell.limit().ok_or("the baseline was not measured")?;
            Ok((own.gb_per_s.median / limit.gb_per_s.median, None))
        }
        Cpu(op, page) => {
            let cell = cell(report, op, page, BATCH)?;
            let own = figures(report, cell, tcp)?;
            let limit = cell.limit().ok_or("the baseline was not measured")?;
            Ok((own.cpu() / limit.cpu(), None))
        }
        Exists(keys) => {
            let row = exists(report, keys)?;
            Ok((p50(report, row, tcp)? / p50(report, row, raw::name(1))?, None))
        }
        Single(page) => {
            let cell = cell(report, "get", page, 1)?;
            let own = figures(report, cell, tcp)?.latency.p50_us;
            Ok((own / figures(report, cell, raw::name(1))?.latency.p50_us, None))
        }
        Crowd => {
            let crowd = report.crowd.as_ref().ok_or("not part of this run")?;
            let speed = |subject| of(&crowd.gb_per_s, subject).ok_or("not part of this run");
            Ok((speed(tcp)?.median / speed("raw")?.median, None))
        }
        ShmOfMemcpy(op, page) => {
            let cell = cell(report, op, page, BATCH)?;
            let own = figures(report, cell, &ours::name(Over::Plain(Transport::Shm)))?;
            Ok((own.gb_per_s.median / report.memcpy[0].median, None))
        }
        ShmOfFile(op, page) => {
            let cell = cell(report, op, page, BATCH)?;
            let own = figures(report, cell, &ours::name(Over::Plain(Transport::Shm)))?;
            Ok((own.gb_per_s.median / figures(report, cell, file::NAME)?.gb_per_s.median, None))
        }
        Growth => Ok((report.memory.growth_per_stored_byte.ok_or("not part of this run")?, None)),
        Idle => Ok((report.idle_cores.ok_or("not part of this run")?, None)),
        SpeedOfPeers(op, page) => {
            let cell = cell(report, op, page, BATCH)?;
            let own = figures(report, cell, tcp)?;
            let (peer, best) = best_peer(report, |peer| Some(-of(&cell.figures, peer)?.gb_per_s.median))?;
            Ok((own.gb_per_s.median / -best, Some(peer)))
        }
        ExistsOfPeers(keys) => {
            let row = exists(report, keys)?;
            let (peer, best) = best_peer(report, |peer| Some(of(row, peer)?.p50_us))?;
            Ok((p50(report, row, tcp)? / best, Some(peer)))
        }
        SingleOfPeers(page) => {
            let cell = cell(report, "get", page, 1)?;
            let (peer, best) = best_peer(report, |peer| Some(of(&cell.figures, peer)?.latency.p50_us))?;
            Ok((figures(report, cell, tcp)?.latency.p50_us / best, Some(peer)))
        }
        Plugin => Err("this program has no Python; cargo xtask bench plugin measures it".into()),
    }
}

fn cell<'a>(report: &'a Report, op: &str, page: usize, batch: usize) -> Result<&'a Cell, String> {
    report.cell(op, page, batch).ok_or_else(|| "not part of this run".to_owned())
}

fn exists(report: &Report, keys: usize) -> Result<&[Named<Latency>], String> {
    let row = report.exists.iter().find(|row| row.keys == keys);
    row.map(|row| &row.latencies[..]).ok_or_else(|| "not part of this run".to_owned())
}

fn absent(report: &Report, subject: &str) -> String {
    report.why_skipped(subject).map_or_else(|| format!("{subject} is not part of this run"), str::to_owned)
}

fn figures<'a>(
    report: &Report,
    cell: &'a Cell,
    subject: &str,
) -> Result<&'a crate::subject::Figures, String> {
    of(&cell.figures, subject).ok_or_else(|| absent(report, subject))
}

fn p50(report: &Report, row: &[Named<Latency>], subject: &str) -> Result<f64, String> {
    of(row, subject).map(|latency| latency.p50_us).ok_or_else(|| absent(report, subject))
}

/// The peer with the least value.
fn best_peer(report: &Report, value: impl Fn(&str) -> Option<f64>) -> Result<(String, f64), String> {
    let peers = report.of_kind(Kind::Peer).filter_map(|peer| Some((peer.to_owned(), value(peer)?)));
    let best = peers.min_by(|a, b| a.1.total_cmp(&b.1));
    best.ok_or_else(|| "no peer was measured; run with --peers".to_owned())
}

/// The table, as Markdown.
pub(crate) fn table(lines: &[Line]) -> String {
    let mut out = String::from("| quantity | reached | target | stretch | |\n|---|---:|---:|---:|---|\n");
    for line in lines {
        let reached = line.reached.map_or("–".to_owned(), |value| {
            if value < 0.1 { format!("{value:.4}") } else { format!("{value:.2}") }
        });
        let goal = |goal: &Option<String>| goal.clone().unwrap_or_else(|| "–".into());
        let verdict = match line.verdict {
            Verdict::Stretch => "stretch",
            Verdict::Target => "reached",
            Verdict::Missed => "**missed**",
            Verdict::Below => "below the stretch",
            Verdict::Skipped => "skipped",
        };
        let note = line.note.as_deref().map_or(String::new(), |note| {
            let words: Vec<&str> = note.split_whitespace().collect();
            format!(": {}", words.join(" ").replace('|', "/"))
        });
        let (target, stretch) = (goal(&line.target), goal(&line.stretch));
        out += &format!("| {} | {reached} | {target} | {stretch} | {verdict}{note} |\n", line.quantity);
    }
    let count = |verdict| lines.iter().filter(|line| line.verdict == verdict).count();
    out + &format!(
        "\n{} at the stretch, {} at the target, {} missed, {} below a stretch without a target, {} skipped.\n",
        count(Verdict::Stretch),
        count(Verdict::Target),
        count(Verdict::Missed),
        count(Verdict::Below),
        count(Verdict::Skipped)
    )
}

/// Cells that the targets are about.
pub(crate) fn cells() -> Vec<(usize, usize)> {
    PAGES.iter().map(|&page| (page, BATCH)).chain(SINGLE_PAGES.iter().map(|&page| (page, 1))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::report::sample;

    fn reached(lines: &[Line], quantity: Quantity) -> &Line {
        lines.iter().find(|line| line.quantity == name(quantity)).unwrap()
    }

    #[test]
    fn ratios_are_taken_of_the_right_things() {
        // In the sample memkv tcp moves 3 GB/s, raw x1 2, raw x2 4, a file 5, redis 1, valkey 1.5; latencies are in that proportion.
        let lines = judge(&sample());
        let get = reached(&lines, Speed("get", MIB));
        assert_eq!((get.reached, get.verdict), (Some(0.75), Verdict::Missed));
        let peers = reached(&lines, SpeedOfPeers("put", MIB));
        assert_eq!((peers.reached, peers.note.as_deref()), (Some(2.0), Some("valkey")));
        assert_eq!(peers.verdict, Verdict::Target);
        assert_eq!(reached(&lines, Exists(128)).reached, Some(0.5));
        assert_eq!(reached(&lines, Exists(128)).verdict, Verdict::Stretch);
        assert_eq!(reached(&lines, Crowd).reached, Some(0.8));
        let cpu = reached(&lines, Cpu("get", MIB));
        assert_eq!(cpu.reached, Some(1.0));
        let shm = reached(&lines, ShmOfFile("get", MIB));
        assert_eq!((shm.verdict, shm.note.as_deref()), (Verdict::Skipped, Some("no shared memory here")));
        assert_eq!(reached(&lines, Speed("get", 64 * KIB)).verdict, Verdict::Skipped, "not in the sample");
    }

    #[test]
    fn the_table_names_every_target() {
        let lines = judge(&sample());
        let text = table(&lines);
        assert!(TARGETS.iter().all(|target| text.contains(&name(target.0))));
        assert!(
            text.contains("| get 1 MiB, speed, of raw | 0.75 | ≥ 0.93 | ≥ 0.97 | **missed** |"),
            "{text}"
        );
    }
}
