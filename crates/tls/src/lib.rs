//! Certificates and TLS for both planes.
//!
//! - [`ServerTls`], [`ClientTls`]: PEM files on disk, made into configurations of rustls, and read again when they
//!   change;
//! - [`Records`]: a TLS session over a nonblocking socket, for whoever moves pages without tasks;
//! - [`certificate`]: what a certificate says: until when, and for whom;
//! - [`hint`]: what to do about a handshake that failed.
//!
//! Invariants:
//! - TLS 1.3 only: one set of ciphers, no renegotiation, and an exporter that names the connection (RFC 9266);
//! - sessions are never resumed, so that every connection proves its certificate against the CA of its day;
//! - a set of files that does not fit together never replaces one that does;
//! - a private key is in no text: not in errors, not in `Debug`.
//!
//! Deliberately absent: sockets, timers and tasks; CAs of the system (name their file instead); making certificates.

#![forbid(unsafe_code)]

pub mod certificate;
mod client;
mod error;
mod files;
mod records;
mod server;

pub use certificate::{Certificate, Identity};
pub use client::{ClientFiles, ClientTls, Plane};
pub use error::{TlsError, hint};
pub use files::Refresh;
pub use records::Records;
pub use rustls;
pub use server::{ClientAuth, ServerFiles, ServerTls};
pub use tokio_rustls;

use rustls::ConnectionCommon;
use std::sync::Arc;

/// The protocol name (ALPN) of gRPC connections.
pub const ALPN_GRPC: &[u8] = b"h2";
/// The protocol name (ALPN) of data connections.
pub const ALPN_DATA: &[u8] = b"memkv-data/1";
/// The protocol name (ALPN) of admin HTTP.
pub const ALPN_HTTP: &[u8] = b"http/1.1";

/// Bytes that only the two ends of one TLS connection know.
pub const CHANNEL_BYTES: usize = 32;

/// What only the two ends of this connection know: the `tls-exporter` of RFC 9266.
///
/// # Errors
///
/// If the handshake is not over.
pub fn channel<Data>(connection: &ConnectionCommon<Data>) -> Result<[u8; CHANNEL_BYTES], rustls::Error> {
    connection.export_keying_material([0; CHANNEL_BYTES], b"EXPORTER-Channel-Binding", Some(b""))
}

/// The ciphers of ring, whatever else the process has.
fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}
