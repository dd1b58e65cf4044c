//! Patterns of spaces.

use memkv_core::SpaceDescription;
use std::fmt;

/// Which spaces: `llama-*` for a name, or `model=meta/*` for another field. A `*` stands for any text. A space without
/// a field `name` goes by its `model`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(String);

impl Pattern {
    /// A pattern of this text.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// Whether a space fits.
    #[must_use]
    pub fn fits(&self, space: &SpaceDescription) -> bool {
        let field = |wanted: &str| space.fields().find(|(name, _)| *name == wanted).map(|(_, value)| value);
        match self.0.split_once('=') {
            Some((name, pattern)) => field(name).is_some_and(|value| fits(pattern, value)),
            None => fits(&self.0, field("name").or_else(|| field("model")).unwrap_or_default()),
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether a text is what a pattern says: the pieces between the stars, in order, the first and the last at the ends.
fn fits(pattern: &str, text: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(mut text) = text.strip_prefix(first) else { return false };
    let (middle, last) = rest.rsplit_once('*').unwrap_or(("", rest));
    for piece in middle.split('*') {
        match text.find(piece) {
            Some(at) => text = &text[at + piece.len()..],
            None => return false,
        }
    }
    text.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_stand_for_any_text() {
        for (pattern, text) in [
            ("*", ""),
            ("*", "a"),
            ("a*", "a"),
            ("a*", "abc"),
            ("*c", "abc"),
            ("a*c", "ac"),
            ("a*b*c", "a1b2c"),
            ("", ""),
        ] {
            assert!(fits(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in
            [("a", "ab"), ("a*", "ba"), ("*c", "cb"), ("a*a", "a"), ("a*b*c", "acb"), ("", "a"), ("**x", "a")]
        {
            assert!(!fits(pattern, text), "{pattern} {text}");
        }
    }

    #[test]
    fn a_space_goes_by_its_name_its_model_or_a_field() {
        let space = |fields: &[(&str, &str)]| {
            SpaceDescription::new(fields.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned()))).unwrap()
        };
        let named = space(&[("name", "llama-3"), ("model", "other")]);
        assert!(Pattern::new("llama-*").fits(&named) && !Pattern::new("other").fits(&named));
        let model = space(&[("model", "meta/llama"), ("tp_rank", "1")]);
        assert!(Pattern::new("meta/*").fits(&model) && Pattern::new("tp_rank=1").fits(&model));
        assert!(!Pattern::new("tp_rank=2").fits(&model) && !Pattern::new("dtype=*").fits(&model));
    }
}
