//! Draws a drain.

use crate::table::{Align, Style, Table, fields};
use crate::units::{bytes, count, duration, percent, ratio};
use crate::view::drain::Drain;

/// `drain`.
pub(crate) fn drain(drain: &Drain, style: Style) -> String {
    let title = format!("{} is {}", crate::table::printable(&drain.server), drain.state);
    let mut text = format!("{}\n", style.bold(&title));
    if drain.total_pages == 0 && drain.targets.is_empty() {
        return text;
    }
    text.push_str(&fields(&lines(drain)));
    for loss in &drain.losses {
        text.push_str(&format!("  {} pages: {}\n", count(loss.pages), crate::table::printable(&loss.reason)));
    }
    if let Some(error) = &drain.error {
        text.push_str(&format!("  {}\n", style.bold(&crate::table::printable(error))));
    }
    let right = Align::Right;
    let mut table = Table::new(&[
        ("TO", Align::Cut),
        ("MOVED", right),
        ("BYTES", right),
        ("THERE ALREADY", right),
        ("REFUSED", right),
        ("LAST ERROR", Align::Cut),
    ]);
    for target in &drain.targets {
        table.row([
            target.server.clone(),
            count(target.moved_pages),
            bytes(target.moved_bytes),
            count(target.existing_pages),
            count(target.refused_pages),
            target.last_error.clone().unwrap_or_else(|| "-".to_owned()),
        ]);
    }
    text.push('\n');
    text.push_str(&table.draw(style));
    text
}

/// The numbers of a drain; also for `inspect server`.
pub(crate) fn lines(drain: &Drain) -> Vec<(&'static str, String)> {
    let left = if drain.left_ms > 0 { format!(", {} left", duration(drain.left_ms)) } else { String::new() };
    let speed = if drain.done { String::new() } else { format!(", {}/s", bytes(drain.bytes_per_second)) };
    let mut lines = vec![
        (
            "looked at",
            format!(
                "{} of {} pages, {} of {} ({})",
                count(drain.pages),
                count(drain.total_pages),
                bytes(drain.bytes),
                bytes(drain.total_bytes),
                percent(ratio(drain.bytes, drain.total_bytes))
            ),
        ),
        (
            "with others",
            format!(
                "{} moved ({}), {} there already",
                count(drain.moved_pages),
                bytes(drain.moved_bytes),
                count(drain.existing_pages)
            ),
        ),
        ("not", format!("{} lost, {} removed meanwhile", count(drain.lost_pages), count(drain.gone_pages))),
        ("time", format!("{}{speed}{left}", duration(drain.elapsed_ms))),
    ];
    if drain.elsewhere_pages + drain.short_pages > 0 {
        let (elsewhere, short) = (count(drain.elsewhere_pages), count(drain.short_pages));
        lines.insert(
            2,
            ("of those", format!("{elsewhere} not with their owner, {short} with too few copies")),
        );
    }
    if drain.pinned_pages + drain.unpinned_pages > 0 {
        let (pinned, not) = (count(drain.pinned_pages), count(drain.unpinned_pages));
        lines.insert(2, ("pins", format!("{pinned} kept, {not} not")));
    }
    lines
}
