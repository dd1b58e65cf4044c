//! TLS: whether to speak it, which servers to believe, and what to show them.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// TLS to the servers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsConfig {
    /// Whether to speak it.
    pub mode: TlsMode,
    /// PEM file with the CAs that servers' certificates must come from.
    pub ca: Option<PathBuf>,
    /// PEM file with the client's own certificate.
    pub cert: Option<PathBuf>,
    /// PEM file with its private key.
    pub key: Option<PathBuf>,
    /// The name that servers' certificates must have; each server's host if absent.
    pub server_name: Option<String>,
}

/// Whether to speak TLS. There is no way back to plain text when a handshake fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TlsMode {
    /// Plain text.
    #[default]
    Off,
    /// TLS; pages may still move by RDMA, which does not encrypt.
    On,
    /// TLS for pages too, so no RDMA.
    Payload,
}

impl FromStr for TlsMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text.trim().to_ascii_lowercase().as_str() {
            "off" | "false" => Self::Off,
            "on" | "true" => Self::On,
            "payload" => Self::Payload,
            _ => return Err(format!("{text:?} is not a mode of TLS; write off, on or payload")),
        })
    }
}

impl fmt::Display for TlsMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Off => "off",
            Self::On => "on",
            Self::Payload => "payload",
        })
    }
}

impl TlsConfig {
    /// Whether the values fit together; else what to write.
    pub(crate) fn check(&self) -> Result<(), &'static str> {
        match (self.mode, &self.ca, &self.cert, &self.key) {
            (TlsMode::Off, None, None, None) => Ok(()),
            // Somebody wanted TLS; plain text would be a surprise.
            (TlsMode::Off, ..) => Err(
                "certificates are configured but TLS is off; set MEMKV_TLS=on, or unset MEMKV_TLS_CA, MEMKV_TLS_CERT and MEMKV_TLS_KEY",
            ),
            (TlsMode::On | TlsMode::Payload, None, ..) => Err(
                "TLS is on but no CA is known; set MEMKV_TLS_CA to the PEM file of the CA that servers' certificates come from",
            ),
            (_, _, Some(_), None) | (_, _, None, Some(_)) => {
                Err("MEMKV_TLS_CERT and MEMKV_TLS_KEY belong together; set both, or neither")
            }
            (TlsMode::On | TlsMode::Payload, Some(_), ..) => Ok(()),
        }
    }
}
