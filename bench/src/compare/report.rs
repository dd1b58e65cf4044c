//! What a comparison found: the JSON document, and what is read out of it.

use crate::machine::Machine;
use crate::stats::{Latency, Spread};
use crate::subject::{Figures, Kind, raw};
use serde::{Deserialize, Serialize};

/// Everything of one run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    pub command: String,
    pub machine: Machine,
    pub settings: Settings,
    /// Who was compared.
    pub subjects: Vec<About>,
    /// Who was not, and why.
    pub skipped: Vec<Skipped>,
    /// Copies of the working set within this process, GB/s, on one and two threads.
    pub memcpy: [Spread; 2],
    pub cells: Vec<Cell>,
    pub exists: Vec<ExistsRow>,
    pub crowd: Option<Crowd>,
    pub memory: MemoryUse,
    /// Cores that the server used while nobody asked anything.
    pub idle_cores: Option<f64>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Settings {
    pub working_set_bytes: u64,
    pub rounds: usize,
    /// Figures of such a build mean nothing.
    pub debug_build: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct About {
    pub subject: String,
    pub kind: Kind,
    pub note: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Skipped {
    pub subject: String,
    pub reason: String,
}

/// A subject's value.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Named<T> {
    pub subject: String,
    pub value: T,
}

/// One op, page size and batch size.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Cell {
    pub op: String,
    pub page_bytes: usize,
    pub batch: usize,
    pub figures: Vec<Named<Figures>>,
}

/// Presence of so many keys in one request.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ExistsRow {
    pub keys: usize,
    pub latencies: Vec<Named<Latency>>,
}

/// Several client processes at once, gets and puts mixed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Crowd {
    pub processes: usize,
    pub page_bytes: usize,
    pub batch: usize,
    pub gb_per_s: Vec<Named<Spread>>,
}

/// What the servers hold at the end.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct MemoryUse {
    pub server_resident_bytes: u64,
    pub server_huge_page_bytes: u64,
    pub raw_huge_page_bytes: u64,
    /// What the server's memory grew by for each byte stored, from empty.
    pub growth_per_stored_byte: Option<f64>,
}

/// A subject's value in a list.
pub(crate) fn of<'a, T>(list: &'a [Named<T>], subject: &str) -> Option<&'a T> {
    list.iter().find(|named| named.subject == subject).map(|named| &named.value)
}

impl Cell {
    /// The faster of one and two raw connections: what the machine can do through a socket.
    pub(crate) fn limit(&self) -> Option<&Figures> {
        let raws = [1, 2].into_iter().filter_map(|conns| of(&self.figures, raw::name(conns)));
        raws.max_by(|a, b| a.gb_per_s.median.total_cmp(&b.gb_per_s.median))
    }
}

impl Report {
    /// A cell.
    pub(crate) fn cell(&self, op: &str, page_bytes: usize, batch: usize) -> Option<&Cell> {
        self.cells
            .iter()
            .find(|cell| (cell.op.as_str(), cell.page_bytes, cell.batch) == (op, page_bytes, batch))
    }

    /// The subjects of a kind.
    pub(crate) fn of_kind(&self, kind: Kind) -> impl Iterator<Item = &str> {
        self.subjects.iter().filter(move |about| about.kind == kind).map(|about| about.subject.as_str())
    }

    /// Why a subject was left out.
    pub(crate) fn why_skipped(&self, subject: &str) -> Option<&str> {
        self.skipped.iter().find(|skipped| skipped.subject == subject).map(|skipped| skipped.reason.as_str())
    }

    /// Page sizes that were measured with a batch, ascending.
    pub(crate) fn pages(&self, batch: usize) -> Vec<usize> {
        let cells = self.cells.iter().filter(|cell| cell.batch == batch);
        let mut pages: Vec<usize> = cells.map(|cell| cell.page_bytes).collect();
        pages.sort_unstable();
        pages.dedup();
        pages
    }

    /// Batch sizes that were measured, ascending.
    pub(crate) fn batches(&self) -> Vec<usize> {
        let mut batches: Vec<usize> = self.cells.iter().map(|cell| cell.batch).collect();
        batches.sort_unstable();
        batches.dedup();
        batches
    }
}

/// A page size for people.
pub(crate) fn size(bytes: usize) -> String {
    match bytes {
        n if n >= 1 << 20 && n % (1 << 20) == 0 => format!("{} MiB", n >> 20),
        n if n % (1 << 10) == 0 => format!("{} KiB", n >> 10),
        n => format!("{n} B"),
    }
}

