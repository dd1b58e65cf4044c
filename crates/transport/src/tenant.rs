//! Tenants' keys: what a client keeps, what a server keeps, and how the one proves itself to the other.
//!
//! A tenant's key is 32 random bytes that only its clients have. The server keeps a [`Verifier`], from which the key
//! cannot be computed:
//!
//! ```text
//! base       = MAC(key, "memkv tenant v1", tenant)
//! client key = MAC(base, "client")            stored key = SHA-256(P("memkv stored key v1") ‖ P(client key))
//! server key = MAC(base, "server")            key id     = the first 8 bytes of MAC(base, "id"), in hex
//! verifier   = stored key ‖ server key
//!
//! client proof = client key XOR MAC(stored key, label, transcript)
//! ```
//!
//! The server takes the mask off a proof and sees whether the stored key is the digest of what is left. So a stolen
//! verifier does not let the thief log in. It lets him pretend to be a server, and, with a recorded exchange, take the
//! mask off too; `docs/security.md` says what to do then.
//!
//! Every check has two costs only: of a proof that is right, and of any other. A tenant that is not known is checked
//! against a [decoy](Verifier::decoy), which nobody's proof matches.

use crate::auth::{
    AuthKey, CREDENTIAL_WINDOW_MS, Credential, CredentialError, SECRET_BYTES, SessionKey, SessionTranscript,
    from_hex, length_prefix, mac, same_secret,
};
use sha2::{Digest as _, Sha256};
use std::fmt;

/// Longest name of a tenant, bytes.
pub const TENANT_BYTES_MAX: usize = 64;
/// Characters of a key's id.
pub const KEY_ID_CHARS: usize = 16;

/// Whether a text can be a tenant's name: 1 to 64 of `a-z`, `0-9`, `_` and `-`.
#[must_use]
pub fn is_tenant_name(text: &str) -> bool {
    (1..=TENANT_BYTES_MAX).contains(&text.len())
        && text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-'))
}

/// Whether a text can be a key's id: 16 lower-case hex digits.
#[must_use]
pub fn is_key_id(text: &str) -> bool {
    text.len() == KEY_ID_CHARS && text.bytes().all(|b| matches!(b, b'a'..=b'f' | b'0'..=b'9'))
}

/// What a server keeps of a tenant's key. Never shown by `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct Verifier {
    stored_key: [u8; SECRET_BYTES],
    server_key: [u8; SECRET_BYTES],
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Verifier(hidden)")
    }
}

impl Verifier {
    /// Reads the 128 hex digits that [`Verifier::to_hex`] writes.
    #[must_use]
    pub fn from_hex(text: &str) -> Option<Self> {
        let (stored, server) = text.split_at_checked(2 * SECRET_BYTES)?;
        Some(Self { stored_key: from_hex(stored)?, server_key: from_hex(server)? })
    }

    /// For a credentials file, and for nothing else.
    #[must_use]
    pub fn to_hex(&self) -> String {
        self.stored_key.iter().chain(&self.server_key).map(|byte| format!("{byte:02x}")).collect()
    }

    /// A verifier that no proof matches, for a tenant and key that are not known. It is always the same for the same
    /// secret and names, so that asking twice tells nothing either.
    #[must_use]
    pub fn decoy(secret: &AuthKey, tenant: &str, key_id: &str) -> Self {
        let part = |name: &[u8]| secret.mac(&[b"memkv decoy v1", name, tenant.as_bytes(), key_id.as_bytes()]);
        Self { stored_key: part(b"stored"), server_key: part(b"server") }
    }

    /// The client key inside a proof; `None` if the proof is wrong.
    fn unmask(&self, proof: &[u8], label: &[u8], transcript: &[&[u8]]) -> Option<[u8; SECRET_BYTES]> {
        let mask = masked(&self.stored_key, label, transcript);
        let mut client_key = mask;
        client_key.iter_mut().zip(proof).for_each(|(byte, proof)| *byte ^= proof);
        let right = same_secret(&stored_key(&client_key), &self.stored_key);
        (right && proof.len() == SECRET_BYTES).then_some(client_key)
    }
}

