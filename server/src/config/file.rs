//! Reads the YAML file into texts by option key; values are understood later, like those of the environment.
//!
//! A value's error never shows the file's lines: one of them may hold the key.

use super::options::{OPTIONS, nearest};
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use std::fmt;

/// What a file says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct FileValues {
    /// Option key (`limits.sessions_max`) and value, as written; empty or absent values are left out.
    pub(crate) values: Vec<(&'static str, String)>,
    /// Keys that are no options, each with the nearest valid name.
    pub(crate) unknown: Vec<String>,
}

impl FileValues {
    /// Reads a YAML document.
    pub(crate) fn parse(text: &str) -> Result<Self, serde_saphyr::Error> {
        let options = serde_saphyr::options! { with_snippet: false };
        serde_saphyr::with_deserializer_from_str_with_options(text, options, |deserializer| {
            let mut read = Self::default();
            Section { path: String::new(), read: &mut read }.deserialize(deserializer)?;
            Ok(read)
        })
    }
}

/// One mapping of the file; `path` is empty or ends with a dot.
struct Section<'a> {
    path: String,
    read: &'a mut FileValues,
}

impl<'de> DeserializeSeed<'de> for Section<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_option(self)
    }
}

impl<'de> Visitor<'de> for Section<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.path.strip_suffix('.') {
            None => f.write_str("a mapping of options to values"),
            Some(section) => write!(f, "a mapping of options to values under {section:?}"),
        }
    }

    fn visit_none<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(name) = map.next_key::<String>()? {
            let key = format!("{}{name}", self.path);
            let section = format!("{key}.");
            if let Some(option) = OPTIONS.iter().find(|option| option.key == key) {
                if let Some(value) = map.next_value::<Option<String>>()? {
                    self.read.values.push((option.key, value));
                }
            } else if OPTIONS.iter().any(|option| option.key.starts_with(&section)) {
                map.next_value_seed(Section { path: section, read: self.read })?;
            } else {
                map.next_value::<IgnoredAny>()?;
                let near = nearest(&key, OPTIONS.iter().map(|option| option.key));
                self.read.unknown.push(format!("{key:?} is not an option; did you mean {near:?}?"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_taken_as_written() {
        let digits = "1".repeat(64);
        let text = format!("listen: 0.0.0.0:9900\nauth_key: {digits}\nlimits:\n  sessions_max: 7\n");
        let read = FileValues::parse(&text).unwrap();
        let expected = [
            ("listen", "0.0.0.0:9900".to_owned()),
            ("auth_key", digits),
            ("limits.sessions_max", "7".to_owned()),
        ];
        assert_eq!(read, FileValues { values: expected.into(), unknown: Vec::new() });
    }

    #[test]
    fn an_empty_file_says_nothing() {
        for text in ["", "# only a comment\n", "limits:\n", "listen:\n"] {
            assert_eq!(FileValues::parse(text).unwrap(), FileValues::default(), "{text:?}");
        }
    }

    #[test]
    fn unknown_keys_are_named_with_path_and_neighbour() {
        let read = FileValues::parse("limits: {session_max: 3, page: {a: [1]}}\nlisen: x\n").unwrap();
        assert_eq!(read.values, []);
        let joined = read.unknown.join("\n");
        assert!(
            joined.contains(r#""limits.session_max" is not an option; did you mean "limits.sessions_max"?"#)
        );
        assert!(joined.contains(r#""lisen" is not an option; did you mean "listen"?"#), "{joined}");
        assert_eq!(read.unknown.len(), 3);
    }

    #[test]
    fn bad_yaml_is_an_error_without_the_files_text() {
        for text in ["- a list", "auth_key: [s3cret", "auth_key: {s3cret: 1}", "limits: 3\nauth_key: s3cret"]
        {
            let error = FileValues::parse(text).unwrap_err().to_string();
            assert!(!error.contains("s3cret"), "{error}");
        }
    }
}
