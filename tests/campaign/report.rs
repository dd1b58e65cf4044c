//! A campaign's page: a table, and a plot that a browser draws without help.

use crate::faults::{Event, Fault};
use crate::load::Counts;
use anyhow::{Context as _, Result};
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

/// What was counted between two ticks.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) at: Duration,
    /// Of clients in Rust.
    pub(crate) clients: Counts,
    /// Of the plugin.
    pub(crate) plugin: Counts,
    /// Memory of each process, in the order of [`Report::processes`].
    pub(crate) memory: Vec<u64>,
}

/// Everything about one campaign.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) seed: u64,
    pub(crate) time: Duration,
    pub(crate) rows: Vec<Row>,
    pub(crate) clients: Counts,
    /// What the plugin has counted; `None` if there was none.
    pub(crate) plugin: Option<Counts>,
    /// The processes whose memory was looked at.
    pub(crate) processes: Vec<String>,
    /// From when on no server was ended any more.
    pub(crate) lasting: Duration,
    pub(crate) events: Vec<Event>,
    /// Pages in memory of each server at the end.
    pub(crate) heals: Vec<f64>,
    pub(crate) left: Vec<String>,
}

/// Memory that may be more at the end of a process's time than in the first part of it.
const GROWTH: f64 = 1.25;
const GROWTH_BYTES: f64 = 32e6;

const WIDTH: f64 = 960.0;
const LEFT: f64 = 60.0;
const PLOT: f64 = 110.0;
const STEP: f64 = PLOT + 44.0;
const COLOURS: [&str; 8] =
    ["#1f6feb", "#d29922", "#bc4c00", "#8250df", "#1a7f37", "#57606a", "#bf3989", "#0a3069"];
const STYLE: &str = "text{font:12px system-ui,sans-serif;fill:#1f2328}.t{font-weight:600}.g{stroke:#d0d7de}\
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.g{stroke:#3d444d}}";

/// One line of a plot: its name, and a value for each row.
type Series<'a> = (&'a str, Vec<f64>);

impl Report {
    /// What clients and plugin have counted together.
    pub(crate) fn all(&self) -> Counts {
        self.clients.and(&self.plugin.unwrap_or_default())
    }

    /// The result in one line.
    pub(crate) fn summary(&self) -> String {
        let counts = self.all();
        format!(
            "{:.0} s, seed {}: {} faults; {} calls, {} hits, {} misses, {} stored, {:.2} GB moved; {} unavailable, \
             {} damaged and refused, {} wrong, {} hung, {} raised, {} left behind",
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
            counts.raised,
            self.left.len()
        )
    }

