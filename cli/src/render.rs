//! Draws views for people. Pure functions: values and a [`Style`] in, text out.

pub(crate) mod drain;
pub(crate) mod members;
pub(crate) mod storage;

use crate::table::{Align, Style, Table, fields};
use crate::units::{bytes, count, duration, percent, plural, ratio, short_count};
use crate::view::storage::ServerDetail;
use crate::view::{
    Answers, Cluster, Diagnosis, KeyPlace, Listing, Ops, Page, Pings, RouteStep, Server, Session, Space,
    Spaces, Status,
};

/// `inspect`.
pub(crate) fn cluster(cluster: &Cluster, style: Style) -> String {
    let mut table = Table::new(&[
        ("SERVER", Align::Cut),
        ("STATE", Align::Left),
        ("PAGES", Align::Right),
        ("USED", Align::Right),
        ("OF", Align::Right),
        ("FILL", Align::Right),
        ("HITS", Align::Right),
        ("SESSIONS", Align::Right),
    ]);
    for server in &cluster.servers {
        table.row([server.id.clone(), server.state.to_owned()].into_iter().chain(status_cells(server)));
    }
    let total = &cluster.total;
    let mut text = table.draw(style);
    text.push_str(&format!(
        "\n{} of {} answer · {} · {} of {} ({}) · hits {}\n",
        total.reachable,
        plural(total.servers as u64, "server"),
        plural(total.pages, "page"),
        bytes(total.used_bytes),
        bytes(total.capacity_bytes),
        percent(ratio(total.used_bytes, total.capacity_bytes)),
        percent(total.hit_ratio),
    ));
    text
}

fn status_cells(server: &Server) -> Vec<String> {
    let Some(status) = &server.status else { return vec!["-".to_owned(); 6] };
    let dram = &status.dram;
    vec![
        short_count(dram.pages),
        bytes(dram.used_bytes),
        bytes(dram.capacity_bytes),
        percent(ratio(dram.used_bytes, dram.capacity_bytes)),
        percent(status.hit_ratio),
        count(status.session_count.into()),
    ]
}

/// `inspect server`, of a server that answered.
pub(crate) fn server(detail: &ServerDetail, status: &Status, style: Style) -> String {
    let server = &detail.server;
    let dram = &status.dram;
    let mut text = format!("{}\n", style.bold(&format!("server {}", crate::table::printable(&server.id))));
    text.push_str(&fields(&[
        ("address", server.address.clone()),
        ("state", server.state.to_owned()),
        ("version", status.version.clone()),
        ("up", duration(status.uptime_ms)),
        ("incarnation", status.incarnation.clone()),
        ("key", if status.key_required { "required" } else { "none: loopback only" }.to_owned()),
        ("memory", format!("{} resident", bytes(status.resident_bytes))),
        ("dram", format!("{} of {} in {}", bytes(dram.used_bytes), bytes(dram.capacity_bytes), dram.backing)),
        ("largest page", bytes(status.limits.page_bytes_max.into())),
        ("largest batch", format!("{} keys", count(status.limits.batch_keys_max.into()))),
    ]));
    for why in &status.degraded {
        text.push_str(&format!("  {}\n", style.bold(&crate::table::printable(why))));
    }
    if let Some(now) = &status.drain {
        text.push_str(&format!("\n{}\n{}", style.bold("drain"), fields(&drain::lines(now))));
    }
    text.push_str(&format!("\n{}\n{}", style.bold("tiers"), storage::tiers(status, style)));
    text.push_str(&format!("\n{}\n{}", style.bold("store"), fields(&storage::store(status))));
    text.push_str(&format!("\n{}\n{}", style.bold("since the start"), fields(&counters(status))));
    text.push_str(&format!(
        "\n{}\n{}",
        style.bold("size classes"),
        storage::classes(&status.dram.classes, style)
    ));
    if let Some(nvme) = &status.nvme {
        let drives = storage::drives(&nvme.drives, &detail.segments, style);
        text.push_str(&format!("\n{}\n{drives}", style.bold("drives")));
    }
    if !detail.quarantined.is_empty() {
        let title = style.bold(&format!("quarantined ({})", status.quarantined_pages));
        text.push_str(&format!("\n{title}\n{}", storage::quarantined(&detail.quarantined, style)));
    }
    text.push_str(&format!(
        "\n{}\n{}",
        style.bold(&format!("sessions ({})", status.session_count)),
        sessions(&status.sessions, style)
    ));
    text
}

