//! Keys, proofs and per-call credentials: HMAC-SHA256 over unambiguous transcripts.
//!
//! A secret never travels. At session open, each side proves over both sides' nonces that it knows the key, with
//! different labels, so that a proof cannot be sent back to its author. The session key that comes out of the
//! exchange binds the data connections to the session. Other gRPC calls carry a credential that is valid for
//! this method, this minute and once.
//!
//! A server without a key uses [`AuthKey::open`], 32 zero bytes; it listens on loopback only.
//!
//! Every value in a transcript is preceded by its length as `u32le`, so that no two transcripts collide.
//!
//! Clients of a tenant prove a key of their own, see [`crate::tenant`]; the transcript names tenant and key, and, on a
//! TLS connection, the connection.

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256};
use std::fmt;

/// Bytes of a key, a proof, or a nonce.
pub const SECRET_BYTES: usize = 32;
/// How far apart two clocks may be for a per-call credential, in milliseconds.
pub const CREDENTIAL_WINDOW_MS: u64 = 60_000;

/// The shared key of a cluster: 32 bytes, written as 64 hex digits. Never shown by `Debug`.
#[derive(Clone)]
pub struct AuthKey([u8; SECRET_BYTES]);

/// Why a text is not a key. Does not repeat the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an auth key is 64 hex digits (32 bytes), this one {problem}; make one with: openssl rand -hex 32")]
pub struct BadKey {
    problem: &'static str,
}

impl AuthKey {
    /// Reads 64 hex digits; white space around them is ignored.
    ///
    /// # Errors
    ///
    /// [`BadKey`] if there are not 64 or not all are hex digits.
    pub fn from_hex(text: &str) -> Result<Self, BadKey> {
        let digits = text.trim().as_bytes();
        if digits.len() != 2 * SECRET_BYTES {
            return Err(BadKey { problem: "has another length" });
        }
        from_hex(text.trim()).map(Self).ok_or(BadKey { problem: "has other characters" })
    }

    /// What both sides use when there is no key.
    #[must_use]
    pub fn open() -> Self {
        Self([0; SECRET_BYTES])
    }

    /// A key from 32 random bytes.
    #[must_use]
    pub fn from_bytes(bytes: [u8; SECRET_BYTES]) -> Self {
        Self(bytes)
    }

    /// MAC under this key.
    pub(crate) fn mac(&self, parts: &[&[u8]]) -> [u8; SECRET_BYTES] {
        mac(&self.0, parts)
    }
}

impl fmt::Debug for AuthKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AuthKey(hidden)")
    }
}

/// A key that both sides of one session derived. Never shown by `Debug`.
#[derive(Clone)]
pub struct SessionKey([u8; SECRET_BYTES]);

impl fmt::Debug for SessionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionKey(hidden)")
    }
}

/// Everything both sides must have seen alike when a session opens.
#[derive(Clone, Copy, Debug)]
pub struct SessionTranscript<'a> {
    /// Lowest version the client offered. Covered, so that nobody on the way can force an older version.
    pub protocol_min: u32,
    /// Highest version the client offered.
    pub protocol_max: u32,
    /// The version the server chose.
    pub protocol: u32,
    /// The client's 32 random bytes.
    pub client_nonce: &'a [u8],
    /// The server's 32 random bytes.
    pub server_nonce: &'a [u8],
    /// The session's 16 random bytes.
    pub session_id: &'a [u8],
    /// The server's node id.
    pub node_id: &'a str,
    /// Whether the server says that it has a key.
    pub key_required: bool,
    /// The tenant and the id of its key; empty with the cluster's key.
    pub identity: (&'a str, &'a str),
    /// What only the two ends of this TLS connection know (RFC 9266); empty without TLS.
    pub channel: &'a [u8],
}

