//! Hooks for faults and for the fuzzer: what opens them is not in what is shipped.
//!
//! - A variable `MEMKV_TEST_…` is read only where debug assertions are compiled in, and no profile for releases has them.
//! - The features [`HOOKS`] are in none of the packages that are shipped, however far down. Cargo itself says which are.

use crate::source::{code_only, files, root};
use std::process::Command;

/// Features that open hooks.
const HOOKS: [&str; 4] = ["testing", "fuzzing", "sim", "measure"];
/// What is shipped, with the features it is shipped with.
const SHIPPED: [(&str, &str); 4] = [
    ("memkv-server", "rdma"),
    ("memkv-client", "rdma"),
    ("memkv-cli", "rdma"),
    ("memkv-sglang", "extension-module,rdma"),
];
/// Profiles whose builds have hooks: for tests and for the fuzzer.
const WITH_ASSERTIONS: [&str; 3] = ["dev", "fuzz", "sim"];

/// Whether a file is part of what is shipped.
fn is_shipped(path: &str) -> bool {
    let top = [
        "server/src/",
        "client/src/",
        "cli/src/",
        "proto/src/",
        "sglang-plugin/src/",
        "sglang-plugin/python/",
    ];
    let is_crate = path.starts_with("crates/") && path.contains("/src/");
    let is_test =
        path.split('/').any(|part| part == "tests" || part == "tests.rs") || path.ends_with("_tests.rs");
    (is_crate || top.iter().any(|top| path.starts_with(top))) && !is_test
}

/// Lines that read a variable for tests outside of what only builds for tests have.
fn open_variables(text: &str) -> Vec<usize> {
    // Texts are blanked in the code, so that the place is looked up in the file and the functions in its code.
    let code = code_only(text);
    let (code, lines): (Vec<&str>, Vec<&str>) = (code.lines().collect(), text.lines().collect());
    let mut found = Vec::new();
    for (number, line) in lines.iter().enumerate() {
        if !line.contains("\"MEMKV_TEST_") {
            continue;
        }
        let function =
            (0..=number).rev().find(|&at| code[at].trim_start().split(' ').any(|word| word == "fn"));
        let guarded = function.is_some_and(|at| {
            let attributes = lines[..at].iter().rev().take_while(|line| line.trim_start().starts_with("#["));
            attributes
                .into_iter()
                .any(|line| ["#[cfg(debug_assertions)]", "#[cfg(test)]"].contains(&line.trim()))
        });
        let in_tests = lines[..number].iter().any(|line| line.trim() == "#[cfg(test)]") && !guarded;
        if !guarded && !in_tests {
            found.push(number + 1);
        }
    }
    found
}

/// Profiles of the workspace that have debug assertions although they are none for tests.
fn profiles_with_assertions(manifest: &str) -> Vec<String> {
    let (mut profile, mut found) = (None, Vec::new());
    for line in manifest.lines().map(str::trim) {
        if let Some(section) = line.strip_prefix('[') {
            let name = section.trim_end_matches(']').strip_prefix("profile.");
            profile = name.map(|name| name.split('.').next().unwrap_or(name).to_owned());
        } else if line.starts_with("debug-assertions") && line.ends_with("true") {
            found.extend(profile.clone().filter(|name| !WITH_ASSERTIONS.contains(&name.as_str())));
        }
    }
    found
}

/// Hooks in what Cargo says would be built: lines of a package and its features.
fn hooks(tree: &str) -> Vec<String> {
    let ours = tree.lines().filter(|line| line.starts_with("memkv-"));
    let with_hooks = ours.filter_map(|line| {
        let (package, features) = line.split_once('|')?;
        let hooks: Vec<&str> =
            features.split(',').filter(|feature| HOOKS.contains(&feature.trim())).collect();
        (!hooks.is_empty()).then(|| format!("{} has {}", package.trim(), hooks.join(", ")))
    });
    with_hooks.collect()
}

#[test]
fn variables_for_tests_are_read_only_by_builds_for_tests() {
    let open = files(&["rs", "py"]).into_iter().filter(|file| is_shipped(&file.path));
    let open: Vec<String> = open
        .flat_map(|file| {
            open_variables(&file.text).into_iter().map(move |line| format!("{}:{line}", file.path))
        })
        .collect();
    assert_eq!(open, Vec::<String>::new());
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).expect("the workspace has a manifest");
    assert!(manifest.contains("debug-assertions = true"), "the fuzzer's profile has them");
    assert_eq!(profiles_with_assertions(&manifest), Vec::<String>::new());
}

#[test]
fn nothing_that_is_shipped_has_hooks() {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    for (package, features) in SHIPPED {
        let output = Command::new(&cargo)
            .args(["tree", "--package", package, "--features", features, "--edges", "normal,build"])
            .args(["--prefix", "none", "--format", "{p} | {f}", "--offline", "--locked"])
            .current_dir(root())
            .output()
            .expect("cargo is there, since it built this");
        assert!(output.status.success(), "cargo tree: {}", String::from_utf8_lossy(&output.stderr));
        let tree = String::from_utf8_lossy(&output.stdout);
        assert!(tree.contains("memkv-core"), "{package}: {tree}");
        assert_eq!(hooks(&tree), Vec::<String>::new(), "{package} is shipped with hooks");
    }
}

#[test]
fn open_hooks_are_found() {
    let open = "fn shift() -> i64 {\n    std::env::var(\"MEMKV_TEST_CLOCK\")\n}\n";
    assert_eq!(open_variables(open), [2]);
    assert!(open_variables(&format!("/// Docs.\n#[cfg(debug_assertions)]\n{open}")).is_empty());
    assert!(open_variables(&format!("#[cfg(test)]\nmod tests {{\n{open}}}\n")).is_empty());
    assert_eq!(profiles_with_assertions("[profile.daemon]\ndebug-assertions = true\n"), ["daemon"]);
    assert!(
        profiles_with_assertions("[profile.fuzz]\ndebug-assertions = true\n[profile.daemon]\n").is_empty()
    );
    let tree = "memkv-server v0.1.0 (/a) | rdma,fuzzing\nmemkv-nvme v0.1.0 (/b) | testing\ntokio v1 | sim\n";
    assert_eq!(hooks(tree).len(), 2);
    assert!(hooks("memkv-server v0.1.0 (/a) | rdma\nmemkv-core v0.1.0 | ").is_empty());
}
