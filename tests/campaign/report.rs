//! A campaign's page: a table, and a plot that a browser draws without help.

use crate::faults::{Event, Fault};
use crate::load::Counts;
use anyhow::{Context as _, Result};
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

/// What was counted between two ticks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    pub(crate) at: Duration,
    pub(crate) counts: Counts,
}

/// Everything about one campaign.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) seed: u64,
    pub(crate) time: Duration,
    pub(crate) rows: Vec<Row>,
    pub(crate) counts: Counts,
    pub(crate) events: Vec<Event>,
    /// Pages in memory of each server at the end.
    pub(crate) heals: Vec<f64>,
    pub(crate) left: Vec<String>,
}

const WIDTH: f64 = 960.0;
const LEFT: f64 = 60.0;
const PLOT: f64 = 110.0;
const STYLE: &str = "text{font:12px system-ui,sans-serif;fill:#1f2328}.t{font-weight:600}.g{stroke:#d0d7de}\
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.g{stroke:#3d444d}}";

impl Report {
    /// The result in one line.
    pub(crate) fn summary(&self) -> String {
        let counts = &self.counts;
        format!(
            "{:.0} s, seed {}: {} faults; {} calls, {} hits, {} misses, {} stored, {:.2} GB moved; {} unavailable, \
             {} damaged and refused, {} wrong, {} hung, {} left behind",
            self.time.as_secs_f64(),
            self.seed,
            self.events.len(),
            counts.calls,
            counts.hits,
            counts.misses,
            counts.stored,
            bytes(counts.bytes) / 1e9,
            counts.unavailable,
            counts.refused,
            counts.wrong,
            counts.late,
            self.left.len()
        )
    }

    /// Writes the page and its plot into a folder.
    pub(crate) fn write(&self, folder: &Path) -> Result<()> {
        std::fs::create_dir_all(folder)?;
        let name = format!("campaign-{}", self.seed);
        let svg = folder.join(format!("{name}.svg"));
        std::fs::write(&svg, self.plot()?).with_context(|| format!("write {}", svg.display()))?;
        let page = folder.join(format!("{name}.md"));
        std::fs::write(&page, self.page(&name)?).with_context(|| format!("write {}", page.display()))
    }

    fn page(&self, name: &str) -> Result<String> {
        let mut out = String::new();
        writeln!(out, "# Campaign {}\n\n{}\n", self.seed, self.summary())?;
        writeln!(out, "![Throughput, misses and faults over time]({name}.svg)\n")?;
        writeln!(
            out,
            "Three servers of 32 MiB of memory in a file and a drive of 96 MiB each, behind proxies; three clients whose"
        )?;
        writeln!(
            out,
            "pages are more than the memory holds. Every page that was read was compared byte by byte.\n"
        )?;
        let pages: Vec<String> = self.heals.iter().map(|pages| format!("{pages:.0}")).collect();
        writeln!(out, "Pages in memory at the end: {}.\n", pages.join(", "))?;
        writeln!(out, "| fault | times |\n|---|--:|")?;
        for fault in Fault::ALL {
            let times = self.events.iter().filter(|event| event.fault == fault).count();
            writeln!(out, "| {} | {times} |", fault.text())?;
        }
        let minutes = self.time.as_secs_f64() / 60.0;
        writeln!(
            out,
            "\nAgain: `MEMKV_CAMPAIGN_SEED={} cargo xtask campaign --minutes {minutes:.1}`. The faults",
            self.seed
        )?;
        writeln!(
            out,
            "are the same; what they meet is not, since clients and servers run as the machine lets them."
        )?;
        Ok(out)
    }

    fn plot(&self) -> Result<String> {
        let mut out = String::new();
        let height = 3.0 * (PLOT + 40.0) + 120.0;
        writeln!(
            out,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\">"
        )?;
        writeln!(out, "<title>Throughput, misses and faults over time</title><style>{STYLE}</style>")?;
        type Line = (&'static str, &'static str, fn(&Counts) -> f64);
        let lines: [Line; 3] = [
            ("MB/s moved", "#1f6feb", |counts| bytes(counts.bytes) / 1e6),
            ("pages missed a second", "#d29922", |counts| bytes(counts.misses)),
            ("pages unavailable or refused a second", "#bc4c00", |counts| {
                bytes(counts.unavailable + counts.refused)
            }),
        ];
        for (number, (title, colour, value)) in (0_u8..).zip(lines) {
            let top = 24.0 + f64::from(number) * (PLOT + 40.0);
            self.line(&mut out, (title, colour, top), value)?;
        }
        self.faults(&mut out, 3.0 * (PLOT + 40.0) + 24.0)?;
        writeln!(out, "</svg>")?;
        Ok(out)
    }

    fn x(&self, at: Duration) -> f64 {
        LEFT + (WIDTH - LEFT - 10.0) * at.as_secs_f64() / self.time.as_secs_f64()
    }

    fn line(
        &self,
        out: &mut String,
        (title, colour, top): (&str, &str, f64),
        value: fn(&Counts) -> f64,
    ) -> Result<()> {
        let highest = self.rows.iter().map(|row| value(&row.counts)).fold(1.0, f64::max);
        let floor = top + PLOT;
        writeln!(out, "<text class=\"t\" x=\"{LEFT}\" y=\"{:.0}\">{title}</text>", top - 6.0)?;
        for (share, y) in [(0.0, floor), (1.0, top)] {
            writeln!(
                out,
                "<line class=\"g\" x1=\"{LEFT}\" x2=\"{:.0}\" y1=\"{y}\" y2=\"{y}\"/>",
                WIDTH - 10.0
            )?;
            writeln!(
                out,
                "<text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"end\">{:.0}</text>",
                LEFT - 6.0,
                y + 4.0,
                share * highest
            )?;
        }
        let points: Vec<String> = self
            .rows
            .iter()
            .map(|row| format!("{:.1},{:.1}", self.x(row.at), floor - PLOT * value(&row.counts) / highest))
            .collect();
        writeln!(
            out,
            "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\" points=\"{}\"/>",
            points.join(" ")
        )?;
        Ok(())
    }

    fn faults(&self, out: &mut String, top: f64) -> Result<()> {
        writeln!(
            out,
            "<text class=\"t\" x=\"{LEFT}\" y=\"{:.0}\">faults of each server; hover to read</text>",
            top - 6.0
        )?;
        for event in &self.events {
            let number = u32::try_from(event.server).unwrap_or(0);
            let y = top + 22.0 * f64::from(number);
            let (from, to) = (self.x(event.from), self.x(event.to));
            let hue = Fault::ALL.iter().position(|fault| *fault == event.fault).unwrap_or(0) * 25;
            writeln!(
                out,
                "<rect x=\"{from:.1}\" y=\"{y:.0}\" width=\"{:.1}\" height=\"16\" fill=\"hsl({hue} 60% 50%)\"><title>{}</title></rect>",
                (to - from).max(1.0),
                event.fault.text()
            )?;
        }
        for number in 0..3_u32 {
            writeln!(
                out,
                "<text x=\"4\" y=\"{:.0}\">server {number}</text>",
                top + 22.0 * f64::from(number) + 12.0
            )?;
        }
        for minute in 0..=self.time.as_secs() / 60 {
            let x = self.x(Duration::from_secs(60 * minute));
            writeln!(out, "<text x=\"{x:.0}\" y=\"{:.0}\">{minute} min</text>", top + 84.0)?;
        }
        Ok(())
    }
}

#[allow(clippy::cast_precision_loss, reason = "a plot has no more precision")]
fn bytes(number: u64) -> f64 {
    number as f64
}
