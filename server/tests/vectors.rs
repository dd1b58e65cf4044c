//! The examples of `docs/protocol.md`: computed by the crates that speak the protocol, compared with the file that other
//! languages check themselves against. A changed line is a changed protocol.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails here")]

use memkv_core::page::key_digest;
use memkv_core::route::{Node, order};
use memkv_core::{Key, PageHasher, PageMeta, SpaceDescription, SpaceId};
use memkv_transport::auth::{AuthKey, Credential, SessionTranscript};
use memkv_transport::frame::{FLAG_EXACT, Header, Op};
use memkv_transport::handshake::{Attach, key_on};
use memkv_transport::records;
use memkv_transport::tenant::{ClientSecret, TenantKey};
use std::fmt::Write as _;
use std::process::Command;

const KEY: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

fn key(bytes: &[u8]) -> Key<'_> {
    Key::new(bytes).unwrap()
}

fn space() -> SpaceId {
    SpaceDescription::named("default").unwrap().id()
}

/// Sections 1 to 4.
fn hashes(out: &mut String) -> std::fmt::Result {
    let fields = [("model", "llama"), ("dtype", "bf16"), ("page_tokens", "64")];
    let fields = fields.map(|(name, value)| (name.to_owned(), value.to_owned()));
    writeln!(out, "1 space name=default: {}", space())?;
    let described = SpaceDescription::new(fields).unwrap();
    writeln!(out, "1 space dtype=bf16 model=llama page_tokens=64: {}", described.id())?;
    let long = [b'x'; 512];
    for (name, bytes) in [("k", &b"k"[..]), ("512 times x", &long)] {
        let digest = key_digest(space(), key(bytes));
        writeln!(out, "2 key digest of {name:?} in name=default: {digest:#018x}")?;
    }
    let digest = key_digest(space(), key(b"k"));
    let page: Vec<u8> = (0..1000_u32).map(|i| (i % 251) as u8).collect();
    for (name, bytes) in [("\"page\"", &b"page"[..]), ("1000 bytes i mod 251", &page)] {
        let checksum = PageHasher::oneshot(digest, bytes);
        writeln!(out, "3 checksum of {name} under key \"k\" in name=default: {checksum:#018x}")?;
    }
    let coded = PageMeta { codec: 3, flags: 5, ..PageMeta::default() };
    let checksum = coded.checksum_of(PageHasher::oneshot(digest, b"page"));
    writeln!(out, "3 checksum of the same \"page\" with codec 3 and flags 5: {checksum:#018x}")?;
    let nodes =
        [Node::new("node-a", 100), Node::new("node-b", 100), Node::new("node-c", 200), Node::new("off", 0)];
    for name in [&b"k"[..], b"l", b"m", b"n"] {
        let ids = order(&nodes, key_digest(space(), key(name)));
        let ids: Vec<_> = ids.into_iter().map(|at| nodes[at].id.as_str()).collect();
        let name = String::from_utf8_lossy(name);
        writeln!(out, "4 order for {name:?} over node-a=100 node-b=100 node-c=200 off=0: {}", ids.join(" "))?;
    }
    Ok(())
}

/// The same exchange for whoever it is, inside TLS if there is a channel.
fn transcript<'a>(
    identity: (&'a str, &'a str),
    channel: &'a [u8],
    key_required: bool,
) -> SessionTranscript<'a> {
    SessionTranscript {
        protocol_min: 1,
        protocol_max: 2,
        protocol: 1,
        client_nonce: &[0x11; 32],
        server_nonce: &[0x22; 32],
        session_id: &[0x33; 16],
        node_id: "node-a",
        key_required,
        identity,
        channel,
    }
}

const CHANNEL: [u8; 32] = [0x77; 32];
const TENANT: &str = "search";

/// Section 5, inside TLS and of tenants.
fn tenants(out: &mut String) -> std::fmt::Result {
    let auth = AuthKey::from_hex(KEY).unwrap();
    let inside = transcript(("", ""), &CHANNEL, true);
    writeln!(out, "5 server proof inside TLS, channel 32 times 77: {}", hex(&inside.server_proof(&auth)))?;
    writeln!(out, "5 client proof inside TLS: {}", hex(&inside.client_proof(&auth)))?;
    let certified = transcript(("", ""), &CHANNEL, false);
    let open = AuthKey::open();
    let proof = hex(&certified.server_proof(&open));
    writeln!(out, "5 server proof inside TLS to a certificate, no key required: {proof}")?;
    writeln!(out, "5 client proof of a certificate: {}", hex(&certified.client_proof(&open)))?;
    let (key, secret) = tenant();
    writeln!(out, "5 with the same key as that of tenant {TENANT}, key id: {}", key.key_id())?;
    let identity = secret.identity();
    let session = transcript(identity, &[], true);
    writeln!(out, "5 verifier of tenant {TENANT}: {}", key.verifier().to_hex())?;
    writeln!(out, "5 server proof to tenant {TENANT}: {}", hex(&secret.server_proof(&session)))?;
    writeln!(out, "5 client proof of tenant {TENANT}: {}", hex(&secret.client_proof(&session)))?;
    let credential = secret.credential("/memkv.v1.Kv/Get", 1_700_000_000_000, [0x44; 16]);
    writeln!(
        out,
        "5 credential of tenant {TENANT} for /memkv.v1.Kv/Get at 1700000000000 with nonce 16 times 44: {credential}"
    )?;
    let secured = transcript(identity, &CHANNEL, true);
    let [server, client] =
        [secret.server_proof(&secured), secret.client_proof(&secured)].map(|proof| hex(&proof));
    writeln!(out, "5 server proof to tenant {TENANT} inside TLS, channel 32 times 77: {server}")?;
    writeln!(out, "5 client proof of tenant {TENANT} inside TLS: {client}")
}

