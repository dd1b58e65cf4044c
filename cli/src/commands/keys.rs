//! `exists`, `rm`, `ls` and `clear`.

use crate::failure::{Code, Failure};
use crate::fleet::Fleet;
use crate::output::Output;
use crate::render;
use crate::selector::{Selector, parse_key};
use crate::view::{Answer, Answers, Listing, key_text};
use std::io::{IsTerminal as _, Write as _};

/// Keys of one server that are asked for at once.
const LIST_BATCH: u32 = 10_000;

pub(crate) async fn exists(
    fleet: &Fleet,
    output: &Output,
    space: &str,
    keys: &[String],
) -> Result<(), Failure> {
    let keys = parse_keys(keys)?;
    let space = fleet.open_space(&Selector::parse(space)?).await?;
    let mut found = vec![false; keys.len()];
    let report = space.exists(&keys, &mut found).await?;
    answer(output, &keys, &found, report.failed, ("yes", "no"))
}

pub(crate) async fn remove(
    fleet: &Fleet,
    output: &Output,
    space: &str,
    keys: &[String],
) -> Result<(), Failure> {
    let keys = parse_keys(keys)?;
    let space = fleet.open_space(&Selector::parse(space)?).await?;
    let mut removed = vec![false; keys.len()];
    let report = space.delete(&keys, &mut removed).await?;
    answer(output, &keys, &removed, report.failed, ("removed", "absent"))
}

pub(super) fn parse_keys(keys: &[String]) -> Result<Vec<Vec<u8>>, Failure> {
    keys.iter().map(|key| parse_key(key)).collect()
}

fn answer(
    output: &Output,
    keys: &[Vec<u8>],
    yes: &[bool],
    failed: usize,
    words: (&str, &str),
) -> Result<(), Failure> {
    let one = |(key, &yes): (&Vec<u8>, &bool)| Answer { key: key_text(key), key_hex: hex::encode(key), yes };
    let answers = Answers { keys: keys.iter().zip(yes).map(one).collect(), failed };
    output.show(&answers, |answers, _| render::answers(answers, words.0, words.1))?;
    if failed > 0 {
        return Err(Failure::new(Code::Unreachable, format!("the servers of {failed} keys did not answer"))
            .hint("`memkv-cli doctor` looks at each server"));
    }
    if yes.iter().all(|&yes| yes) { Ok(()) } else { Err(Failure::new(Code::Negative, "")) }
}

pub(crate) async fn list(
    fleet: &Fleet,
    output: &Output,
    space: &str,
    prefix: Option<&str>,
    limit: usize,
    server: Option<&str>,
) -> Result<(), Failure> {
    let prefix = prefix.map(parse_key).transpose()?.unwrap_or_default();
    let space = fleet.find_space_id(&Selector::parse(space)?).await?;
    let wanted = if limit == 0 { usize::MAX } else { limit };
    let spinner = output.spinner("keys");
    let mut listing =
        Listing { space_id: space.to_string(), keys: Vec::new(), truncated: false, unreachable: Vec::new() };
    for id in fleet.server_ids(server)? {
        fleet.list(space, &id, &prefix, (wanted, LIST_BATCH), &mut listing, &spinner).await;
    }
    spinner.finish_and_clear();
    listing.keys.sort_by(|a, b| a.key_hex.cmp(&b.key_hex));
    output.show(&listing, render::listing)?;
    output.say_unreachable(&listing.unreachable);
    if listing.truncated {
        output.say(&format!(
            "more keys were left out: the limit is {limit} for each server; --limit 0 shows all"
        ));
    }
    if listing.keys.is_empty() && !listing.unreachable.is_empty() {
        Err(fleet.nobody_answers())
    } else {
        Ok(())
    }
}

pub(crate) async fn clear(fleet: &Fleet, output: &Output, space: &str, yes: bool) -> Result<(), Failure> {
    let selector = Selector::parse(space)?;
    let spaces = fleet.spaces().await?;
    let space = selector.find(&spaces.spaces)?;
    if !yes {
        confirm(&format!(
            "Remove {} of space {}?",
            crate::units::plural(space.pages, "page"),
            space.space_id
        ))?;
    }
    let spinner = output.spinner("clear");
    let cleared = fleet.clear(space).await;
    spinner.finish_and_clear();
    let cleared = cleared?;
    output.show(&cleared, |cleared, _| {
        let size = crate::units::bytes(cleared.removed_bytes);
        format!("removed {}, {size}\n", crate::units::plural(cleared.removed_pages, "page"))
    })?;
    output.say_unreachable(&cleared.unreachable);
    match cleared.unreachable.len() {
        0 => Ok(()),
        missing => Err(Failure::new(Code::Unreachable, format!("{missing} servers still have their pages"))
            .hint("clear again when they answer")),
    }
}

/// Asks on the terminal; a script must say --yes.
fn confirm(question: &str) -> Result<(), Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::new(Code::Usage, "this removes pages and there is nobody to ask")
            .hint("say --yes in scripts"));
    }
    eprint!("{question} [y/N] ");
    std::io::stderr().flush()?;
    let mut reply = String::new();
    std::io::stdin().read_line(&mut reply)?;
    match reply.trim().to_ascii_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ => Err(Failure::new(Code::Negative, "nothing was removed")),
    }
}
