//! Spaces: the unit of sharing.
//!
//! A space is named by a digest of its description, and the description holds everything that decides
//! whether two pages with one key hold interchangeable bytes: model, revision, KV dtype, page size, layout,
//! ranks, pool, codec. Two different shapes can therefore never meet under one key.
//!
//! Digest: SHA-256 over `"memkv-space-v1"`, then for every field in ascending byte order of its name
//! `u32le(len(name)) name u32le(len(value)) value`; the first 16 bytes are the [`SpaceId`].

use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt;

/// The most fields a description may have.
pub const MAX_FIELDS: usize = 64;
/// The longest field name, in bytes.
pub const MAX_FIELD_NAME_BYTES: usize = 64;
/// The longest field value, in bytes.
pub const MAX_FIELD_VALUE_BYTES: usize = 1024;

/// The field that says whose space it is. A space without it belongs to whoever has the cluster's key.
pub const TENANT_FIELD: &str = "tenant";

/// A space's identity: the first 16 bytes of its description's digest.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct SpaceId(pub [u8; 16]);

impl SpaceId {
    /// Parses the 32 lower- or upper-case hex digits that [`fmt::Display`] prints.
    #[must_use]
    pub fn from_hex(text: &str) -> Option<Self> {
        let digits = text.as_bytes();
        if digits.len() != 32 {
            return None;
        }
        let mut id = [0; 16];
        for (byte, pair) in id.iter_mut().zip(digits.chunks_exact(2)) {
            let high = char::from(pair[0]).to_digit(16)?;
            let low = char::from(pair[1]).to_digit(16)?;
            *byte = u8::try_from(high * 16 + low).ok()?;
        }
        Some(Self(id))
    }
}

impl fmt::Display for SpaceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for SpaceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SpaceId({self})")
    }
}

/// What a space is, in clear text: field names to values.
///
/// Every field takes part in the identity. The well-known names are `name`, `engine`, `model`, `revision`,
/// `dtype`, `page_tokens`, `page_bytes`, `layout`, `tp_rank`, `tp_size`, `pp_rank`, `pp_size`, `cp_rank`,
/// `cp_size`, `pool`, `codec`, `tag` and `tenant`; `inspect` shows them as columns.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct SpaceDescription {
    fields: BTreeMap<String, String>,
}

/// Why a description was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpaceError {
    /// There is no field at all.
    #[error("a space needs at least one field, for example name=default")]
    Empty,
    /// There are more than [`MAX_FIELDS`] fields.
    #[error("a space has at most {MAX_FIELDS} fields, this one has {0}")]
    TooManyFields(usize),
    /// A name is empty, too long, or not made of `a-z`, `0-9`, `_`, `.`, `-`.
    #[error(
        "the space field name {0:?} is not valid; use 1 to {MAX_FIELD_NAME_BYTES} of a-z, 0-9, '_', '.', '-'"
    )]
    FieldName(String),
    /// A value is longer than [`MAX_FIELD_VALUE_BYTES`] or has control characters.
    #[error(
        "the value of space field {0:?} is not valid; use up to {MAX_FIELD_VALUE_BYTES} bytes without control characters"
    )]
    FieldValue(String),
}

impl SpaceDescription {
    /// A description with the single field `name`.
    ///
    /// # Errors
    ///
    /// [`SpaceError::FieldValue`] if `name` is too long or has control characters.
    pub fn named(name: &str) -> Result<Self, SpaceError> {
        Self::new([("name".to_owned(), name.to_owned())])
    }

