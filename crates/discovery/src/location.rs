//! How a source is written in a configuration.
//!
//! | text | source |
//! |------|--------|
//! | `etcd://HOST:PORT[,HOST:PORT…][/PREFIX][?ttl=SECONDS]` | records under the prefix (`memkv` if none is given) |
//! | `etcds://…?ca=PATH[&cert=PATH&key=PATH][&name=NAME]` | the same inside TLS |
//! | `dns://NAME[:PORT][?server=IP:PORT]` | the A and AAAA records of the name, all on one port |
//! | `srv://NAME[?server=IP:PORT]` | the SRV records of the name, with port and weight |
//!
//! `ttl` is for servers: how long their record outlives them. `user=NAME&password_file=PATH` is who etcd shall take us
//! for; the password is in a file, so that no location is a secret. `name` is what etcd's certificate must be for, if that is
//! not the endpoint's host. `server` asks that name server and not the system's.

use crate::member::{DEFAULT_PORT, is_host};
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

/// etcd's port for clients.
const ETCD_PORT: u16 = 2379;
/// The prefix of a location that names none.
const DEFAULT_PREFIX: &str = "memkv";
/// How long a record outlives its server if the location does not say, seconds.
const DEFAULT_TTL_S: u32 = 10;
/// The most endpoints of an etcd cluster.
const ENDPOINTS_MAX: usize = 16;

/// Where member lists come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// Records in etcd.
    Etcd(EtcdLocation),
    /// A and AAAA records.
    Addresses {
        /// The name whose records are the members.
        name: String,
        /// The port of every member.
        port: u16,
        /// The name server to ask; the system's if absent.
        server: Option<SocketAddr>,
    },
    /// SRV records.
    Services {
        /// The name whose records are the members.
        name: String,
        /// The name server to ask; the system's if absent.
        server: Option<SocketAddr>,
    },
}

/// Records under a prefix of an etcd cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdLocation {
    /// `host:port` of each endpoint; any one that answers will do.
    pub endpoints: Vec<String>,
    /// Before all keys; without slashes at its ends.
    pub prefix: String,
    /// How long a record outlives its server, seconds.
    pub ttl_s: u32,
    /// How TLS is spoken; plain text if absent.
    pub tls: Option<EtcdTls>,
    /// Who etcd shall take us for.
    pub user: Option<EtcdUser>,
}

/// TLS to etcd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdTls {
    /// PEM: the CAs that etcd's certificate must come from.
    pub ca: PathBuf,
    /// PEM: a certificate of our own and its private key, if etcd asks for one.
    pub own: Option<(PathBuf, PathBuf)>,
    /// The name that etcd's certificate must have; the endpoint's host if absent.
    pub name: Option<String>,
}

/// A user of etcd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdUser {
    /// The user's name.
    pub name: String,
    /// The file with the password; white space at the end of its line does not count.
    pub password_file: PathBuf,
}

/// Why a text is not a location.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not a source of members ({problem}); write etcd://HOST:PORT/PREFIX, dns://NAME:PORT or srv://_memkv._tcp.NAME"
)]
pub struct BadLocation {
    text: String,
    problem: &'static str,
}

impl FromStr for Location {
    type Err = BadLocation;

    fn from_str(text: &str) -> Result<Self, BadLocation> {
        // What is before an @ may be a password.
        let shown = text.rsplit_once('@').map_or(text, |(_, rest)| rest);
        let bad = |problem| BadLocation { text: shown.to_owned(), problem };
        let (scheme, rest) = text.trim().split_once("://").ok_or_else(|| bad("it has no scheme"))?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        match scheme {
            "etcd" => etcd(rest, query, false).map(Self::Etcd),
            "etcds" => etcd(rest, query, true).map(Self::Etcd),
            "dns" => addresses(rest, query),
            "srv" => services(rest, query),
            _ => Err("the scheme is not etcd, etcds, dns or srv"),
        }
        .map_err(bad)
    }
}

fn etcd(rest: &str, query: &str, inside_tls: bool) -> Result<EtcdLocation, &'static str> {
    let (endpoints, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    if endpoints.contains('@') {
        return Err("a password in a location would be seen by many; write ?user=NAME&password_file=PATH");
    }
    let endpoints: Result<Vec<String>, _> = endpoints.split(',').map(endpoint).collect();
    let endpoints = endpoints?;
    if endpoints.len() > ENDPOINTS_MAX {
        return Err("it has more than 16 endpoints");
    }
    let prefix = prefix.trim_matches('/');
    if prefix.len() > 256 || prefix.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err("the prefix has more than 256 bytes or white space");
    }
    let prefix = if prefix.is_empty() { DEFAULT_PREFIX } else { prefix };
    let Asked { ttl_s, tls, user } = asked(query, inside_tls)?;
    Ok(EtcdLocation { endpoints, prefix: prefix.to_owned(), ttl_s, tls, user })
}

