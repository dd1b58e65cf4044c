//! TLS: the server's certificate, whose clients' certificates it takes, and what it requires.

use super::ConfigError;
use super::options::Opt;
use super::values::{one_of, optional, put, quoted};
use std::path::PathBuf;

/// TLS on the main port and the admin port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsConfig {
    /// What clients must use.
    pub require: RequireTls,
    /// PEM file with the server's certificate and the ones between it and the CA. Without it there is no TLS.
    pub cert: Option<PathBuf>,
    /// PEM file with the certificate's private key.
    pub key: Option<PathBuf>,
    /// PEM file with the CAs of clients' certificates.
    pub client_ca: Option<PathBuf>,
    /// Whether clients show a certificate.
    pub client_auth: ClientAuth,
    /// PEM file with the CAs of the other servers' certificates, for drains; see [`TlsConfig::peers_ca`].
    pub ca: Option<PathBuf>,
    /// The name that the other servers' certificates must have; each server's host if absent.
    pub server_name: Option<String>,
    /// What the admin port speaks.
    pub admin: AdminTls,
}

/// What clients must use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RequireTls {
    /// Plain text or TLS.
    #[default]
    False,
    /// TLS for everything that a client says; pages may still move by RDMA, which does not encrypt.
    True,
    /// TLS for pages too, so no RDMA.
    Payload,
}

/// Whether clients show a certificate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientAuth {
    /// They are not asked for one.
    #[default]
    Off,
    /// They may show one; a wrong one is refused.
    Optional,
    /// They must.
    Require,
}

/// What the admin port speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AdminTls {
    /// What the main port does: TLS only if it is required, both if there is a certificate.
    #[default]
    Auto,
    /// Plain HTTP.
    Off,
    /// Both.
    Both,
    /// HTTPS only.
    Require,
}

