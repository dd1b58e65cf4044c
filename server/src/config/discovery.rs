//! Where this server tells that it is a member of the cluster, and what it tells.

use super::ConfigError;
use super::options::Opt;
use super::values::{count, optional, put, quoted};
use memkv_discovery::{DEFAULT_WEIGHT, EtcdLocation, Location, check_id, host_and_port};
use std::net::SocketAddr;

/// The largest weight.
const WEIGHT_MAX: u32 = 1_000_000;

/// Membership.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiscoveryConfig {
    /// Where the server registers; nowhere if absent.
    pub location: Option<EtcdLocation>,
    /// Host and port that others use; port 0 for that of `listen`. The address of `listen` if absent.
    pub advertise: Option<(String, u16)>,
    /// Share of the keys relative to the other servers.
    pub weight: u32,
}

impl Default for DiscoveryConfig {
    fn default() -> Self {
        Self { location: None, advertise: None, weight: DEFAULT_WEIGHT }
    }
}

impl DiscoveryConfig {
    /// Host and port that others use, of a server that listens at `address`.
    #[must_use]
    pub fn advertised(&self, address: SocketAddr) -> (String, u16) {
        match &self.advertise {
            None => (address.ip().to_string(), address.port()),
            Some((host, 0)) => (host.clone(), address.port()),
            Some((host, port)) => (host.clone(), *port),
        }
    }

    /// The id of a server that has no `node_id`.
    #[must_use]
    pub fn default_id(&self, address: SocketAddr) -> String {
        if self.location.is_none() {
            return address.to_string();
        }
        let (host, port) = self.advertised(address);
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }

    pub(super) fn check(&self, listen: SocketAddr, node_id: Option<&str>) -> Result<(), ConfigError> {
        if self.location.is_none() {
            return Ok(());
        }
        if self.advertise.is_none() && listen.ip().is_unspecified() {
            return Err(ConfigError::Invalid(format!(
                "discovery is set and listen is {listen}, which is no address that others could use; set advertise to a host name or an address of this machine, as in advertise: \"10.0.0.5\""
            )));
        }
        match node_id.map(check_id) {
            Some(Err(problem)) => Err(ConfigError::Invalid(format!(
                "node_id cannot be registered: {problem}; choose another one"
            ))),
            Some(Ok(())) | None => Ok(()),
        }
    }
}

/// The options about membership.
pub(super) const OPTIONS: &[Opt] = &[
    Opt {
        key: "discovery",
        env: "MEMKV_SERVER_DISCOVERY",
        flag: Some("discovery"),
        value: "etcd://HOST:PORT/PREFIX",
        help: "Where the server registers itself, so that clients with the same MEMKV_DISCOVERY find it. ?ttl=SECONDS says how long its record outlives it; 10 if not given. etcds:// with ?ca=PATH, and ?user=NAME&password_file=PATH, as clients write it. Empty: MEMKV_DISCOVERY if that is an etcd:// location, else nowhere.",
        set: |c, text| put(&mut c.discovery.location, optional(text, location)),
        show: |c| quoted(c.discovery.location.as_ref().map(ToString::to_string).unwrap_or_default()),
    },
    Opt {
        key: "advertise",
        env: "MEMKV_SERVER_ADVERTISE",
        flag: Some("advertise"),
        value: "HOST[:PORT]",
        help: "Address that is registered for others to use. Without a port: that of listen. Empty: the address of listen, which must not be 0.0.0.0 then.",
        set: |c, text| put(&mut c.discovery.advertise, optional(text, advertise)),
        show: |c| quoted(show_advertise(c.discovery.advertise.as_ref())),
    },
    Opt {
        key: "weight",
        env: "MEMKV_SERVER_WEIGHT",
        flag: Some("weight"),
        value: "COUNT",
        help: "Share of the keys relative to the other servers, as registered; in proportion to the memory for pages, for example. 0: no keys.",
        set: |c, text| put(&mut c.discovery.weight, weight(text)),
        show: |c| c.discovery.weight.to_string(),
    },
];

fn location(text: &str) -> Result<EtcdLocation, String> {
    match text.parse::<Location>().map_err(|error| error.to_string())? {
        Location::Etcd(location) => Ok(location),
        Location::Addresses { .. } | Location::Services { .. } => Err(format!(
            "{text:?} is for clients; servers register in etcd only: write etcd://HOST:PORT/PREFIX"
        )),
    }
}

/// The location of clients on the same machine, if a server can register there.
pub(super) fn of_clients(text: &str) -> Option<EtcdLocation> {
    location(text).ok()
}

fn advertise(text: &str) -> Result<(String, u16), String> {
    let (host, port) = host_and_port(text, 0)
        .map_err(|problem| format!("{text:?} is not an address ({problem}); write HOST or HOST:PORT"))?;
    let unusable = host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_unspecified());
    if unusable {
        return Err(format!(
            "{text:?} is no address that others could use; write a name or an address of this machine"
        ));
    }
    Ok((host.to_owned(), port))
}

fn show_advertise(advertise: Option<&(String, u16)>) -> String {
    match advertise {
        None => String::new(),
        Some((host, port)) => {
            let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
            if *port == 0 { host } else { format!("{host}:{port}") }
        }
    }
}

fn weight(text: &str) -> Result<u32, String> {
    match count(text)? {
        weight if weight <= WEIGHT_MAX => Ok(weight),
        weight => Err(format!("{weight} is above {WEIGHT_MAX}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_advertised_follows_from_listen() {
        let listen: SocketAddr = "10.0.0.5:9900".parse().unwrap();
        let mut config = DiscoveryConfig::default();
        assert_eq!(config.advertised(listen), ("10.0.0.5".to_owned(), 9900));
        for (text, host, port) in [("kv-1", "kv-1", 9900), ("kv-1:7", "kv-1", 7), ("[::1]", "::1", 9900)] {
            config.advertise = Some(advertise(text).unwrap());
            assert_eq!(config.advertised(listen), (host.to_owned(), port));
            assert_eq!(show_advertise(config.advertise.as_ref()), text);
        }
        assert_eq!(config.default_id(listen), "10.0.0.5:9900");
        config.location = Some(location("etcd://e/p").unwrap());
        assert_eq!(config.default_id(listen), "[::1]:9900");
    }

    #[test]
    fn what_cannot_work_says_what_to_do() {
        let every: SocketAddr = "0.0.0.0:9900".parse().unwrap();
        let mut config = DiscoveryConfig { location: of_clients("etcd://e/p"), ..DiscoveryConfig::default() };
        assert!(config.check(every, None).unwrap_err().to_string().contains("set advertise"));
        config.advertise = Some(("kv-1".to_owned(), 0));
        assert!(config.check(every, None).is_ok());
        assert!(config.check(every, Some("a b")).unwrap_err().to_string().contains("node_id"));
        assert!(advertise("0.0.0.0:1").is_err() && advertise("::").is_err() && advertise("a b").is_err());
        assert!(location("dns://kv").unwrap_err().contains("etcd only"));
        assert!(of_clients("srv://kv").is_none());
        assert!(weight("1000001").is_err());
    }
}
