//! How a data connection joins a session.
//!
//! The two planes share one port; the first eight bytes say which one a connection belongs to. HTTP/2 begins
//! with `PRI * HTTP/2.0`, ours with [`PREFACE`].
//!
//! | step | from | bytes | content |
//! |-----:|------|------:|---------|
//! | 1 | client | 64  | preface 8, `u16` layout version 1, 6 zero bytes, session id 16, client nonce 32 |
//! | 2 | server | 112 | preface 8, `u16` layout version, `u16` status, 4 zero bytes, server nonce 32, server proof 32, 32 zero bytes |
//! | 3 | client | 32  | client proof |
//! | 4 | server | 16  | preface 8, `u16` layout version, `u16` status, 4 zero bytes |
//!
//! After step 4 with status [`AttachStatus::Ok`], frames flow ([`crate::frame`]). Proofs are HMAC-SHA256 under the
//! session's key over label, session id and both nonces; the labels differ by side. A connection to an unknown
//! session gets [`AttachStatus::UnknownSession`] in step 2, with a proof of zeroes. Inside TLS the key is that of
//! [`key_on`], and where TLS is required a connection without it gets [`AttachStatus::TlsRequired`].

use crate::auth::{SECRET_BYTES, SessionKey, same_secret};

/// First bytes of a data connection, in both directions.
pub const PREFACE: [u8; 8] = *b"MEMKV\0D1";
/// Version of the steps above and of the frames that follow.
pub const VERSION: u16 = 1;
/// Bytes of step 1.
pub const ATTACH_BYTES: usize = 64;
/// Bytes of step 2.
pub const CHALLENGE_BYTES: usize = 112;
/// Bytes of step 3.
pub const PROOF_BYTES: usize = SECRET_BYTES;
/// Bytes of step 4.
pub const WELCOME_BYTES: usize = 16;

/// The server's word on an attach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum AttachStatus {
    /// Go on.
    Ok = 0,
    /// There is no such session (any more): open a new one.
    UnknownSession = 1,
    /// The proof is wrong.
    Denied = 2,
    /// The session or the server has as many connections as it may have, or the session rests because it did not read.
    TooMany = 3,
    /// The client's layout version is not known; step 2 carries the server's.
    Version = 4,
    /// The server is stopping.
    Stopping = 5,
    /// The connection is plain text, and the server or the session requires TLS.
    TlsRequired = 6,
}

impl AttachStatus {
    fn from_wire(value: u16) -> Option<Self> {
        Some(match value {
            0 => Self::Ok,
            1 => Self::UnknownSession,
            2 => Self::Denied,
            3 => Self::TooMany,
            4 => Self::Version,
            5 => Self::Stopping,
            6 => Self::TlsRequired,
            _ => return None,
        })
    }
}

/// Why an attach failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AttachError {
    /// The peer does not speak this protocol.
    #[error("the peer does not speak the memkv data protocol")]
    NotMemkv,
    /// The peer's layout version.
    #[error("the peer speaks data protocol version {0}, this side version {VERSION}")]
    Version(u16),
    /// The server refuses plain text.
    #[error("this server requires TLS; set MEMKV_TLS=on and MEMKV_TLS_CA")]
    TlsRequired,
    /// The server refused.
    #[error("the server refused the data connection: {0:?}")]
    Refused(AttachStatus),
    /// The peer's proof is wrong.
    #[error("the peer does not know the session's key")]
    WrongProof,
}

/// Step 1, as the server reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attach {
    /// The session to join.
    pub session_id: [u8; 16],
    /// The client's random bytes.
    pub client_nonce: [u8; 32],
}