/// What else was refused, by reason, if anything was.
fn shed(ops: &Ops) -> String {
    let reasons = [
        (ops.put_shed_offers, "too much on one connection"),
        (ops.put_shed_backlog, "too much on its way"),
        (ops.put_shed_behind, "too many requests"),
    ];
    let some = reasons.iter().filter(|(pages, _)| *pages > 0);
    some.map(|(pages, why)| format!(", {} for {why}", count(*pages))).collect()
}

fn counters(status: &Status) -> Vec<(&'static str, String)> {
    let ops = &status.ops;
    vec![
        (
            "get",
            format!(
                "{} keys, {} hits, {}",
                count(ops.get_keys),
                percent(status.hit_ratio),
                bytes(ops.get_bytes)
            ),
        ),
        (
            "put",
            format!(
                "{} keys, {} stored, {}",
                count(ops.put_keys),
                count(ops.put_stored),
                bytes(ops.put_bytes)
            ),
        ),
        (
            "not put",
            format!(
                "{} there already, {} refused as full{}",
                count(ops.put_existing),
                count(ops.put_busy),
                shed(ops)
            ),
        ),
        (
            "exists",
            format!(
                "{} keys, {} found",
                count(ops.exists_keys),
                percent(ratio(ops.exists_hits, ops.exists_keys))
            ),
        ),
        ("removed", format!("{} by clients, {} evicted", count(ops.deleted), count(ops.evicted))),
        (
            "refused",
            format!(
                "{} corrupt, {} malformed, {} not authenticated",
                count(ops.corrupt),
                count(ops.protocol_errors),
                count(ops.auth_failures)
            ),
        ),
    ]
}

fn sessions(sessions: &[Session], style: Style) -> String {
    if sessions.is_empty() {
        return "  none\n".to_owned();
    }
    let mut table = Table::new(&[
        ("CLIENT", Align::Cut),
        ("FROM", Align::Left),
        ("AGE", Align::Right),
        ("CONNS", Align::Right),
        ("SENT", Align::Right),
        ("RECEIVED", Align::Right),
        ("VIA", Align::Left),
    ]);
    for session in sessions {
        table.row([
            session.client_name.clone(),
            session.peer.clone(),
            duration(session.age_ms),
            session.connections.to_string(),
            bytes(session.sent_bytes),
            bytes(session.received_bytes),
            via(session),
        ]);
    }
    table.draw(style)
}

/// How a session's pages move.
fn via(session: &Session) -> String {
    let mut text = session.transport.clone();
    if session.queue_pairs > 0 {
        text.push_str(&format!(", {} queue pairs, {} regions", session.queue_pairs, session.regions));
    }
    if session.rdma_errors > 0 {
        text.push_str(&format!(", {} errors", count(session.rdma_errors)));
    }
    text
}

/// `inspect spaces`.
pub(crate) fn spaces(spaces: &Spaces, style: Style) -> String {
    let mut table = Table::new(&[
        ("SPACE", Align::Left),
        ("WHAT", Align::Cut),
        ("RANK", Align::Left),
        ("POOL", Align::Left),
        ("PAGE", Align::Right),
        ("PAGES", Align::Right),
        ("BYTES", Align::Right),
        ("HITS", Align::Right),
    ]);
    for space in &spaces.spaces {
        table.row([
            space.space_id.chars().take(8).collect(),
            what(space),
            rank(space),
            field(space, "pool"),
            field(space, "page_bytes").parse().map(bytes).unwrap_or_default(),
            short_count(space.pages),
            bytes(space.page_bytes),
            percent(space.hit_ratio),
        ]);
    }
    if spaces.spaces.is_empty() { "no spaces yet\n".to_owned() } else { table.draw(style) }
}

