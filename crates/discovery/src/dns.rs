//! Members from DNS: the records of a headless service.
//!
//! | records | id | address | weight |
//! |---------|----|---------|--------|
//! | A and AAAA of `NAME` | `IP:PORT` | the IP address, the configured port | 100 |
//! | SRV of `NAME` | the target's name; `TARGET:PORT` if the target is there more than once | the target's IP address, the record's port | the record's; 100 if all are 0 |
//!
//! So a member whose address changes keeps its keys with SRV records, and not with addresses alone. Of SRV records, those
//! with the lowest priority count. A target without an address keeps its name as host.
//!
//! Records are looked up again when their TTL has passed, but not more often than every second and not less often
//! than once a minute. No records at all is an error, not an empty cluster. Nothing is cached besides.

use crate::{DEFAULT_WEIGHT, Member, MemberList, NextList, Source, SourceError};
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::{RData, Record, RecordType};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// Records are not looked up more often than this, whatever their TTL.
const INTERVAL_MIN: Duration = Duration::from_secs(1);
/// Records are looked up at least this often, whatever their TTL.
const INTERVAL_MAX: Duration = Duration::from_secs(60);
/// The most members that are taken from DNS.
const MEMBERS_MAX: usize = 1024;

enum Kind {
    Addresses(u16),
    Services,
}

/// Members from the records of a name.
pub struct DnsSource {
    name: String,
    kind: Kind,
    resolver: TokioResolver,
    epoch: u64,
    last: Vec<Member>,
    due: Option<Instant>,
}

impl std::fmt::Debug for DnsSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DnsSource").field("name", &self.name).finish_non_exhaustive()
    }
}

impl DnsSource {
    /// Members from A and AAAA records, all on `port`; `server` instead of the system's name servers.
    ///
    /// # Errors
    ///
    /// If the system's configuration of DNS cannot be read.
    pub fn addresses(name: String, port: u16, server: Option<SocketAddr>) -> Result<Self, SourceError> {
        Self::new(name, Kind::Addresses(port), server)
    }

    /// Members from SRV records; `server` instead of the system's name servers.
    ///
    /// # Errors
    ///
    /// If the system's configuration of DNS cannot be read.
    pub fn services(name: String, server: Option<SocketAddr>) -> Result<Self, SourceError> {
        Self::new(name, Kind::Services, server)
    }

    fn new(name: String, kind: Kind, server: Option<SocketAddr>) -> Result<Self, SourceError> {
        let resolver = resolver(server);
        let resolver =
            resolver.map_err(|error| SourceError::Dns { name: name.clone(), text: error.to_string() })?;
        Ok(Self { name, kind, resolver, epoch: 0, last: Vec::new(), due: None })
    }

    async fn look_up(&mut self) -> Result<MemberList, SourceError> {
        loop {
            if let Some(due) = self.due {
                sleep_until(due).await;
            }
            let found = match self.kind {
                Kind::Addresses(port) => self.by_address(port).await,
                Kind::Services => self.by_service().await,
            };
            let (mut members, ttl) = found.map_err(|error| self.error(&error))?;
            members.truncate(MEMBERS_MAX);
            self.due = Some(Instant::now() + ttl.clamp(INTERVAL_MIN, INTERVAL_MAX));
            let list = MemberList::new(self.epoch + 1, members);
            if list.members != self.last {
                self.epoch += 1;
                self.last.clone_from(&list.members);
                return Ok(list);
            }
        }
    }

    fn error(&self, error: &NetError) -> SourceError {
        SourceError::Dns { name: self.name.clone(), text: error.to_string() }
    }

    async fn by_address(&self, port: u16) -> Result<(Vec<Member>, Duration), NetError> {
        let (addresses, ttl) = self.addresses_of(&self.name).await?;
        Ok((addresses.iter().map(|ip| member_at(*ip, port)).collect(), ttl))
    }

    async fn by_service(&self) -> Result<(Vec<Member>, Duration), NetError> {
        let lookup = self.resolver.srv_lookup(self.name.as_str()).await?;
        let mut ttl = time_left(&lookup);
        let mut services = services(lookup.answers());
        services.truncate(MEMBERS_MAX);
        let mut addresses = BTreeMap::new();
        for service in &services {
            if addresses.contains_key(&service.target) {
                continue;
            }
            // A target that has no address now may have one later, and its keys are not to move meanwhile.
            let found = self.addresses_of(&format!("{}.", service.target)).await.ok();
            let first = found.as_ref().and_then(|(ips, _)| ips.first()).map(IpAddr::to_string);
            ttl = ttl.min(found.map_or(INTERVAL_MIN, |(_, left)| left));
            addresses.insert(service.target.clone(), first.unwrap_or_else(|| service.target.clone()));
        }
        Ok((members_of(&services, &addresses), ttl))
    }