impl RequireTls {
    const NAMES: [(&'static str, Self); 3] =
        [("false", Self::False), ("true", Self::True), ("payload", Self::Payload)];

    pub(crate) fn text(self) -> &'static str {
        name_of(&Self::NAMES, &self)
    }

    /// Whether plain text is refused.
    #[must_use]
    pub fn refuses_plain(self) -> bool {
        self != Self::False
    }
}

impl ClientAuth {
    const NAMES: [(&'static str, Self); 3] =
        [("off", Self::Off), ("optional", Self::Optional), ("require", Self::Require)];
}

impl AdminTls {
    const NAMES: [(&'static str, Self); 4] =
        [("auto", Self::Auto), ("off", Self::Off), ("both", Self::Both), ("require", Self::Require)];
}

impl TlsConfig {
    /// What the admin port speaks, settled.
    #[must_use]
    pub fn admin(&self) -> AdminTls {
        match self.admin {
            _ if self.cert.is_none() => AdminTls::Off,
            AdminTls::Auto if self.require.refuses_plain() => AdminTls::Require,
            AdminTls::Auto => AdminTls::Both,
            chosen => chosen,
        }
    }

    /// Where the CAs of other servers' certificates are; `None` without TLS.
    #[must_use]
    pub fn peers_ca(&self) -> Option<&PathBuf> {
        let own = self.cert.as_ref()?;
        Some(self.ca.as_ref().or(self.client_ca.as_ref()).unwrap_or(own))
    }

    /// Takes over what clients on the same machine believe, where nothing else is said.
    pub(super) fn believe_as_clients(&mut self, ca: Option<String>, server_name: Option<String>) {
        self.ca = self.ca.take().or(ca.map(PathBuf::from));
        self.server_name = self.server_name.take().or(server_name);
    }

    /// Checks values against each other. `rdma_required`: the server does not start without RDMA.
    pub(super) fn check(&self, rdma_required: bool) -> Result<(), ConfigError> {
        let problem = if self.cert.is_some() != self.key.is_some() {
            "tls.cert and tls.key belong together; set both, or neither"
        } else if self.cert.is_none() && self.require.refuses_plain() {
            "require_tls is set, but there is no certificate; set tls.cert and tls.key"
        } else if self.cert.is_none() && self.client_auth != ClientAuth::Off {
            "tls.client_auth is set, but there is no certificate; set tls.cert and tls.key"
        } else if self.client_ca.is_none() && self.client_auth != ClientAuth::Off {
            "tls.client_auth is set, but no CA is known for clients; set tls.client_ca"
        } else if self.client_auth == ClientAuth::Require && !self.require.refuses_plain() {
            "tls.client_auth is require, but plain text, which shows no certificate, is taken; set require_tls to true"
        } else if self.client_ca.is_some() && self.client_auth == ClientAuth::Off {
            "tls.client_ca is set, but clients are not asked for a certificate; set tls.client_auth to optional or require"
        } else if self.cert.is_none() && matches!(self.admin, AdminTls::Both | AdminTls::Require) {
            "tls.admin is set, but there is no certificate; set tls.cert and tls.key"
        } else if rdma_required && self.require == RequireTls::Payload {
            "require_tls is payload and rdma.mode is require, but RDMA does not encrypt; set require_tls to true, or rdma.mode to off"
        } else {
            return Ok(());
        };
        Err(ConfigError::Invalid(problem.to_owned()))
    }
}

fn path(path: Option<&PathBuf>) -> String {
    quoted(path.map(|path| path.display().to_string()).unwrap_or_default())
}

fn name_of<T: PartialEq>(names: &[(&'static str, T)], value: &T) -> &'static str {
    names.iter().find(|(_, named)| named == value).map_or("", |(name, _)| *name)
}

fn name<T: PartialEq>(names: &[(&'static str, T)], value: &T) -> String {
    let found = name_of(names, value);
    // YAML has its own idea of "off".
    if found == "off" { quoted(found) } else { found.to_owned() }
}

/// The options of this module.
pub(super) const OPTIONS: &[Opt] = &[
    Opt {
        key: "require_tls",
        env: "MEMKV_SERVER_REQUIRE_TLS",
        flag: Some("require-tls"),
        value: "false|true|payload",
        help: "Whether clients must use TLS. true: plain text is refused; pages may still move by RDMA, which does not encrypt. payload: RDMA is refused too.",
        set: |c, text| put(&mut c.tls.require, one_of(text, &RequireTls::NAMES)),
        show: |c| name(&RequireTls::NAMES, &c.tls.require),
    },
    Opt {
        key: "tls.cert",
        env: "MEMKV_SERVER_TLS_CERT",
        flag: Some("tls-cert"),
        value: "PATH",
        help: "PEM file with the server's certificate, followed by those between it and the CA. It is read again when it changes. Empty: no TLS.",
        set: |c, text| put(&mut c.tls.cert, optional(text, |t| Ok(PathBuf::from(t)))),
        show: |c| path(c.tls.cert.as_ref()),
    },
    Opt {
        key: "tls.key",
        env: "MEMKV_SERVER_TLS_KEY",
        flag: Some("tls-key"),
        value: "PATH",
        help: "PEM file with the private key of tls.cert. Only the server's user should be able to read it.",
        set: |c, text| put(&mut c.tls.key, optional(text, |t| Ok(PathBuf::from(t)))),
        show: |c| path(c.tls.key.as_ref()),
    },
    Opt {
        key: "tls.client_ca",
        env: "MEMKV_SERVER_TLS_CLIENT_CA",
        flag: Some("tls-client-ca"),
        value: "PATH",
        help: "PEM file with the CAs that clients' certificates must come from.",
        set: |c, text| put(&mut c.tls.client_ca, optional(text, |t| Ok(PathBuf::from(t)))),
        show: |c| path(c.tls.client_ca.as_ref()),
    },
    Opt {
        key: "tls.client_auth",
        env: "MEMKV_SERVER_TLS_CLIENT_AUTH",
        flag: Some("tls-client-auth"),
        value: "off|optional|require",
        help: "Whether clients show a certificate of their own. optional: a client without one is let in by its key alone. require needs require_tls.",
        set: |c, text| put(&mut c.tls.client_auth, one_of(text, &ClientAuth::NAMES)),
        show: |c| name(&ClientAuth::NAMES, &c.tls.client_auth),
    },
    Opt {
        key: "tls.ca",
        env: "MEMKV_SERVER_TLS_CA",
        flag: Some("tls-ca"),
        value: "PATH",
        help: "PEM file with the CAs that the other servers' certificates must come from when a drain sends pages to them. Empty: MEMKV_TLS_CA, else tls.client_ca, else the certificates in tls.cert.",
        set: |c, text| put(&mut c.tls.ca, optional(text, |t| Ok(PathBuf::from(t)))),
        show: |c| path(c.tls.ca.as_ref()),
    },
    Opt {
        key: "tls.server_name",
        env: "MEMKV_SERVER_TLS_SERVER_NAME",
        flag: Some("tls-server-name"),
        value: "NAME",
        help: "The name that the other servers' certificates must have when a drain sends pages to them. Empty: MEMKV_TLS_SERVER_NAME, else each server's host.",
        set: |c, text| put(&mut c.tls.server_name, optional(text, |t| Ok(t.to_owned()))),
        show: |c| quoted(c.tls.server_name.clone().unwrap_or_default()),
    },
    Opt {
        key: "tls.admin",
        env: "MEMKV_SERVER_TLS_ADMIN",
        flag: Some("tls-admin"),
        value: "auto|off|both|require",
        help: "What the admin port speaks: off for http, require for https, both for either. auto: require if require_tls is set, both if there is a certificate.",
        set: |c, text| put(&mut c.tls.admin, one_of(text, &AdminTls::NAMES)),
        show: |c| name(&AdminTls::NAMES, &c.tls.admin),
    },
];
