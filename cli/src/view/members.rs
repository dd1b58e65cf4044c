//! Who the members of the cluster are, as the client of this command sees it.

use memkv_client::{MemberView, Membership};
use serde::Serialize;

/// The member list that the servers of a command come from.
#[derive(Debug, Serialize)]
pub(crate) struct Members {
    /// A location, or `MEMKV_SERVERS` for the list in the configuration.
    pub(crate) source: String,
    pub(crate) epoch: u64,
    /// Why the source does not answer.
    pub(crate) error: Option<String>,
    pub(crate) members: Vec<Member>,
}

/// One member.
#[derive(Debug, Serialize)]
pub(crate) struct Member {
    pub(crate) id: String,
    pub(crate) address: String,
    /// `serving`, `draining`, `drained` or `lost`.
    pub(crate) state: &'static str,
    /// Its own weight.
    pub(crate) weight: u32,
    /// The weight that counts now: less while it is new, 0 while it is drained.
    pub(crate) weight_now: u32,
    pub(crate) since_unix_ms: Option<u64>,
    pub(crate) version: Option<String>,
}

impl Members {
    /// Whether the list is the one in the configuration, of which there is no more to tell.
    pub(crate) fn is_fixed(&self) -> bool {
        self.source == "MEMKV_SERVERS"
    }
}

impl From<Membership> for Members {
    fn from(list: Membership) -> Self {
        let Membership { source, epoch, error, members } = list;
        Self { source, epoch, error, members: members.into_iter().map(Member::from).collect() }
    }
}

impl From<MemberView> for Member {
    fn from(view: MemberView) -> Self {
        let MemberView { member, weight, lost } = view;
        Self {
            address: member.host_port(),
            state: if lost { "lost" } else { member.state.name() },
            weight: member.weight,
            weight_now: weight,
            since_unix_ms: (member.since_unix_ms > 0).then_some(member.since_unix_ms),
            version: (!member.version.is_empty()).then_some(member.version),
            id: member.id,
        }
    }
}
