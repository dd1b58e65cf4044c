//! Which crate may depend on which. The table is the architecture; an arrow that is not in it is refused.

use crate::source::root;
use std::collections::BTreeMap;
use std::process::Command;

/// A crate, and the crates of ours that it may depend on, also for its build. Its tests may use what is in
/// [`FOR_TESTS`] as well.
const ALLOWED: &[(&str, &[&str])] = &[
    ("memkv-core", &[]),
    ("memkv-codec", &["memkv-core"]),
    ("memkv-radix", &["memkv-core"]),
    ("memkv-eviction", &["memkv-core"]),
    ("memkv-rdma", &[]),
    ("memkv-discovery", &["memkv-core", "memkv-tls"]),
    ("memkv-tls", &[]),
    ("memkv-credentials", &["memkv-core", "memkv-transport"]),
    ("memkv-memory", &["memkv-core"]),
    ("memkv-shm", &[]),
    ("memkv-nvme", &["memkv-core", "memkv-memory"]),
    ("memkv-proto", &["memkv-core"]),
    ("memkv-transport", &["memkv-core", "memkv-memory"]),
    ("memkv-storage", &["memkv-core", "memkv-eviction", "memkv-memory", "memkv-nvme"]),
    (
        "memkv-server",
        &[
            "memkv-core",
            "memkv-proto",
            "memkv-memory",
            "memkv-rdma",
            "memkv-shm",
            "memkv-tls",
            "memkv-discovery",
            "memkv-credentials",
            "memkv-transport",
            "memkv-storage",
        ],
    ),
    (
        "memkv-client",
        &[
            "memkv-core",
            "memkv-discovery",
            "memkv-proto",
            "memkv-memory",
            "memkv-rdma",
            "memkv-shm",
            "memkv-tls",
            "memkv-transport",
        ],
    ),
    (
        "memkv-cli",
        &[
            "memkv-client",
            "memkv-proto",
            "memkv-core",
            "memkv-codec",
            "memkv-credentials",
            "memkv-transport",
            "memkv-discovery",
            "memkv-rdma",
            "memkv-tls",
        ],
    ),
    (
        "memkv-bench",
        &[
            "memkv-client",
            "memkv-proto",
            "memkv-core",
            "memkv-codec",
            "memkv-eviction",
            "memkv-memory",
            "memkv-storage",
            "memkv-transport",
        ],
    ),
    ("memkv-offload", &["memkv-client", "memkv-radix", "memkv-core", "memkv-codec"]),
    ("memkv-sglang", &["memkv-client", "memkv-core", "memkv-codec", "memkv-radix"]),
    ("memkv-tiny-engine", &["memkv-client", "memkv-core", "memkv-offload", "memkv-radix"]),
    (
        "memkv-sim",
        &[
            "memkv-client",
            "memkv-core",
            "memkv-discovery",
            "memkv-memory",
            "memkv-proto",
            "memkv-server",
            "memkv-storage",
            "memkv-transport",
        ],
    ),
    (
        "memkv-fuzz",
        &[
            "memkv-client",
            "memkv-core",
            "memkv-credentials",
            "memkv-discovery",
            "memkv-eviction",
            "memkv-nvme",
            "memkv-proto",
            "memkv-server",
            "memkv-storage",
            "memkv-transport",
        ],
    ),
    ("xtask", &[]),
];

/// May depend on everything, and nothing depends on it.
const TOP: &str = "memkv-tests";

/// What the tests of any crate may use besides: nothing yet.
const FOR_TESTS: &[&str] = &[];

/// What `core` must not depend on, whoever it comes from: it has no files, sockets, runtime or clock.
const NOT_IN_CORE: &[&str] = &["tokio", "mio", "socket2", "rustix", "libc", "tonic"];

/// One arrow: from a crate to another, and whether only for tests.
struct Arrow {
    from: String,
    to: String,
    dev: bool,
}

/// All arrows from our crates, also to other people's.
fn read_arrows() -> Vec<Arrow> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("cargo metadata is JSON");
    let mut arrows = Vec::new();
    for package in metadata["packages"].as_array().expect("metadata has packages") {
        for dependency in package["dependencies"].as_array().expect("a package has dependencies") {
            arrows.push(Arrow {
                from: package["name"].as_str().expect("a package has a name").to_owned(),
                to: dependency["name"].as_str().expect("a dependency has a name").to_owned(),
                dev: dependency["kind"].as_str() == Some("dev"),
            });
        }
    }
    arrows
}

fn violations(arrows: &[Arrow]) -> Vec<String> {
    let table: BTreeMap<&str, &[&str]> = ALLOWED.iter().copied().collect();
    let mut found = Vec::new();
    for Arrow { from, to, dev } in arrows {
        let ours = to.starts_with("memkv-") || to == "xtask";
        if from == TOP {
            continue;
        }
        match table.get(from.as_str()) {
            None => found.push(format!("{from} is not in the table of tests/tidy/arrows.rs")),
            Some(allowed) if ours => {
                let fits = allowed.contains(&to.as_str()) || (*dev && FOR_TESTS.contains(&to.as_str()));
                if !fits {
                    found.push(format!("{from} must not depend on {to}"));
                }
            }
            Some(_) if from == "memkv-core" && !dev && NOT_IN_CORE.contains(&to.as_str()) => {
                found.push(format!("memkv-core must not depend on {to}"));
            }
            Some(_) => {}
        }
    }
    found.sort();
    found.dedup();
    found
}

#[test]
fn the_repository_has_no_other_arrows() {
    let arrows = read_arrows();
    assert!(arrows.iter().any(|arrow| arrow.from == "memkv-proto" && arrow.to == "memkv-core"));
    assert_eq!(violations(&arrows), Vec::<String>::new());
}

#[test]
fn a_wrong_arrow_is_found() {
    let arrow = |from: &str, to: &str, dev| Arrow { from: from.into(), to: to.into(), dev };
    let wrong = [
        arrow("memkv-server", "memkv-client", false),
        arrow("memkv-client", "memkv-server", true),
        arrow("memkv-core", "tokio", false),
        arrow("memkv-new", "serde", false),
        arrow("memkv-client", "memkv-tests", true),
    ];
    assert_eq!(violations(&wrong).len(), wrong.len());
    let right = [
        arrow("memkv-server", "memkv-storage", false),
        arrow("memkv-tests", "memkv-server", false),
        arrow("memkv-core", "proptest", true),
    ];
    assert_eq!(violations(&right), Vec::<String>::new());
}