/// A tenant's key with the tenant's name: what a client proves. Never shown by `Debug`.
#[derive(Clone)]
pub struct TenantKey {
    tenant: String,
    key_id: String,
    client_key: [u8; SECRET_BYTES],
    verifier: Verifier,
}

impl fmt::Debug for TenantKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TenantKey")
            .field("tenant", &self.tenant)
            .field("key_id", &self.key_id)
            .finish_non_exhaustive()
    }
}

impl TenantKey {
    /// Derives what client and server need from a tenant's key.
    #[must_use]
    pub fn new(key: &AuthKey, tenant: &str) -> Self {
        let base = key.mac(&[b"memkv tenant v1", tenant.as_bytes()]);
        let client_key = mac(&base, &[b"client"]);
        let verifier = Verifier { stored_key: stored_key(&client_key), server_key: mac(&base, &[b"server"]) };
        let id = mac(&base, &[b"id"]);
        let key_id = id[..KEY_ID_CHARS / 2].iter().map(|byte| format!("{byte:02x}")).collect();
        Self { tenant: tenant.to_owned(), key_id, client_key, verifier }
    }

    /// The tenant's name.
    #[must_use]
    pub fn tenant(&self) -> &str {
        &self.tenant
    }

    /// Which of the tenant's keys it is.
    #[must_use]
    pub fn key_id(&self) -> &str {
        &self.key_id
    }

    /// What the server keeps.
    #[must_use]
    pub fn verifier(&self) -> &Verifier {
        &self.verifier
    }
}

/// What a client proves when it opens a session and makes calls. Never shown by `Debug`.
#[derive(Clone, Debug)]
pub enum ClientSecret {
    /// The cluster's key.
    Cluster(AuthKey),
    /// A tenant's key.
    Tenant(TenantKey),
}

impl ClientSecret {
    /// The secret of a client that may have the name of a tenant.
    #[must_use]
    pub fn new(key: AuthKey, tenant: Option<&str>) -> Self {
        match tenant {
            None => Self::Cluster(key),
            Some(tenant) => Self::Tenant(TenantKey::new(&key, tenant)),
        }
    }

    /// The names of tenant and key; empty for the cluster's key.
    #[must_use]
    pub fn identity(&self) -> (&str, &str) {
        match self {
            Self::Cluster(_) => ("", ""),
            Self::Tenant(key) => (&key.tenant, &key.key_id),
        }
    }

    /// The proof that a server has to give.
    #[must_use]
    pub fn server_proof(&self, transcript: &SessionTranscript<'_>) -> [u8; SECRET_BYTES] {
        match self {
            Self::Cluster(key) => transcript.server_proof(key),
            Self::Tenant(key) => ServerSecret::Tenant(key.verifier.clone()).server_proof(transcript),
        }
    }

    /// The client's proof.
    #[must_use]
    pub fn client_proof(&self, transcript: &SessionTranscript<'_>) -> [u8; SECRET_BYTES] {
        match self {
            Self::Cluster(key) => transcript.client_proof(key),
            Self::Tenant(key) => key.mask(b"memkv session client v2", &[&transcript.digest()]),
        }
    }

    /// The key that binds data connections to the session.
    #[must_use]
    pub fn session_key(&self, transcript: &SessionTranscript<'_>) -> SessionKey {
        match self {
            Self::Cluster(key) => transcript.session_key(key),
            Self::Tenant(key) => tenant_session_key(&key.client_key, transcript),
        }
    }

    /// The text of a call's credential: [`Credential`] with the cluster's key, else
    /// `v2.<tenant>.<key id>.<unix ms>.<nonce, 32 hex>.<proof, 64 hex>`.
    #[must_use]
    pub fn credential(&self, method: &str, unix_ms: u64, nonce: [u8; 16]) -> String {
        match self {
            Self::Cluster(key) => Credential::new(key, method, unix_ms, nonce).to_string(),
            Self::Tenant(key) => {
                let time = unix_ms.to_string();
                let proof = key.mask(CALL_LABEL, &call(key.identity(), method, &time, &nonce));
                let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
                format!("v2.{}.{}.{time}.{}.{}", key.tenant, key.key_id, hex(&nonce), hex(&proof))
            }
        }
    }
}