/// Bytes in GiB.
#[allow(clippy::cast_precision_loss, reason = "shown with two decimals")]
pub(crate) fn gib(bytes: u64) -> f64 {
    bytes as f64 / (1_u64 << 30) as f64
}

/// A report of made-up figures: one cell of each op, in GB/s memkv tcp 3, raw x1 2, raw x2 4, file 5, redis 1, valkey 1.5.
#[cfg(test)]
pub(crate) fn sample() -> Report {
    let named = |subject: &str, gb: f64| {
        let gb_per_s = Spread { median: gb, iqr: 0.2, rounds: 3 };
        let latency = Latency { p50_us: 30.0 / gb, p99_us: 60.0 / gb, count: 3 };
        Named {
            subject: subject.to_owned(),
            value: Figures {
                gb_per_s,
                client_cpu_s_per_gb: 0.25,
                server_cpu_s_per_gb: 0.5,
                latency,
                by_round: Vec::new(),
            },
        }
    };
    let all = [
        ("memkv tcp", 3.0),
        ("raw x1", 2.0),
        ("raw x2", 4.0),
        ("file", 5.0),
        ("redis", 1.0),
        ("valkey", 1.5),
    ];
    let figures: Vec<_> = all.iter().map(|&(subject, gb)| named(subject, gb)).collect();
    let cell = |op: &str, batch| Cell { op: op.into(), page_bytes: 1 << 20, batch, figures: figures.clone() };
    let exists = [("memkv tcp", 10.0), ("raw x1", 20.0), ("redis", 40.0)];
    let latency = |&(subject, p50_us): &(&str, f64)| Named {
        subject: subject.into(),
        value: Latency { p50_us, p99_us: 2.0 * p50_us, count: 9 },
    };
    let kind = |subject: &str| match subject {
        "memkv tcp" => Kind::Memkv,
        "redis" | "valkey" => Kind::Peer,
        _ => Kind::Baseline,
    };
    let about = |&(subject, _): &(&str, f64)| About {
        subject: subject.into(),
        kind: kind(subject),
        note: format!("{subject} 7; in a test"),
    };
    let speed = |median| Spread { median, iqr: 0.0, rounds: 3 };
    Report {
        command: "memkv-bench targets".into(),
        machine: Machine::describe(),
        settings: Settings { working_set_bytes: 1 << 30, rounds: 3, debug_build: false },
        subjects: all.iter().map(about).collect(),
        skipped: vec![Skipped { subject: "memkv shm".into(), reason: "no shared memory here".into() }],
        memcpy: [speed(10.0), speed(18.0)],
        cells: vec![cell("get", 1), cell("get", 128), cell("put", 1), cell("put", 128)],
        exists: vec![ExistsRow { keys: 128, latencies: exists.iter().map(latency).collect() }],
        crowd: Some(Crowd {
            processes: 4,
            page_bytes: 1 << 20,
            batch: 16,
            gb_per_s: vec![
                Named { subject: "memkv tcp".into(), value: speed(4.0) },
                Named { subject: "raw".into(), value: speed(5.0) },
            ],
        }),
        memory: MemoryUse {
            server_resident_bytes: 1 << 30,
            server_huge_page_bytes: 0,
            raw_huge_page_bytes: 0,
            growth_per_stored_byte: Some(1.005),
        },
        idle_cores: Some(0.001),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_shown_in_their_unit() {
        assert_eq!([size(65_536), size(4 << 20), size(100)], ["64 KiB", "4 MiB", "100 B"]);
    }

    #[test]
    fn the_limit_is_the_faster_raw_stream() {
        let report = sample();
        let mut cell = report.cell("get", 1 << 20, 128).unwrap().clone();
        assert_eq!(cell.limit().unwrap().gb_per_s.median, 4.0);
        cell.figures.retain(|named| named.subject != "raw x2");
        assert_eq!(cell.limit().unwrap().gb_per_s.median, 2.0);
        cell.figures.clear();
        assert!(cell.limit().is_none());
    }

    #[test]
    fn a_report_is_read_back() {
        let text = serde_json::to_string(&sample()).unwrap();
        let again: Report = serde_json::from_str(&text).unwrap();
        assert_eq!(serde_json::to_string(&again).unwrap(), text);
    }
}
