//! Spaces and keys as people write them on a command line.

use crate::failure::{Code, Failure};
use crate::view::Space;
use memkv_core::{Key, SpaceDescription, SpaceId};
use std::collections::BTreeMap;

/// The fewest hex digits that may stand for a space.
const PREFIX_MIN: usize = 4;

/// A space argument, read but not yet looked up.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Selector {
    /// Beginning of an identity, lower-case hex; 32 digits are all of it.
    Hex(String),
    /// Fields, in whole or in part.
    Fields(SpaceDescription),
}

impl Selector {
    /// Reads `8dd34a66`, `name=default,tag=x`, or `default`, which is short for `name=default`.
    pub(crate) fn parse(text: &str) -> Result<Self, Failure> {
        if text.contains('=') {
            return Self::parse_fields(text);
        }
        let is_hex = text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if is_hex && (PREFIX_MIN..=32).contains(&text.len()) {
            return Ok(Self::Hex(text.to_ascii_lowercase()));
        }
        if text.is_empty() {
            return Err(Failure::new(Code::Usage, "the space is empty").hint(format!(
                "give a name, fields (model=llama,tp_rank=0), or {PREFIX_MIN} to 32 hex digits"
            )));
        }
        Self::parse_fields(&format!("name={text}"))
    }

    fn parse_fields(text: &str) -> Result<Self, Failure> {
        let mut fields = Vec::new();
        for part in text.split(',') {
            let Some((name, value)) = part.split_once('=') else {
                return Err(Failure::new(Code::Usage, format!("the space field {part:?} has no value"))
                    .hint("write fields as name=value, with commas between them"));
            };
            fields.push((name.trim().to_owned(), value.to_owned()));
        }
        SpaceDescription::new(fields).map(Self::Fields).map_err(|error| {
            Failure::new(Code::Usage, error.to_string()).hint("see `memkv-cli inspect spaces`")
        })
    }

    /// The identity, if the text alone says it all.
    pub(crate) fn exact_id(&self) -> Option<SpaceId> {
        match self {
            Self::Hex(digits) => SpaceId::from_hex(digits),
            Self::Fields(_) => None,
        }
    }

    /// Finds the one space that is meant.
    pub(crate) fn find<'a>(&self, spaces: &'a [Space]) -> Result<&'a Space, Failure> {
        let fitting: Vec<&Space> = match self {
            Self::Hex(digits) => {
                let by_id = |space: &&Space| space.space_id.starts_with(digits);
                let by_name = |space: &&Space| space.fields.get("name").is_some_and(|name| name == digits);
                let found: Vec<_> = spaces.iter().filter(by_id).collect();
                if found.is_empty() { spaces.iter().filter(by_name).collect() } else { found }
            }
            Self::Fields(wanted) => {
                let id = wanted.id().to_string();
                match spaces.iter().find(|space| space.space_id == id) {
                    Some(exact) => vec![exact],
                    None => spaces.iter().filter(|space| has_fields(&space.fields, wanted)).collect(),
                }
            }
        };
        match fitting.as_slice() {
            [space] => Ok(space),
            [] => Err(Failure::new(Code::Negative, "there is no such space")
                .hint("`memkv-cli inspect spaces` lists the spaces that the servers know")),
            several => {
                let ids: Vec<&str> = several.iter().take(4).map(|space| &space.space_id[..12]).collect();
                Err(Failure::new(
                    Code::Usage,
                    format!("{} spaces fit, among them {}", several.len(), ids.join(", ")),
                )
                .hint("give more hex digits or more fields"))
            }
        }
    }
}

fn has_fields(fields: &BTreeMap<String, String>, wanted: &SpaceDescription) -> bool {
    wanted.fields().all(|(name, value)| fields.get(name).is_some_and(|has| has == value))
}

/// Reads a key: text, or `hex:` and hex digits.
pub(crate) fn parse_key(text: &str) -> Result<Vec<u8>, Failure> {
    let bytes = match text.strip_prefix("hex:") {
        None => text.as_bytes().to_vec(),
        Some(digits) => hex::decode(digits).map_err(|error| {
            Failure::new(Code::Usage, format!("{text:?} is not a key: {error}"))
                .hint("after hex: come pairs of hex digits, for example hex:00ff")
        })?,
    };
    Key::new(&bytes).map_err(|error| {
        Failure::new(Code::Usage, error.to_string()).hint("write text, or hex: and pairs of hex digits")
    })?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space(fields: &[(&str, &str)]) -> Space {
        let fields = fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let description = SpaceDescription::new(fields.clone()).unwrap();
        Space {
            space_id: description.id().to_string(),
            fields: fields.collect(),
            pages: 0,
            page_bytes: 0,
            get_keys: 0,
            get_hits: 0,
            hit_ratio: None,
            servers: Vec::new(),
        }
    }

    fn known() -> Vec<Space> {
        vec![
            space(&[("name", "default")]),
            space(&[("model", "m"), ("tp_rank", "0")]),
            space(&[("model", "m"), ("tp_rank", "1")]),
        ]
    }

    fn find(text: &str) -> Result<String, Failure> {
        let known = known();
        Selector::parse(text)?.find(&known).map(|space| space.space_id.clone())
    }

    #[test]
    fn a_space_is_found_by_digits_prefix_and_fields() {
        let id = known()[0].space_id.clone();
        assert_eq!(find(&id).unwrap(), id);
        assert_eq!(find(&id[..6].to_ascii_uppercase()).unwrap(), id);
        assert_eq!(find("name=default").unwrap(), id);
        assert_eq!(find("default").unwrap(), id);
        assert_eq!(find("tp_rank=1").unwrap(), known()[2].space_id);
    }

    #[test]
    fn what_is_ambiguous_or_unknown_is_said() {
        let both = find("model=m").unwrap_err();
        assert_eq!(both.code, Code::Usage);
        assert!(both.message.starts_with("2 spaces fit"), "{}", both.message);
        assert_eq!(find("model=x").unwrap_err().code, Code::Negative);
        assert_eq!(find("0000").unwrap_err().code, Code::Negative);
    }

    #[test]
    fn a_bare_word_is_a_name() {
        let name = |text| SpaceDescription::named(text).map(Selector::Fields).unwrap();
        assert_eq!(Selector::parse("default").unwrap(), name("default"));
        assert_eq!(Selector::parse("abc").unwrap(), name("abc"), "too short for hex digits");
        assert_eq!(Selector::parse("cafe").unwrap(), Selector::Hex("cafe".to_owned()));
        let spaces = [space(&[("name", "cafe")])];
        assert_eq!(Selector::parse("cafe").unwrap().find(&spaces).unwrap().fields["name"], "cafe");
        for bad in ["", "name=a,b", "a\nb"] {
            assert_eq!(Selector::parse(bad).unwrap_err().code, Code::Usage, "{bad:?}");
        }
    }

    #[test]
    fn keys_are_text_or_hex_and_checked() {
        assert_eq!(parse_key("hex:00Ff").unwrap(), [0, 255]);
        assert_eq!(parse_key("abc").unwrap(), b"abc");
        for bad in ["", "hex:", "hex:0", "hex:zz", &"k".repeat(513)] {
            assert_eq!(parse_key(bad).unwrap_err().code, Code::Usage, "{bad:?}");
        }
    }

    #[test]
    fn keys_are_shown_as_they_are_typed() {
        for key in [&b"plain"[..], b"\x00\xff", b"hex:00", b"with\nline"] {
            assert_eq!(parse_key(&crate::view::key_text(key)).unwrap(), key);
        }
    }
}
