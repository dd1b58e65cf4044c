//! Draws the member list.

use crate::table::{Align, Style, Table, printable};
use crate::units::{count, duration};
use crate::view::members::Members;

/// The members, at a time in Unix milliseconds; nothing if they are merely those of the configuration.
pub(crate) fn members(list: &Members, now_unix_ms: u64, style: Style) -> String {
    if list.is_fixed() {
        return String::new();
    }
    let mut table = Table::new(&[
        ("MEMBER", Align::Cut),
        ("ADDRESS", Align::Cut),
        ("STATE", Align::Left),
        ("WEIGHT", Align::Right),
        ("NOW", Align::Right),
        ("SINCE", Align::Right),
    ]);
    for member in &list.members {
        let age = member.since_unix_ms.map(|since| now_unix_ms.saturating_sub(since));
        table.row([
            member.id.clone(),
            member.address.clone(),
            member.state.to_owned(),
            count(member.weight.into()),
            count(member.weight_now.into()),
            age.map_or_else(|| "-".to_owned(), |age| format!("{} ago", duration(age))),
        ]);
    }
    let mut text = format!("\n{}\n", style.bold(&format!("members, epoch {}", list.epoch)));
    text.push_str(&format!("  from {}\n", printable(&list.source)));
    if let Some(error) = &list.error {
        text.push_str(&format!("  {}\n", style.bold(&printable(error))));
    }
    text.push_str(&table.draw(style));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::members::Member;

    fn member(id: &str, state: &'static str, weight_now: u32, since: Option<u64>) -> Member {
        Member {
            id: id.to_owned(),
            address: "10.0.0.5:9900".to_owned(),
            state,
            weight: 100,
            weight_now,
            since_unix_ms: since,
            version: None,
        }
    }

    #[test]
    fn a_list_that_was_found_is_shown_and_a_fixed_one_is_not() {
        let mut list = Members {
            source: "etcd://e1:2379/memkv".to_owned(),
            epoch: 57,
            error: None,
            members: vec![member("kv-1", "serving", 30, Some(1_000)), member("kv-2", "lost", 100, None)],
        };
        let style = Style { width: Some(80), colour: false };
        let text = members(&list, 61_000, style);
        assert!(text.contains("epoch 57") && text.contains("etcd://e1:2379/memkv"), "{text}");
        let line = |id: &str| text.lines().find(|line| line.starts_with(id)).unwrap().to_owned();
        assert!(line("kv-1").contains("serving") && line("kv-1").contains(" 30 "), "{text}");
        assert!(line("kv-1").ends_with(" ago") && line("kv-2").ends_with('-'), "{text}");
        list.source = "MEMKV_SERVERS".to_owned();
        assert_eq!(members(&list, 61_000, style), "");
    }
}
