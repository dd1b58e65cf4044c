//! What travels and rests beside a page's bytes.
//!
//! The checksum is CRC-64/NVME over the page's bytes, tied to the [key digest](key_digest): a store that mixes up two
//! pages, or a key that lost a bit on its way, is found by the reader exactly like a flipped bit in the page. A CRC
//! finds every error of up to 64 neighbouring bits, and any other with all but one chance in 2^64; processors
//! compute it several times faster than they copy memory.
//!
//! Codec and flags say what the bytes mean, so the checksum covers them too: [`PageMeta::checksum_of`] folds them
//! into the hash of the bytes. A raw page without flags has the plain hash.

use crate::route::mix;
use crate::{Key, SpaceId};
use crc_fast::CrcAlgorithm;
use twox_hash::XxHash3_64;

/// What describes a stored page, independent of any process that wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct PageMeta {
    /// Length of the stored bytes.
    pub len: u32,
    /// How the bytes are encoded. 0 is raw; others are defined by the codec crate and opaque to servers.
    pub codec: u8,
    /// Reserved for the codec; servers store and return it.
    pub flags: u16,
    /// The page's checksum, see [`PageHasher`].
    pub checksum: u64,
}

impl PageMeta {
    /// The checksum of a page with this codec and these flags, whose bytes have the given [`PageHasher`] hash:
    /// `hash ^ mix(codec << 16 | flags)`, where `mix` is the finaliser of SplitMix64; `mix(0)` is 0.
    #[must_use]
    pub fn checksum_of(&self, hash: u64) -> u64 {
        hash ^ mix(u64::from(self.codec) << 16 | u64::from(self.flags))
    }
}

/// Digest of a space and key: XXH3-64 (seed 0) over the 16 bytes of the space, then the key.
///
/// Routing, the server's index and the page checksum all start from this one value, so it is computed once
/// per key and request.
#[must_use]
pub fn key_digest(space: SpaceId, key: Key<'_>) -> u64 {
    let bytes = key.as_bytes();
    let end = space.0.len() + bytes.len();
    if let (Some(last), true) = (bytes.last_chunk::<PART>(), end <= SHORT) {
        // In parts of one size: what is read at once after it was written in parts of other sizes has to wait for
        // memory, which would take longer than the hash.
        let mut joined = [0_u8; SHORT];
        let (places, _) = joined.as_chunks_mut::<PART>();
        let parts = std::iter::once(&space.0).chain(bytes.as_chunks::<PART>().0);
        places.iter_mut().zip(parts).for_each(|(place, part)| *place = *part);
        joined[end - PART..end].copy_from_slice(last);
        return XxHash3_64::oneshot(&joined[..end]);
    }
    let mut joined = [0_u8; 16 + crate::MAX_KEY_BYTES];
    joined[..space.0.len()].copy_from_slice(&space.0);
    joined[space.0.len()..end].copy_from_slice(bytes);
    XxHash3_64::oneshot(&joined[..end])
}

/// Bytes of a space and a key that most keys do not exceed.
const SHORT: usize = 128;
/// Bytes that are copied together.
const PART: usize = 16;

/// Computes the hash of a page's bytes, in pieces and in order. Allocates nothing.
///
/// The hash is CRC-64/NVME over the bytes, exclusive-or `mix` of the key digest (see [`PageMeta::checksum_of`] for `mix`).
#[derive(Debug)]
pub struct PageHasher {
    crc: crc_fast::Digest,
    tie: u64,
}

impl PageHasher {
    /// Starts the hash of the page whose key has this [`key_digest`].
    #[must_use]
    pub fn new(key_digest: u64) -> Self {
        Self { crc: crc_fast::Digest::new(CrcAlgorithm::Crc64Nvme), tie: mix(key_digest) }
    }

    /// Adds the next piece of the page.
    pub fn update(&mut self, piece: &[u8]) {
        self.crc.update(piece);
    }

    /// The hash of all pieces so far.
    #[must_use]
    pub fn finish(&self) -> u64 {
        self.crc.finalize() ^ self.tie
    }

    /// The hash of a page that is one contiguous piece.
    #[must_use]
    pub fn oneshot(key_digest: u64, page: &[u8]) -> u64 {
        crc_fast::checksum(CrcAlgorithm::Crc64Nvme, page) ^ mix(key_digest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_digest_is_the_documented_one_for_keys_of_every_length() {
        let bytes: Vec<u8> = (0..crate::MAX_KEY_BYTES).map(|i| i as u8).collect();
        for len in 1..=bytes.len() {
            let key = Key::new(&bytes[..len]).unwrap();
            let joined = [&[9; 16][..], &bytes[..len]].concat();
            assert_eq!(key_digest(SpaceId([9; 16]), key), XxHash3_64::oneshot(&joined), "{len} bytes");
        }
    }

    #[test]
    fn the_checksum_depends_on_space_key_and_bytes() {
        let key = Key::new(b"k").unwrap();
        let other = Key::new(b"l").unwrap();
        let digest = key_digest(SpaceId([1; 16]), key);
        assert_ne!(digest, key_digest(SpaceId([2; 16]), key));
        assert_ne!(digest, key_digest(SpaceId([1; 16]), other));
        assert_ne!(PageHasher::oneshot(digest, b"page"), PageHasher::oneshot(digest ^ 1, b"page"));
        assert_ne!(PageHasher::oneshot(digest, b"page"), PageHasher::oneshot(digest, b"pagf"));
    }

    #[test]
    fn the_checksum_covers_codec_and_flags() {
        let raw = PageMeta::default();
        assert_eq!(raw.checksum_of(77), 77);
        let mut seen = std::collections::HashSet::from([77]);
        for bit in 0..24 {
            let (codec, flags) = if bit < 8 { (1 << bit, 0) } else { (0, 1 << (bit - 8)) };
            assert!(
                seen.insert(PageMeta { codec, flags, ..raw }.checksum_of(77)),
                "bit {bit} is not covered"
            );
        }
    }

    #[test]
    fn the_hash_is_the_documented_one() {
        // The check value of CRC-64/NVME, and a key digest that ties nothing.
        assert_eq!(PageHasher::oneshot(0, b"123456789"), 0xae8b_1486_0a79_9888);
        assert_eq!(PageHasher::oneshot(1, b"123456789"), 0xae8b_1486_0a79_9888 ^ mix(1));
    }

    proptest! {
        #[test]
        fn pieces_hash_like_the_whole(page in proptest::collection::vec(any::<u8>(), 0..5000), cut in 0.0..1.0_f64, seed: u64) {
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the cut is inside the page")]
            let at = (page.len() as f64 * cut) as usize;
            let mut hasher = PageHasher::new(seed);
            hasher.update(&page[..at]);
            hasher.update(&page[at..]);
            prop_assert_eq!(hasher.finish(), PageHasher::oneshot(seed, &page));
        }
    }
}