/// What comes after the `?` of etcd.
struct Asked {
    ttl_s: u32,
    tls: Option<EtcdTls>,
    user: Option<EtcdUser>,
}

fn asked(query: &str, inside_tls: bool) -> Result<Asked, &'static str> {
    const NAMES: [&str; 7] = ["ttl", "user", "password_file", "ca", "cert", "key", "name"];
    let mut values: [Option<&str>; NAMES.len()] = [None; NAMES.len()];
    for part in query.split('&').filter(|part| !part.is_empty()) {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        let at = NAMES.iter().position(|known| *known == name);
        let at = at.ok_or("after ? may come ttl, user, password_file, ca, cert, key and name only")?;
        if value.is_empty() || values[at].replace(value).is_some() {
            return Err("a parameter has no value, or two");
        }
    }
    let [ttl, user, password_file, ca, cert, key, name] = values;
    let ttl_s = match ttl.map(|text| text.strip_suffix('s').unwrap_or(text).parse()) {
        None => DEFAULT_TTL_S,
        Some(Ok(seconds @ 2..=3600)) => seconds,
        Some(_) => return Err("ttl is not 2 to 3600 seconds"),
    };
    let user = match (user, password_file) {
        (None, None) => None,
        (Some(name), Some(path)) => Some(EtcdUser { name: name.to_owned(), password_file: path.into() }),
        _ => return Err("user and password_file belong together"),
    };
    let own = match (cert, key) {
        (None, None) => None,
        (Some(cert), Some(key)) => Some((cert.into(), key.into())),
        _ => return Err("cert and key belong together"),
    };
    let tls = match (inside_tls, ca) {
        (true, Some(ca)) => Some(EtcdTls { ca: ca.into(), own, name: name.map(str::to_owned) }),
        (true, None) => return Err("etcds needs ?ca=PATH, the CAs that etcd's certificate must come from"),
        (false, None) if own.is_none() && name.is_none() => None,
        (false, _) => return Err("ca, cert, key and name are for TLS; write etcds://"),
    };
    Ok(Asked { ttl_s, tls, user })
}

fn endpoint(text: &str) -> Result<String, &'static str> {
    let (host, port) = host_and_port(text.trim(), ETCD_PORT)?;
    Ok(if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") })
}

fn addresses(rest: &str, query: &str) -> Result<Location, &'static str> {
    let (name, port) = host_and_port(rest.trim_end_matches('/'), DEFAULT_PORT)?;
    if name.contains(':') || name.parse::<std::net::IpAddr>().is_ok() {
        return Err("an IP address has no records; list addresses in MEMKV_SERVERS");
    }
    Ok(Location::Addresses { name: name.to_owned(), port, server: name_server(query)? })
}

fn services(rest: &str, query: &str) -> Result<Location, &'static str> {
    let name = rest.trim_end_matches('/');
    if !is_host(name) || name.contains(':') {
        return Err("the name is empty or no name of SRV records; ports come with the records");
    }
    Ok(Location::Services { name: name.to_owned(), server: name_server(query)? })
}

fn name_server(query: &str) -> Result<Option<SocketAddr>, &'static str> {
    match parameter(query, "server")? {
        None => Ok(None),
        Some(text) => text.parse().map(Some).map_err(|_| "server is not IP:PORT"),
    }
}

/// The value of the only parameter that there may be of DNS.
fn parameter<'a>(query: &'a str, name: &str) -> Result<Option<&'a str>, &'static str> {
    if query.is_empty() {
        return Ok(None);
    }
    match query.split_once('=') {
        Some((known, value)) if known == name => Ok(Some(value)),
        _ => Err("after ? may come server=IP:PORT only"),
    }
}

