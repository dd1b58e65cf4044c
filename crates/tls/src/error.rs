//! What goes wrong with files and handshakes, and what to do about it.

use std::path::PathBuf;

/// Why there is no configuration. The text names the file and what to do.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {path}: {error}; check the path and who may read it", path = .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: std::io::Error,
    },
    /// A file does not hold what it should.
    #[error("{path} {problem}", path = .path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and what it should hold.
        problem: String,
    },
    /// Certificate and key are of two pairs, or no side can use them.
    #[error("{cert} and {key} do not fit together: {error}; use the key that the certificate was made for",
        cert = .cert.display(), key = .key.display())]
    Pair {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// What rustls says.
        error: rustls::Error,
    },
}

/// What to do about a connection that failed with this text, as far as the text tells. For the client's side.
#[must_use]
pub fn hint(text: &str) -> Option<&'static str> {
    const HINTS: [(&[&str], &str); 9] = [
        (
            // What a server without a certificate answers, and what others say in plain text.
            &["fatal alert: ProtocolVersion", "InvalidContentType", "corrupt message"],
            "the server does not speak TLS; give it tls.cert and tls.key, or set MEMKV_TLS=off",
        ),
        (
            &["fatal alert: CertificateRequired"],
            "the server requires a client certificate; set MEMKV_TLS_CERT and MEMKV_TLS_KEY",
        ),
        (
            &["fatal alert: UnknownCA", "fatal alert: DecryptError", "fatal alert: BadCertificate"],
            "the server does not trust this client's certificate; get one from the CA in the server's tls.client_ca",
        ),
        (&["fatal alert: CertificateExpired"], "this client's certificate has expired; renew it"),
        (
            &["UnknownIssuer", "BadSignature"],
            "the server's certificate is not from the CA in MEMKV_TLS_CA; check that file, and whom you are talking to",
        ),
        (
            &["CaUsedAsEndEntity"],
            "the server shows the certificate of a CA; sign one for the server with it (basicConstraints CA:FALSE), and set tls.cert to that",
        ),
        (
            &["certificate expired", "certificate: Expired"],
            "the server's certificate has expired (or a clock is wrong); renew it, the server reads it again by itself",
        ),
        (
            &["not valid for name", "NotValidForName"],
            "the server's certificate is for another name; set MEMKV_TLS_SERVER_NAME to a name in it, or make one for this name",
        ),
        (&["not valid yet", "NotValidYet"], "the server's certificate is not valid yet; check the clocks"),
    ];
    let found = HINTS.iter().find(|(words, _)| words.iter().any(|word| text.contains(word)));
    found.map(|(_, hint)| *hint)
}