    /// Memory of each process early in the time in which it is not ended, and at the end; and who grew too much.
    ///
    /// A server may have been started just before, and a pool fills up: early is the most of the first third.
    pub(crate) fn growth(&self) -> (Vec<(f64, f64)>, Vec<String>) {
        let (mut sizes, mut grown) = (Vec::new(), Vec::new());
        for (number, name) in self.processes.iter().enumerate() {
            let from = if name.starts_with("server") { self.lasting } else { Duration::ZERO };
            let sizes_then: Vec<f64> =
                self.rows.iter().filter(|row| row.at >= from).map(|row| row.memory(number)).collect();
            let (first, last) = sizes_then.split_at(sizes_then.len().div_ceil(3));
            let early = first.iter().copied().fold(0.0, f64::max);
            // One look may be at a moment when much is on its way.
            let late = last.iter().rev().take(3).copied().fold(f64::INFINITY, f64::min);
            if late.is_finite() {
                if late > GROWTH * early + GROWTH_BYTES {
                    grown.push(format!("{name} holds {:.0} MB, and held {:.0} MB", late / 1e6, early / 1e6));
                }
                sizes.push((early, late));
            } else {
                sizes.push((early, early));
            }
        }
        (sizes, grown)
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
        writeln!(out, "![Throughput, misses, memory and faults over time]({name}.svg)\n")?;
        let plugin = if self.plugin.is_some() {
            "three clients in Rust; and\nthe plugin in two processes: storage backends over SGLang's host pools, and SGLang's whole cache stack"
        } else {
            "three clients in Rust, without the plugin"
        };
        writeln!(
            out,
            "Three servers of 32 MiB of memory in a file and a drive of 96 MiB each, behind proxies; {plugin}. They ask for\n\
             more pages than the memory holds. Every page that was read was compared byte by byte.\n"
        )?;
        writeln!(
            out,
            "| | calls | pages found | not found | stored | GB moved | unavailable | damaged, refused | wrong | hung | raised |"
        )?;
        writeln!(out, "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|")?;
        let both = [("clients", Some(self.clients)), ("plugin", self.plugin)];
        for (who, counts) in both.into_iter().filter_map(|(who, counts)| Some((who, counts?))) {
            writeln!(
                out,
                "| {who} | {} | {} | {} | {} | {:.2} | {} | {} | {} | {} | {} |",
                counts.calls,
                counts.hits,
                counts.misses,
                counts.stored,
                bytes(counts.bytes) / 1e9,
                counts.unavailable,
                counts.refused,
                counts.wrong,
                counts.late,
                counts.raised
            )?;
        }
        let pages: Vec<String> = self.heals.iter().map(|pages| format!("{pages:.0}")).collect();
        writeln!(out, "\nPages in memory at the end: {}.\n", pages.join(", "))?;
        self.memory_table(&mut out)?;
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

    fn memory_table(&self, out: &mut String) -> Result<()> {
        writeln!(
            out,
            "Memory of each process, in MB: the most in the first third of its time, and at its end. Of servers it is their own memory,\n\
             without the file of pages, from second {:.0} on, after which none was ended.\n",
            self.lasting.as_secs_f64()
        )?;
        writeln!(out, "| process | first third | end |\n|---|--:|--:|")?;
        for (name, (early, late)) in self.processes.iter().zip(self.growth().0) {
            writeln!(out, "| {name} | {:.0} | {:.0} |", early / 1e6, late / 1e6)?;
        }
        writeln!(out)?;
        Ok(())
    }

    fn plot(&self) -> Result<String> {
        let mut out = String::new();
        let panels = self.panels();
        let mut top = 24.0;
        let height = panels.len() as f64 * STEP + 120.0;
        writeln!(
            out,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\">"
        )?;
        writeln!(
            out,
            "<title>Throughput, misses, memory and faults over time</title><style>{STYLE}</style>"
        )?;
        for (title, series) in panels {
            self.panel(&mut out, title, top, &series)?;
            top += STEP;
        }
        self.faults(&mut out, top)?;
        writeln!(out, "</svg>")?;
        Ok(out)
    }

    fn panels(&self) -> Vec<(&'static str, Vec<Series<'_>>)> {
        type Value = fn(&Counts) -> f64;
        let values: [(&str, Value); 3] = [
            ("MB/s moved", |counts| bytes(counts.bytes) / 1e6),
            ("pages missed a second", |counts| bytes(counts.misses)),
            ("pages unavailable or refused a second", |counts| bytes(counts.unavailable + counts.refused)),
        ];
        let mut panels: Vec<_> = values
            .into_iter()
            .map(|(title, value)| {
                let clients = self.rows.iter().map(|row| value(&row.clients)).collect();
                let plugin = self.rows.iter().map(|row| value(&row.plugin)).collect();
                let plugin = self.plugin.map(|_| ("plugin", plugin));
                (title, [("clients", clients)].into_iter().chain(plugin).collect::<Vec<_>>())
            })
            .collect();
        let memory = self.processes.iter().enumerate().map(|(number, name)| {
            (name.as_str(), self.rows.iter().map(|row| row.memory(number) / 1e6).collect())
        });
        panels.push(("MB of memory", memory.collect()));
        panels
    }

    fn x(&self, at: Duration) -> f64 {
        LEFT + (WIDTH - LEFT - 10.0) * at.as_secs_f64() / self.time.as_secs_f64()
    }

    /// Lines over time, one scale for all of them.
    fn panel(&self, out: &mut String, title: &str, top: f64, series: &[Series<'_>]) -> Result<()> {
        let highest = series.iter().flat_map(|(_, values)| values).copied().fold(1.0, f64::max);
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
        let mut right = WIDTH - 10.0;
        for ((name, values), colour) in series.iter().zip(COLOURS).rev() {
            let points: Vec<String> = self
                .rows
                .iter()
                .zip(values)
                .map(|(row, value)| format!("{:.1},{:.1}", self.x(row.at), floor - PLOT * value / highest))
                .collect();
            writeln!(
                out,
                "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\" points=\"{}\"/>",
                points.join(" ")
            )?;
            writeln!(
                out,
                "<text x=\"{right:.0}\" y=\"{:.0}\" text-anchor=\"end\" style=\"fill:{colour}\">{name}</text>",
                top - 6.0
            )?;
            right -= 7.0 * name.len() as f64 + 14.0;
        }
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
            let hue = Fault::ALL.iter().position(|fault| *fault == event.fault).unwrap_or(0) * 20;
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

impl Row {
    fn memory(&self, number: usize) -> f64 {
        self.memory.get(number).copied().map_or(0.0, bytes)
    }
}

#[allow(clippy::cast_precision_loss, reason = "a plot has no more precision")]
fn bytes(number: u64) -> f64 {
    number as f64
}