impl Attach {
    /// Step 1's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; ATTACH_BYTES] {
        let mut out = [0; ATTACH_BYTES];
        out[..8].copy_from_slice(&PREFACE);
        out[8..10].copy_from_slice(&VERSION.to_le_bytes());
        out[16..32].copy_from_slice(&self.session_id);
        out[32..].copy_from_slice(&self.client_nonce);
        out
    }

    /// Reads step 1.
    ///
    /// # Errors
    ///
    /// [`AttachError::NotMemkv`] or [`AttachError::Version`].
    pub fn decode(bytes: &[u8; ATTACH_BYTES]) -> Result<Self, AttachError> {
        if bytes[..8] != PREFACE {
            return Err(AttachError::NotMemkv);
        }
        let version = u16::from_le_bytes([bytes[8], bytes[9]]);
        if version != VERSION {
            return Err(AttachError::Version(version));
        }
        if bytes[10..16] != [0; 6] {
            return Err(AttachError::NotMemkv);
        }
        let mut attach = Self { session_id: [0; 16], client_nonce: [0; 32] };
        attach.session_id.copy_from_slice(&bytes[16..32]);
        attach.client_nonce.copy_from_slice(&bytes[32..]);
        Ok(attach)
    }

    fn proof(&self, key: &SessionKey, label: &[u8], server_nonce: &[u8; 32]) -> [u8; SECRET_BYTES] {
        key.attach_proof(label, &[&self.session_id, &self.client_nonce, server_nonce])
    }

    /// Step 2 of a server that knows the session.
    #[must_use]
    pub fn challenge(&self, key: &SessionKey, server_nonce: &[u8; 32]) -> [u8; CHALLENGE_BYTES] {
        let mut out = refusal(AttachStatus::Ok);
        out[16..48].copy_from_slice(server_nonce);
        out[48..80].copy_from_slice(&self.proof(key, b"memkv attach server v1", server_nonce));
        out
    }

    /// The client's answer to step 2: checks the server's proof and returns step 3.
    ///
    /// # Errors
    ///
    /// [`AttachError`] if the server refused, speaks another version, or does not know the session's key.
    pub fn answer(
        &self,
        key: &SessionKey,
        challenge: &[u8; CHALLENGE_BYTES],
    ) -> Result<[u8; PROOF_BYTES], AttachError> {
        read_status(&challenge[..WELCOME_BYTES])?;
        let mut server_nonce = [0; 32];
        server_nonce.copy_from_slice(&challenge[16..48]);
        let expected = self.proof(key, b"memkv attach server v1", &server_nonce);
        if !same_secret(&expected, &challenge[48..80]) {
            return Err(AttachError::WrongProof);
        }
        Ok(self.proof(key, b"memkv attach client v1", &server_nonce))
    }

    /// The server's check of step 3.
    ///
    /// # Errors
    ///
    /// [`AttachError::WrongProof`] if the client does not know the session's key.
    pub fn check(
        &self,
        key: &SessionKey,
        server_nonce: &[u8; 32],
        proof: &[u8; PROOF_BYTES],
    ) -> Result<(), AttachError> {
        let expected = self.proof(key, b"memkv attach client v1", server_nonce);
        if same_secret(&expected, proof) { Ok(()) } else { Err(AttachError::WrongProof) }
    }
}

/// The key for the proofs of one data connection: the session's own in plain text; inside TLS, one that goes with what
/// only the two ends of the connection know (RFC 9266), so that proofs cannot be carried from one connection to another.
#[must_use]
pub fn key_on(key: &SessionKey, channel: Option<&[u8; 32]>) -> SessionKey {
    match channel {
        None => key.clone(),
        Some(channel) => SessionKey::new(key.attach_proof(b"memkv attach channel v1", &[channel])),
    }
}

/// Step 2 of a server that refuses.
#[must_use]
pub fn refusal(status: AttachStatus) -> [u8; CHALLENGE_BYTES] {
    let mut out = [0; CHALLENGE_BYTES];
    out[..WELCOME_BYTES].copy_from_slice(&welcome(status));
    out
}

/// Step 4.
#[must_use]
pub fn welcome(status: AttachStatus) -> [u8; WELCOME_BYTES] {
    let mut out = [0; WELCOME_BYTES];
    out[..8].copy_from_slice(&PREFACE);
    out[8..10].copy_from_slice(&VERSION.to_le_bytes());
    out[10..12].copy_from_slice(&(status as u16).to_le_bytes());
    out
}

