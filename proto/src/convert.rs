//! Strict conversion from wire values to core types. Nothing behind it checks again.

use crate::v1;
use memkv_core::key::KeyError;
use memkv_core::space::SpaceError;
use memkv_core::{Key, Limits, PageMeta, SpaceDescription, SpaceId};

/// Why a message cannot be understood; the text says what to change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// A space identity is not 16 bytes.
    #[error("space_id has {0} bytes; it is the 16 bytes that OpenSpace returned")]
    SpaceId(usize),
    /// A key has a wrong length.
    #[error("{0}")]
    Key(#[from] KeyError),
    /// A space description is not acceptable.
    #[error("{0}")]
    Space(#[from] SpaceError),
    /// A field that must be set is not.
    #[error("the field {0:?} is missing")]
    Missing(&'static str),
    /// A number is out of its range.
    #[error(
        "the field {0:?} has a value or a length that memkv.v1 does not allow; its comment there gives the range"
    )]
    OutOfRange(&'static str),
}

/// Reads a 16-byte space identity.
///
/// # Errors
///
/// [`Invalid::SpaceId`] if `bytes` does not have 16 bytes.
pub fn space_id_from_wire(bytes: &[u8]) -> Result<SpaceId, Invalid> {
    <[u8; 16]>::try_from(bytes).map(SpaceId).map_err(|_| Invalid::SpaceId(bytes.len()))
}

impl TryFrom<v1::Space> for SpaceDescription {
    type Error = Invalid;

    fn try_from(space: v1::Space) -> Result<Self, Invalid> {
        Ok(Self::new(space.fields)?)
    }
}

impl From<&SpaceDescription> for v1::Space {
    fn from(description: &SpaceDescription) -> Self {
        let fields = description.fields().map(|(name, value)| (name.to_owned(), value.to_owned()));
        Self { fields: fields.collect() }
    }
}

impl TryFrom<v1::PageRecord> for PageMeta {
    type Error = Invalid;

    fn try_from(record: v1::PageRecord) -> Result<Self, Invalid> {
        Ok(Self {
            len: record.len,
            codec: u8::try_from(record.codec).map_err(|_| Invalid::OutOfRange("codec"))?,
            flags: u16::try_from(record.flags).map_err(|_| Invalid::OutOfRange("flags"))?,
            checksum: record.checksum,
        })
    }
}

impl From<PageMeta> for v1::PageRecord {
    fn from(meta: PageMeta) -> Self {
        Self { len: meta.len, checksum: meta.checksum, codec: meta.codec.into(), flags: meta.flags.into() }
    }
}

impl From<&Limits> for v1::ServerLimits {
    fn from(limits: &Limits) -> Self {
        Self {
            page_bytes_max: limits.page_bytes_max,
            batch_keys_max: limits.batch_keys_max,
            frame_meta_bytes_max: limits.frame_meta_bytes_max,
            session_connections_max: limits.session_connections_max,
            request_ms_max: limits.request_ms_max,
        }
    }
}

/// Checks every key of a request.
///
/// # Errors
///
/// The first key's [`Invalid::Key`] that has a wrong length.
pub fn keys_from_wire<B: AsRef<[u8]>>(keys: &[B]) -> Result<Vec<Key<'_>>, Invalid> {
    keys.iter().map(|key| Ok(Key::new(key.as_ref())?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_space_id_has_16_bytes() {
        assert_eq!(space_id_from_wire(&[1; 16]), Ok(SpaceId([1; 16])));
        assert_eq!(space_id_from_wire(&[1; 15]), Err(Invalid::SpaceId(15)));
    }

    #[test]
    fn a_record_round_trips_and_is_checked() {
        let meta = PageMeta { len: 7, codec: 3, flags: 9, checksum: 11 };
        let record = v1::PageRecord::from(meta);
        assert_eq!(PageMeta::try_from(record), Ok(meta));
        let wide = v1::PageRecord { codec: 256, ..record };
        assert_eq!(PageMeta::try_from(wide), Err(Invalid::OutOfRange("codec")));
    }

    #[test]
    fn a_description_round_trips() {
        let space = SpaceDescription::named("default").unwrap();
        assert_eq!(SpaceDescription::try_from(v1::Space::from(&space)), Ok(space));
    }
}
