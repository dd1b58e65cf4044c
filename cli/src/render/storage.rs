//! Draws what rests where: tiers, classes, drives, segments, pins, checks.

use crate::table::{Align, Style, Table, fields};
use crate::units::{bytes, count, duration, percent, plural, ratio, short_count};
use crate::view::storage::{Drive, Pinned, Pins, Quarantined, Segment, Unpinned, Verified};
use crate::view::{Class, Status};

/// Quarantined pages that are drawn; `--json` has all.
const QUARANTINED_SHOWN: usize = 10;

/// The tiers of a server, side by side.
pub(super) fn tiers(status: &Status, style: Style) -> String {
    let right = Align::Right;
    let mut table = Table::new(&[
        ("TIER", Align::Left),
        ("PAGES", right),
        ("USED", right),
        ("OF", right),
        ("FILL", right),
        ("ANSWERED", right),
        ("OF GETS", right),
    ]);
    let dram = &status.dram;
    let nvme = status.nvme.as_ref();
    let rows = [("dram", dram.pages, dram.used_bytes, dram.capacity_bytes, dram.hits)]
        .into_iter()
        .chain(nvme.map(|nvme| ("nvme", nvme.pages, nvme.used_bytes, nvme.capacity_bytes, nvme.hits)));
    for (name, pages, used, capacity, hits) in rows {
        table.row([
            name.to_owned(),
            count(pages),
            bytes(used),
            bytes(capacity),
            percent(ratio(used, capacity)),
            short_count(hits),
            percent(ratio(hits, status.ops.get_keys)),
        ]);
    }
    table.draw(style)
}

/// What is set and what has happened in the store.
pub(super) fn store(status: &Status) -> Vec<(&'static str, String)> {
    let mut pairs = vec![
        ("policy", status.policy.clone()),
        (
            "pinned",
            format!(
                "{}, {} of at most {}",
                plural(status.pinned_pages, "page"),
                bytes(status.pinned_bytes),
                bytes(status.pinned_bytes_max)
            ),
        ),
    ];
    if let Some(nvme) = &status.nvme {
        let sync = if nvme.sync { "synced" } else { "not synced" };
        pairs.push(("nvme", format!("{}, {sync}, segments of {}", nvme.mode, bytes(nvme.segment_bytes))));
        pairs.push(("nvme i/o", nvme.io.clone()));
        pairs.push(("demoted", format!("{}, {}", plural(nvme.demoted, "page"), bytes(nvme.demoted_bytes))));
        let unread = count(nvme.demote_unread);
        pairs.push(("not demoted", format!("{unread} never read, {} dropped", count(nvme.demote_dropped))));
        let failed = count(nvme.read_failures);
        let promoted = plural(nvme.promoted, "page");
        pairs.push(("promoted", format!("{promoted}, {}, {failed} failed", bytes(nvme.promoted_bytes))));
        if nvme.mode == "write-through" {
            let dropped = count(nvme.persist_dropped);
            pairs.push(("written", format!("{}, {dropped} dropped", plural(nvme.persisted, "page"))));
        }
    }
    let scrub = &status.scrub;
    pairs.push((
        "scrub",
        if scrub.bytes_per_second == 0 {
            "off".to_owned()
        } else {
            let pace = bytes(scrub.bytes_per_second);
            let (rounds, now) = (plural(scrub.rounds, "round"), percent(Some(scrub.progress)));
            format!("{pace}/s, {rounds} and {now} of the next, {}", plural(scrub.pages, "page"))
        },
    ));
    pairs.push(("quarantined", plural(status.quarantined_pages, "page")));
    let found = &status.recovery;
    if found.dram_pages + found.nvme_pages > 0 {
        let (dram, nvme) = (count(found.dram_pages), count(found.nvme_pages));
        pairs.push(("recovered", format!("{dram} in dram, {nvme} on nvme, in {}", duration(found.took_ms))));
    }
    pairs
}

/// The size classes.
pub(super) fn classes(classes: &[Class], style: Style) -> String {
    if classes.is_empty() {
        return "  none yet\n".to_owned();
    }
    let right = Align::Right;
    let mut table = Table::new(&[
        ("SLOT", right),
        ("SLOTS", right),
        ("IN USE", right),
        ("FILL", right),
        ("CHUNKS", right),
        ("ASKED", right),
        ("WASTE", right),
    ]);
    for class in classes {
        let held = class.slots_used * u64::from(class.slot_bytes);
        table.row([
            bytes(class.slot_bytes.into()),
            count(class.slots),
            count(class.slots_used),
            percent(ratio(class.slots_used, class.slots)),
            count(class.chunks.into()),
            bytes(class.asked_bytes),
            percent(ratio(held.saturating_sub(class.asked_bytes), held)),
        ]);
    }
    table.draw(style)
}