/// Reads step 4, or the beginning of step 2.
///
/// # Errors
///
/// [`AttachError`] unless the status is [`AttachStatus::Ok`].
pub fn read_status(bytes: &[u8]) -> Result<(), AttachError> {
    if bytes.len() < WELCOME_BYTES || bytes[..8] != PREFACE {
        return Err(AttachError::NotMemkv);
    }
    let version = u16::from_le_bytes([bytes[8], bytes[9]]);
    let status = AttachStatus::from_wire(u16::from_le_bytes([bytes[10], bytes[11]]));
    match status {
        Some(AttachStatus::Ok) if version == VERSION => Ok(()),
        Some(AttachStatus::Ok | AttachStatus::Version) => Err(AttachError::Version(version)),
        Some(AttachStatus::TlsRequired) => Err(AttachError::TlsRequired),
        Some(status) => Err(AttachError::Refused(status)),
        None => Err(AttachError::NotMemkv),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::{AuthKey, SessionTranscript};

    fn session_key(nonce: u8) -> SessionKey {
        SessionTranscript {
            protocol_min: 1,
            protocol_max: 1,
            protocol: 1,
            client_nonce: &[nonce; 32],
            server_nonce: &[2; 32],
            session_id: &[3; 16],
            node_id: "n",
            key_required: false,
            identity: ("", ""),
            channel: &[],
        }
        .session_key(&AuthKey::open())
    }

    const ATTACH: Attach = Attach { session_id: [3; 16], client_nonce: [4; 32] };

    #[test]
    fn both_sides_agree() {
        let key = session_key(1);
        assert_eq!(Attach::decode(&ATTACH.encode()), Ok(ATTACH));
        let challenge = ATTACH.challenge(&key, &[5; 32]);
        let proof = ATTACH.answer(&key, &challenge).unwrap();
        assert_eq!(ATTACH.check(&key, &[5; 32], &proof), Ok(()));
        assert_eq!(read_status(&welcome(AttachStatus::Ok)), Ok(()));
    }

    #[test]
    fn another_sessions_key_does_not_fit() {
        let challenge = ATTACH.challenge(&session_key(1), &[5; 32]);
        assert_eq!(ATTACH.answer(&session_key(9), &challenge), Err(AttachError::WrongProof));
        let proof = ATTACH.answer(&session_key(1), &challenge).unwrap();
        assert_eq!(ATTACH.check(&session_key(9), &[5; 32], &proof), Err(AttachError::WrongProof));
        assert_eq!(ATTACH.check(&session_key(1), &[6; 32], &proof), Err(AttachError::WrongProof), "replay");
    }

    #[test]
    fn a_proof_is_for_one_tls_connection() {
        let key = session_key(1);
        let here = key_on(&key, Some(&[7; 32]));
        let challenge = ATTACH.challenge(&here, &[5; 32]);
        let proof = ATTACH.answer(&here, &challenge).unwrap();
        assert_eq!(ATTACH.check(&here, &[5; 32], &proof), Ok(()));
        for elsewhere in [key_on(&key, None), key_on(&key, Some(&[8; 32]))] {
            assert_eq!(ATTACH.answer(&elsewhere, &challenge), Err(AttachError::WrongProof));
            assert_eq!(ATTACH.check(&elsewhere, &[5; 32], &proof), Err(AttachError::WrongProof));
        }
    }

    #[test]
    fn refusals_and_garbage_are_told_apart() {
        let refused = refusal(AttachStatus::UnknownSession);
        let expected = Err(AttachError::Refused(AttachStatus::UnknownSession));
        assert_eq!(ATTACH.answer(&session_key(1), &refused), expected);
        assert_eq!(read_status(b"HTTP/1.1 400 Bad"), Err(AttachError::NotMemkv));
        let mut old = ATTACH.encode();
        old[8] = 2;
        assert_eq!(Attach::decode(&old), Err(AttachError::Version(2)));
        let mut garbage = ATTACH.encode();
        garbage[0] = b'G';
        assert_eq!(Attach::decode(&garbage), Err(AttachError::NotMemkv));
    }
}
