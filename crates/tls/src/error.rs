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

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::pki_types::{ServerName, UnixTime};
    use rustls::{AlertDescription, CertificateError, Error, OtherError};
    use std::sync::Arc;
    use std::time::Duration;

    /// What is said of a handshake that failed like this.
    fn advice(error: impl Into<Error>) -> &'static str {
        hint(&format!("transport error: {}", error.into())).expect("something is said")
    }

    #[test]
    fn failures_come_with_what_to_do() {
        let time = UnixTime::since_unix_epoch(Duration::from_secs(1));
        let expected = ServerName::try_from("a.b").unwrap();
        let name = CertificateError::NotValidForNameContext { expected, presented: vec!["c.d".to_owned()] };
        assert!(advice(name).contains("MEMKV_TLS_SERVER_NAME"));
        assert!(advice(CertificateError::ExpiredContext { time, not_after: time }).contains("has expired"));
        assert!(advice(CertificateError::NotValidYetContext { time, not_before: time }).contains("clocks"));
        assert!(advice(CertificateError::UnknownIssuer).contains("not from the CA in MEMKV_TLS_CA"));
        let alert = |alert| advice(Error::AlertReceived(alert));
        assert!(alert(AlertDescription::ProtocolVersion).contains("does not speak TLS"));
        assert!(alert(AlertDescription::CertificateRequired).contains("MEMKV_TLS_CERT"));
        assert!(alert(AlertDescription::UnknownCA).contains("tls.client_ca"));
        assert!(alert(AlertDescription::CertificateExpired).contains("this client's certificate"));
        let authority = CertificateError::Other(OtherError(Arc::new(webpki_words())));
        assert!(advice(authority).contains("sign one for the server"));
        assert_eq!(hint("connection refused"), None);
    }

    /// What the library below rustls says of a CA's certificate in the place of a server's.
    fn webpki_words() -> std::io::Error {
        std::io::Error::other("CaUsedAsEndEntity")
    }
}
