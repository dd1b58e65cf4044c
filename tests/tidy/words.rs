//! Words that must not stay in the tree: promises of later work, and paths of somebody's machine.

use crate::source::files;

/// Put together from pieces, so that this file does not contain them.
fn forbidden() -> Vec<(String, &'static str)> {
    vec![
        (["TO", "DO"].concat(), "do it, or open an issue"),
        (["FIX", "ME"].concat(), "fix it, or open an issue"),
        (["unimplemented", "!"].concat(), "implement it, or refuse it with an error"),
        (["to", "do!("].concat(), "implement it, or refuse it with an error"),
        (["#[", "ignore"].concat(), "a test runs, or says at run time why it cannot"),
        (["/ho", "me/"].concat(), "use a path that any machine has"),
        (["/ro", "ot/"].concat(), "use a path that any machine has"),
        (["/Us", "ers/"].concat(), "use a path that any machine has"),
    ]
}

fn found(path: &str, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        for (word, instead) in forbidden() {
            if contains_word(line, &word) {
                found.push(format!("{path}:{}: {word}: {instead}", number + 1));
            }
        }
    }
    found
}

/// Whether `word` is there and does not go on as part of a longer name.
fn contains_word(line: &str, word: &str) -> bool {
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    let starts_as_name = word.starts_with(is_name);
    let ends_as_name = word.ends_with(is_name);
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back().is_some_and(is_name);
        let after = line[at + word.len()..].chars().next().is_some_and(is_name);
        !(starts_as_name && before || ends_as_name && after)
    })
}

#[test]
fn the_repository_has_none_of_the_words() {
    let kinds = ["rs", "py", "pyi", "proto", "md", "toml", "yaml", "yml", "txt", "service", "json", "sh"];
    let all: Vec<String> = files(&kinds).iter().flat_map(|file| found(&file.path, &file.text)).collect();
    assert_eq!(all, Vec::<String>::new());
}

#[test]
fn words_are_found_whole() {
    let word = ["TO", "DO"].concat();
    assert_eq!(found("x", &format!("a\n// {word}: later")).len(), 1);
    assert!(found("x", &format!("let {word}S = 1; autoload")).is_empty());
    assert_eq!(found("x", &["path = \"/ho", "me/me\""].concat()).len(), 1);
}
