//! Random bytes from the system.

/// `N` random bytes.
///
/// # Panics
///
/// If the system has no randomness to give. Nothing may be served then: session ids and nonces would be guessable.
pub(crate) fn bytes<const N: usize>() -> [u8; N] {
    let mut out = [0; N];
    getrandom::fill(&mut out).expect("the system has a source of randomness");
    out
}
