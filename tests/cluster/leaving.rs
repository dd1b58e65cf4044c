//! Members that leave for good, and what an operator sees of the members.

use crate::common::{cli, get};
use crate::membership::{PATIENCE, client, keys, member, members, owners, store, wait_for_members};
use memkv_client::PageOutcome;
use memkv_tests::etcd::Etcd;
use memkv_tests::wait_for;
use serde_json::Value;

/// What `memkv-cli` says about the cluster at a location: exit code, standard output, standard error.
fn ask(location: &str, arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = cli("");
    command.env("MEMKV_DISCOVERY", location).args(arguments);
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn a_drained_server_is_never_waited_for() {
    let etcd = Etcd::start().unwrap();
    let _one = member(&etcd, "kv-1", &[]);
    let mut two = member(&etcd, "kv-2", &[]);
    let location = etcd.location("kv");
    let (client, space) = client(&location, &[("member_grace", "60m")]);
    wait_for_members(&client, &["kv-1", "kv-2"]);
    let keys = keys(40);
    store(&space, &keys);
    assert!(owners(&client, &space, &keys).iter().any(|owner| owner == "kv-2"));
    let (code, _, said) = ask(&location, &["drain", "kv-2"]);
    assert_eq!(code, Some(0), "{said}");
    // The record says so, and every client gives it no more keys.
    wait_for_members(&client, &["kv-1", "kv-2*0"]);
    assert!(owners(&client, &space, &keys).iter().all(|owner| owner == "kv-1"));
    assert!(two.stop().unwrap().success());
    assert!(!etcd.has(b"kv/members/kv-2").unwrap() && !etcd.has(b"kv/since/kv-2").unwrap());
    wait_for("the loss", PATIENCE, || (members(&client) == ["kv-1"]).then_some(())).unwrap();
    let hits = get(&space, &keys, 100).iter().filter(|(outcome, _)| *outcome == PageOutcome::Hit).count();
    assert_eq!(hits, keys.len());
    // If it is ever back, it is a new member.
    let before = client.membership().members[1].member.since_unix_ms;
    let _two = member(&etcd, "kv-2", &[]);
    wait_for_members(&client, &["kv-1", "kv-2"]);
    assert!(client.membership().members[1].member.since_unix_ms > before);
}

#[test]
fn the_command_line_finds_the_members_and_shows_them() {
    let etcd = Etcd::start().unwrap();
    let location = etcd.location("kv");
    let (code, _, said) = ask(&location, &["inspect", "--timeout", "0.5"]);
    assert!(code != Some(0) && said.contains("no server is registered"), "{said}");
    let one = member(&etcd, "kv-1", &["--weight", "70"]);
    let (client, _space) = client(&location, &[]);
    wait_for_members(&client, &["kv-1"]);
    let (code, shown, said) = ask(&location, &["inspect"]);
    assert_eq!(code, Some(0), "{said}");
    let line = shown.lines().filter(|line| line.starts_with("kv-1")).nth(1).unwrap_or_default();
    let words: Vec<_> = line.split_whitespace().collect();
    let address = one.addr().to_string();
    assert_eq!(words.get(..5), Some(&["kv-1", &*address, "serving", "70", "70"][..]), "{shown}");
    assert!(shown.contains(&location), "{shown}");
    let (_, shown, _) = ask("", &["--discovery", &location, "inspect", "--json"]);
    let shown: Value = serde_json::from_str(&shown).unwrap();
    let list = &shown["membership"];
    assert!(list["epoch"].as_u64() > Some(0) && list["source"] == location, "{list}");
    let known = &client.membership().members[0].member;
    assert_eq!(list["members"][0]["since_unix_ms"].as_u64(), Some(known.since_unix_ms));
    // Whoever names servers is not asked where to find them.
    let (code, _, said) = ask(&location, &["--servers", &address, "ping", "--count", "1"]);
    assert_eq!(code, Some(0), "{said}");
    let (code, found, _) = ask(&location, &["doctor"]);
    assert!(found.contains("kv-1"), "{code:?}: {found}");
    let (_, found, _) = ask("etcd://127.0.0.1:1/kv", &["--timeout", "0.5", "doctor"]);
    assert!(found.contains("discovery"), "{found}");
}
