//! Bar charts as SVG, readable on a light and on a dark page, without a library and without scripts.

use std::fmt::Write as _;

/// A chart of groups of bars.
pub(crate) struct Chart {
    pub title: String,
    /// What the height of a bar is.
    pub unit: String,
    /// Names of the groups, from left to right.
    pub groups: Vec<String>,
    pub series: Vec<Line>,
}

/// One bar a group.
pub(crate) struct Line {
    pub name: String,
    /// A colour of the palette; series of one kind are of one hue.
    pub tone: Tone,
    /// Height and half the spread; absent: not measured.
    pub bars: Vec<Option<(f64, f64)>>,
}

/// What a series is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tone {
    /// The `n`th of ours.
    Ours(usize),
    /// The `n`th baseline.
    Baseline(usize),
    /// The `n`th peer.
    Peer(usize),
}

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 360.0;
const LEFT: f64 = 52.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 40.0;
/// The lowest line of the plot; names and the legend are below.
const FLOOR: f64 = 268.0;
const LEGEND_LINE: f64 = 20.0;
const OURS: [&str; 4] = ["#1f6feb", "#0a3f9c", "#58a6ff", "#79c0ff"];
const BASELINES: [&str; 3] = ["#8b949e", "#6e7681", "#afb8c1"];
const PEERS: [&str; 6] = ["#d29922", "#bc4c00", "#bf8700", "#cf6b93", "#8250df", "#2da44e"];
/// Text and lines take the page's colours: SVG images know whether the reader prefers a dark page.
const STYLE: &str = "text{font:12px system-ui,sans-serif;fill:#1f2328}.t{font-size:15px;font-weight:600}\
.g{stroke:#d0d7de;stroke-width:1}.e{stroke:#1f2328;stroke-width:1}\
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.g{stroke:#3d444d}.e{stroke:#e6edf3}}";

impl Tone {
    fn colour(self) -> &'static str {
        match self {
            Self::Ours(n) => OURS[n % OURS.len()],
            Self::Baseline(n) => BASELINES[n % BASELINES.len()],
            Self::Peer(n) => PEERS[n % PEERS.len()],
        }
    }
}

/// Draws a chart.
pub(crate) fn draw(chart: &Chart) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    write(&mut out, chart).ok();
    out
}

fn write(out: &mut String, chart: &Chart) -> std::fmt::Result {
    let highest = chart.series.iter().flat_map(|line| line.bars.iter().flatten()).map(|bar| bar.0 + bar.1);
    let (step, steps) = scale(highest.fold(0.0, f64::max));
    let per_unit = (FLOOR - TOP) / (step * f64::from(steps));
    let legend_lines = legend(chart).iter().map(|place| place.1).max().unwrap_or(0);
    #[allow(clippy::cast_precision_loss, reason = "a legend has few lines")]
    let height = HEIGHT.max(FLOOR + 40.0 + LEGEND_LINE * (legend_lines + 1) as f64);
    writeln!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{}\">",
        escape(&chart.title)
    )?;
    writeln!(out, "<style>{STYLE}</style>")?;
    writeln!(out, "<text class=\"t\" x=\"{LEFT}\" y=\"20\">{}</text>", escape(&chart.title))?;
    writeln!(out, "<text x=\"4\" y=\"{:.0}\">{}</text>", TOP - 8.0, escape(&chart.unit))?;
    for line in 0..=steps {
        let value = step * f64::from(line);
        let y = FLOOR - value * per_unit;
        writeln!(
            out,
            "<line class=\"g\" x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{:.0}\" y2=\"{y:.1}\"/>",
            WIDTH - RIGHT
        )?;
        let label = if step < 1.0 { format!("{value:.1}") } else { format!("{value:.0}") };
        writeln!(
            out,
            "<text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
            LEFT - 6.0,
            y + 4.0
        )?;
    }
    write_bars(out, chart, per_unit)?;
    write_legend(out, chart)?;
    writeln!(out, "</svg>")
}