fn field(space: &Space, name: &str) -> String {
    space.fields.get(name).cloned().unwrap_or_default()
}

/// What a space is, in a few words: its model, else its name.
fn what(space: &Space) -> String {
    let known = ["model", "name", "engine", "tag"].into_iter().find_map(|name| space.fields.get(name));
    known.cloned().unwrap_or_else(|| "-".to_owned())
}

/// `tp 0/8 pp 1/2`, without what is alone.
fn rank(space: &Space) -> String {
    let part = |axis: &str| {
        let size = field(space, &format!("{axis}_size"));
        let rank = field(space, &format!("{axis}_rank"));
        (!rank.is_empty() && size != "1")
            .then(|| if size.is_empty() { format!("{axis} {rank}") } else { format!("{axis} {rank}/{size}") })
    };
    let parts: Vec<String> = ["tp", "pp", "cp"].into_iter().filter_map(part).collect();
    parts.join(" ")
}

/// `inspect space`.
pub(crate) fn space(space: &Space, style: Style) -> String {
    let mut text = format!("{}\n", style.bold(&format!("space {}", space.space_id)));
    let described: Vec<(&str, String)> =
        space.fields.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
    text.push_str(&fields(&described));
    text.push('\n');
    let right = Align::Right;
    let mut table = Table::new(&[
        ("SERVER", Align::Cut),
        ("PAGES", right),
        ("BYTES", right),
        ("GETS", right),
        ("HITS", right),
    ]);
    for share in &space.servers {
        table.row([
            share.server.clone(),
            count(share.pages),
            bytes(share.page_bytes),
            count(share.get_keys),
            percent(ratio(share.get_hits, share.get_keys)),
        ]);
    }
    text.push_str(&table.draw(style));
    text.push_str(&format!(
        "\n{} · {} · hits {}\n",
        plural(space.pages, "page"),
        bytes(space.page_bytes),
        percent(space.hit_ratio)
    ));
    text
}

/// `inspect key`.
pub(crate) fn key(place: &KeyPlace, style: Style) -> String {
    let title = format!("key {}", crate::table::printable(&place.key));
    let mut text =
        format!("{}\n  space   {}\n  digest  {}\n\n", style.bold(&title), place.space_id, place.digest);
    let mut table = Table::new(&[
        ("ROUTE", Align::Right),
        ("SERVER", Align::Cut),
        ("WEIGHT", Align::Right),
        ("SCORE", Align::Right),
        ("STATE", Align::Left),
        ("HOME", Align::Left),
        ("READ", Align::Right),
        ("STORED", Align::Left),
        ("WHY", Align::Cut),
    ]);
    for (index, step) in place.route.iter().enumerate() {
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        table.row([
            or_dash(step.score.map(|_| (index + 1).to_string())),
            step.server.clone(),
            weight(step),
            or_dash(step.score.map(|score| format!("{score:.1}"))),
            step.state.to_owned(),
            if step.home { "yes" } else { "no" }.to_owned(),
            or_dash(step.asked.map(|asked| asked.to_string())),
            stored(step).to_owned(),
            step.why.unwrap_or("-").to_owned(),
        ]);
    }
    text.push_str(&table.draw(style));
    for step in &place.route {
        if let Some(page) = &step.page {
            text.push_str(&format!(
                "\n{}\n",
                style.bold(&format!("on {}", crate::table::printable(&step.server)))
            ));
            text.push_str(&page_fields(page, step.verified));
        }
    }
    text
}

/// The weight; of a member that is new or leaves, beside the whole of it.
fn weight(step: &RouteStep) -> String {
    if step.weight == step.weight_full {
        return step.weight.to_string();
    }
    format!("{} of {}", step.weight, step.weight_full)
}

