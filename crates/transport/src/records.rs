//! The records inside a frame's meta section and body. All integers are little-endian.
//!
//! | list | one record |
//! |------|------------|
//! | keys          | `u16 key_len`, key |
//! | wanted pages  | `u32 dst_len`, `u16 key_len`, key |
//! | offered pages | `u32 page_len`, `u32 position`, `u16 key_len`, key |
//! | page record   | `u8 code`, `u8 codec`, `u16 flags`, `u32 len`, `u64 checksum` (16 bytes) |
//! | verdict       | `u8 code` |
//! | bitmap        | bit `i % 8` of byte `i / 8` belongs to key `i` |
//!
//! `dst_len` is the room at the reader in bytes. `position` counts pages from the start of the prefix chain,
//! from 1; 0 means unknown.

use crate::frame::{Code, FrameError};
use memkv_core::{Key, PageMeta};

/// Bytes of a page record.
pub const PAGE_RECORD_BYTES: usize = 16;

/// Appends a key of a key list.
pub fn push_key(meta: &mut Vec<u8>, key: Key<'_>) {
    let bytes = key.as_bytes();
    // A `Key` has at most 512 bytes, so its length fits two bytes.
    meta.extend_from_slice(&(bytes.len() as u16).to_le_bytes());
    meta.extend_from_slice(bytes);
}

/// Appends a wanted page.
pub fn push_wanted(meta: &mut Vec<u8>, dst_len: u32, key: Key<'_>) {
    meta.extend_from_slice(&dst_len.to_le_bytes());
    push_key(meta, key);
}

/// Appends an offered page.
pub fn push_offered(meta: &mut Vec<u8>, page_len: u32, position: u32, key: Key<'_>) {
    meta.extend_from_slice(&page_len.to_le_bytes());
    meta.extend_from_slice(&position.to_le_bytes());
    push_key(meta, key);
}

/// A page record's bytes.
#[must_use]
pub fn page_record(code: Code, meta: PageMeta) -> [u8; PAGE_RECORD_BYTES] {
    let mut out = [0; PAGE_RECORD_BYTES];
    out[0] = code as u8;
    out[1] = meta.codec;
    out[2..4].copy_from_slice(&meta.flags.to_le_bytes());
    out[4..8].copy_from_slice(&meta.len.to_le_bytes());
    out[8..].copy_from_slice(&meta.checksum.to_le_bytes());
    out
}

/// Reads a page record.
///
/// # Errors
///
/// [`FrameError::Records`] if the code is not known.
pub fn read_page_record(bytes: &[u8; PAGE_RECORD_BYTES]) -> Result<(Code, PageMeta), FrameError> {
    let code = Code::from_wire(bytes[0]).ok_or(FrameError::Records)?;
    let mut reader = Reader { rest: &bytes[1..] };
    let meta =
        PageMeta { codec: reader.u8()?, flags: reader.u16()?, len: reader.u32()?, checksum: reader.u64()? };
    Ok((code, meta))
}

/// Bytes of a bitmap over `count` keys.
#[must_use]
pub fn bitmap_bytes(count: usize) -> usize {
    count.div_ceil(8)
}

/// Appends a bitmap.
pub fn push_bitmap(meta: &mut Vec<u8>, bits: &[bool]) {
    for group in bits.chunks(8) {
        let byte = group.iter().enumerate().fold(0_u8, |byte, (i, &bit)| byte | (u8::from(bit) << i));
        meta.push(byte);
    }
}

/// Reads a bitmap over exactly `bits.len()` keys.
///
/// # Errors
///
/// [`FrameError::Records`] if the length is another or an unused bit is set.
pub fn read_bitmap(meta: &[u8], bits: &mut [bool]) -> Result<(), FrameError> {
    if meta.len() != bitmap_bytes(bits.len()) {
        return Err(FrameError::Records);
    }
    for (i, bit) in bits.iter_mut().enumerate() {
        *bit = meta[i / 8] >> (i % 8) & 1 == 1;
    }
    let used = bits.len() % 8;
    if used != 0 && meta[meta.len() - 1] >> used != 0 {
        return Err(FrameError::Records);
    }
    Ok(())
}

/// An offered page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offered<'a> {
    /// Length of the page, in bytes.
    pub len: u32,
    /// Position in its chain, from 1; 0 if unknown.
    pub position: u32,
    /// The page's key.
    pub key: Key<'a>,
}

/// A wanted page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted<'a> {
    /// Room at the reader, in bytes.
    pub dst_len: u32,
    /// The page's key.
    pub key: Key<'a>,
}

/// Reads the records of a list one by one. Iteration ends after the first error.
pub struct Records<'a, T> {
    reader: Reader<'a>,
    left: u32,
    read: fn(&mut Reader<'a>) -> Result<T, FrameError>,
}

