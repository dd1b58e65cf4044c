//! `docs/routing-vectors.txt`: written by this code, read by a second implementation.

use memkv_core::page::key_digest;
use memkv_core::route::{Node, order};
use memkv_core::{Key, SpaceId};
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

/// Clusters, by name: ids of different lengths, equal and different weights, nodes without weight.
const CLUSTERS: &[(&str, &[(&str, u32)])] = &[
    ("one", &[("10.0.0.5:9900", 100)]),
    ("three", &[("a", 100), ("b", 100), ("c", 100)]),
    ("weights", &[("node-a", 100), ("node-b", 50), ("node-c", 200), ("off", 0), ("node-d", 1)]),
    (
        "long",
        &[
            ("memkv-0.memkv.inference.svc.cluster.local:9900", 100),
            ("memkv-1.memkv.inference.svc.cluster.local:9900", 100),
            ("memkv-2.memkv.inference.svc.cluster.local:9900", 100),
            ("memkv-3.memkv.inference.svc.cluster.local:9900", 100),
            ("rack-7/slot-3", 400),
        ],
    ),
];
/// Lengths of keys: with the 16 bytes of a space, each way that XXH3 takes.
const LENGTHS: [usize; 12] = [1, 2, 8, 16, 32, 64, 112, 113, 200, 224, 225, 512];

fn vectors() -> String {
    let mut text = String::from(
        "# Examples for docs/routing.md. `nodes NAME ID*WEIGHT ...`, then `route`: which cluster, space and key in hex,\n\
         # their digest, the order of the nodes with weight, and the score of the first one.\n",
    );
    for (name, nodes) in CLUSTERS {
        let nodes: Vec<String> = nodes.iter().map(|(id, weight)| format!("{id}*{weight}")).collect();
        writeln!(text, "nodes {name} {}", nodes.join(" ")).unwrap();
    }
    for (name, nodes) in CLUSTERS {
        let nodes: Vec<Node> = nodes.iter().map(|&(id, weight)| Node::new(id, weight)).collect();
        for (i, length) in (0_u8..).zip(LENGTHS) {
            let space = SpaceId(std::array::from_fn(|at| i.wrapping_mul(29).wrapping_add(at as u8)));
            let key: Vec<u8> = (0..length).map(|at| (at * 7 + usize::from(i)) as u8).collect();
            let digest = key_digest(space, Key::new(&key).unwrap());
            let ranked = order(&nodes, digest);
            let ids: Vec<&str> = ranked.iter().map(|&node| nodes[node].id.as_str()).collect();
            let score = nodes[ranked[0]].score(digest);
            let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
            let (space, key, ids) = (hex(&space.0), hex(&key), ids.join(","));
            writeln!(
                text,
                "route nodes={name} space={space} key={key} digest={digest:016x} order={ids} score={score:.9e}"
            )
            .unwrap();
        }
    }
    text
}

#[test]
fn the_written_vectors_are_right() {
    let path = Path::new(ROOT).join("docs/routing-vectors.txt");
    let expected = vectors();
    if std::env::var_os("MEMKV_WRITE_VECTORS").is_some() {
        std::fs::write(&path, &expected).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == expected,
        "docs/routing-vectors.txt must be as routing is; MEMKV_WRITE_VECTORS=1 writes it"
    );
}

#[test]
fn another_language_routes_alike() {
    let python = Command::new("python3").arg("--version").output();
    if !python.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: there is no python3");
        return;
    }
    let output = Command::new("python3")
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/routing/route.py"))
        .arg(Path::new(ROOT).join("docs/routing-vectors.txt"))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let expected = format!("{} vectors agree", CLUSTERS.len() * LENGTHS.len());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(text.trim(), expected);
}
