//! TLS to the servers that take pages, for servers that have a certificate themselves.
//!
//! Their certificates must come from a CA of `tls.client_ca`, or else from one in the server's own chain. The server shows
//! its own certificate if it is asked for one. A handshake that fails is never repeated in plain text.

use crate::config::tls::TlsConfig;
use hyper_util::rt::TokioIo;
use memkv_tls::rustls::pki_types::ServerName;
use memkv_tls::{ClientFiles, ClientTls, Plane, TlsError};
use std::io;
use std::sync::Arc;
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint, Uri};

/// What connections to other servers need; `None` if this server has no certificate.
pub(super) fn open(config: &TlsConfig) -> Result<Option<Arc<ClientTls>>, TlsError> {
    let Some(own) = config.cert.clone().zip(config.key.clone()) else { return Ok(None) };
    let ca = config.client_ca.clone().unwrap_or_else(|| own.0.clone());
    Ok(Some(Arc::new(ClientTls::open(ClientFiles { ca, own: Some(own) })?)))
}

/// A channel over TLS. It connects by itself when it is used.
pub(super) fn channel(endpoint: &Endpoint, tls: Arc<ClientTls>, host: String, port: u16) -> Channel {
    let connect = move |_: Uri| {
        let (tls, host) = (Arc::clone(&tls), host.clone());
        async move {
            let stream = TcpStream::connect((host.as_str(), port)).await?;
            stream.set_nodelay(true)?;
            let name = ServerName::try_from(host.clone()).map_err(|_| {
                io::Error::new(
                    io::ErrorKind::InvalidInput,
                    format!("{host:?} is no name that a certificate can have"),
                )
            })?;
            Ok::<_, io::Error>(TokioIo::new(tls.connector(Plane::Control).connect(name, stream).await?))
        }
    };
    endpoint.connect_with_connector_lazy(tower::service_fn(connect))
}
