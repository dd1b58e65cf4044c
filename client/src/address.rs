//! How a server is written in a configuration: `[id=]host:port[*weight]`.

use std::fmt;
use std::str::FromStr;

/// The port of a server whose address names none.
pub const DEFAULT_PORT: u16 = 9900;
/// The weight of a server whose address names none.
pub const DEFAULT_WEIGHT: u32 = 100;

/// One server of the static list.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServerAddress {
    /// Stable identity: routing depends on it alone, so it must be the same on all clients and survive a change of
    /// address. `host:port` if none is given.
    pub id: String,
    /// Name or IP address; an IPv6 address without brackets.
    pub host: String,
    /// Port of gRPC and data connections.
    pub port: u16,
    /// Share of the keys relative to the other servers; 0 takes none.
    pub weight: u32,
}

/// Why a text is not a server's address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not a server address ({problem}); write [id=]host:port[*weight], for example node-1=10.0.0.5:9900*100"
)]
pub struct BadAddress {
    text: String,
    problem: &'static str,
}

impl ServerAddress {
    /// `host:port`, with brackets around an IPv6 address.
    #[must_use]
    pub fn host_port(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = self.host_port();
        if self.id != address {
            write!(f, "{}=", self.id)?;
        }
        f.write_str(&address)?;
        if self.weight != DEFAULT_WEIGHT {
            write!(f, "*{}", self.weight)?;
        }
        Ok(())
    }
}

impl FromStr for ServerAddress {
    type Err = BadAddress;

    fn from_str(text: &str) -> Result<Self, BadAddress> {
        let bad = |problem| BadAddress { text: text.to_owned(), problem };
        let trimmed = text.trim();
        let (id, rest) = match trimmed.split_once('=') {
            Some((id, rest)) => (Some(id.trim()), rest),
            None => (None, trimmed),
        };
        let (place, weight) = match rest.rsplit_once('*') {
            Some((place, weight)) => {
                (place, weight.trim().parse().map_err(|_| bad("the weight is not a whole number"))?)
            }
            None => (rest, DEFAULT_WEIGHT),
        };
        let (host, port) = split_port(place.trim()).map_err(bad)?;
        let plain_host =
            host.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '%'));
        if host.is_empty() || !plain_host {
            return Err(bad("the host is empty or has characters that no host name has"));
        }
        if id.is_some_and(|id| id.is_empty() || id.len() > 128 || id.chars().any(char::is_whitespace)) {
            return Err(bad("the id is empty, longer than 128 bytes, or has white space"));
        }
        let mut address = Self { id: String::new(), host: host.to_owned(), port, weight };
        address.id = id.map_or_else(|| address.host_port(), str::to_owned);
        Ok(address)
    }
}

/// Host and port of `host`, `host:port`, `[v6]` or `[v6]:port`.
fn split_port(place: &str) -> Result<(&str, u16), &'static str> {
    let (host, port) = match place.strip_prefix('[') {
        Some(rest) => {
            let (host, after) = rest.split_once(']').ok_or("the bracket is not closed")?;
            match after {
                "" => (host, None),
                _ => (host, Some(after.strip_prefix(':').ok_or("after the bracket comes ':' and the port")?)),
            }
        }
        None if place.matches(':').count() > 1 => return Err("an IPv6 address needs brackets: [::1]:9900"),
        None => match place.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (place, None),
        },
    };
    match port {
        None => Ok((host, DEFAULT_PORT)),
        Some(port) => match port.parse() {
            Ok(0) | Err(_) => Err("the port is not a number from 1 to 65535"),
            Ok(port) => Ok((host, port)),
        },
    }
}

/// Reads a list of addresses separated by commas or white space; ids must differ.
pub(crate) fn parse_list(text: &str) -> Result<Vec<ServerAddress>, String> {
    let parts = text.split(|c: char| c == ',' || c.is_whitespace()).filter(|part| !part.is_empty());
    let mut servers: Vec<ServerAddress> = Vec::new();
    for part in parts {
        let server: ServerAddress = part.parse().map_err(|bad: BadAddress| bad.to_string())?;
        if servers.iter().any(|known| known.id == server.id) {
            return Err(format!("the server id {:?} is there twice; ids must differ", server.id));
        }
        servers.push(server);
    }
    Ok(servers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> ServerAddress {
        text.parse().unwrap()
    }

    #[test]
    fn all_forms_are_read_and_written_back() {
        let plain = read("10.0.0.5:9901");
        assert_eq!((plain.id.as_str(), plain.port, plain.weight), ("10.0.0.5:9901", 9901, DEFAULT_WEIGHT));
        let full = read("node-1=kv.example:1234*7");
        assert_eq!((full.id.as_str(), full.host.as_str(), full.weight), ("node-1", "kv.example", 7));
        assert_eq!(read("kv").port, DEFAULT_PORT);
        let six = read("[::1]:9900*0");
        assert_eq!((six.host.as_str(), six.weight), ("::1", 0));
        for server in [plain, full, six] {
            assert_eq!(read(&server.to_string()), server);
        }
    }

    #[test]
    fn mistakes_are_named() {
        let cases = [
            ("a:0", "port"),
            ("a:x", "port"),
            ("::1", "brackets"),
            ("[::1", "closed"),
            ("a:1*x", "weight"),
            ("=a:1", "id"),
            (":9900", "host"),
            ("http://a:1", "IPv6"),
            ("a/b:1", "host"),
        ];
        for (text, word) in cases {
            let error = text.parse::<ServerAddress>().unwrap_err().to_string();
            assert!(error.contains(word) && error.contains("host:port"), "{text}: {error}");
        }
    }

    #[test]
    fn a_list_has_distinct_ids() {
        assert_eq!(parse_list(" a:1, b:2\nc:3 ,").unwrap().len(), 3);
        assert!(parse_list("a:1,a:1").unwrap_err().contains("twice"));
        assert!(parse_list("").unwrap().is_empty());
    }
}
