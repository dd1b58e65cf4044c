//! `cargo xtask rdma --figures`: how fast pages move by RDMA in the VM, beside perftest on the same devices and beside
//! our TCP path, all in one boot.
//!
//! Devices there are software and processors emulated, so only the ratios mean something. Every page is compared by the
//! bench, and the client's own counters say how many were copied.

use super::vm;
use crate::context::{Context, Profile};
use crate::process::{show_tail, step, watch};
use crate::ui::say;
use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use std::path::Path;

/// Pages of a batch.
const BATCH: usize = 128;
/// What is measured.
const SIZES: [Size; 4] = [
    Size { page: "64KiB", bytes: 64 << 10, working_set: "32MiB", transfers: 1000 },
    Size { page: "256KiB", bytes: 256 << 10, working_set: "64MiB", transfers: 300 },
    Size { page: "1MiB", bytes: 1 << 20, working_set: "128MiB", transfers: 100 },
    Size { page: "4MiB", bytes: 4 << 20, working_set: "512MiB", transfers: 30 },
];
/// Memory of the VM in MiB: the largest working set some six times.
const MEMORY_MIB: &str = "6144";
/// Heads the lines that are read.
const MARK: &str = "figures:";

/// One size of page.
struct Size {
    /// As the bench takes it.
    page: &'static str,
    bytes: usize,
    /// Of the bench.
    working_set: &'static str,
    /// Of perftest.
    transfers: usize,
}

/// What the VM printed about one size, in MB/s.
#[derive(Debug, Default, PartialEq)]
struct Row {
    /// perftest's averages, before and after the bench.
    writes: Vec<f64>,
    reads: Vec<f64>,
    get_rdma: f64,
    put_rdma: f64,
    get_tcp: f64,
    put_tcp: f64,
    /// Pages without a copy, through the bounce buffer, and in frames: what the client counted.
    pages: String,
}

/// Builds, measures and prints.
pub(super) fn run(context: &Context) -> Result<()> {
    super::install_tools(context)?;
    let mut build = context.cargo(&["build", "--release", "-p", "memkv-server", "-p", "memkv-bench"]);
    build.args(["--features", "memkv-server/rdma,memkv-bench/rdma"]);
    step(context, "build server and bench (release)", "rdma-figures-build", build)?;
    let path = context.logs.join("rdma-figures.sh");
    let bench = context.binary(Profile::Release, "memkv-bench");
    std::fs::write(&path, script(&bench)).with_context(|| format!("write {}", path.display()))?;
    let mut command = vm(context, &["--memory", MEMORY_MIB]);
    command.args(["--", "bash"]).arg(&path);
    command.env("MEMKV_SERVER_BIN", context.binary(Profile::Release, "memkv-server"));
    let log = context.logs.join("rdma-figures.log");
    let mut lines = Vec::new();
    let status = watch(context, "measure in a VM", &log, command, |line| lines.push(line.to_owned()))?;
    let rows = read(&lines);
    if !status.success() || rows.is_err() {
        show_tail(&log)?;
        bail!("nothing was measured ({status}); see {}", log.display());
    }
    say(&table(&rows?));
    Ok(())
}

/// What runs in the VM.
fn script(bench: &Path) -> String {
    let mut text = String::from(
        r#"# Runs in the VM; made by `cargo xtask rdma --figures`.
set -u
gid=$(grep -lx '0000:0000:0000:0000:0000:ffff:0a4d:0001' /sys/class/infiniband/rxe0/ports/1/gids/* | head -1)
gid=${gid##*/}
perftest() { # PROGRAM BYTES TRANSFERS
    $1 -d rxe1 -x $gid -s $2 -n $3 -F >/dev/null 2>&1 &
    for attempt in 1 2 3 4 5; do
        sleep 1
        line=$($1 -d rxe0 -x $gid -s $2 -n $3 -F $RDMA_VM_ADDRESS_B 2>/dev/null | grep -E "^ *$2 ") && break
    done
    wait
    echo "MARK $1 $2 $line"
}
"#,
    )
    .replace("MARK", MARK);
    for Size { page, bytes, working_set, transfers } in &SIZES {
        let perftest =
            format!("perftest ib_write_bw {bytes} {transfers}\nperftest ib_read_bw {bytes} {transfers}\n");
        text.push_str(&perftest);
        text.push_str(&format!(
            "'{}' run --transports tcp,rdma --pages {page} --batches {BATCH} --working-set {working_set} --rounds 1 \
             --json /tmp/figures.json 2>/tmp/figures.err >/dev/null || {{ cat /tmp/figures.err >&2; exit 1; }}\n",
            bench.display()
        ));
        text.push_str(&format!("echo \"{MARK} json {bytes} $(tr -d '\\n' </tmp/figures.json)\"\n"));
        text.push_str(&format!("echo \"{MARK} pages {bytes} $(grep 'by RDMA:' /tmp/figures.err)\"\n"));
        text.push_str(&perftest);
    }
    text
}

