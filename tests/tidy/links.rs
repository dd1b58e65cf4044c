//! Documents point only at what exists.

use crate::source::{files, root};
use std::path::Path;

/// The targets of `[text](target)` outside code, as they are written.
fn targets(markdown: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut inside_code = false;
    for line in markdown.lines() {
        if line.trim_start().starts_with("```") {
            inside_code = !inside_code;
        }
        if inside_code {
            continue;
        }
        // Every second piece is inside backquotes.
        for piece in line.split('`').step_by(2) {
            found.extend(piece.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(to, _)| to));
        }
    }
    found
}

/// Why a link from the file at `from` leads nowhere.
fn broken(from: &str, target: &str, exists: &dyn Fn(&Path) -> bool) -> Option<String> {
    let outside = ["http://", "https://", "mailto:"].iter().any(|scheme| target.starts_with(scheme));
    let path = target.split('#').next().unwrap_or(target);
    if outside || path.is_empty() {
        return None;
    }
    let directory = Path::new(from).parent().unwrap_or(Path::new(""));
    (!exists(&directory.join(path))).then(|| format!("{from} points at {target}, which does not exist"))
}

#[test]
fn the_repository_has_no_broken_link() {
    let exists = |path: &Path| root().join(path).exists();
    let mut all = Vec::new();
    for file in files(&["md"]) {
        all.extend(targets(&file.text).into_iter().filter_map(|target| broken(&file.path, target, &exists)));
    }
    assert_eq!(all, Vec::<String>::new());
}

#[test]
fn links_are_found_outside_code_and_checked_from_their_file() {
    let text =
        "See [a](x.md#part) and `[no](n.md)`.\n```\n[no](n.md)\n```\n[b](../y.md) [c](https://a.example)";
    assert_eq!(targets(text), ["x.md#part", "../y.md", "https://a.example"]);
    let exists = |path: &Path| path == Path::new("docs/x.md");
    assert_eq!(broken("docs/a.md", "x.md#part", &exists), None);
    assert_eq!(broken("docs/a.md", "#part", &exists), None);
    assert_eq!(broken("docs/a.md", "https://a.example", &exists), None);
    assert!(broken("docs/a.md", "y.md", &exists).is_some());
}
