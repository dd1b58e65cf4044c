//! Every statement of the security page and of the protocol's threat model names tests, and they exist.

use memkv_tests::program::workspace;
use std::collections::HashSet;
use std::fs;
use std::path::Path;

/// Names of all test functions under a folder.
fn tests_of(folder: &Path, names: &mut HashSet<String>) {
    for entry in fs::read_dir(folder).unwrap().filter_map(Result::ok) {
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            tests_of(&path, names);
        } else if name.ends_with(".rs") {
            let text = fs::read_to_string(&path).unwrap();
            let lines: Vec<_> = text.lines().map(str::trim).collect();
            for pair in lines
                .windows(4)
                .filter(|lines| lines[0].starts_with("#[test]") || lines[0].starts_with("#[tokio::test"))
            {
                let function =
                    pair.iter().find_map(|line| line.strip_prefix("async fn ").or(line.strip_prefix("fn ")));
                names.extend(function.and_then(|rest| rest.split('(').next()).map(str::to_owned));
            }
        }
    }
}

/// The rows of the tables whose last column is headed "Proved by": what they say, and the tests that they name.
fn rows(text: &str) -> Vec<(String, Vec<String>)> {
    let mut rows = Vec::new();
    let mut inside = false;
    for line in text.lines() {
        let cells: Vec<_> = line.trim().trim_matches('|').split('|').map(str::trim).collect();
        if !line.starts_with('|') {
            inside = false;
        } else if cells.last() == Some(&"Proved by") {
            inside = true;
        } else if inside && !cells[0].starts_with("---") {
            let named = cells.last().unwrap_or(&"").split('`').skip(1).step_by(2).map(str::to_owned);
            rows.push((cells[0].to_owned(), named.collect()));
        }
    }
    rows
}

#[test]
fn every_statement_names_tests_that_exist() {
    let mut tests = HashSet::new();
    for folder in ["tests", "crates", "server", "client", "cli"] {
        tests_of(&workspace().join(folder), &mut tests);
    }
    for document in ["docs/security.md", "docs/protocol.md"] {
        let rows = rows(&fs::read_to_string(workspace().join(document)).unwrap());
        assert!(rows.len() >= 8, "{document} has only {} statements", rows.len());
        for (statement, named) in rows {
            assert!(!named.is_empty(), "{document}: nothing proves {statement:?}");
            let absent: Vec<_> = named.iter().filter(|name| !tests.contains(*name)).collect();
            assert!(
                absent.is_empty(),
                "{document}: {statement:?} names tests that are not there: {absent:?}"
            );
        }
    }
}

#[test]
fn a_statement_without_a_test_is_found() {
    let text = "| S | Proved by |\n|---|---|\n| one | `a`, `b` |\n| two | nothing |\n\n| x | y |\n|---|---|\n| z | z |\n";
    let rows = rows(text);
    assert_eq!(
        rows,
        [("one".to_owned(), vec!["a".to_owned(), "b".to_owned()]), ("two".to_owned(), Vec::new())]
    );
}
