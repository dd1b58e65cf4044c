//! Small files and small functions.

use crate::source::{code_only, files};

/// The most lines of a file of code.
const FILE_LINES_MAX: usize = 600;
/// The most lines of a function, from its `fn` to its closing brace; 70 is the aim.
const FUNCTION_LINES_MAX: usize = 100;

/// The functions of a Rust source that are too long: name and lines.
fn long_functions(text: &str, limit: usize) -> Vec<(String, usize)> {
    let code = code_only(text);
    let bytes = code.as_bytes();
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(next) = code[at..].find("fn ") {
        let start = at + next;
        at = start + 3;
        let before = start.checked_sub(1).map(|i| bytes[i]);
        if before.is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'#') {
            continue;
        }
        let name: String = code[at..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        if let Some(end) = body_end(&code[at..]) {
            let lines = code[start..at + end].matches('\n').count() + 1;
            if !name.is_empty() && lines > limit {
                found.push((name, lines));
            }
        }
    }
    found
}

/// Where the body of the function whose signature begins here ends; `None` if it has no body.
fn body_end(code: &str) -> Option<usize> {
    let mut nesting = 0_usize;
    let mut depth = 0_usize;
    for (at, byte) in code.bytes().enumerate() {
        match byte {
            b'(' | b'[' if depth == 0 => nesting += 1,
            b')' | b']' if depth == 0 => nesting = nesting.saturating_sub(1),
            b';' if depth == 0 && nesting == 0 => return None,
            b'{' => depth += 1,
            b'}' => {
                depth = depth.checked_sub(1)?;
                if depth == 0 && nesting == 0 {
                    return Some(at);
                }
            }
            _ => {}
        }
    }
    None
}

#[test]
fn the_repository_has_no_file_that_is_too_long() {
    let long: Vec<String> = files(&["rs", "py", "pyi", "proto"])
        .iter()
        .map(|file| (file, file.text.lines().count()))
        .filter(|(_, lines)| *lines > FILE_LINES_MAX)
        .map(|(file, lines)| format!("{} has {lines} lines; the most is {FILE_LINES_MAX}", file.path))
        .collect();
    assert_eq!(long, Vec::<String>::new());
}

#[test]
fn the_repository_has_no_function_that_is_too_long() {
    let mut long = Vec::new();
    for file in files(&["rs"]) {
        for (name, lines) in long_functions(&file.text, FUNCTION_LINES_MAX) {
            long.push(format!(
                "{}: fn {name} has {lines} lines; the most is {FUNCTION_LINES_MAX}",
                file.path
            ));
        }
    }
    assert_eq!(long, Vec::<String>::new());
}

#[test]
fn functions_are_measured_from_signature_to_closing_brace() {
    let text = "
trait T { fn declared(&self); }
fn short() -> [u8; 2] { [1, 2] }
pub fn long(
    x: fn(u8) -> u8,
) {
    // }
    let text = \"}\";
    if true {
        x(1);
    }
}
";
    assert_eq!(long_functions(text, 1), [("long".to_owned(), 9)]);
    assert!(long_functions(text, 9).is_empty());
}
