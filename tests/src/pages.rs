//! Page contents that can be recognised: every page's bytes follow from its key.

/// The bytes of the page that belongs to `key`: every eight bytes differ, so a shifted or mixed-up page shows.
#[must_use]
pub fn page(key: &[u8], len: usize) -> Vec<u8> {
    let mut state = key.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word ^= word >> 27;
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// `count` keys that begin with `prefix`.
#[must_use]
pub fn keys(prefix: &str, count: usize) -> Vec<Vec<u8>> {
    (0..count).map(|i| format!("{prefix}-{i:06}").into_bytes()).collect()
}

/// The pages of [`keys`], all of one length.
#[must_use]
pub fn pages(keys: &[Vec<u8>], len: usize) -> Vec<Vec<u8>> {
    keys.iter().map(|key| page(key, len)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_depend_on_key_and_place() {
        let a = page(b"a", 4099);
        assert_eq!(a.len(), 4099);
        assert_eq!(a, page(b"a", 4099));
        assert_ne!(a, page(b"b", 4099));
        assert_ne!(a[..2048], a[2048..4096]);
    }
}
