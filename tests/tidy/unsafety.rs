//! Where `unsafe` may be, and how often it is there.
//!
//! `tests/tidy/unsafe_count.txt` records the number of each file. Raising one is a reviewed change: the commit
//! says why. `UPDATE_UNSAFE=1` writes the file again.

use crate::source::{code_only, files, root};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Places that may use `unsafe`, and why.
const ALLOWED: &[(&str, &str)] = &[
    ("crates/memory/", "mappings and slots"),
    ("crates/transport/src/rdma/", "verbs"),
    ("crates/transport/src/shm/", "shared memory"),
    ("crates/storage/src/io/uring", "submission and completion rings"),
    ("client/src/raw.rs", "the caller's raw memory"),
    ("sglang-plugin/src/raw.rs", "host pools by address"),
];

const RECORD: &str = "tests/tidy/unsafe_count.txt";

/// Uses of `unsafe`: blocks, functions, traits and their implementations.
fn count(text: &str) -> usize {
    let code = code_only(text);
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    code.split(|c: char| !is_word(c)).filter(|word| *word == "unsafe").count()
}

fn counted() -> BTreeMap<String, usize> {
    files(&["rs"])
        .into_iter()
        .map(|file| (file.path, count(&file.text)))
        .filter(|(_, uses)| *uses > 0)
        .collect()
}

/// Tests and examples call unsafe functions to try them, under the same lints.
fn is_allowed(path: &str) -> bool {
    let trial =
        ["tests/", "client/tests/", "client/examples/", "bench/"].iter().any(|at| path.starts_with(at));
    trial || ALLOWED.iter().any(|(place, _)| path.starts_with(place))
}

#[test]
fn the_repository_uses_unsafe_only_where_it_may() {
    let elsewhere: Vec<String> = counted().into_keys().filter(|path| !is_allowed(path)).collect();
    assert_eq!(elsewhere, Vec::<String>::new(), "move it to a place of ALLOWED in tests/tidy/unsafety.rs");
}

#[test]
fn the_repository_has_as_much_unsafe_as_is_recorded() {
    let mut text = String::new();
    for (path, uses) in counted() {
        writeln!(text, "{uses:4} {path}").expect("a String takes all");
    }
    let record = root().join(RECORD);
    if std::env::var_os("UPDATE_UNSAFE").is_some() {
        std::fs::write(&record, &text).expect("the record can be written");
    }
    let recorded = std::fs::read_to_string(&record).unwrap_or_default();
    assert_eq!(
        text, recorded,
        "the uses of unsafe differ from {RECORD}; if that is right, run UPDATE_UNSAFE=1 cargo test -p memkv-tests \
         --test tidy, and say why in the commit"
    );
}

#[test]
fn only_code_counts() {
    let text = "// unsafe\n#![forbid(unsafe_code)]\nlet a = \"unsafe\"; unsafe { f() }\nunsafe fn g() {}";
    assert_eq!(count(text), 2);
    assert!(!is_allowed("server/src/app.rs"));
    assert!(is_allowed("client/src/raw.rs") && !is_allowed("client/src/client.rs"));
}