impl SessionTranscript<'_> {
    /// Without tenant and TLS the transcript is that of the first version; otherwise it has three parts more.
    pub(crate) fn digest(&self) -> [u8; 32] {
        let versions = [self.protocol_min, self.protocol_max, self.protocol, u32::from(self.key_required)];
        let versions: Vec<u8> = versions.iter().flat_map(|v| v.to_le_bytes()).collect();
        let (tenant, key_id) = self.identity;
        let plain = tenant.is_empty() && key_id.is_empty() && self.channel.is_empty();
        let label: &[u8] =
            if plain { b"memkv session transcript v1" } else { b"memkv session transcript v2" };
        let parts: [&[u8]; 9] = [
            label,
            &versions,
            self.client_nonce,
            self.server_nonce,
            self.session_id,
            self.node_id.as_bytes(),
            tenant.as_bytes(),
            key_id.as_bytes(),
            self.channel,
        ];
        let mut hash = Sha256::new();
        for part in &parts[..if plain { 6 } else { 9 }] {
            hash.update(length_prefix(part));
            hash.update(part);
        }
        hash.finalize().into()
    }

    /// The server's proof that it knows the key.
    #[must_use]
    pub fn server_proof(&self, key: &AuthKey) -> [u8; SECRET_BYTES] {
        mac(&key.0, &[b"memkv session server v1", &self.digest()])
    }

    /// The client's proof that it knows the key.
    #[must_use]
    pub fn client_proof(&self, key: &AuthKey) -> [u8; SECRET_BYTES] {
        mac(&key.0, &[b"memkv session client v1", &self.digest()])
    }

    /// The key that binds data connections to this session.
    #[must_use]
    pub fn session_key(&self, key: &AuthKey) -> SessionKey {
        SessionKey(mac(&key.0, &[b"memkv session key v1", &self.digest()]))
    }
}

impl SessionKey {
    pub(crate) fn new(key: [u8; SECRET_BYTES]) -> Self {
        Self(key)
    }

    /// Proof of one side of a data connection over both nonces.
    pub(crate) fn attach_proof(&self, label: &[u8], transcript: &[&[u8]]) -> [u8; SECRET_BYTES] {
        let mut parts = vec![label];
        parts.extend_from_slice(transcript);
        mac(&self.0, &parts)
    }
}

/// Compares two secrets in a time that does not depend on where they differ.
#[must_use]
pub fn same_secret(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differ, (x, y)| differ | std::hint::black_box(x ^ y)) == 0
}

/// A per-call credential: `v1.<unix ms>.<nonce, 32 hex>.<HMAC, 64 hex>`.
///
/// The HMAC covers the label `memkv call v1`, the method's full name (for example `/memkv.v1.Kv/Get`), the
/// time as decimal text, and the nonce's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credential {
    /// When the call was made, Unix milliseconds.
    pub unix_ms: u64,
    /// 16 random bytes; a server accepts each one once.
    pub nonce: [u8; 16],
    proof: [u8; SECRET_BYTES],
}

/// Why a call is not authenticated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CredentialError {
    /// There is no credential, or it is not of the form of [`Credential`].
    #[error("the call carries no valid memkv-auth credential; set MEMKV_AUTH_KEY to the server's key")]
    Malformed,
    /// The HMAC is wrong.
    #[error("the credential does not match a key of the server; check MEMKV_AUTH_KEY and MEMKV_TENANT")]
    WrongKey,
    /// The clocks differ too much, or the credential is old.
    #[error(
        "the credential's time is {0} ms away from the server's clock (allowed: {CREDENTIAL_WINDOW_MS}); synchronise the clocks"
    )]
    Stale(u64),
}

impl Credential {
    /// Makes the credential of one call.
    #[must_use]
    pub fn new(key: &AuthKey, method: &str, unix_ms: u64, nonce: [u8; 16]) -> Self {
        Self { unix_ms, nonce, proof: Self::proof(key, method, unix_ms, &nonce) }
    }

    fn proof(key: &AuthKey, method: &str, unix_ms: u64, nonce: &[u8; 16]) -> [u8; SECRET_BYTES] {
        mac(&key.0, &[b"memkv call v1", method.as_bytes(), unix_ms.to_string().as_bytes(), nonce])
    }

    /// Reads a credential and checks everything but whether its nonce was seen before.
    ///
    /// # Errors
    ///
    /// [`CredentialError`] says what is wrong and what to do.
    pub fn verify(
        text: &str,
        key: &AuthKey,
        method: &str,
        now_unix_ms: u64,
    ) -> Result<Self, CredentialError> {
        let read = Self::parse(text).ok_or(CredentialError::Malformed)?;
        let expected = Self::proof(key, method, read.unix_ms, &read.nonce);
        if !same_secret(&expected, &read.proof) {
            return Err(CredentialError::WrongKey);
        }
        let apart = read.unix_ms.abs_diff(now_unix_ms);
        if apart > CREDENTIAL_WINDOW_MS { Err(CredentialError::Stale(apart)) } else { Ok(read) }
    }

    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.strip_prefix("v1.")?.split('.');
        let (time, nonce, proof) = (parts.next()?, parts.next()?, parts.next()?);
        if parts.next().is_some() || time.len() > 20 {
            return None;
        }
        Some(Self { unix_ms: time.parse().ok()?, nonce: from_hex(nonce)?, proof: from_hex(proof)? })
    }
}

