//! The server's certificate and what it asks of clients.

use crate::files::{self, Refresh, Watch};
use crate::{ALPN_DATA, ALPN_GRPC, ALPN_HTTP, Certificate, Identity, TlsError, provider};
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;
use tokio_rustls::TlsAcceptor;

/// Where a server's certificates are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerFiles {
    /// PEM: the server's certificate, then those between it and the CA.
    pub cert: PathBuf,
    /// PEM: its private key.
    pub key: PathBuf,
    /// Whether clients show a certificate.
    pub client_auth: ClientAuth,
}

/// Whether clients show a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientAuth {
    /// They are not asked for one.
    Off,
    /// They may show one that comes from a CA in this PEM file.
    Optional(PathBuf),
    /// They must.
    Require(PathBuf),
}

impl ServerFiles {
    fn paths(&self) -> Vec<PathBuf> {
        let mut paths = vec![self.cert.clone(), self.key.clone()];
        match &self.client_auth {
            ClientAuth::Off => {}
            ClientAuth::Optional(ca) | ClientAuth::Require(ca) => paths.push(ca.clone()),
        }
        paths
    }
}

/// A server's TLS, as its files say by now.
pub struct ServerTls {
    files: ServerFiles,
    current: ArcSwap<Loaded>,
    watch: Mutex<Watch>,
}

/// One state of the files.
struct Loaded {
    /// For the main port.
    main: Arc<ServerConfig>,
    /// For admin HTTP, which asks for no client certificate.
    admin: Arc<ServerConfig>,
    certificate: Certificate,
    warning: Option<String>,
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerTls").field("files", &self.files).finish_non_exhaustive()
    }
}

impl ServerTls {
    /// Reads the files.
    ///
    /// # Errors
    ///
    /// [`TlsError`] if one of them cannot be used.
    pub fn open(files: ServerFiles) -> Result<Self, TlsError> {
        let watch = Mutex::new(Watch::new(files.paths()));
        let current = ArcSwap::from_pointee(load(&files)?);
        Ok(Self { files, current, watch })
    }

    /// For a new connection to the main port.
    #[must_use]
    pub fn main(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.current.load().main))
    }

    /// For a new connection to admin HTTP.
    #[must_use]
    pub fn admin(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.current.load().admin))
    }

    /// What the server's certificate says.
    #[must_use]
    pub fn certificate(&self) -> Certificate {
        self.current.load().certificate.clone()
    }

    /// What an operator should know about the files in use.
    #[must_use]
    pub fn warning(&self) -> Option<String> {
        self.current.load().warning.clone()
    }

    /// Looks at the files, at the cost of a `stat` each, and reads them if they have changed and come to rest. Call it
    /// every second or so. With `now`, they are read at once, changed or not.
    pub fn refresh(&self, now: bool) -> Refresh {
        let mut watch = self.watch.lock();
        if !watch.has_settled() && !now {
            return Refresh::Same;
        }
        watch.take();
        match load(&self.files) {
            Ok(loaded) if loaded.is_over() && !self.current.load().is_over() => {
                Refresh::Refused(format!("the new certificate in {} has expired", self.files.cert.display()))
            }
            Ok(loaded) => {
                self.current.store(Arc::new(loaded));
                Refresh::Loaded
            }
            Err(error) => Refresh::Refused(error.to_string()),
        }
    }
}

impl Loaded {
    fn is_over(&self) -> bool {
        self.certificate.left(SystemTime::now()).is_none()
    }
}

fn load(files: &ServerFiles) -> Result<Loaded, TlsError> {
    let chain = files::certificates(&files.cert)?;
    let certificate = Certificate::read(&chain[0]).ok_or_else(|| TlsError::Content {
        path: files.cert.clone(),
        problem: "begins with a certificate that cannot be understood; make a new one".to_owned(),
    })?;
    let verifier = match &files.client_auth {
        ClientAuth::Off => WebPkiClientVerifier::no_client_auth(),
        ClientAuth::Optional(ca) | ClientAuth::Require(ca) => {
            let roots = Arc::new(files::roots(ca)?);
            let builder = WebPkiClientVerifier::builder_with_provider(roots, provider());
            let builder = match files.client_auth {
                ClientAuth::Require(_) => builder,
                ClientAuth::Off | ClientAuth::Optional(_) => builder.allow_unauthenticated(),
            };
            builder.build().map_err(|error| TlsError::Content {
                path: ca.clone(),
                problem: format!("cannot be used as the CA of clients: {error}"),
            })?
        }
    };
    let pair = |error| TlsError::Pair { cert: files.cert.clone(), key: files.key.clone(), error };
    let (key, warning) = files::private_key(&files.key)?;
    let builder = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(pair)?;
    let mut main = builder.with_client_cert_verifier(verifier).with_single_cert(chain, key).map_err(pair)?;
    // A session that was resumed would skip the client's certificate, whatever became of its CA.
    main.session_storage = Arc::new(NoServerSessionStorage {});
    main.send_tls13_tickets = 0;
    main.alpn_protocols = vec![ALPN_DATA.to_vec(), ALPN_GRPC.to_vec()];
    let mut admin = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(pair)?
        .with_no_client_auth()
        .with_cert_resolver(Arc::clone(&main.cert_resolver));
    admin.session_storage = Arc::new(NoServerSessionStorage {});
    admin.send_tls13_tickets = 0;
    admin.alpn_protocols = vec![ALPN_HTTP.to_vec()];
    Ok(Loaded { main: Arc::new(main), admin: Arc::new(admin), certificate, warning })
}

impl Identity {
    /// Whom the certificate that a client has shown, and rustls has verified, was made for.
    #[must_use]
    pub fn of(chain: Option<&[CertificateDer<'_>]>) -> Option<Self> {
        let first = chain?.first()?;
        // One that this side cannot read is an identity without a name, which nobody is.
        Some(Certificate::read(first).map(|certificate| certificate.identity).unwrap_or_default())
    }
}
