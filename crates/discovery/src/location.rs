//! How a source is written in a configuration.
//!
//! | text | source |
//! |------|--------|
//! | `etcd://HOST:PORT[,HOST:PORT…][/PREFIX][?ttl=SECONDS]` | records under the prefix (`memkv` if none is given) |
//! | `dns://NAME[:PORT][?server=IP:PORT]` | the A and AAAA records of the name, all on one port |
//! | `srv://NAME[?server=IP:PORT]` | the SRV records of the name, with port and weight |
//!
//! `ttl` is for servers: how long their record outlives them. `server` asks that name server and not the system's.

use crate::member::{DEFAULT_PORT, is_host};
use std::fmt;
use std::net::SocketAddr;
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
        let bad = |problem| BadLocation { text: text.to_owned(), problem };
        let (scheme, rest) = text.trim().split_once("://").ok_or_else(|| bad("it has no scheme"))?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        match scheme {
            "etcd" => etcd(rest, query).map(Self::Etcd),
            "dns" => addresses(rest, query),
            "srv" => services(rest, query),
            _ => Err("the scheme is not etcd, dns or srv"),
        }
        .map_err(bad)
    }
}

fn etcd(rest: &str, query: &str) -> Result<EtcdLocation, &'static str> {
    let (endpoints, prefix) = rest.split_once('/').unwrap_or((rest, ""));
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
    let ttl_s = match parameter(query, "ttl")? {
        None => DEFAULT_TTL_S,
        Some(text) => match text.strip_suffix('s').unwrap_or(text).parse() {
            Ok(seconds @ 2..=3600) => seconds,
            _ => return Err("ttl is not 2 to 3600 seconds"),
        },
    };
    Ok(EtcdLocation { endpoints, prefix: prefix.to_owned(), ttl_s })
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

/// The value of the only parameter that there may be.
fn parameter<'a>(query: &'a str, name: &str) -> Result<Option<&'a str>, &'static str> {
    if query.is_empty() {
        return Ok(None);
    }
    match query.split_once('=') {
        Some((known, value)) if known == name => Ok(Some(value)),
        _ => Err("after ? may come ttl=SECONDS (etcd) or server=IP:PORT (dns, srv) only"),
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
        write!(f, "etcd://{}/{}", self.endpoints.join(","), self.prefix)?;
        if self.ttl_s == DEFAULT_TTL_S { Ok(()) } else { write!(f, "?ttl={}", self.ttl_s) }
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
            ("etcd://a/p q", "prefix"),
            ("dns://10.0.0.1:9900", "MEMKV_SERVERS"),
            ("dns://a?server=x", "server"),
            ("srv://", "name"),
            ("srv://a:1", "name"),
        ];
        for (text, word) in cases {
            let error = text.parse::<Location>().unwrap_err().to_string();
            assert!(error.contains(word) && error.contains("etcd://HOST"), "{text}: {error}");
        }
    }
}
