//! The tables of a comparison, as Markdown that is also readable on a terminal.

use super::report::{Report, gib, of, size};
use crate::stats::Spread;
use std::fmt::Write as _;

/// All tables.
pub(crate) fn tables(report: &Report) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    write_tables(&mut out, report).ok();
    out
}

fn write_tables(out: &mut String, report: &Report) -> std::fmt::Result {
    write_head(out, report)?;
    for batch in report.batches() {
        for op in super::OPS {
            write_speeds(out, report, op, batch)?;
        }
    }
    write_cpu(out, report)?;
    write_latencies(out, report)?;
    if let Some(crowd) = &report.crowd {
        let (page, each) = (size(crowd.page_bytes), crowd.processes);
        write!(out, "\n{each} client processes, mixed, {page}, batches of {}:", crowd.batch)?;
        for named in &crowd.gb_per_s {
            write!(out, " {} {} GB/s;", named.subject, spread(&named.value))?;
        }
        writeln!(out)?;
    }
    let memory = &report.memory;
    writeln!(
        out,
        "\nAt the end memkv-server holds {:.2} GiB, {:.2} GiB of it on huge pages; the raw server has {:.2} GiB on huge pages.",
        gib(memory.server_resident_bytes),
        gib(memory.server_huge_page_bytes),
        gib(memory.raw_huge_page_bytes),
    )?;
    writeln!(out)?;
    for about in &report.subjects {
        writeln!(out, "- {}: {}", about.subject, about.note)?;
    }
    for skipped in &report.skipped {
        let reason: Vec<&str> = skipped.reason.split_whitespace().collect();
        writeln!(out, "- {} was skipped: {}", skipped.subject, reason.join(" "))?;
    }
    Ok(())
}

fn write_head(out: &mut String, report: &Report) -> std::fmt::Result {
    writeln!(out, "`{}`\n", report.command)?;
    if report.settings.debug_build {
        writeln!(out, "**A debug build: its figures mean nothing.**\n")?;
    }
    writeln!(
        out,
        "{}. Working set {:.2} GiB, {} rounds in turns, medians ± half the interquartile range; loopback, checksums and authentication on.\n",
        report.machine.line(),
        gib(report.settings.working_set_bytes),
        report.settings.rounds,
    )?;
    let [one, two] = &report.memcpy;
    writeln!(out, "memcpy: {} GB/s on one thread, {} on two.", spread(one), spread(two))
}

/// GB/s and percent of the limit: a row a subject, a column a page size.
fn write_speeds(out: &mut String, report: &Report, op: &str, batch: usize) -> std::fmt::Result {
    let pages = report.pages(batch);
    write!(out, "\n| {op}, batch {batch}, GB/s (% of the faster raw) |")?;
    pages.iter().try_for_each(|&page| write!(out, " {} |", size(page)))?;
    write!(out, "\n|---|")?;
    pages.iter().try_for_each(|_| write!(out, "---:|"))?;
    for about in &report.subjects {
        let figures = |page| {
            let cell = report.cell(op, page, batch)?;
            Some((of(&cell.figures, &about.subject)?, cell.limit()))
        };
        if pages.iter().all(|&page| figures(page).is_none()) {
            continue;
        }
        write!(out, "\n| {} |", about.subject)?;
        for &page in &pages {
            match figures(page) {
                Some((figures, Some(limit))) => {
                    let percent = 100.0 * figures.gb_per_s.median / limit.gb_per_s.median;
                    write!(out, " {} ({percent:.0}) |", spread(&figures.gb_per_s))?;
                }
                Some((figures, None)) => write!(out, " {} |", spread(&figures.gb_per_s))?,
                None => write!(out, " – |")?,
            }
        }
    }
    writeln!(out)
}

/// Processor seconds for 10^9 bytes, at the largest batch.
fn write_cpu(out: &mut String, report: &Report) -> std::fmt::Result {
    let Some(batch) = report.batches().into_iter().max() else { return Ok(()) };
    let pages = report.pages(batch);
    write!(out, "\n| CPU s/GB, batch {batch}: client + server |")?;
    for op in super::OPS {
        pages.iter().try_for_each(|&page| write!(out, " {op} {} |", size(page)))?;
    }
    write!(out, "\n|---|")?;
    (0..2 * pages.len()).try_for_each(|_| write!(out, "---:|"))?;
    for about in &report.subjects {
        write!(out, "\n| {} |", about.subject)?;
        for op in super::OPS {
            for &page in &pages {
                let cell = report.cell(op, page, batch);
                match cell.and_then(|cell| of(&cell.figures, &about.subject)) {
                    Some(figures) => write!(
                        out,
                        " {:.2} + {:.2} |",
                        figures.client_cpu_s_per_gb, figures.server_cpu_s_per_gb
                    )?,
                    None => write!(out, " – |")?,
                }
            }
        }
    }
    writeln!(out)
}

/// One op at a time: a row a subject.
fn write_latencies(out: &mut String, report: &Report) -> std::fmt::Result {
    let pages = report.pages(1);
    let single = |op: &'static str| pages.iter().map(move |&page| (op, page));
    let singles: Vec<(&str, usize)> = super::OPS.into_iter().flat_map(single).collect();
    write!(out, "\n| one op at a time, p50 / p99 µs |")?;
    for (op, page) in &singles {
        write!(out, " {op} {} |", size(*page))?;
    }
    report.exists.iter().try_for_each(|row| write!(out, " exists {} |", row.keys))?;
    write!(out, "\n|---|")?;
    (0..singles.len() + report.exists.len()).try_for_each(|_| write!(out, "---:|"))?;
    for about in &report.subjects {
        let cell = |&(op, page): &(&str, usize)| {
            Some(of(&report.cell(op, page, 1)?.figures, &about.subject)?.latency)
        };
        let exists = report.exists.iter().map(|row| of(&row.latencies, &about.subject).copied());
        let latencies: Vec<_> = singles.iter().map(cell).chain(exists).collect();
        if latencies.iter().all(Option::is_none) {
            continue;
        }
        write!(out, "\n| {} |", about.subject)?;
        for latency in latencies {
            match latency {
                Some(latency) => write!(out, " {:.0} / {:.0} |", latency.p50_us, latency.p99_us)?,
                None => write!(out, " – |")?,
            }
        }
    }
    writeln!(out)
}

pub(crate) fn spread(spread: &Spread) -> String {
    format!("{:.2} ± {:.2}", spread.median, spread.iqr / 2.0)
}