impl TenantKey {
    fn identity(&self) -> (&str, &str) {
        (&self.tenant, &self.key_id)
    }

    fn mask(&self, label: &[u8], transcript: &[&[u8]]) -> [u8; SECRET_BYTES] {
        let mut proof = masked(&self.verifier.stored_key, label, transcript);
        proof.iter_mut().zip(&self.client_key).for_each(|(byte, key)| *byte ^= key);
        proof
    }
}

const CALL_LABEL: &[u8] = b"memkv call v2";

fn call<'a>(
    (tenant, key_id): (&'a str, &'a str),
    method: &'a str,
    time: &'a str,
    nonce: &'a [u8],
) -> [&'a [u8]; 5] {
    [tenant.as_bytes(), key_id.as_bytes(), method.as_bytes(), time.as_bytes(), nonce]
}

/// What a server checks clients against. Never shown by `Debug`.
#[derive(Clone, Debug)]
pub enum ServerSecret {
    /// The cluster's key.
    Cluster(AuthKey),
    /// What is kept of a tenant's key.
    Tenant(Verifier),
}

impl ServerSecret {
    /// The server's proof.
    #[must_use]
    pub fn server_proof(&self, transcript: &SessionTranscript<'_>) -> [u8; SECRET_BYTES] {
        match self {
            Self::Cluster(key) => transcript.server_proof(key),
            Self::Tenant(verifier) => {
                mac(&verifier.server_key, &[b"memkv session server v2", &transcript.digest()])
            }
        }
    }

    /// Checks the client's proof; the session's key if it is right.
    #[must_use]
    pub fn check(&self, transcript: &SessionTranscript<'_>, proof: &[u8]) -> Option<SessionKey> {
        match self {
            Self::Cluster(key) => {
                same_secret(proof, &transcript.client_proof(key)).then(|| transcript.session_key(key))
            }
            Self::Tenant(verifier) => {
                let client_key =
                    verifier.unmask(proof, b"memkv session client v2", &[&transcript.digest()])?;
                Some(tenant_session_key(&client_key, transcript))
            }
        }
    }
}

/// A call's credential of the second form, as it was read; nothing is checked yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TenantCredential<'a> {
    /// Who says to call.
    pub tenant: &'a str,
    /// With which key.
    pub key_id: &'a str,
    /// When, Unix milliseconds.
    pub unix_ms: u64,
    /// 16 random bytes; a server accepts each one once.
    pub nonce: [u8; 16],
    proof: [u8; SECRET_BYTES],
}

impl<'a> TenantCredential<'a> {
    /// Whether a text claims to be of this form.
    #[must_use]
    pub fn is_one(text: &str) -> bool {
        text.starts_with("v2.")
    }

    /// Reads a credential.
    ///
    /// # Errors
    ///
    /// [`CredentialError::Malformed`] if it is none.
    pub fn parse(text: &'a str) -> Result<Self, CredentialError> {
        Self::read(text).ok_or(CredentialError::Malformed)
    }

    fn read(text: &'a str) -> Option<Self> {
        let mut parts = text.strip_prefix("v2.")?.split('.');
        let (tenant, key_id) = (parts.next()?, parts.next()?);
        let (time, nonce, proof) = (parts.next()?, parts.next()?, parts.next()?);
        let sound = parts.next().is_none() && is_tenant_name(tenant) && is_key_id(key_id) && time.len() <= 20;
        let read = Self {
            tenant,
            key_id,
            unix_ms: time.parse().ok()?,
            nonce: from_hex(nonce)?,
            proof: from_hex(proof)?,
        };
        sound.then_some(read)
    }

