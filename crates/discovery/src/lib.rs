//! Who the members of a cluster are.
//!
//! A [`Source`] gives [`MemberList`]s: a fixed one, one made from DNS records ([`dns`]), or the records under a
//! prefix of etcd, where servers register themselves ([`etcd`]). [`follow()`] keeps asking a source and never gives
//! up; [`Roster`] turns the lists into the weights that routing uses: who is new takes its weight gradually, who is
//! lost keeps its keys for a while.
//!
//! Invariants:
//! - a member's id is stable: it survives restarts and changes of address, and routing depends on it alone;
//! - a source that does not answer, or answers with nothing, changes nothing for members that are known;
//! - a record that makes no sense is skipped, and the others count;
//! - weights follow from lists and times alone, so that all clients of a cluster agree on them.
//!
//! Deliberately absent: consensus. Two clients may see a change at different times; what one of them looks for in
//! the wrong place meanwhile is a miss.

#![forbid(unsafe_code)]

pub mod dns;
pub mod etcd;
mod fixed;
mod follow;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod location;
mod member;
mod roster;

pub use fixed::Fixed;
pub use follow::{Health, follow};
pub use location::{BadLocation, EtcdLocation, EtcdTls, EtcdUser, Location, host_and_port};
pub use member::{BadRecord, DEFAULT_PORT, DEFAULT_WEIGHT, Member, MemberList, MemberState, check_id};
pub use roster::{Now, Roster, Rules, Seat};

use std::pin::Pin;

/// Why a source has no list now. It is asked again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// etcd does not answer, or not as it should.
    #[error("etcd at {endpoint}: {text}")]
    Etcd {
        /// The endpoint that was asked.
        endpoint: String,
        /// What went wrong.
        text: String,
    },
    /// There are no records to be had from DNS.
    #[error("DNS records of {name}: {text}")]
    Dns {
        /// The name that was looked up.
        name: String,
        /// What went wrong.
        text: String,
    },
}

/// What a call of [`Source::next`] waits for.
pub type NextList<'a> = Pin<Box<dyn Future<Output = Result<MemberList, SourceError>> + Send + 'a>>;

/// Where member lists come from.
pub trait Source: Send {
    /// Waits for the next list; the first one comes as soon as it can be had. After an error, the next call begins
    /// afresh. The future may be dropped at any time without harm.
    fn next(&mut self) -> NextList<'_>;

    /// The next call of [`Source::next`] asks at once, whatever it would have waited for.
    fn refresh(&mut self);
}

/// The source at a location. Call inside a tokio runtime.
///
/// # Errors
///
/// If the system's configuration of DNS cannot be read.
pub fn open(location: &Location) -> Result<Box<dyn Source>, SourceError> {
    Ok(match location {
        Location::Etcd(location) => Box::new(etcd::EtcdSource::new(location.clone())),
        Location::Addresses { name, port, server } => {
            Box::new(dns::DnsSource::addresses(name.clone(), *port, *server)?)
        }
        Location::Services { name, server } => Box::new(dns::DnsSource::services(name.clone(), *server)?),
    })
}
