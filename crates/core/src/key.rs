//! Page keys: 1 to 512 opaque bytes.

use std::fmt;

/// The longest key, in bytes.
pub const MAX_KEY_BYTES: usize = 512;

/// A validated page key: 1..=512 bytes, opaque to the server.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key<'a>(&'a [u8]);

/// Why some bytes are not a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The key has no bytes.
    #[error("the key is empty; a key has 1 to {MAX_KEY_BYTES} bytes")]
    Empty,
    /// The key has more than [`MAX_KEY_BYTES`] bytes.
    #[error("the key has {0} bytes; a key has 1 to {MAX_KEY_BYTES} bytes")]
    TooLong(usize),
}

impl<'a> Key<'a> {
    /// Checks the length and wraps the bytes.
    ///
    /// # Errors
    ///
    /// [`KeyError`] if `bytes` is empty or longer than [`MAX_KEY_BYTES`].
    pub fn new(bytes: &'a [u8]) -> Result<Self, KeyError> {
        match bytes.len() {
            0 => Err(KeyError::Empty),
            1..=MAX_KEY_BYTES => Ok(Self(bytes)),
            n => Err(KeyError::TooLong(n)),
        }
    }

    /// The key's bytes.
    #[must_use]
    pub fn as_bytes(self) -> &'a [u8] {
        self.0
    }
}

impl fmt::Debug for Key<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", self.0.escape_ascii())
    }
}

impl fmt::Display for Key<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn length_is_checked_at_both_ends() {
        assert_eq!(Key::new(b""), Err(KeyError::Empty));
        assert!(Key::new(&[7; 1]).is_ok());
        assert!(Key::new(&[7; 512]).is_ok());
        assert_eq!(Key::new(&[7; 513]), Err(KeyError::TooLong(513)));
    }
}
