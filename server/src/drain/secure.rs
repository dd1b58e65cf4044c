//! TLS to the servers that take pages, for servers that have a certificate themselves.
//!
//! Their certificates must come from a CA of `tls.ca` or, if that is not set, of `MEMKV_TLS_CA`, of `tls.client_ca`, or of the
//! server's own chain, in this order. The server shows its own certificate if it is asked for one. A handshake that fails is never repeated in plain text.

use crate::config::tls::TlsConfig;
use hyper_util::rt::TokioIo;
use memkv_tls::rustls::pki_types::ServerName;
use memkv_tls::{ClientFiles, ClientTls, Plane, TlsError};
use std::io;
use std::sync::Arc;
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint, Uri};

/// What connections to other servers need.
pub(crate) struct Secure {
    tls: ClientTls,
    /// The name that all certificates must have, if it is not the host's.
    name: Option<String>,
}

/// What connections to other servers need; `None` if this server has no certificate.
pub(super) fn open(config: &TlsConfig) -> Result<Option<Arc<Secure>>, TlsError> {
    let Some(ca) = config.peers_ca().cloned() else { return Ok(None) };
    let own = config.cert.clone().zip(config.key.clone());
    let tls = ClientTls::open(ClientFiles { ca, own })?;
    Ok(Some(Arc::new(Secure { tls, name: config.server_name.clone() })))
}

/// What must be right so that the others can be reached, for whoever reads that nobody can; `None` without TLS.
pub(super) fn hint(config: &TlsConfig) -> Option<String> {
    let ca = config.peers_ca()?.display();
    let name = config.server_name.as_deref().unwrap_or("the address that it is reached at");
    Some(format!(
        "this server speaks TLS, so each of them needs a certificate from a CA in {ca} (set tls.ca to change that) for {name} (tls.server_name)"
    ))
}

/// A channel over TLS. It connects by itself when it is used.
pub(super) fn channel(endpoint: &Endpoint, secure: Arc<Secure>, host: String, port: u16) -> Channel {
    let connect = move |_: Uri| {
        let (secure, host) = (Arc::clone(&secure), host.clone());
        async move {
            let stream = TcpStream::connect((host.as_str(), port)).await?;
            stream.set_nodelay(true)?;
            let named = secure.name.clone().unwrap_or(host);
            let name = ServerName::try_from(named.clone()).map_err(|_| {
                io::Error::new(
                    io::ErrorKind::InvalidInput,
                    format!("{named:?} is no name that a certificate can have"),
                )
            })?;
            Ok::<_, io::Error>(TokioIo::new(
                secure.tls.connector(Plane::Control).connect(name, stream).await?,
            ))
        }
    };
    endpoint.connect_with_connector_lazy(tower::service_fn(connect))
}
