//! The client's side: which server to believe, and what to show it.

use crate::files::{self, Refresh, Watch};
use crate::{ALPN_DATA, ALPN_GRPC, TlsError, provider};
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::ClientConfig;
use rustls::client::Resumption;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use tokio_rustls::TlsConnector;

/// Where a client's certificates are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientFiles {
    /// PEM: the CAs that servers' certificates must come from.
    pub ca: PathBuf,
    /// PEM: the client's own certificate and its private key, if it has one.
    pub own: Option<(PathBuf, PathBuf)>,
}

impl ClientFiles {
    fn paths(&self) -> Vec<PathBuf> {
        let own = self.own.iter().flat_map(|(cert, key)| [cert.clone(), key.clone()]);
        own.chain([self.ca.clone()]).collect()
    }
}

/// What a connection is for. The server holds a client to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plane {
    /// gRPC.
    Control,
    /// Pages.
    Data,
}

/// A client's TLS, as its files say by now.
pub struct ClientTls {
    files: ClientFiles,
    current: ArcSwap<Loaded>,
    watch: Mutex<Watch>,
}

struct Loaded {
    control: Arc<ClientConfig>,
    data: Arc<ClientConfig>,
    warning: Option<String>,
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientTls").field("files", &self.files).finish_non_exhaustive()
    }
}

impl ClientTls {
    /// Reads the files.
    ///
    /// # Errors
    ///
    /// [`TlsError`] if one of them cannot be used.
    pub fn open(files: ClientFiles) -> Result<Self, TlsError> {
        let watch = Mutex::new(Watch::new(files.paths()));
        let current = ArcSwap::from_pointee(load(&files)?);
        Ok(Self { files, current, watch })
    }

    /// For a new connection.
    #[must_use]
    pub fn connector(&self, plane: Plane) -> TlsConnector {
        let current = self.current.load();
        TlsConnector::from(Arc::clone(match plane {
            Plane::Control => &current.control,
            Plane::Data => &current.data,
        }))
    }

    /// What the user should know about the files in use.
    #[must_use]
    pub fn warning(&self) -> Option<String> {
        self.current.load().warning.clone()
    }

    /// Looks at the files, at the cost of a `stat` each, and reads them if they have changed and come to rest. Call it
    /// before connecting.
    pub fn refresh(&self) -> Refresh {
        let mut watch = self.watch.lock();
        if !watch.has_settled() {
            return Refresh::Same;
        }
        watch.take();
        match load(&self.files) {
            Ok(loaded) => {
                self.current.store(Arc::new(loaded));
                Refresh::Loaded
            }
            Err(error) => Refresh::Refused(error.to_string()),
        }
    }
}

fn load(files: &ClientFiles) -> Result<Loaded, TlsError> {
    let roots = files::roots(&files.ca)?;
    let unusable = |error: rustls::Error| TlsError::Content {
        path: files.ca.clone(),
        problem: format!("cannot be used: {error}"),
    };
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(unusable)?
        .with_root_certificates(roots);
    let (mut data, warning) = match &files.own {
        None => (builder.with_no_client_auth(), None),
        Some((cert, key)) => {
            let chain = files::certificates(cert)?;
            let (private, warning) = files::private_key(key)?;
            let pair = |error| TlsError::Pair { cert: cert.clone(), key: key.clone(), error };
            (builder.with_client_auth_cert(chain, private).map_err(pair)?, warning)
        }
    };
    data.resumption = Resumption::disabled();
    let mut control = data.clone();
    data.alpn_protocols = vec![ALPN_DATA.to_vec()];
    control.alpn_protocols = vec![ALPN_GRPC.to_vec()];
    Ok(Loaded { control: Arc::new(control), data: Arc::new(data), warning })
}