    /// Checks proof and time; whether the nonce was seen before is for the caller.
    ///
    /// # Errors
    ///
    /// [`CredentialError`] says what is wrong and what to do.
    pub fn verify(&self, verifier: &Verifier, method: &str, now_unix_ms: u64) -> Result<(), CredentialError> {
        let time = self.unix_ms.to_string();
        let transcript = call((self.tenant, self.key_id), method, &time, &self.nonce);
        verifier.unmask(&self.proof, CALL_LABEL, &transcript).ok_or(CredentialError::WrongKey)?;
        let apart = self.unix_ms.abs_diff(now_unix_ms);
        if apart > CREDENTIAL_WINDOW_MS { Err(CredentialError::Stale(apart)) } else { Ok(()) }
    }
}

fn stored_key(client_key: &[u8; SECRET_BYTES]) -> [u8; SECRET_BYTES] {
    let mut hash = Sha256::new();
    for part in [&b"memkv stored key v1"[..], client_key] {
        hash.update(length_prefix(part));
        hash.update(part);
    }
    hash.finalize().into()
}

fn masked(stored_key: &[u8; SECRET_BYTES], label: &[u8], transcript: &[&[u8]]) -> [u8; SECRET_BYTES] {
    let parts: Vec<&[u8]> = std::iter::once(label).chain(transcript.iter().copied()).collect();
    mac(stored_key, &parts)
}

