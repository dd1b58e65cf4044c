//! `doctor` on TLS: what this client would show and believe, and what each server shows it.
//!
//! What was seen and what follows from it are apart: [`judge_served`] and [`judge_own`] are pure.

use super::{note, ok, problem};
use crate::units::duration;
use crate::view::Finding;
use memkv_client::{Config, ServerAddress, TlsMode};
use memkv_tls::rustls::pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use memkv_tls::{Certificate, ClientFiles, ClientTls, Plane, hint};
use std::path::Path;
use std::time::SystemTime;
use tokio::net::TcpStream;
use tokio::time::timeout;

const CHECK: &str = "tls";

/// Looks at the files and at the servers; `cert` is the file that the servers should be using.
pub(super) async fn findings(config: &Config, cert: Option<&Path>) -> Vec<Finding> {
    let tls = &config.tls;
    let (Some(ca), true) = (&tls.ca, tls.mode != TlsMode::Off) else {
        let local = config.servers.iter().all(|server| is_loopback(&server.host));
        return vec![if local {
            ok(CHECK, "off; all servers are on this machine".to_owned())
        } else {
            note(
                CHECK,
                "off: pages and requests are readable on the network".to_owned(),
                "set up tls.cert and tls.key on the servers, and MEMKV_TLS=on with MEMKV_TLS_CA on clients",
            )
        }];
    };
    let own = tls.cert.clone().zip(tls.key.clone());
    let files = match ClientTls::open(ClientFiles { ca: ca.clone(), own }) {
        Ok(files) => files,
        Err(error) => {
            return vec![problem(
                CHECK,
                error.to_string(),
                "correct MEMKV_TLS_CA, MEMKV_TLS_CERT and MEMKV_TLS_KEY",
            )];
        }
    };
    let now = SystemTime::now();
    let mut findings = Vec::new();
    if let Some(warning) = files.warning() {
        findings.push(note(CHECK, warning, "chmod 600 the file, owned by whoever runs the client"));
    }
    if let Some(path) = &tls.cert {
        findings.extend(judge_own(first_of(path).as_ref().ok().and_then(Certificate::read).as_ref(), now));
    }
    let wanted = match cert.map(first_of).transpose() {
        Ok(wanted) => wanted,
        Err(why) => {
            findings.push(problem(CHECK, why, "name the PEM file that tls.cert of the servers names"));
            None
        }
    };
    for server in &config.servers {
        let check = format!("tls of {}", server.id);
        let shown = shown(&files, config, server).await;
        findings.push(judge_served(&check, shown, wanted.as_ref(), now));
    }
    findings
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// The first certificate of a PEM file.
fn first_of(path: &Path) -> Result<CertificateDer<'static>, String> {
    CertificateDer::from_pem_file(path)
        .map_err(|error| format!("{} has no certificate: {error}", path.display()))
}

/// The certificate that a server shows, once chain and name were found right; else what is wrong.
async fn shown(
    files: &ClientTls,
    config: &Config,
    server: &ServerAddress,
) -> Result<CertificateDer<'static>, String> {
    let name = config.tls.server_name.as_deref().unwrap_or(&server.host);
    let name = ServerName::try_from(name.to_owned())
        .map_err(|_| format!("{name:?} is no name that a certificate can have; set MEMKV_TLS_SERVER_NAME"))?;
    let asked = async {
        let stream = TcpStream::connect((server.host.as_str(), server.port)).await?;
        files.connector(Plane::Control).connect(name, stream).await
    };
    let stream = match timeout(config.connect_timeout, asked).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(error.to_string()),
        Err(_elapsed) => return Err("the handshake did not come to an end".to_owned()),
    };
    let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
    certificates
        .first()
        .map(|first| first.clone().into_owned())
        .ok_or_else(|| "it showed no certificate".to_owned())
}

/// What a server's certificate says, beside the file that it should be.
fn judge_served(
    check: &str,
    shown: Result<CertificateDer<'_>, String>,
    wanted: Option<&CertificateDer<'_>>,
    now: SystemTime,
) -> Finding {
    let shown = match shown {
        Ok(shown) => shown,
        Err(why) => {
            let fix = hint(&why).unwrap_or(if why.starts_with("Connection refused") {
                "nobody listens there: is the server running, and is this its address and port?"
            } else {
                "look at the server's log; openssl s_client -connect shows what it sends"
            });
            return problem(check, why, fix);
        }
    };
    if wanted.is_some_and(|wanted| **wanted != *shown) {
        return problem(
            check,
            "shows another certificate than the file".to_owned(),
            "it reads its files again when certificate and key have changed and fit together; its log says why not, and SIGHUP makes it try at once",
        );
    }
    let Some(certificate) = Certificate::read(&shown) else {
        return note(check, "its certificate cannot be read".to_owned(), "openssl x509 -text shows it");
    };
    let left = duration(millis_left(&certificate, now));
    let says = format!("{}, {left} left", certificate.identity);
    if certificate.is_due(now) {
        return note(
            check,
            format!("its certificate ends soon: {says}"),
            "renew it; the server takes it without a restart",
        );
    }
    ok(check, format!("chain and name are right: {says}"))
}

/// What this client's own certificate says.
fn judge_own(certificate: Option<&Certificate>, now: SystemTime) -> Option<Finding> {
    let certificate = certificate?;
    let name = &certificate.identity;
    if certificate.left(now).is_none() {
        return Some(problem(CHECK, format!("the own certificate, {name}, has expired"), "renew it"));
    }
    if certificate.is_due(now) {
        let left = duration(millis_left(certificate, now));
        return Some(note(CHECK, format!("the own certificate, {name}, has {left} left"), "renew it"));
    }
    Some(ok(CHECK, format!("the own certificate stands for {name}")))
}

fn millis_left(certificate: &Certificate, now: SystemTime) -> u64 {
    u64::try_from(certificate.left(now).unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use memkv_tls::Identity;
    use std::time::Duration;

    const DAY: Duration = Duration::from_secs(86_400);

    fn certificate(days_left: u32) -> (Certificate, SystemTime) {
        let now = SystemTime::now();
        let not_before = now - 100 * DAY;
        let not_after = now + days_left * DAY;
        (Certificate { not_before, not_after, identity: Identity::default() }, now)
    }

    #[test]
    fn an_own_certificate_that_ends_is_told_before() {
        for (days, level) in [(300, "ok"), (3, "note")] {
            let (certificate, now) = certificate(days);
            assert_eq!(judge_own(Some(&certificate), now).unwrap().level, level, "{days}");
        }
        let (certificate, now) = certificate(1);
        assert_eq!(judge_own(Some(&certificate), now + 2 * DAY).unwrap().level, "problem");
    }

    #[test]
    fn another_certificate_than_the_file_is_a_problem() {
        let (one, other) = (CertificateDer::from(vec![1]), CertificateDer::from(vec![2]));
        let now = SystemTime::now();
        let judged = |shown: &CertificateDer<'static>| judge_served("s", Ok(shown.clone()), Some(&one), now);
        assert_eq!(judged(&other).level, "problem");
        assert!(judged(&one).text.contains("cannot be read"), "these bytes are no certificate");
        let failed = judge_served("s", Err("invalid peer certificate: Expired".to_owned()), None, now);
        assert!(failed.level == "problem" && failed.fix.is_some());
        let absent = judge_served("s", Err("Connection refused (os error 111)".to_owned()), None, now);
        assert!(absent.fix.unwrap().contains("is the server running"));
    }
}
