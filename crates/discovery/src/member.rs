//! Members, lists of them, and the records that servers write about themselves.
//!
//! A record is a JSON object, so that people can read it with `etcdctl`:
//!
//! | field | type | meaning |
//! |-------|------|---------|
//! | `id` | text | stable identity, 1 to 128 bytes without white space; equal to the last part of the key |
//! | `host` | text | name or IP address that clients use |
//! | `port` | number | port of gRPC and data connections |
//! | `weight` | number | share of the keys relative to the others, 0 to 1000000; 0 takes none |
//! | `state` | text | `serving`, `draining`, `drained`; others count as serving |
//! | `since_unix_ms` | number | when it became a member; 0 if nobody knows |
//! | `incarnation` | text | 16 hex digits, new at every start of the daemon |
//! | `version` | text | the server's release |
//!
//! Fields that are not known are ignored, and those after `port` may be absent, so that releases can differ.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The port of a member that names none.
pub const DEFAULT_PORT: u16 = 9900;
/// The weight of a member that names none.
pub const DEFAULT_WEIGHT: u32 = 100;
/// The largest weight.
const WEIGHT_MAX: u32 = 1_000_000;
/// The longest id, bytes.
const ID_BYTES_MAX: usize = 128;
/// The longest host name, bytes.
const HOST_BYTES_MAX: usize = 253;
/// The longest record, bytes.
pub(crate) const RECORD_BYTES_MAX: usize = 4096;

/// Whether a member takes new keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum MemberState {
    /// It does, by its weight.
    #[default]
    Serving,
    /// It hands its pages over and takes no new ones; it still answers.
    Draining,
    /// It has handed them over and may be stopped.
    Drained,
}

impl MemberState {
    /// Its name in records and on screens.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Serving => "serving",
            Self::Draining => "draining",
            Self::Drained => "drained",
        }
    }

    /// Whether new keys go to a member in this state.
    #[must_use]
    pub fn takes_keys(self) -> bool {
        match self {
            Self::Serving => true,
            Self::Draining | Self::Drained => false,
        }
    }

    fn from_name(name: &str) -> Self {
        match name {
            "draining" => Self::Draining,
            "drained" => Self::Drained,
            // A later release may have more states; to stop routing to such a server would move its keys.
            _ => Self::Serving,
        }
    }
}

impl fmt::Display for MemberState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One server of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Stable identity; routing depends on it alone.
    pub id: String,
    /// Name or IP address; an IPv6 address without brackets.
    pub host: String,
    /// Port of gRPC and data connections.
    pub port: u16,
    /// Share of the keys relative to the other members; 0 takes none.
    pub weight: u32,
    /// Whether it takes new keys.
    pub state: MemberState,
    /// When it became a member, Unix time in milliseconds; 0 if the source does not know.
    pub since_unix_ms: u64,
    /// New at every start of the daemon; 0 if the source does not know.
    pub incarnation: u64,
    /// The server's release; empty if the source does not know.
    pub version: String,
}

impl Member {
    /// A serving member of which no more is known.
    #[must_use]
    pub fn new(id: impl Into<String>, host: impl Into<String>, port: u16, weight: u32) -> Self {
        Self {
            id: id.into(),
            host: host.into(),
            port,
            weight,
            state: MemberState::Serving,
            since_unix_ms: 0,
            incarnation: 0,
            version: String::new(),
        }
    }

    /// `host:port`, with brackets around an IPv6 address.
    #[must_use]
    pub fn host_port(&self) -> String {
        host_port(&self.host, self.port)
    }

    /// The record that [`Member::from_record`] reads.
    #[must_use]
    pub fn to_record(&self) -> Vec<u8> {
        let record = Record {
            id: self.id.clone(),
            host: self.host.clone(),
            port: self.port,
            weight: self.weight,
            state: self.state.name().to_owned(),
            since_unix_ms: self.since_unix_ms,
            incarnation: format!("{:016x}", self.incarnation),
            version: self.version.clone(),
        };
        serde_json::to_vec(&record).expect("a record is texts and numbers")
    }

    /// Reads the record of the member with this id.
    ///
    /// # Errors
    ///
    /// [`BadRecord`] if it cannot be understood or has values that no member has.
    pub fn from_record(id: &str, bytes: &[u8]) -> Result<Self, BadRecord> {
        if bytes.len() > RECORD_BYTES_MAX {
            return Err(BadRecord(format!("it has more than {RECORD_BYTES_MAX} bytes")));
        }
        let record: Record = serde_json::from_slice(bytes).map_err(|error| BadRecord(error.to_string()))?;
        check_id(&record.id).map_err(|problem| BadRecord(problem.to_owned()))?;
        if record.id != id {
            return Err(BadRecord(format!("it is about {:?}", record.id)));
        }
        if !is_host(&record.host) || record.port == 0 {
            return Err(BadRecord(format!("{:?} is no address", host_port(&record.host, record.port))));
        }
        if record.weight > WEIGHT_MAX {
            return Err(BadRecord(format!("the weight {} is above {WEIGHT_MAX}", record.weight)));
        }
        Ok(Self {
            id: record.id,
            host: record.host,
            port: record.port,
            weight: record.weight,
            state: MemberState::from_name(&record.state),
            since_unix_ms: record.since_unix_ms,
            incarnation: u64::from_str_radix(&record.incarnation, 16).unwrap_or(0),
            version: record.version.chars().filter(|c| !c.is_control()).take(64).collect(),
        })
    }
}

