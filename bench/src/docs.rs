//! Writes what was measured into documents, between markers; what is outside of them stays.

use anyhow::{Context as _, ensure};
use std::path::Path;

/// Puts `text` between the markers of `name` in a Markdown file.
///
/// # Errors
///
/// If the file lacks the markers or cannot be read or written.
pub(crate) fn write_between(path: &Path, name: &str, text: &str) -> anyhow::Result<()> {
    let old = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let new = replace(&old, name, text).with_context(|| format!("change {}", path.display()))?;
    std::fs::write(path, new).with_context(|| format!("write {}", path.display()))
}

fn replace(old: &str, name: &str, text: &str) -> anyhow::Result<String> {
    let [begin, end] = ["begin", "end"].map(|what| format!("<!-- memkv-bench {name}: {what} -->"));
    let from = old.find(&begin).with_context(|| format!("it has no line {begin}"))? + begin.len();
    let to = old.find(&end).with_context(|| format!("it has no line {end}"))?;
    ensure!(from <= to, "{end} is before {begin}");
    Ok(format!("{}\n{}\n{}", &old[..from], text.trim(), &old[to..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_between_the_markers_changes() {
        let old = "a\n<!-- memkv-bench x: begin -->\nold\n<!-- memkv-bench x: end -->\nb\n";
        let new = "a\n<!-- memkv-bench x: begin -->\nnew\n<!-- memkv-bench x: end -->\nb\n";
        assert_eq!(replace(old, "x", "new\n").unwrap(), new);
        assert_eq!(replace(new, "x", "new").unwrap(), new);
        assert!(replace(old, "y", "new").is_err());
        let turned = "<!-- memkv-bench x: end --><!-- memkv-bench x: begin -->";
        assert!(replace(turned, "x", "new").is_err());
    }
}
