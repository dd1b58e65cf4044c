//! The server's TLS: opened at start, kept as its files say, and what is known of a peer that speaks it.

use crate::app::StartError;
use crate::config::Config;
use crate::config::tls::{ClientAuth, TlsConfig};
use crate::metrics::Metrics;
use crate::node::Node;
use memkv_tls::{CHANNEL_BYTES, Identity, Refresh, ServerFiles, ServerTls};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

/// How often the files are looked at. A change is taken over after two looks at most, so within as many seconds.
const LOOK: Duration = Duration::from_secs(1);

/// What is known of a peer whose connection is TLS.
pub(crate) struct TlsPeer {
    /// Whom its certificate was made for, if it has shown one.
    pub(crate) identity: Option<Identity>,
    /// What only the two ends of the connection know.
    pub(crate) channel: [u8; CHANNEL_BYTES],
}

impl fmt::Debug for TlsPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsPeer").field("identity", &self.identity).finish_non_exhaustive()
    }
}

/// Reads the certificates, if there are any.
pub(crate) fn open(config: &TlsConfig) -> Result<Option<Arc<ServerTls>>, StartError> {
    let (Some(cert), Some(key)) = (config.cert.clone(), config.key.clone()) else { return Ok(None) };
    let client_auth = match (config.client_auth, config.client_ca.clone()) {
        (ClientAuth::Off, _) | (_, None) => memkv_tls::ClientAuth::Off,
        (ClientAuth::Optional, Some(ca)) => memkv_tls::ClientAuth::Optional(ca),
        (ClientAuth::Require, Some(ca)) => memkv_tls::ClientAuth::Require(ca),
    };
    let tls = Arc::new(ServerTls::open(ServerFiles { cert, key, client_auth })?);
    if let Some(warning) = tls.warning() {
        tracing::warn!("{warning}");
    }
    Ok(Some(tls))
}

/// Says what plain text and RDMA mean for the configuration, once at start.
pub(crate) fn log_start(node: &Node) {
    let config: &Config = &node.config;
    let Some(tls) = &node.tls else {
        if !config.listen.ip().is_loopback() {
            tracing::info!("no certificate; clients and pages come in plain text");
        }
        return;
    };
    let certificate = tls.certificate();
    tracing::info!(
        certificate = %certificate.identity,
        days_left = certificate.left(SystemTime::now()).map_or(0, |left| left.as_secs() / 86_400),
        require = config.tls.require.text(),
        "tls"
    );
}

/// Follows the files until dropped, and warns of a certificate that ends.
pub(crate) async fn follow(node: Arc<Node>) {
    let Some(tls) = node.tls.clone() else { return };
    let mut ticks = tokio::time::interval(LOOK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut warned = Warned::No;
    loop {
        ticks.tick().await;
        refresh(&node.metrics, &tls, false);
        let certificate = tls.certificate();
        node.metrics.tls_expires.store(certificate.expires_unix(), Ordering::Relaxed);
        let now = SystemTime::now();
        let left = certificate.left(now);
        let level = match left {
            None => Warned::Over,
            Some(_) if certificate.is_due(now) => Warned::Due,
            Some(_) => Warned::No,
        };
        if level > warned {
            let hours_left = left.unwrap_or_default().as_secs() / 3600;
            match level {
                Warned::Over => {
                    tracing::error!(
                        "the certificate in tls.cert has expired; clients refuse this server until it is renewed"
                    );
                }
                Warned::Due | Warned::No => {
                    tracing::warn!(
                        hours_left,
                        "the certificate in tls.cert expires soon; renew it, it is read again by itself"
                    );
                }
            }
        }
        warned = level;
    }
}

/// What to say of a certificate that should have been renewed by now.
pub(crate) fn complaint(node: &Node) -> Option<String> {
    let (certificate, now) = (node.tls.as_ref()?.certificate(), SystemTime::now());
    if !certificate.is_due(now) {
        return None;
    }
    Some(match certificate.left(now) {
        Some(left) => format!("the TLS certificate expires in {} hours; renew it", left.as_secs() / 3600),
        None => "the TLS certificate has expired; renew it".to_owned(),
    })
}

/// What was said of the certificate's end.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Warned {
    No,
    Due,
    Over,
}

/// Reads the files again if they have changed, or, with `now`, in any case.
pub(crate) fn refresh(metrics: &Metrics, tls: &ServerTls, now: bool) {
    match tls.refresh(now) {
        Refresh::Same => {}
        Refresh::Loaded => {
            Metrics::add(&metrics.tls_reloads, 1);
            let certificate = tls.certificate();
            tracing::info!(certificate = %certificate.identity, "certificates read again; new connections use them");
            if let Some(warning) = tls.warning() {
                tracing::warn!("{warning}");
            }
        }
        Refresh::Refused(why) => {
            Metrics::add(&metrics.tls_reloads_refused, 1);
            tracing::warn!(why, "new certificates cannot be used; the ones before them stay in use");
        }
    }
}
