//! Where `unsafe` may be, and how often it is there.
//!
//! [`ALLOWED`] records the most uses of each place. Raising one is a reviewed change: the commit says why.

use crate::source::{code_only, files};

/// A place that may use `unsafe`.
struct Place {
    /// How its paths begin.
    path: &'static str,
    /// What it needs `unsafe` for.
    #[allow(dead_code, reason = "for the reader")]
    why: &'static str,
    /// The most uses it may have.
    most: usize,
}

const ALLOWED: &[Place] = &[
    Place { path: "crates/memory/", why: "mappings and slots", most: 45 },
    Place { path: "crates/nvme/src/io/uring.rs", why: "telling the kernel addresses", most: 1 },
    Place { path: "crates/rdma/", why: "a NIC moves memory by address", most: 70 },
    Place { path: "crates/shm/", why: "memory of and for another process", most: 17 },
    Place { path: "client/src/raw.rs", why: "the caller's raw memory", most: 30 },
    Place { path: "client/src/rdma/memory.rs", why: "memory that a NIC reaches by address", most: 14 },
    Place { path: "server/src/data/movers/rdma/nics.rs", why: "a NIC reaches the arena by address", most: 2 },
    Place { path: "server/src/data/movers/rdma/queue.rs", why: "work names memory by address", most: 2 },
    Place { path: "sim/src/sealed.rs", why: "functions of the C library, with addresses", most: 12 },
    Place { path: "sglang-plugin/src/raw.rs", why: "host pools by address", most: 3 },
];

/// Uses of `unsafe`: blocks, functions, traits and their implementations.
fn count(text: &str) -> usize {
    let code = code_only(text);
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    code.split(|c: char| !is_word(c)).filter(|word| *word == "unsafe").count()
}

/// Tests and the load generator call unsafe functions to try them, under the same lints.
fn is_trial(path: &str) -> bool {
    path.starts_with("bench/")
        || path.split('/').any(|part| part == "tests" || part == "examples" || part == "benches")
}

/// What is wrong with these uses: pairs of a path and a number.
fn violations(uses: &[(String, usize)]) -> Vec<String> {
    let place_of = |path: &str| ALLOWED.iter().find(|place| path.starts_with(place.path));
    let mut found: Vec<String> = uses
        .iter()
        .filter(|(path, _)| !is_trial(path) && place_of(path).is_none())
        .map(|(path, uses)| format!("{path} has {uses} uses of unsafe and may have none"))
        .collect();
    for place in ALLOWED {
        let own = uses.iter().filter(|(path, _)| !is_trial(path) && path.starts_with(place.path));
        let total: usize = own.map(|(_, uses)| uses).sum();
        if total > place.most {
            found.push(format!("{} has {total} uses of unsafe; {} are recorded", place.path, place.most));
        }
    }
    found
}

#[test]
fn the_repository_uses_unsafe_only_where_and_as_often_as_recorded() {
    let uses = files(&["rs"]).into_iter().map(|file| (file.path, count(&file.text)));
    let uses: Vec<_> = uses.filter(|(_, uses)| *uses > 0).collect();
    assert_eq!(violations(&uses), Vec::<String>::new(), "see ALLOWED in tests/tidy/unsafety.rs");
}

#[test]
fn a_new_place_and_a_higher_number_are_found() {
    let uses = |path: &str, uses| vec![(path.to_owned(), uses)];
    assert_eq!(violations(&uses("server/src/app.rs", 1)).len(), 1);
    assert_eq!(violations(&uses("client/src/raw.rs", 1000)).len(), 1);
    assert!(violations(&uses("client/src/raw.rs", 1)).is_empty());
    assert!(violations(&uses("client/tests/raw.rs", 5)).is_empty());
}

#[test]
fn only_code_counts() {
    let text = "// unsafe\n#![forbid(unsafe_code)]\nlet a = \"unsafe\"; unsafe { f() }\nunsafe fn g() {}";
    assert_eq!(count(text), 2);
}
