//! Members in etcd: servers register records, everybody watches them.
//!
//! | key | value | lives |
//! |-----|-------|-------|
//! | `PREFIX/members/ID` | the member's record ([`crate::Member::to_record`]) | as long as the server says that it lives, plus the TTL of the location |
//! | `PREFIX/since/ID` | when it became a member, Unix time in milliseconds, decimal | two more TTLs |
//!
//! The second key is why a server that restarts after its record has run out is still no new member. The epoch of a
//! list is the revision at which etcd told of it.
//!
//! etcd is spoken to through a description of our own of the few calls that are needed (`proto/`), inside TLS
//! (`etcds://`) and as a user if the location says so.

mod connection;
mod register;
mod source;

pub use register::{Registered, Wish, register};
pub use source::EtcdSource;
#[cfg(feature = "fuzzing")]
pub(crate) use source::list_after;

use crate::EtcdLocation;

/// The generated messages and clients.
pub(crate) mod rpc {
    #![allow(
        missing_docs,
        unreachable_pub,
        clippy::all,
        clippy::allow_attributes_without_reason,
        reason = "generated code"
    )]
    tonic::include_proto!("etcdserverpb");
}

impl EtcdLocation {
    /// Where the records are: every key that begins with this is a record's.
    fn members(&self) -> String {
        format!("{}/members/", self.prefix)
    }

    fn member(&self, id: &str) -> Vec<u8> {
        format!("{}{id}", self.members()).into_bytes()
    }

    fn since(&self, id: &str) -> Vec<u8> {
        format!("{}/since/{id}", self.prefix).into_bytes()
    }
}

/// The first key after all that begin with `prefix`.
fn after(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    // The prefix ends with '/', so the last byte can be counted up.
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_has_every_id_and_nothing_else() {
        let location: crate::Location = "etcd://e/a/b".parse().unwrap();
        let crate::Location::Etcd(location) = location else { panic!("{location}") };
        let (begin, end) = (location.members().into_bytes(), after(&location.members()));
        for id in ["a", "\u{10ffff}", "z/members/0"] {
            let key = location.member(id);
            assert!(begin <= key && key < end);
        }
        assert!(location.since("a") >= end);
    }
}
