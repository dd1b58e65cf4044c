//! Ways in for the fuzzer: answers of name servers and of etcd, without either. Feature `fuzzing`, never in a release.

use crate::etcd::rpc::{RangeResponse, WatchResponse};
use crate::{Member, MemberList};
use hickory_resolver::proto::op::Message;
use prost::Message as _;

/// The members that a name server's answer stands for, by its addresses and by its services. `None` if it is no answer.
#[must_use]
pub fn dns(answer: &[u8]) -> Option<(Vec<Member>, Vec<Member>)> {
    let message = Message::from_vec(answer).ok()?;
    Some(crate::dns::members_in(&message.answers, 9900))
}

/// The members after etcd's answer to a range request and what it tells on a watch. `None` if one of them is none.
#[must_use]
pub fn etcd(range: &[u8], watch: &[&[u8]]) -> Option<MemberList> {
    let range = RangeResponse::decode(range).ok()?;
    let watch: Result<Vec<_>, _> = watch.iter().map(|event| WatchResponse::decode(*event)).collect();
    Some(crate::etcd::list_after("p/members/", range, watch.ok()?))
}
