//! The files of the repository, and Rust source without comments and texts.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The repository.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ is inside the repository").to_owned()
}

/// One file: its path from the root, and its text.
pub(crate) struct Source {
    pub(crate) path: String,
    pub(crate) text: String,
}

/// All text files that git knows or would add, in order.
pub(crate) fn files(extensions: &[&str]) -> Vec<Source> {
    let listed = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard", "-z"])
        .current_dir(root())
        .output()
        .expect("git lists the files of the repository");
    assert!(listed.status.success(), "git ls-files failed; the tidy tests need a git checkout");
    let text = String::from_utf8(listed.stdout).expect("paths in the repository are UTF-8");
    let mut paths: Vec<&str> = text.split('\0').filter(|path| !path.is_empty()).collect();
    paths.sort_unstable();
    paths.dedup();
    let wanted = |path: &&str| {
        let name = path.rsplit('/').next().unwrap_or(path);
        extensions.iter().any(|wanted| name.rsplit_once('.').is_some_and(|(_, has)| has == *wanted))
    };
    // A file that is deleted but not yet committed is listed and gone.
    let read = |path: &str| {
        let text = std::fs::read_to_string(root().join(path)).ok()?;
        Some(Source { path: path.to_owned(), text })
    };
    let found: Vec<Source> = paths.into_iter().filter(wanted).filter_map(read).collect();
    assert!(!found.is_empty(), "no file ends with {extensions:?}");
    found
}

/// Rust source with comments, texts and characters blanked, line breaks kept.
pub(crate) fn code_only(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = at + length_of_no_code(&text[at..], at > 0 && is_word(bytes[at - 1]));
        if end > at {
            out[at..end].iter_mut().filter(|byte| **byte != b'\n').for_each(|byte| *byte = b' ');
            at = end;
        } else {
            at += text[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// How many bytes at the beginning of `rest` are a comment, a text or a character; 0 if it begins with code.
fn length_of_no_code(rest: &str, inside_word: bool) -> usize {
    if rest.starts_with("//") {
        return rest.find('\n').unwrap_or(rest.len());
    }
    if rest.starts_with("/*") {
        return block_comment(rest);
    }
    if rest.starts_with('"') {
        return quoted(rest, '"');
    }
    if rest.starts_with('\'') {
        return character(rest);
    }
    if !inside_word && let Some(length) = raw_text(rest) {
        return length;
    }
    0
}

fn block_comment(rest: &str) -> usize {
    let bytes = rest.as_bytes();
    let (mut at, mut depth) = (2, 1);
    while depth > 0 && at < bytes.len() {
        match bytes.get(at..at + 2) {
            Some(b"/*") => (at, depth) = (at + 2, depth + 1),
            Some(b"*/") => (at, depth) = (at + 2, depth - 1),
            _ => at += 1,
        }
    }
    at.min(rest.len())
}

fn quoted(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        if !escaped && c == quote {
            return at + 1;
        }
        escaped = !escaped && c == '\\';
    }
    rest.len()
}

/// A character, or 0 for a lifetime.
fn character(rest: &str) -> usize {
    let mut chars = rest[1..].chars();
    let first = chars.next();
    if first == Some('\\') || chars.next() == Some('\'') { quoted(rest, '\'') } else { 0 }
}

/// `r"…"`, `r#"…"#`, `br#"…"#`.
fn raw_text(rest: &str) -> Option<usize> {
    let prefix = ["r", "br", "cr"].into_iter().find(|prefix| {
        rest.strip_prefix(prefix).is_some_and(|after| after.starts_with('"') || after.starts_with("#"))
    })?;
    let after = &rest[prefix.len()..];
    let hashes = after.len() - after.trim_start_matches('#').len();
    let body = after[hashes..].strip_prefix('"')?;
    let close = format!("\"{}", "#".repeat(hashes));
    let end = body.find(&close)?;
    Some(prefix.len() + hashes + 1 + end + close.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_texts_are_blanked_and_code_stays() {
        let cases = [
            ("a // unsafe\nb", "a \nb"),
            ("a /* x /* y */ unsafe */ b", "a b"),
            (r#"f("un\"safe{") + 1"#, "f( ) + 1"),
            (r###"g(r#"{"}"#)"###, "g( )"),
            ("match c { '{' => 1, '\\'' => 2 }", "match c { => 1, => 2 }"),
            ("fn f<'a>(x: &'a str)", "fn f<'a>(x: &'a str)"),
            ("r#type + bar\"x\"", "r#type + bar "),
        ];
        for (text, expected) in cases {
            let code = code_only(text);
            assert_eq!(code.len(), text.len(), "{text}");
            let squeezed: String = code.split_inclusive(' ').filter(|piece| *piece != " ").collect();
            assert_eq!(squeezed, expected, "{text}");
        }
    }
}