    /// Checks and collects the fields. Of two fields with one name, the last one counts.
    ///
    /// # Errors
    ///
    /// [`SpaceError`] says which field is wrong and what is allowed.
    pub fn new(fields: impl IntoIterator<Item = (String, String)>) -> Result<Self, SpaceError> {
        let fields: BTreeMap<_, _> = fields.into_iter().collect();
        if fields.is_empty() {
            return Err(SpaceError::Empty);
        }
        if fields.len() > MAX_FIELDS {
            return Err(SpaceError::TooManyFields(fields.len()));
        }
        for (name, value) in &fields {
            let name_ok = (1..=MAX_FIELD_NAME_BYTES).contains(&name.len())
                && name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'.' | b'-'));
            if !name_ok {
                return Err(SpaceError::FieldName(name.clone()));
            }
            if value.len() > MAX_FIELD_VALUE_BYTES || value.chars().any(char::is_control) {
                return Err(SpaceError::FieldValue(name.clone()));
            }
        }
        Ok(Self { fields })
    }

    /// Whose space it is; `None` for that of the cluster's key.
    #[must_use]
    pub fn tenant(&self) -> Option<&str> {
        self.fields.get(TENANT_FIELD).map(String::as_str)
    }

    /// The same space of a tenant. One that says already whose it is stays as it is.
    ///
    /// # Errors
    ///
    /// [`SpaceError`] if the name is not valid or there is no room for one more field.
    pub fn of_tenant(&self, tenant: &str) -> Result<Self, SpaceError> {
        if self.tenant().is_some() {
            return Ok(self.clone());
        }
        let own = std::iter::once((TENANT_FIELD.to_owned(), tenant.to_owned()));
        Self::new(self.fields.clone().into_iter().chain(own))
    }

    /// The identity of the space.
    #[must_use]
    pub fn id(&self) -> SpaceId {
        let mut hash = Sha256::new();
        hash.update(b"memkv-space-v1");
        for (name, value) in &self.fields {
            for text in [name, value] {
                // Field lengths are bounded far below 4 GiB by `new`.
                hash.update(u32::try_from(text.len()).unwrap_or(u32::MAX).to_le_bytes());
                hash.update(text.as_bytes());
            }
        }
        let digest = hash.finalize();
        let mut id = [0; 16];
        id.copy_from_slice(&digest[..16]);
        SpaceId(id)
    }

    /// One field's value.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.get(name).map(String::as_str)
    }

    /// All fields in ascending order of their names.
    pub fn fields(&self) -> impl Iterator<Item = (&str, &str)> {
        self.fields.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn described(fields: &[(&str, &str)]) -> Result<SpaceDescription, SpaceError> {
        SpaceDescription::new(fields.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())))
    }

    #[test]
    fn the_same_space_of_two_tenants_has_two_identities() {
        let plain = SpaceDescription::named("a").unwrap();
        let (one, two) = (plain.of_tenant("one").unwrap(), plain.of_tenant("two").unwrap());
        assert_eq!((plain.tenant(), one.tenant()), (None, Some("one")));
        assert!(plain.id() != one.id() && one.id() != two.id());
        assert_eq!(one.of_tenant("two").unwrap(), one, "whose it is does not change");
        assert!(plain.of_tenant("a\nb").is_err());
    }

    #[test]
    fn identity_is_stable_and_covers_every_field() {
        let a = described(&[("model", "llama"), ("dtype", "bf16")]).unwrap();
        let b = described(&[("dtype", "bf16"), ("model", "llama")]).unwrap();
        let c = described(&[("dtype", "fp8"), ("model", "llama")]).unwrap();
        assert_eq!(a.id(), b.id());
        assert_ne!(a.id(), c.id());
        // A vector other languages can check against; see the module documentation for the formula.
        assert_eq!(SpaceDescription::named("default").unwrap().id().to_string(), DEFAULT_SPACE_HEX);
    }

    const DEFAULT_SPACE_HEX: &str = "8dd34a663996427bc02d8f0be411b3ab";

    #[test]
    fn a_field_cannot_run_into_the_next() {
        let a = described(&[("a", "bc")]).unwrap();
        let b = described(&[("ab", "c")]).unwrap();
        assert_ne!(a.id(), b.id());
    }

    #[test]
    fn bad_fields_are_named() {
        assert_eq!(described(&[]), Err(SpaceError::Empty));
        assert_eq!(described(&[("Model", "x")]), Err(SpaceError::FieldName("Model".into())));
        assert_eq!(described(&[("model", "a\nb")]), Err(SpaceError::FieldValue("model".into())));
        let long = "x".repeat(MAX_FIELD_VALUE_BYTES + 1);
        assert_eq!(described(&[("model", &long)]), Err(SpaceError::FieldValue("model".into())));
    }

    #[test]
    fn hex_round_trips() {
        let id = SpaceDescription::named("default").unwrap().id();
        assert_eq!(SpaceId::from_hex(&id.to_string()), Some(id));
        assert_eq!(SpaceId::from_hex("zz"), None);
    }
}
