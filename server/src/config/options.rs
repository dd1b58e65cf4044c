//! The table of all options: the only list of them. File, environment, flags, help, `--print-config` and the
//! reference in `docs/configuration-server.md` all follow it. Its parts are in [`super::table`] and beside what they
//! are about.

use super::{Config, discovery, table, tls};

/// One option.
#[derive(Clone, Copy, Debug)]
pub struct Opt {
    /// Its key in the file; a dot separates a section from a name.
    pub key: &'static str,
    /// Its environment variable.
    pub env: &'static str,
    /// Its flag without the dashes; none for secrets, which other users could see in the process list.
    pub flag: Option<&'static str>,
    /// What a value is, for the help.
    pub value: &'static str,
    /// What it does, for the help and the reference.
    pub help: &'static str,
    /// Reads a value; the error says what a value looks like.
    pub(crate) set: fn(&mut Config, &str) -> Result<(), String>,
    /// Writes the effective value as YAML.
    pub(crate) show: fn(&Config) -> String,
}

impl Opt {
    /// The value without any configuration, as YAML.
    #[must_use]
    pub fn default_text(&self) -> String {
        (self.show)(&Config::default())
    }
}

/// All options, those of one section together.
pub const OPTIONS: &[Opt] = &joined::<{ count(PARTS) }>(PARTS);

/// The parts of the table, in its order.
const PARTS: &[&[Opt]] =
    &[table::GENERAL, discovery::OPTIONS, tls::OPTIONS, table::STORAGE, table::LIMITS, table::REST];

const fn count(parts: &[&[Opt]]) -> usize {
    let (mut part, mut all) = (0, 0);
    while part < parts.len() {
        all += parts[part].len();
        part += 1;
    }
    all
}

const fn joined<const N: usize>(parts: &[&[Opt]]) -> [Opt; N] {
    let mut out = [parts[0][0]; N];
    let (mut part, mut filled) = (0, 0);
    while part < parts.len() {
        let mut at = 0;
        while at < parts[part].len() {
            out[filled] = parts[part][at];
            filled += 1;
            at += 1;
        }
        part += 1;
    }
    out
}

/// The name with the fewest edits to `wrong`.
pub(crate) fn nearest<'a>(wrong: &str, names: impl Iterator<Item = &'a str>) -> &'a str {
    names.min_by_key(|name| edits(wrong, name)).unwrap_or_default()
}

/// Levenshtein distance over bytes.
fn edits(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_from_the_key() {
        for option in OPTIONS {
            let upper = option.key.to_uppercase().replace('.', "_");
            assert_eq!(option.env, format!("MEMKV_SERVER_{upper}"));
            if let Some(flag) = option.flag {
                assert_eq!(flag, option.key.replace(['.', '_'], "-"));
            }
        }
    }

    #[test]
    fn the_nearest_name_has_the_fewest_edits() {
        assert_eq!(edits("kitten", "sitting"), 3);
        assert_eq!(nearest("drm", ["listen", "dram", "log.format"].into_iter()), "dram");
    }
}