fn host_port(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// Whether a text can be a host name or an IP address without brackets.
pub(crate) fn is_host(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let is_name = (1..=HOST_BYTES_MAX).contains(&text.len()) && text.chars().all(plain);
    is_name || text.parse::<std::net::Ipv6Addr>().is_ok()
}

/// Checks the id of a member.
///
/// # Errors
///
/// What is wrong with it.
pub fn check_id(id: &str) -> Result<(), &'static str> {
    let fine =
        (1..=ID_BYTES_MAX).contains(&id.len()) && !id.chars().any(|c| c.is_whitespace() || c.is_control());
    if fine { Ok(()) } else { Err("the id of a member has 1 to 128 bytes and no white space") }
}

/// Why a record is none; it is skipped.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadRecord(String);

#[derive(Serialize, Deserialize)]
struct Record {
    id: String,
    host: String,
    port: u16,
    #[serde(default = "default_weight")]
    weight: u32,
    #[serde(default)]
    state: String,
    #[serde(default)]
    since_unix_ms: u64,
    #[serde(default)]
    incarnation: String,
    #[serde(default)]
    version: String,
}

fn default_weight() -> u32 {
    DEFAULT_WEIGHT
}

/// The members as a source saw them at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemberList {
    /// Grows with every change. With etcd it is etcd's revision, the same for all who ask; else the source counts.
    pub epoch: u64,
    /// Each id once, in ascending order.
    pub members: Vec<Member>,
    /// Records that made no sense.
    pub skipped: u32,
}

impl MemberList {
    /// A list of these members; of two with the same id, the first counts.
    #[must_use]
    pub fn new(epoch: u64, mut members: Vec<Member>) -> Self {
        members.sort_by(|a, b| a.id.cmp(&b.id));
        members.dedup_by(|later, first| later.id == first.id);
        Self { epoch, members, skipped: 0 }
    }

    /// The member with this id.
    #[must_use]
    pub fn find(&self, id: &str) -> Option<&Member> {
        self.members.binary_search_by(|member| member.id.as_str().cmp(id)).ok().map(|at| &self.members[at])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_back() {
        let mut member = Member::new("kv-1", "10.0.0.5", 9900, 250);
        member.state = MemberState::Draining;
        member.since_unix_ms = 1_790_000_000_000;
        member.incarnation = u64::MAX;
        member.version = "0.1.0".to_owned();
        assert_eq!(Member::from_record("kv-1", &member.to_record()).unwrap(), member);
        let short = br#"{"id":"a","host":"kv.example","port":1,"state":"of-a-later-release","more":[1]}"#;
        assert_eq!(
            Member::from_record("a", short).unwrap(),
            Member::new("a", "kv.example", 1, DEFAULT_WEIGHT)
        );
    }

    #[test]
    fn nonsense_is_refused_with_a_reason() {
        let cases: [(&[u8], &str); 8] = [
            (b"", "EOF"),
            (b"[]", "invalid"),
            (br#"{"id":"b","host":"h","port":1}"#, "about"),
            (br#"{"id":"a","host":"","port":1}"#, "address"),
            (br#"{"id":"a","host":"h/x","port":1}"#, "address"),
            (br#"{"id":"a","host":"h","port":0}"#, "address"),
            (br#"{"id":"a","host":"h","port":70000}"#, "invalid"),
            (br#"{"id":"a","host":"h","port":1,"weight":1000001}"#, "weight"),
        ];
        for (bytes, word) in cases {
            let error = Member::from_record("a", bytes).unwrap_err().to_string();
            assert!(error.contains(word), "{}: {error}", String::from_utf8_lossy(bytes));
        }
        assert!(Member::from_record("a", &vec![b' '; RECORD_BYTES_MAX + 1]).is_err());
        assert!(check_id("a b").is_err() && check_id("").is_err() && check_id("rack/1").is_ok());
    }

    #[test]
    fn a_list_has_each_id_once_in_order() {
        let members = [("b", 1), ("a", 2), ("b", 3)].map(|(id, port)| Member::new(id, "h", port, 1));
        let list = MemberList::new(7, members.to_vec());
        assert_eq!(
            list.members.iter().map(|m| (m.id.as_str(), m.port)).collect::<Vec<_>>(),
            [("a", 2), ("b", 1)]
        );
        assert_eq!(list.find("b").unwrap().port, 1);
        assert!(list.find("c").is_none());
    }
}