/// Reads what the VM printed.
fn read(lines: &[String]) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for size in &SIZES {
        let said = |what: &'static str| said(lines, what, size.bytes);
        let json = said("json").pop().with_context(|| format!("no figures of {} pages", size.page))?;
        let report: Value = serde_json::from_str(json).context("read the bench's figures")?;
        let row = Row {
            writes: said("ib_write_bw").into_iter().map(average).collect::<Result<_>>()?,
            reads: said("ib_read_bw").into_iter().map(average).collect::<Result<_>>()?,
            get_rdma: speed(&report, "get", "memkv rdma")?,
            put_rdma: speed(&report, "put", "memkv rdma")?,
            get_tcp: speed(&report, "get", "memkv tcp")?,
            put_tcp: speed(&report, "put", "memkv tcp")?,
            pages: said("pages").pop().unwrap_or_default().trim_start_matches("by RDMA: ").to_owned(),
        };
        ensure!(!row.writes.is_empty() && !row.reads.is_empty(), "perftest said nothing");
        rows.push(row);
    }
    Ok(rows)
}

/// What the lines about one size say.
fn said<'a>(lines: &'a [String], what: &str, bytes: usize) -> Vec<&'a str> {
    let head = format!("{MARK} {what} {bytes} ");
    lines.iter().filter_map(|line| line.strip_prefix(&head)).map(str::trim).collect()
}

/// The average of a line of perftest: bytes, transfers, peak, average, messages. Its MB are of 2^20 bytes; ours are of
/// 10^6.
fn average(line: &str) -> Result<f64> {
    let average = line.split_whitespace().nth(3).and_then(|word| word.parse::<f64>().ok());
    Ok(average.with_context(|| format!("perftest said {line:?}"))? * 1.048_576)
}

fn speed(report: &Value, op: &str, subject: &str) -> Result<f64> {
    let cells = report["cells"].as_array().into_iter().flatten();
    let mut figures =
        cells.filter(|cell| cell["op"] == op).flat_map(|cell| cell["figures"].as_array()).flatten();
    let found = figures.find(|named| named["subject"] == subject);
    let speed = found.and_then(|named| named["value"]["gb_per_s"]["median"].as_f64());
    Ok(speed.with_context(|| format!("no figure of {op} by {subject}; skipped: {}", report["skipped"]))?
        * 1e3)
}

#[allow(clippy::cast_precision_loss, reason = "two or so values")]
fn table(rows: &[Row]) -> String {
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len().max(1) as f64;
    let mut text = format!(
        "\n{BATCH} pages, MB/s | get by RDMA | ib_write_bw | ratio | put by RDMA | ib_read_bw | ratio | get by TCP | put by TCP | pages\n\
         ---|---:|---:|---:|---:|---:|---:|---:|---:|---\n"
    );
    for (size, row) in SIZES.iter().zip(rows) {
        let (write, read) = (mean(&row.writes), mean(&row.reads));
        text.push_str(&format!(
            "{} | {:.0} | {write:.0} | {:.2} | {:.0} | {read:.0} | {:.2} | {:.0} | {:.0} | {}\n",
            size.page,
            row.get_rdma,
            row.get_rdma / write,
            row.put_rdma,
            row.put_rdma / read,
            row.get_tcp,
            row.put_tcp,
            row.pages,
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed() -> Vec<String> {
        let json = r#"{"skipped":[],"cells":[
            {"op":"put","figures":[{"subject":"memkv tcp","value":{"gb_per_s":{"median":0.08}}},
                                   {"subject":"memkv rdma","value":{"gb_per_s":{"median":0.05}}}]},
            {"op":"get","figures":[{"subject":"memkv tcp","value":{"gb_per_s":{"median":0.15}}},
                                   {"subject":"memkv rdma","value":{"gb_per_s":{"median":0.07}}}]}]}"#;
        let json = json.replace('\n', "");
        let of = |size: &Size| {
            let bytes = size.bytes;
            [
                format!("{MARK} ib_write_bw {bytes}  {bytes}   1000    100.0    50.0    0.0016"),
                format!("{MARK} ib_read_bw {bytes}  {bytes}   1000    100.0    100.0    0.0016"),
                format!("{MARK} json {bytes} {json}"),
                format!("{MARK} pages {bytes} by RDMA: 9 pages without a copy, 0 through the bounce buffer"),
                format!("{MARK} ib_write_bw {bytes}  {bytes}   1000    100.0    150.0    0.0016"),
            ]
        };
        SIZES.iter().flat_map(of).collect()
    }

    #[test]
    fn the_figures_are_read_and_put_beside_each_other() {
        let rows = read(&printed()).unwrap();
        assert_eq!((rows.len(), rows[0].get_rdma, rows[3].put_tcp), (4, 70.0, 80.0));
        let text = table(&rows);
        let first = text.lines().find(|line| line.starts_with("64KiB")).unwrap();
        assert!(
            first.starts_with("64KiB | 70 | 105 | 0.67 | 50 | 105 | 0.48 | 150 | 80 | 9 pages"),
            "{first}"
        );
    }

    #[test]
    fn what_was_not_measured_is_an_error() {
        let without = |word: &str| -> Vec<String> {
            printed().into_iter().filter(|line| !line.contains(&format!(" {word} "))).collect()
        };
        for word in ["json", "ib_read_bw", "ib_write_bw"] {
            assert!(read(&without(word)).is_err(), "{word}");
        }
        let mut bad = printed();
        bad[0] = format!("{MARK} ib_write_bw 65536 ");
        assert!(read(&bad).is_err(), "perftest failed");
    }
}