/// Host and port of `HOST`, `HOST:PORT`, `[IPv6]` or `[IPv6]:PORT`.
///
/// # Errors
///
/// What is wrong with the text.
pub fn host_and_port(text: &str, default: u16) -> Result<(&str, u16), &'static str> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, after) = rest.split_once(']').ok_or("the bracket is not closed")?;
            (host, after.strip_prefix(':'))
        }
        None if text.matches(':').count() > 1 => return Err("an IPv6 address needs brackets"),
        None => text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
    };
    if !is_host(host) {
        return Err("the host is empty or has characters that no host name has");
    }
    match port.map(str::parse) {
        None => Ok((host, default)),
        Some(Ok(port @ 1..)) => Ok((host, port)),
        Some(_) => Err("the port is not a number from 1 to 65535"),
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let server = match self {
            Self::Etcd(location) => return location.fmt(f),
            Self::Addresses { name, port, server } => {
                write!(f, "dns://{name}:{port}")?;
                server
            }
            Self::Services { name, server } => {
                write!(f, "srv://{name}")?;
                server
            }
        };
        server.map_or(Ok(()), |server| write!(f, "?server={server}"))
    }
}

impl fmt::Display for EtcdLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls.is_some() { "etcds" } else { "etcd" };
        write!(f, "{scheme}://{}/{}", self.endpoints.join(","), self.prefix)?;
        let mut mark = '?';
        let mut put = |name: &str, value: &dyn fmt::Display| {
            write!(f, "{mark}{name}={value}")?;
            mark = '&';
            Ok(())
        };
        if self.ttl_s != DEFAULT_TTL_S {
            put("ttl", &self.ttl_s)?;
        }
        if let Some(user) = &self.user {
            put("user", &user.name)?;
            put("password_file", &user.password_file.display())?;
        }
        let Some(tls) = &self.tls else { return Ok(()) };
        put("ca", &tls.ca.display())?;
        if let Some((cert, key)) = &tls.own {
            put("cert", &cert.display())?;
            put("key", &key.display())?;
        }
        tls.name.as_ref().map_or(Ok(()), |name| put("name", name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_forms_are_read_and_written_back() {
        let texts = [
            ("etcd://e1", "etcd://e1:2379/memkv"),
            ("etcd://e1:1,[::1]:2/a/b/?ttl=3s", "etcd://e1:1,[::1]:2/a/b?ttl=3"),
            ("etcd://e?user=kv&password_file=/p", "etcd://e:2379/memkv?user=kv&password_file=/p"),
            ("etcds://e?name=etcd&ca=/ca&ttl=3", "etcds://e:2379/memkv?ttl=3&ca=/ca&name=etcd"),
            ("etcds://e/p?ca=/ca&cert=/c&key=/k", "etcds://e:2379/p?ca=/ca&cert=/c&key=/k"),
            ("dns://kv.example", "dns://kv.example:9900"),
            ("dns://kv.example:1?server=127.0.0.1:5353", "dns://kv.example:1?server=127.0.0.1:5353"),
            ("srv://_memkv._tcp.kv.example", "srv://_memkv._tcp.kv.example"),
            (" srv://x?server=[::1]:53 ", "srv://x?server=[::1]:53"),
        ];
        for (text, full) in texts {
            let location: Location = text.parse().unwrap();
            assert_eq!(location.to_string(), full);
            assert_eq!(full.parse::<Location>().unwrap(), location);
        }
    }

    #[test]
    fn mistakes_are_named() {
        let cases = [
            ("", "scheme"),
            ("e1:2379", "scheme"),
            ("http://e1", "scheme is not"),
            ("etcd://", "host"),
            ("etcd://a:0/p", "port"),
            ("etcd://a,,b", "host"),
            ("etcd://::1", "brackets"),
            ("etcd://a/p?ttl=1", "ttl"),
            ("etcd://a/p?server=1.1.1.1:53", "after ?"),
            ("dns://a?ttl=3", "after ?"),
            ("etcd://a/p?ttl=3&ttl=3", "or two"),
            ("etcd://a/p?user=", "no value"),
            ("etcd://a/p?user=x", "belong together"),
            ("etcd://x:secret@a/p", "password_file"),
            ("etcd://a/p?ca=/x", "etcds://"),
            ("etcd://a/p?name=x", "etcds://"),
            ("etcds://a/p", "ca=PATH"),
            ("etcds://a/p?ca=/x&cert=/y", "belong together"),
            ("etcd://a/p q", "prefix"),
            ("dns://10.0.0.1:9900", "MEMKV_SERVERS"),
            ("dns://a?server=x", "server"),
            ("srv://", "name"),
            ("srv://a:1", "name"),
        ];
        for (text, word) in cases {
            let error = text.parse::<Location>().unwrap_err().to_string();
            assert!(error.contains(word) && error.contains("etcd://HOST"), "{text}: {error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
