//! Dependencies: their licences, where they come from, and which may not be there. A part of what `cargo deny` does, without a network.
//!
//! `deny.toml` is the one list; this reads the little of it that it needs. Deliberately absent: advisories, for which a database has to be
//! fetched. `cargo deny check advisories` and `cargo audit` read the same `Cargo.lock`.

use crate::source::root;
use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

/// Where packages may come from, beside the repository itself.
const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";
/// Packages that are there in more than one version. Another one is a reviewed change: each costs build time and a place for bugs.
const DUPLICATES: &[&str] = &[
    "base64",
    "crypto-common",
    "digest",
    "foldhash",
    "getrandom",
    "hashbrown",
    "itertools",
    "rand",
    "rand_core",
    "shlex",
    "syn",
    "synstructure",
    "unicode-width",
];

/// What `deny.toml` says.
#[derive(Debug, Default, PartialEq, Eq)]
struct Rules {
    licences: BTreeSet<String>,
    /// More licences, for one package each.
    exceptions: BTreeMap<String, BTreeSet<String>>,
    banned: BTreeSet<String>,
}

struct Package {
    name: String,
    version: String,
    licence: String,
    /// `None` for the repository's own.
    source: Option<String>,
}

/// The texts in quotes of a line.
fn quoted(line: &str) -> impl Iterator<Item = String> + '_ {
    line.split('"').skip(1).step_by(2).map(str::to_owned)
}

fn rules(text: &str) -> Rules {
    let mut rules = Rules::default();
    let mut section = "";
    for line in text.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
        if line.starts_with('[') {
            section = line;
        } else if section == "[licenses]" && line.starts_with("allow") {
            rules.licences.extend(quoted(line));
        } else if section == "[licenses]" && line.contains("crate =") {
            let names: Vec<String> = quoted(&line[line.find("crate =").unwrap_or(0)..]).collect();
            if let Some((name, licences)) = names.split_first() {
                rules.exceptions.entry(name.clone()).or_default().extend(licences.iter().cloned());
            }
        } else if section == "[[bans.deny]]" && line.starts_with("crate") {
            rules.banned.extend(quoted(line));
        }
    }
    rules
}

/// Whether a licence expression can be met: all of its parts joined by `AND`, of each of which one joined by `OR`.
fn is_met(expression: &str, allowed: &dyn Fn(&str) -> bool) -> bool {
    let expression = expression.trim();
    // `/` is how older packages write OR.
    for (operator, all) in [(" AND ", true), (" OR ", false), ("/", false)] {
        let parts = split(expression, operator);
        if parts.len() > 1 {
            let mut met = parts.into_iter().map(|part| is_met(part, allowed));
            return if all { met.all(|met| met) } else { met.any(|met| met) };
        }
    }
    match expression.strip_prefix('(').and_then(|inner| inner.strip_suffix(')')) {
        Some(inner) => is_met(inner, allowed),
        None => allowed(expression),
    }
}

/// Cuts at an operator that is not inside brackets.
fn split<'a>(text: &'a str, operator: &str) -> Vec<&'a str> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0_i32, 0);
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ if depth == 0 && at >= start && text[at..].starts_with(operator) => {
                parts.push(&text[start..at]);
                start = at + operator.len();
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn violations(rules: &Rules, packages: &[Package]) -> Vec<String> {
    let mut found = Vec::new();
    let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for package in packages {
        let Some(source) = &package.source else { continue };
        let name = package.name.as_str();
        versions.entry(name).or_default().insert(&package.version);
        let extra = rules.exceptions.get(name);
        let allowed = |licence: &str| {
            rules.licences.contains(licence) || extra.is_some_and(|extra| extra.contains(licence))
        };
        if !is_met(&package.licence, &allowed) {
            found.push(format!(
                "{name} has the licence {:?}, which deny.toml does not allow",
                package.licence
            ));
        }
        if source != REGISTRY {
            found.push(format!("{name} comes from {source}"));
        }
        if rules.banned.contains(name) {
            found.push(format!("{name} is banned by deny.toml"));
        }
    }
    for (name, versions) in versions {
        if versions.len() > 1 && !DUPLICATES.contains(&name) {
            found.push(format!("{name} is there in {} versions", versions.len()));
        }
    }
    found
}

fn packages() -> Vec<Package> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--offline", "--all-features"])
        .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
        .current_dir(root())
        .output()
        .expect("cargo is there, since it built this");
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("cargo writes JSON");
    let text = |package: &serde_json::Value, field: &str| package[field].as_str().map(str::to_owned);
    let list = metadata["packages"].as_array().expect("the metadata has packages");
    list.iter()
        .map(|package| Package {
            name: text(package, "name").unwrap_or_default(),
            version: text(package, "version").unwrap_or_default(),
            licence: text(package, "license").unwrap_or_default(),
            source: text(package, "source"),
        })
        .collect()
}

#[test]
fn the_repository_depends_only_on_what_is_allowed() {
    let text = std::fs::read_to_string(root().join("deny.toml")).unwrap_or_default();
    let rules = rules(&text);
    assert!(rules.licences.contains("MIT") && rules.banned.contains("openssl-sys"), "deny.toml is read");
    let packages = packages();
    assert!(packages.iter().any(|package| package.name == "tokio" && package.source.is_some()));
    assert_eq!(violations(&rules, &packages), Vec::<String>::new());
}

#[test]
fn what_is_not_allowed_is_found() {
    let rules = rules(
        "[licenses]\nallow = [\"MIT\", \"ISC\"]\nexceptions = [\n    { crate = \"odd\", allow = [\"MPL-2.0\"] },\n]\n\
         [[bans.deny]]\ncrate = \"bad\"\nreason = \"x\"\n",
    );
    let package = |name: &str, version: &str, licence: &str, source: Option<&str>| Package {
        name: name.into(),
        version: version.into(),
        licence: licence.into(),
        source: source.map(str::to_owned),
    };
    let wrong = [
        package("free", "1.0.0", "GPL-3.0", Some(REGISTRY)),
        package("both", "1.0.0", "MIT AND GPL-3.0", Some(REGISTRY)),
        package("bad", "1.0.0", "MIT", Some(REGISTRY)),
        package("far", "1.0.0", "MIT", Some("git+https://example.org/far")),
        package("none", "1.0.0", "", Some(REGISTRY)),
        package("two", "1.0.0", "MIT", Some(REGISTRY)),
        package("two", "2.0.0", "MIT", Some(REGISTRY)),
    ];
    assert_eq!(violations(&rules, &wrong).len(), 6);
    let right = [
        package("odd", "1.0.0", "MPL-2.0", Some(REGISTRY)),
        package("choice", "1.0.0", "GPL-3.0 OR MIT", Some(REGISTRY)),
        package("nested", "1.0.0", "(GPL-3.0 OR MIT) AND ISC", Some(REGISTRY)),
        package("old", "1.0.0", "GPL-3.0/MIT", Some(REGISTRY)),
        package("syn", "1.0.0", "MIT", Some(REGISTRY)),
        package("syn", "2.0.0", "MIT", Some(REGISTRY)),
        package("ours", "1.0.0", "", None),
    ];
    assert_eq!(violations(&rules, &right), Vec::<String>::new());
}
