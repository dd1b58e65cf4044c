//! The handshake of a data connection on both sides, keys, and per-call credentials.

use crate::bytes::Bytes;
use memkv_transport::auth::{AuthKey, Credential, SessionKey, SessionTranscript};
use memkv_transport::handshake::{self, Attach, AttachStatus};

const NOW_MS: u64 = 1_700_000_000_000;
const METHOD: &str = "/memkv.v1.Kv/Get";

fn key() -> AuthKey {
    AuthKey::from_hex(&"5a".repeat(32)).expect("64 hex digits are a key")
}

fn session_key(key: &AuthKey) -> SessionKey {
    let transcript = SessionTranscript {
        protocol_min: 1,
        protocol_max: 1,
        protocol: 1,
        client_nonce: &[1; 32],
        server_nonce: &[2; 32],
        session_id: &[5; 16],
        node_id: "fuzz",
        key_required: true,
        identity: ("", ""),
        channel: &[],
    };
    transcript.session_key(key)
}

fn is_welcome(bytes: &[u8]) -> bool {
    handshake::read_status(&bytes[..handshake::WELCOME_BYTES]).is_ok()
}

pub(super) fn run(input: &[u8]) {
    let mut bytes = Bytes::new(input);
    let session = session_key(&key());
    match bytes.byte() % 5 {
        0 => {
            let hello = bytes.array();
            if let Ok(attach) = Attach::decode(&hello) {
                assert_eq!(attach.encode(), hello, "a first step reads as it was written");
            }
        }
        1 => {
            // No bytes pass for a server's proof but those that follow from the key, and none for a client's.
            let attach = Attach { session_id: [5; 16], client_nonce: [3; 32] };
            let challenge: [u8; handshake::CHALLENGE_BYTES] = bytes.array();
            let mut nonce = [0; 32];
            nonce.copy_from_slice(&challenge[16..48]);
            let is_genuine = challenge[48..80] == attach.challenge(&session, &nonce)[48..80];
            assert_eq!(
                attach.answer(&session, &challenge).is_ok(),
                is_genuine && is_welcome(&challenge),
                "forged"
            );
            assert!(attach.check(&session, &[4; 32], &bytes.array()).is_err(), "a forged proof was taken");
        }
        2 => {
            if handshake::read_status(bytes.rest()).is_ok() {
                let welcome = handshake::welcome(AttachStatus::Ok);
                assert_eq!(bytes.rest()[..12], welcome[..12], "only a welcome is one");
            }
        }
        3 => {
            let text = String::from_utf8_lossy(bytes.rest()).into_owned();
            if let Ok(key) = AuthKey::from_hex(&text) {
                assert!(!format!("{key:?}").contains(text.trim()), "a key is not shown");
            }
        }
        _ => {
            let text = String::from_utf8_lossy(bytes.rest()).into_owned();
            let good = Credential::new(&key(), METHOD, NOW_MS, [6; 16]).to_string();
            if let Ok(taken) = Credential::verify(&text, &key(), METHOD, NOW_MS) {
                assert_eq!(taken.to_string(), good, "a forged credential was taken");
            }
        }
    }
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let session = session_key(&key());
    let attach = Attach { session_id: [5; 16], client_nonce: [3; 32] };
    let with = |which: u8, rest: &[u8]| [&[which], rest].concat();
    let mut forged = attach.challenge(&session, &[4; 32]);
    forged[50] ^= 1;
    vec![
        with(0, &attach.encode()),
        with(1, &forged),
        with(2, &handshake::welcome(AttachStatus::Ok)),
        with(2, &handshake::refusal(AttachStatus::TooMany)),
        with(3, "5a".repeat(32).as_bytes()),
        with(4, Credential::new(&key(), METHOD, NOW_MS, [6; 16]).to_string().as_bytes()),
    ]
}