/// The drives, with what is in their segments.
pub(super) fn drives(drives: &[Drive], segments: &[Segment], style: Style) -> String {
    let right = Align::Right;
    let mut table = Table::new(&[
        ("DRIVE", Align::Cut),
        ("STATE", Align::Left),
        ("USED", right),
        ("OF", right),
        ("LIVE", right),
        ("SEGS", right),
        ("READ", right),
        ("WRITTEN", right),
    ]);
    for drive in drives {
        table.row([
            drive.path.clone(),
            drive.state.to_owned(),
            bytes(drive.used_bytes),
            bytes(drive.quota_bytes),
            percent(ratio(drive.live_bytes, drive.used_bytes)),
            count(drive.segments),
            bytes(drive.read_bytes),
            bytes(drive.written_bytes),
        ]);
    }
    let mut text = table.draw(style);
    for (index, drive) in drives.iter().enumerate() {
        let of_drive = segments.iter().filter(|segment| segment.drive as usize == index);
        let lines = drive_lines(drive, of_drive);
        if !lines.is_empty() {
            text.push_str(&format!("  {}\n", crate::table::printable(&drive.path)));
        }
        for line in lines {
            text.push_str(&format!("    {}\n", crate::table::printable(&line)));
        }
    }
    text
}

/// What else there is to say of a drive.
fn drive_lines<'a>(drive: &Drive, segments: impl Iterator<Item = &'a Segment>) -> Vec<String> {
    let mut lines = Vec::new();
    if !drive.reason.is_empty() {
        lines.push(format!("{}: {}", drive.state, drive.reason));
    }
    let (mut sealed, mut other, mut emptiest) = (0, 0, None::<f64>);
    for segment in segments {
        if segment.state != "sealed" {
            other += 1;
            continue;
        }
        sealed += 1;
        let live = ratio(segment.live_bytes, segment.bytes).unwrap_or(0.0);
        emptiest = Some(emptiest.map_or(live, |least| least.min(live)));
    }
    if sealed + other > 0 {
        let reclaimed = plural(drive.reclaimed_segments, "segment");
        lines.push(format!(
            "{sealed} sealed and {other} open, the emptiest {} live; {reclaimed} reclaimed",
            percent(emptiest)
        ));
    }
    let dropped = drive.dropped_full + drive.dropped_failed + drive.dropped_backlog;
    if dropped + drive.errors > 0 {
        lines.push(format!(
            "{} errors; dropped: {} no room, {} failed, {} too slow",
            count(drive.errors),
            count(drive.dropped_full),
            count(drive.dropped_failed),
            count(drive.dropped_backlog)
        ));
    }
    lines
}

/// The last quarantined pages.
pub(super) fn quarantined(pages: &[Quarantined], style: Style) -> String {
    let mut table = Table::new(&[
        ("KEY", Align::Cut),
        ("SPACE", Align::Left),
        ("TIER", Align::Left),
        ("AGO", Align::Right),
        ("WHY", Align::Left),
    ]);
    for page in pages.iter().take(QUARANTINED_SHOWN) {
        table.row([
            page.key.clone(),
            page.space_id.chars().take(8).collect(),
            page.tier.clone(),
            duration(page.age_ms),
            page.reason.chars().take(30).collect(),
        ]);
    }
    let mut text = table.draw(style);
    if pages.len() > QUARANTINED_SHOWN {
        text.push_str(&format!("  and {} more; --json shows them\n", pages.len() - QUARANTINED_SHOWN));
    }
    text
}

/// `pin`.
pub(crate) fn pinned(pinned: &Pinned) -> String {
    let mut text = format!("pinned {} for {}\n", plural(pinned.pinned, "page"), duration(pinned.ttl_ms));
    if pinned.missing > 0 {
        text.push_str(&format!("not stored: {}\n", plural(pinned.missing, "key")));
    }
    if pinned.over_quota > 0 {
        text.push_str(&format!("no room for more pins: {}\n", plural(pinned.over_quota, "page")));
    }
    text
}

/// `unpin`.
pub(crate) fn unpinned(unpinned: &Unpinned) -> String {
    format!("unpinned {}\n", plural(unpinned.unpinned, "page"))
}

/// `pins`.
pub(crate) fn pins(pins: &Pins, style: Style) -> String {
    let mut text = String::new();
    if !pins.pins.is_empty() {
        let mut table = Table::new(&[
            ("KEY", Align::Cut),
            ("SPACE", Align::Left),
            ("BYTES", Align::Right),
            ("LEFT", Align::Right),
            ("SERVER", Align::Left),
        ]);
        for pin in &pins.pins {
            table.row([
                pin.key.clone(),
                pin.space_id.chars().take(8).collect(),
                bytes(pin.bytes),
                duration(pin.left_ms),
                pin.server.clone(),
            ]);
        }
        text.push_str(&table.draw(style));
        text.push('\n');
    }
    let share = |share: &crate::view::storage::PinShare| {
        let of = format!("{} of at most {}", bytes(share.pinned_bytes), bytes(share.pinned_bytes_max));
        (share.server.clone(), of)
    };
    let shares: Vec<(String, String)> = pins.servers.iter().map(share).collect();
    let shares: Vec<(&str, String)> = shares.iter().map(|(name, of)| (name.as_str(), of.clone())).collect();
    text.push_str(&fields(&shares));
    text
}

/// `verify`.
pub(crate) fn verified(verified: &Verified, style: Style) -> String {
    let right = Align::Right;
    let mut table = Table::new(&[
        ("SERVER", Align::Cut),
        ("DRAM", right),
        ("NVME", right),
        ("BYTES", right),
        ("QUARANTINED", right),
    ]);
    for server in &verified.servers {
        let cell = |text: String| if server.error.is_some() { "-".to_owned() } else { text };
        table.row([
            server.server.clone(),
            cell(count(server.dram_pages)),
            cell(count(server.nvme_pages)),
            cell(bytes(server.bytes)),
            cell(count(server.quarantined)),
        ]);
    }
    table.draw(style)
}
