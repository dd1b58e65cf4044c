//! What of a run goes where: tables into documents, and plots beside them.

use crate::compare::report::{Report, of, size};
use crate::compare::tables::tables;
use crate::docs::write_between;
use crate::plot::{Chart, Line, Tone, draw};
use crate::subject::Kind;
use crate::targets;
use anyhow::Context as _;
use std::path::Path;

/// Writes the tables into `docs/budget.md`, a short comparison into `README.md`, and the plots into `docs/plots/`.
///
/// # Errors
///
/// If a file cannot be written or lacks its markers.
pub(crate) fn publish(report: &Report, repository: &Path) -> anyhow::Result<()> {
    let lines = targets::judge(report);
    let budget = repository.join("docs/budget.md");
    write_between(&budget, "targets", &targets::table(&lines))?;
    write_between(&budget, "tables", &tables(report))?;
    let plots = repository.join("docs/plots");
    std::fs::create_dir_all(&plots).context("make a folder for plots")?;
    for op in crate::compare::OPS {
        let path = plots.join(format!("{op}.svg"));
        std::fs::write(&path, draw(&speed_chart(report, op)))
            .with_context(|| format!("write {}", path.display()))?;
    }
    let path = plots.join("exists.svg");
    std::fs::write(&path, draw(&exists_chart(report)))
        .with_context(|| format!("write {}", path.display()))?;
    write_between(&repository.join("README.md"), "comparison", &comparison(report))
}

/// Series in the order of the report, with a tone each.
fn series(report: &Report) -> impl Iterator<Item = (&str, Tone)> {
    let mut counts = [0; 3];
    report.subjects.iter().map(move |about| {
        let (at, tone): (usize, fn(usize) -> Tone) = match about.kind {
            Kind::Memkv => (0, Tone::Ours),
            Kind::Baseline => (1, Tone::Baseline),
            Kind::Peer => (2, Tone::Peer),
        };
        counts[at] += 1;
        (about.subject.as_str(), tone(counts[at] - 1))
    })
}

/// Speed by page size of large batches.
pub(crate) fn speed_chart(report: &Report, op: &str) -> Chart {
    let batch = report.batches().into_iter().max().unwrap_or(targets::BATCH);
    let pages = report.pages(batch);
    let bars = |subject: &str| {
        let bar = |&page: &usize| {
            let spread = of(&report.cell(op, page, batch)?.figures, subject)?.gb_per_s;
            Some((spread.median, spread.iqr / 2.0))
        };
        pages.iter().map(bar).collect::<Vec<_>>()
    };
    Chart {
        title: format!(
            "{op}, batches of {batch} pages, one client, {} cores, loopback",
            report.machine.cores
        ),
        unit: "GB/s".into(),
        groups: pages.iter().map(|&page| size(page)).collect(),
        series: series(report)
            .map(|(subject, tone)| Line { name: subject.to_owned(), tone, bars: bars(subject) })
            .filter(|line| line.bars.iter().any(Option::is_some))
            .collect(),
    }
}

/// Time of exists by number of keys.
fn exists_chart(report: &Report) -> Chart {
    let bars = |subject: &str| {
        let bar = |row: &crate::compare::report::ExistsRow| Some((of(&row.latencies, subject)?.p50_us, 0.0));
        report.exists.iter().map(bar).collect::<Vec<_>>()
    };
    Chart {
        title: format!("exists, p50, one client, {} cores, loopback", report.machine.cores),
        unit: "µs".into(),
        groups: report.exists.iter().map(|row| format!("{} keys", row.keys)).collect(),
        series: series(report)
            .map(|(subject, tone)| Line { name: subject.to_owned(), tone, bars: bars(subject) })
            .filter(|line| line.bars.iter().any(Option::is_some))
            .collect(),
    }
}

/// The README's part: the plots, the machine, and what was compared.
fn comparison(report: &Report) -> String {
    let mut out = String::from("![get](docs/plots/get.svg)\n\n![put](docs/plots/put.svg)\n\n");
    out += &format!(
        "{} cores, loopback, {} rounds in turns, medians, every page compared with its source; checksums and authentication on \
         for MemKV. ",
        report.machine.cores, report.settings.rounds
    );
    let peers: Vec<&str> = report
        .subjects
        .iter()
        .filter(|about| about.kind == Kind::Peer)
        .map(|about| about.note.split(';').next().unwrap_or(&about.note))
        .collect();
    if !peers.is_empty() {
        out += &format!("Peers: {}. ", peers.join("; "));
    }
    let skipped: Vec<&str> = report.skipped.iter().map(|skipped| skipped.subject.as_str()).collect();
    if !skipped.is_empty() {
        out += &format!("Not measured in this run: {}. ", skipped.join(", "));
    }
    out + "\"raw\" is a pair of plain sockets without names or checksums, \"file\" one file per page in the page cache. \
           All figures, and what each target came to: [docs/budget.md](docs/budget.md).\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::report::sample;

    #[test]
    fn a_run_is_published() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        std::fs::create_dir(root.join("docs")).unwrap();
        let markers =
            |name: &str| format!("<!-- memkv-bench {name}: begin -->\n<!-- memkv-bench {name}: end -->\n");
        std::fs::write(root.join("docs/budget.md"), markers("targets") + &markers("tables")).unwrap();
        std::fs::write(root.join("README.md"), "# x\n".to_owned() + &markers("comparison")).unwrap();
        publish(&sample(), root).unwrap();
        let budget = std::fs::read_to_string(root.join("docs/budget.md")).unwrap();
        assert!(budget.contains("| memkv tcp | 3.00 ± 0.10 (75) |"), "{budget}");
        assert!(budget.contains("of the fastest peer"));
        let readme = std::fs::read_to_string(root.join("README.md")).unwrap();
        assert!(readme.contains("redis 7") && readme.contains("memkv shm"), "{readme}");
        let svg = std::fs::read_to_string(root.join("docs/plots/put.svg")).unwrap();
        assert!(["memkv tcp", "raw x1", "redis"].iter().all(|name| svg.contains(name)));
    }
}