impl fmt::Display for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v1.{}.", self.unix_ms)?;
        self.nonce.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_str(".")?;
        self.proof.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

pub(crate) fn from_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != 2 * N || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    let mut out = [0; N];
    for (byte, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(out)
}

pub(crate) fn length_prefix(part: &[u8]) -> [u8; 4] {
    // Transcript parts are names and nonces, far below 4 GiB.
    u32::try_from(part.len()).unwrap_or(u32::MAX).to_le_bytes()
}

pub(crate) fn mac(key: &[u8; SECRET_BYTES], parts: &[&[u8]]) -> [u8; SECRET_BYTES] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    for part in parts {
        mac.update(&length_prefix(part));
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> AuthKey {
        AuthKey([byte; 32])
    }

    fn transcript<'a>(client_nonce: &'a [u8], node_id: &'a str) -> SessionTranscript<'a> {
        SessionTranscript {
            protocol_min: 1,
            protocol_max: 1,
            protocol: 1,
            client_nonce,
            server_nonce: &[2; 32],
            session_id: &[3; 16],
            node_id,
            key_required: true,
            identity: ("", ""),
            channel: &[],
        }
    }

    #[test]
    fn keys_are_64_hex_digits_and_never_shown() {
        let text = "00ff".repeat(16);
        let key = AuthKey::from_hex(&format!(" {text}\n")).unwrap();
        assert_eq!(key.0[..2], [0, 255]);
        assert!(!format!("{key:?}").contains("255"));
        let short = AuthKey::from_hex("abc").unwrap_err();
        assert!(short.to_string().contains("64 hex digits") && !short.to_string().contains("abc"));
        assert!(AuthKey::from_hex(&"zz".repeat(32)).unwrap_err().to_string().contains("other characters"));
    }

    #[test]
    fn proofs_differ_by_side_key_and_transcript() {
        let base = transcript(&[1; 32], "node");
        let server = base.server_proof(&key(7));
        assert_ne!(server, base.client_proof(&key(7)), "a reflected proof must not pass");
        assert_ne!(server, base.server_proof(&key(8)));
        assert_ne!(server, transcript(&[9; 32], "node").server_proof(&key(7)));
        assert_ne!(server, transcript(&[1; 32], "other").server_proof(&key(7)));
        let downgraded = SessionTranscript { protocol_max: 2, ..base };
        assert_ne!(server, downgraded.server_proof(&key(7)));
        let relayed = SessionTranscript { channel: &[1; 32], ..base };
        assert_ne!(server, relayed.server_proof(&key(7)), "a proof is for one TLS connection");
        let renamed = SessionTranscript { identity: ("a", ""), ..base };
        assert_ne!(server, renamed.server_proof(&key(7)));
        let other = SessionTranscript { identity: ("", "a"), ..base };
        assert_ne!(renamed.server_proof(&key(7)), other.server_proof(&key(7)), "parts have lengths");
    }

    #[test]
    fn a_credential_is_for_one_method_time_and_key() {
        let text = Credential::new(&key(1), "/memkv.v1.Kv/Get", 1_000_000, [5; 16]).to_string();
        let verify = |key: &AuthKey, method: &str, now: u64| Credential::verify(&text, key, method, now);
        assert_eq!(verify(&key(1), "/memkv.v1.Kv/Get", 1_000_500).unwrap().nonce, [5; 16]);
        assert_eq!(verify(&key(2), "/memkv.v1.Kv/Get", 1_000_500), Err(CredentialError::WrongKey));
        assert_eq!(verify(&key(1), "/memkv.v1.Kv/Put", 1_000_500), Err(CredentialError::WrongKey));
        assert_eq!(verify(&key(1), "/memkv.v1.Kv/Get", 1_060_001), Err(CredentialError::Stale(60_001)));
        for bad in ["", "v1", "v1.1.2.3", "v2.1.00.00", &text[..text.len() - 1], &format!("{text}.x")] {
            assert_eq!(
                Credential::verify(bad, &key(1), "/memkv.v1.Kv/Get", 1_000_000),
                Err(CredentialError::Malformed)
            );
        }
    }

    #[test]
    fn secrets_compare_by_value() {
        assert!(same_secret(b"same", b"same"));
        assert!(!same_secret(b"same", b"sane"));
        assert!(!same_secret(b"same", b"sam"));
    }
}