fn stored(step: &RouteStep) -> &'static str {
    match step.found {
        Some(true) => "yes",
        Some(false) => "no",
        None => "no answer",
    }
}

fn page_fields(page: &Page, verified: Option<bool>) -> String {
    let checked = match verified {
        None => "",
        Some(true) => " (verified)",
        Some(false) => " (DOES NOT MATCH the stored bytes)",
    };
    let mut pairs = vec![
        ("size", format!("{} ({} bytes)", bytes(page.bytes.into()), count(page.bytes.into()))),
        ("slot", format!("{} in {}", bytes(page.slot_bytes.into()), page.tier)),
        ("checksum", format!("{}{checked}", page.checksum)),
        ("codec", page.codec.to_string()),
        ("age", duration(page.age_ms)),
        ("idle", duration(page.idle_ms)),
        ("hits", count(page.hits)),
        ("pins", page.pins.to_string()),
    ];
    if page.pinned_ms > 0 {
        pairs.push(("pinned", format!("for {}", duration(page.pinned_ms))));
    }
    if let Some(position) = page.position {
        pairs.push(("position", format!("{} in its prefix chain", count(position.into()))));
    }
    fields(&pairs)
}

/// `ls`.
pub(crate) fn listing(listing: &Listing, style: Style) -> String {
    let mut table = Table::new(&[
        ("KEY", Align::Cut),
        ("BYTES", Align::Right),
        ("AGE", Align::Right),
        ("HITS", Align::Right),
        ("SERVER", Align::Left),
    ]);
    for page in &listing.keys {
        table.row([
            page.key.clone(),
            bytes(page.bytes.into()),
            duration(page.age_ms),
            short_count(page.hits),
            page.server.clone(),
        ]);
    }
    if listing.keys.is_empty() { String::new() } else { table.draw(style) }
}

/// `exists` and `rm`.
pub(crate) fn answers(answers: &Answers, yes: &str, no: &str) -> String {
    let word = |answer: bool| if answer { yes } else { no };
    let width = yes.len().max(no.len());
    answers
        .keys
        .iter()
        .map(|answer| format!("{:width$}  {}\n", word(answer.yes), crate::table::printable(&answer.key)))
        .collect()
}

/// `ping`.
pub(crate) fn pings(pings: &Pings, style: Style) -> String {
    let right = Align::Right;
    let mut table = Table::new(&[
        ("SERVER", Align::Cut),
        ("ANSWERED", right),
        ("LOST", right),
        ("MIN", right),
        ("MEDIAN", right),
        ("MAX", right),
    ]);
    let ms = |time: Option<f64>| time.map_or_else(|| "-".to_owned(), |time| format!("{time:.2} ms"));
    for server in &pings.servers {
        table.row([
            server.server.clone(),
            server.answered.to_string(),
            server.lost.to_string(),
            ms(server.min_ms),
            ms(server.median_ms),
            ms(server.max_ms),
        ]);
    }
    table.draw(style)
}

/// `doctor`.
pub(crate) fn diagnosis(diagnosis: &Diagnosis, style: Style) -> String {
    let mut text = String::new();
    for finding in &diagnosis.findings {
        let mark = match finding.level {
            "ok" => "ok      ",
            "note" => "note    ",
            _ => "PROBLEM ",
        };
        let mark = if finding.level == "ok" { style.dim(mark) } else { style.bold(mark) };
        text.push_str(&format!("{mark} {}: {}\n", finding.check, crate::table::printable(&finding.text)));
        if let Some(fix) = &finding.fix {
            text.push_str(&format!("         fix: {fix}\n"));
        }
    }
    let notes = diagnosis.findings.iter().filter(|finding| finding.level == "note").count();
    let problems = plural(diagnosis.problems as u64, "problem");
    text.push_str(&format!("\n{problems}, {}\n", plural(notes as u64, "note")));
    text
}

#[cfg(test)]
#[path = "render_tests.rs"]
mod tests;