fn tenant() -> (TenantKey, ClientSecret) {
    let auth = AuthKey::from_hex(KEY).unwrap();
    (TenantKey::new(&auth, TENANT), ClientSecret::new(auth, Some(TENANT)))
}

/// Section 6, for sessions of a tenant.
fn attaches(out: &mut String) -> std::fmt::Result {
    let (_, secret) = tenant();
    let attach = Attach { session_id: [0x33; 16], client_nonce: [0x55; 32] };
    let plain = secret.session_key(&transcript(secret.identity(), &[], true));
    let secured = secret.session_key(&transcript(secret.identity(), &CHANNEL, true));
    let places = [
        ("in a session of tenant search", plain),
        (
            "in its session inside TLS, on a connection with channel 32 times 88",
            key_on(&secured, Some(&[0x88; 32])),
        ),
    ];
    for (place, key) in places {
        let challenge = attach.challenge(&key, &[0x66; 32]);
        writeln!(out, "6 step 2 {place}: {}", hex(&challenge))?;
        writeln!(out, "6 step 3 {place}: {}", hex(&attach.answer(&key, &challenge).unwrap()))?;
    }
    Ok(())
}

/// Sections 5 and 6.
fn proofs(out: &mut String) -> std::fmt::Result {
    let auth = AuthKey::from_hex(KEY).unwrap();
    let transcript = transcript(("", ""), &[], true);
    let inputs = format!(
        "key {KEY}, versions 1 2 1, client nonce 32 times 11, server nonce 32 times 22, session id 16 times 33, node-a, key required"
    );
    writeln!(out, "5 with {inputs}:")?;
    writeln!(out, "5 server proof: {}", hex(&transcript.server_proof(&auth)))?;
    writeln!(out, "5 client proof: {}", hex(&transcript.client_proof(&auth)))?;
    let credential = Credential::new(&auth, "/memkv.v1.Kv/Get", 1_700_000_000_000, [0x44; 16]);
    writeln!(out, "5 credential for /memkv.v1.Kv/Get at 1700000000000 with nonce 16 times 44: {credential}")?;
    tenants(out)?;
    let attach = Attach { session_id: [0x33; 16], client_nonce: [0x55; 32] };
    let session_key = transcript.session_key(&auth);
    writeln!(out, "6 attach to that session, client nonce 32 times 55, server nonce 32 times 66:")?;
    writeln!(out, "6 step 1: {}", hex(&attach.encode()))?;
    let challenge = attach.challenge(&session_key, &[0x66; 32]);
    writeln!(out, "6 step 2: {}", hex(&challenge))?;
    writeln!(out, "6 step 3: {}", hex(&attach.answer(&session_key, &challenge).unwrap()))?;
    attaches(out)
}

/// Section 7.
fn frames(out: &mut String) -> std::fmt::Result {
    let ping = Header::request(Op::Ping, 7, SpaceId::default(), 0);
    writeln!(out, "7 ping with request id 7: {}", hex(&ping.encode(b"")))?;
    let mut meta = Vec::new();
    records::push_wanted(&mut meta, 4096, key(b"k"));
    records::push_wanted(&mut meta, 8192, key(b"key 2"));
    let mut get = Header::request(Op::Get, 0x0102_0304_0506_0708, space(), 2);
    get.flags = FLAG_EXACT;
    get.deadline_ms = 1500;
    writeln!(
        out,
        "7 get of \"k\" into 4096 and \"key 2\" into 8192, exact, 1500 ms, id 0x0102030405060708:"
    )?;
    writeln!(out, "7 header: {}", hex(&get.encode(&meta)))?;
    writeln!(out, "7 meta: {}", hex(&meta))
}

#[test]
fn the_examples_are_what_the_code_computes() {
    let mut out = String::from(
        "# Examples for docs/protocol.md; the number is the section. Bytes are in hex, as they travel.\n",
    );
    hashes(&mut out).and_then(|()| proofs(&mut out)).and_then(|()| frames(&mut out)).unwrap();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/protocol-vectors.txt");
    let written = std::fs::read_to_string(path).unwrap_or_default();
    assert!(written == out, "docs/protocol-vectors.txt must be:\n{out}");
}

/// A second implementation, written from the document alone, agrees.
#[test]
fn another_language_proves_the_same() {
    let file = |path: &str| format!("{}/{path}", env!("CARGO_MANIFEST_DIR"));
    let ran = Command::new("python3")
        .args([file("tests/proofs.py"), file("../docs/protocol-vectors.txt")])
        .output();
    let output = match ran {
        Ok(output) => output,
        Err(error) => {
            println!("skipped: this machine has no python3: {error}");
            return;
        }
    };
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let lines: u32 = said.split(' ').next().unwrap().parse().unwrap();
    assert!(lines >= 20, "only {lines} lines were compared");
}