#[allow(clippy::cast_precision_loss, reason = "a chart has few bars")]
fn write_bars(out: &mut String, chart: &Chart, per_unit: f64) -> std::fmt::Result {
    let group_width = (WIDTH - LEFT - RIGHT) / chart.groups.len().max(1) as f64;
    let bar_width = group_width * 0.86 / chart.series.len().max(1) as f64;
    for (at, group) in chart.groups.iter().enumerate() {
        let left = LEFT + group_width * (at as f64 + 0.07);
        let middle = LEFT + group_width * (at as f64 + 0.5);
        writeln!(
            out,
            "<text x=\"{middle:.1}\" y=\"{:.0}\" text-anchor=\"middle\">{}</text>",
            FLOOR + 18.0,
            escape(group)
        )?;
        for (which, line) in chart.series.iter().enumerate() {
            let Some(&Some((value, half))) = line.bars.get(at) else { continue };
            let (x, y) = (left + bar_width * which as f64, FLOOR - value * per_unit);
            writeln!(
                out,
                "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{}\"><title>{}, {}: {value:.2} ± {half:.2} {}</title></rect>",
                bar_width * 0.9,
                FLOOR - y,
                line.tone.colour(),
                escape(&line.name),
                escape(group),
                escape(&chart.unit),
            )?;
            let middle = x + bar_width * 0.45;
            let (from, to) = (y - half * per_unit, (y + half * per_unit).min(FLOOR));
            writeln!(
                out,
                "<line class=\"e\" x1=\"{middle:.1}\" y1=\"{from:.1}\" x2=\"{middle:.1}\" y2=\"{to:.1}\"/>"
            )?;
        }
    }
    Ok(())
}

/// Where each entry of the legend goes: left edge and line.
#[allow(clippy::cast_precision_loss, reason = "names are short")]
fn legend(chart: &Chart) -> Vec<(f64, usize)> {
    let (mut x, mut line) = (LEFT, 0);
    let mut places = Vec::with_capacity(chart.series.len());
    for series in &chart.series {
        let width = 30.0 + 7.0 * series.name.chars().count() as f64;
        if x + width > WIDTH - RIGHT {
            (x, line) = (LEFT, line + 1);
        }
        places.push((x, line));
        x += width;
    }
    places
}

#[allow(clippy::cast_precision_loss, reason = "a legend has few lines")]
fn write_legend(out: &mut String, chart: &Chart) -> std::fmt::Result {
    for ((x, line), series) in legend(chart).into_iter().zip(&chart.series) {
        let y = FLOOR + 44.0 + LEGEND_LINE * line as f64;
        writeln!(
            out,
            "<rect x=\"{x:.1}\" y=\"{:.1}\" width=\"12\" height=\"12\" fill=\"{}\"/>",
            y - 10.0,
            series.tone.colour()
        )?;
        writeln!(out, "<text x=\"{:.1}\" y=\"{y:.1}\">{}</text>", x + 17.0, escape(&series.name))?;
    }
    Ok(())
}

/// The step between lines and their number, so that the highest bar fits.
fn scale(highest: f64) -> (f64, u32) {
    let highest = if highest.is_finite() && highest > 0.0 { highest } else { 1.0 };
    let power = 10_f64.powf((highest / 5.0).log10().floor());
    let step =
        [1.0, 2.0, 5.0, 10.0].map(|times| times * power).into_iter().find(|step| highest / step <= 6.0);
    let step = step.unwrap_or(10.0 * power);
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most 6 steps")]
    let steps = (highest / step).ceil() as u32;
    (step, steps.max(1))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_bar_fits_under_the_highest_line() {
        for highest in [0.03, 0.5, 1.0, 3.3, 5.9, 6.1, 9.9, 12.0, 59.0, 100.0, 28_390.0] {
            let (step, steps) = scale(highest);
            let top = step * f64::from(steps);
            assert!(
                top >= highest && top < 2.1 * highest && (1..=6).contains(&steps),
                "{highest}: {step} x {steps}"
            );
        }
        assert_eq!(scale(0.0), scale(1.0));
    }

    #[test]
    fn every_bar_is_drawn_in_proportion() {
        let chart = Chart {
            title: "a < b".into(),
            unit: "GB/s".into(),
            groups: vec!["64 KiB".into(), "1 MiB".into()],
            series: vec![
                Line {
                    name: "ours".into(),
                    tone: Tone::Ours(0),
                    bars: vec![Some((4.0, 0.1)), Some((2.0, 0.0))],
                },
                Line { name: "theirs".into(), tone: Tone::Peer(0), bars: vec![Some((1.0, 0.0)), None] },
            ],
        };
        let svg = draw(&chart);
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>") && svg.contains("a &lt; b"));
        let heights: Vec<f64> = svg
            .lines()
            .filter(|line| line.contains("<title>"))
            .map(|line| line.split("height=\"").nth(1).unwrap().split('"').next().unwrap().parse().unwrap())
            .collect();
        assert_eq!(heights.len(), 3, "what was not measured has no bar");
        assert!(
            (heights[0] / heights[2] - 4.0).abs() < 0.01 && (heights[1] / heights[2] - 2.0).abs() < 0.01
                || (heights[0] / heights[1] - 4.0).abs() < 0.01
        );
        assert!(svg.contains("prefers-color-scheme:dark"));
    }
}