    /// The addresses of a name, lowest first, and how long they hold.
    async fn addresses_of(&self, name: &str) -> Result<(Vec<IpAddr>, Duration), NetError> {
        let (four, six) = tokio::join!(
            self.resolver.lookup(name, RecordType::A),
            self.resolver.lookup(name, RecordType::AAAA)
        );
        let (mut addresses, mut ttl) = (Vec::new(), INTERVAL_MAX);
        for lookup in [&four, &six].into_iter().flatten() {
            ttl = ttl.min(time_left(lookup));
            addresses.extend(ips(lookup.answers()));
        }
        // One kind without records is nothing unusual; one that could not be asked for would make members seem lost.
        for lookup in [four, six] {
            match lookup {
                Err(error) if addresses.is_empty() || !error.is_no_records_found() => return Err(error),
                Ok(_) | Err(_) => {}
            }
        }
        addresses.sort_unstable();
        addresses.dedup();
        Ok((addresses, ttl))
    }
}

impl Source for DnsSource {
    fn next(&mut self) -> NextList<'_> {
        Box::pin(self.look_up())
    }

    fn refresh(&mut self) {
        self.due = None;
    }
}

fn resolver(server: Option<SocketAddr>) -> Result<TokioResolver, NetError> {
    let mut builder = match server {
        None => TokioResolver::builder_tokio()?,
        Some(server) => {
            let mut connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()];
            connections.iter_mut().for_each(|connection| connection.port = server.port());
            let server = NameServerConfig::new(server.ip(), true, connections.to_vec());
            let config = ResolverConfig::from_parts(None, Vec::new(), vec![server]);
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        }
    };
    let options = builder.options_mut();
    options.cache_size = 0;
    options.attempts = 2;
    options.timeout = Duration::from_secs(2);
    builder.build()
}

fn time_left(lookup: &Lookup) -> Duration {
    lookup.valid_until().saturating_duration_since(std::time::Instant::now())
}

/// The addresses among the records.
fn ips(records: &[Record]) -> impl Iterator<Item = IpAddr> {
    records.iter().filter_map(|record| match &record.data {
        RData::A(address) => Some(IpAddr::V4(address.0)),
        RData::AAAA(address) => Some(IpAddr::V6(address.0)),
        _ => None,
    })
}

/// The member that an address stands for.
fn member_at(ip: IpAddr, port: u16) -> Member {
    Member::new(SocketAddr::new(ip, port).to_string(), ip.to_string(), port, DEFAULT_WEIGHT)
}

/// The members that an answer of a name server stands for: by its addresses, and by its services.
#[cfg(feature = "fuzzing")]
pub(crate) fn members_in(records: &[Record], port: u16) -> (Vec<Member>, Vec<Member>) {
    let by_address = ips(records).map(|ip| member_at(ip, port)).collect();
    (by_address, members_of(&services(records), &BTreeMap::new()))
}

/// One SRV record.
struct Service {
    target: String,
    port: u16,
    weight: u16,
}

/// The SRV records with the lowest priority.
fn services(records: &[Record]) -> Vec<Service> {
    let records = records.iter().filter_map(|record| match &record.data {
        RData::SRV(service) => Some(service),
        _ => None,
    });
    let records: Vec<_> = records.collect();
    let lowest = records.iter().map(|record| record.priority).min();
    let chosen = records.into_iter().filter(|record| Some(record.priority) == lowest && record.port > 0);
    chosen
        .map(|record| Service {
            target: record.target.to_ascii().trim_end_matches('.').to_ascii_lowercase(),
            port: record.port,
            weight: record.weight,
        })
        .filter(|service| crate::member::is_host(&service.target) && crate::check_id(&service.target).is_ok())
        .collect()
}

fn members_of(services: &[Service], addresses: &BTreeMap<String, String>) -> Vec<Member> {
    let all_zero = services.iter().all(|service| service.weight == 0);
    let member = |service: &Service| {
        let twins = services.iter().filter(|other| other.target == service.target).count();
        let Service { target, port, .. } = service;
        let id = if twins > 1 { format!("{target}:{port}") } else { target.clone() };
        let host = addresses.get(target).unwrap_or(target);
        let weight = if all_zero { DEFAULT_WEIGHT } else { service.weight.into() };
        Member::new(id, host.as_str(), *port, weight)
    };
    // With its port, the name of a twin may be too long for an id.
    services.iter().map(member).filter(|member| crate::check_id(&member.id).is_ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(target: &str, port: u16, weight: u16) -> Service {
        Service { target: target.to_owned(), port, weight }
    }

    #[test]
    fn ids_are_names_and_only_twins_have_ports() {
        let addresses = BTreeMap::from([("a".to_owned(), "10.0.0.1".to_owned())]);
        let members = members_of(&[service("a", 1, 5), service("b", 2, 0), service("b", 3, 7)], &addresses);
        let seen: Vec<_> = members.iter().map(|m| (m.id.as_str(), m.host.as_str(), m.weight)).collect();
        assert_eq!(seen, [("a", "10.0.0.1", 5), ("b:2", "b", 0), ("b:3", "b", 7)]);
        assert_eq!(members_of(&[service("a", 1, 0)], &addresses)[0].weight, DEFAULT_WEIGHT);
        let long = "x".repeat(127);
        assert_eq!(members_of(&[service(&long, 1, 0)], &addresses).len(), 1);
        assert!(members_of(&[service(&long, 1, 0), service(&long, 2, 0)], &addresses).is_empty());
    }
}