fn tenant_session_key(client_key: &[u8; SECRET_BYTES], transcript: &SessionTranscript<'_>) -> SessionKey {
    SessionKey::new(mac(client_key, &[b"memkv session key v2", &transcript.digest()]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONCE: [u8; 32] = [1; 32];

    fn transcript<'a>(identity: (&'a str, &'a str), channel: &'a [u8]) -> SessionTranscript<'a> {
        SessionTranscript {
            protocol_min: 1,
            protocol_max: 1,
            protocol: 1,
            client_nonce: &NONCE,
            server_nonce: &[2; 32],
            session_id: &[3; 16],
            node_id: "n",
            key_required: true,
            identity,
            channel,
        }
    }

    fn pair(byte: u8, tenant: &str) -> (ClientSecret, ServerSecret) {
        let key = TenantKey::new(&AuthKey::from_bytes([byte; 32]), tenant);
        let verifier = Verifier::from_hex(&key.verifier().to_hex()).unwrap();
        (ClientSecret::Tenant(key), ServerSecret::Tenant(verifier))
    }

    fn session_proof(secret: &ClientSecret, transcript: &SessionTranscript<'_>) -> [u8; 32] {
        secret.session_key(transcript).attach_proof(b"label", &[])
    }

    #[test]
    fn both_sides_agree_on_one_session_key() {
        for (client, server) in [
            pair(7, "a"),
            (
                ClientSecret::Cluster(AuthKey::from_bytes([7; 32])),
                ServerSecret::Cluster(AuthKey::from_bytes([7; 32])),
            ),
        ] {
            let transcript = transcript(client.identity(), &[]);
            assert_eq!(client.server_proof(&transcript), server.server_proof(&transcript));
            let key = server.check(&transcript, &client.client_proof(&transcript)).unwrap();
            assert_eq!(key.attach_proof(b"label", &[]), session_proof(&client, &transcript));
        }
    }

    #[test]
    fn a_proof_is_for_one_key_one_tenant_and_one_connection() {
        let (client, server) = pair(7, "a");
        let base = transcript(client.identity(), &[]);
        let proof = client.client_proof(&base);
        assert!(server.check(&base, &proof).is_some());
        assert!(pair(8, "a").1.check(&base, &proof).is_none(), "another key");
        assert!(pair(7, "b").1.check(&base, &proof).is_none(), "the same key of another tenant");
        assert!(server.check(&transcript(client.identity(), &[9; 32]), &proof).is_none(), "relayed");
        assert!(server.check(&transcript(("a", "0"), &[]), &proof).is_none(), "another key's name");
        assert!(server.check(&base, &server.server_proof(&base)).is_none(), "reflected");
        assert!(server.check(&base, &proof[..31]).is_none());
        assert!(server.check(&base, &[]).is_none());
        let cluster = ServerSecret::Cluster(AuthKey::from_bytes([7; 32]));
        assert!(cluster.check(&base, &proof).is_none(), "a tenant's key is never taken for the cluster's");
    }

    #[test]
    fn a_stolen_verifier_does_not_log_in() {
        let (client, server) = pair(7, "a");
        let ServerSecret::Tenant(verifier) = &server else { panic!("it is a tenant's") };
        let base = transcript(client.identity(), &[]);
        let mask = masked(&verifier.stored_key, b"memkv session client v2", &[&base.digest()]);
        for guess in [verifier.stored_key, verifier.server_key, [0; 32]] {
            let mut proof = mask;
            proof.iter_mut().zip(&guess).for_each(|(byte, guess)| *byte ^= guess);
            assert!(server.check(&base, &proof).is_none());
        }
    }

    #[test]
    fn nobody_matches_a_decoy_and_it_stays_the_same() {
        let secret = AuthKey::from_bytes([1; 32]);
        let decoy = Verifier::decoy(&secret, "a", "k");
        assert!(decoy == Verifier::decoy(&secret, "a", "k"));
        assert!(decoy != Verifier::decoy(&secret, "b", "k") && decoy != Verifier::decoy(&secret, "a", "l"));
        let (client, _) = pair(7, "a");
        let base = transcript(client.identity(), &[]);
        assert!(ServerSecret::Tenant(decoy).check(&base, &client.client_proof(&base)).is_none());
    }

    #[test]
    fn a_calls_credential_is_for_one_method_time_and_key() {
        let (client, server) = pair(7, "a");
        let ServerSecret::Tenant(verifier) = &server else { panic!("it is a tenant's") };
        let text = client.credential("/memkv.v1.Kv/Get", 1_000_000, [5; 16]);
        assert!(TenantCredential::is_one(&text));
        let read = TenantCredential::parse(&text).unwrap();
        assert_eq!((read.tenant, read.key_id), client.identity());
        assert_eq!(read.verify(verifier, "/memkv.v1.Kv/Get", 1_000_500), Ok(()));
        assert_eq!(read.verify(verifier, "/memkv.v1.Kv/Put", 1_000_500), Err(CredentialError::WrongKey));
        let stale = read.verify(verifier, "/memkv.v1.Kv/Get", 1_060_001);
        assert_eq!(stale, Err(CredentialError::Stale(60_001)));
        let renamed = text.replace("v2.a.", "v2.b.");
        let renamed = TenantCredential::parse(&renamed).unwrap();
        assert_eq!(renamed.verify(verifier, "/memkv.v1.Kv/Get", 1_000_500), Err(CredentialError::WrongKey));
        for bad in ["", "v2.", "v2.a", &text[..text.len() - 1], &format!("{text}.x"), "v1.1.2.3"] {
            assert_eq!(TenantCredential::parse(bad), Err(CredentialError::Malformed), "{bad}");
        }
    }

    #[test]
    fn names_are_plain_and_secrets_are_not_shown() {
        assert!(is_tenant_name("team-a_1") && is_key_id("00112233445566aa"));
        for bad in ["", "a.b", "A", "a b", &"a".repeat(65)] {
            assert!(!is_tenant_name(bad), "{bad}");
        }
        assert!(!is_key_id("00112233445566AA") && !is_key_id("0011"));
        let (client, server) = pair(7, "a");
        let shown = format!("{client:?} {server:?}");
        let ServerSecret::Tenant(verifier) = &server else { panic!("it is a tenant's") };
        assert!(shown.contains("hidden") && shown.contains(client.identity().1), "{shown}");
        assert!(!shown.contains(&verifier.to_hex()[..8]), "{shown}");
        assert!(!shown.contains(&format!("{:?}", verifier.stored_key)[..20]), "{shown}");
    }
}