/// The keys of a key list.
#[must_use]
pub fn keys(meta: &[u8], count: u32) -> Records<'_, Key<'_>> {
    Records { reader: Reader { rest: meta }, left: count, read: Reader::key }
}

/// The wanted pages of a get.
#[must_use]
pub fn wanted(meta: &[u8], count: u32) -> Records<'_, Wanted<'_>> {
    Records {
        reader: Reader { rest: meta },
        left: count,
        read: |r| Ok(Wanted { dst_len: r.u32()?, key: r.key()? }),
    }
}

/// The offered pages of a put.
#[must_use]
pub fn offered(meta: &[u8], count: u32) -> Records<'_, Offered<'_>> {
    Records {
        reader: Reader { rest: meta },
        left: count,
        read: |r| Ok(Offered { len: r.u32()?, position: r.u32()?, key: r.key()? }),
    }
}

impl<T> Iterator for Records<'_, T> {
    type Item = Result<T, FrameError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            if self.reader.rest.is_empty() {
                return None;
            }
            self.reader.rest = &[];
            return Some(Err(FrameError::Records));
        }
        let record = (self.read)(&mut self.reader);
        match &record {
            Ok(_) => self.left -= 1,
            Err(_) => {
                self.left = 0;
                self.reader.rest = &[];
            }
        }
        Some(record)
    }
}

/// A bounds-checked cursor.
struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn bytes(&mut self, len: usize) -> Result<&'a [u8], FrameError> {
        let (head, rest) = self.rest.split_at_checked(len).ok_or(FrameError::Records)?;
        self.rest = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], FrameError> {
        let mut out = [0; N];
        out.copy_from_slice(self.bytes(N)?);
        Ok(out)
    }

    fn u8(&mut self) -> Result<u8, FrameError> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Result<u16, FrameError> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, FrameError> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, FrameError> {
        self.array().map(u64::from_le_bytes)
    }

    fn key(&mut self) -> Result<Key<'a>, FrameError> {
        let len = self.u16()?;
        Ok(Key::new(self.bytes(usize::from(len))?)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use memkv_core::KeyError;
    use proptest::prelude::*;

    fn key(bytes: &[u8]) -> Key<'_> {
        Key::new(bytes).unwrap()
    }

    #[test]
    fn lists_round_trip() {
        let mut meta = Vec::new();
        push_offered(&mut meta, 4096, 7, key(b"a"));
        push_offered(&mut meta, 8192, 0, key(&[1; 512]));
        let read: Result<Vec<_>, _> = offered(&meta, 2).collect();
        let expected = [
            Offered { len: 4096, position: 7, key: key(b"a") },
            Offered { len: 8192, position: 0, key: key(&[1; 512]) },
        ];
        assert_eq!(read.unwrap(), expected);
    }

    #[test]
    fn too_few_and_too_many_records_are_errors() {
        let mut meta = Vec::new();
        push_key(&mut meta, key(b"one"));
        push_key(&mut meta, key(b"two"));
        assert_eq!(keys(&meta, 2).filter(Result::is_ok).count(), 2);
        assert!(keys(&meta, 1).any(|k| k == Err(FrameError::Records)));
        assert!(keys(&meta, 3).any(|k| k == Err(FrameError::Records)));
        assert!(keys(&meta[..meta.len() - 1], 2).any(|k| k == Err(FrameError::Records)));
    }

    #[test]
    fn a_key_of_0_or_513_bytes_is_refused() {
        let empty: Result<Vec<_>, _> = keys(&[0, 0], 1).collect();
        assert_eq!(empty, Err(FrameError::Key(KeyError::Empty)));
        let mut long = 513_u16.to_le_bytes().to_vec();
        long.resize(2 + 513, b'x');
        let long: Result<Vec<_>, _> = keys(&long, 1).collect();
        assert_eq!(long, Err(FrameError::Key(KeyError::TooLong(513))));
    }

    #[test]
    fn page_records_round_trip() {
        let meta = PageMeta { len: 1 << 20, codec: 2, flags: 3, checksum: u64::MAX - 1 };
        assert_eq!(read_page_record(&page_record(Code::Miss, meta)), Ok((Code::Miss, meta)));
        assert_eq!(read_page_record(&[200; 16]), Err(FrameError::Records));
    }

    proptest! {
        #[test]
        fn bitmaps_round_trip(bits in proptest::collection::vec(any::<bool>(), 0..100)) {
            let mut meta = Vec::new();
            push_bitmap(&mut meta, &bits);
            let mut read = vec![false; bits.len()];
            prop_assert_eq!(read_bitmap(&meta, &mut read), Ok(()));
            prop_assert_eq!(read, bits);
        }

        #[test]
        fn any_meta_is_read_without_panic(meta in proptest::collection::vec(any::<u8>(), 0..200), count in 0..50_u32) {
            let _ = keys(&meta, count).count();
            let _ = wanted(&meta, count).count();
            let _ = offered(&meta, count).count();
        }
    }
}
