//! Every failure of the control plane and the gRPC status it becomes.

use crate::drain::NoDrain;
use memkv_proto::{Invalid, NoCommonVersion, VERSIONS, Versions};
use memkv_storage::OpenSpaceError;
use memkv_transport::auth::CredentialError;
use tonic::{Code, Status};

/// Why a call fails. The text says what to do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    /// A message cannot be understood.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// Messages came in an order that makes no sense.
    #[error("{0}")]
    Sequence(&'static str),
    /// A request has more keys than the server takes.
    #[error("the request has {keys} keys; this server takes {most} at once, send several requests")]
    TooManyKeys {
        /// Keys of the request.
        keys: usize,
        /// The limit.
        most: u32,
    },
    /// The cursor is not one of ours.
    #[error("the cursor is not valid; use next_cursor of the last response, or none to begin")]
    BadCursor,
    /// The space is not known.
    #[error("the space {0} was not opened since this server's start; call Kv.OpenSpace first")]
    UnknownSpace(memkv_core::SpaceId),
    /// There are as many spaces as there may be.
    #[error(transparent)]
    OpenSpace(#[from] OpenSpaceError),
    /// The protocol versions have nothing in common.
    #[error(
        "this server speaks protocol version {VERSIONS}, the client {theirs}; upgrade the {}",
        if none.theirs_is_older { "client" } else { "server" }
    )]
    Version {
        /// The client's versions.
        theirs: Versions,
        /// Who is behind.
        none: NoCommonVersion,
    },
    /// Plain text where TLS is required.
    #[error("this server requires TLS; set MEMKV_TLS=on and MEMKV_TLS_CA")]
    TlsRequired,
    /// The client does not know the key.
    #[error("the client's key is none of this server's keys; check MEMKV_AUTH_KEY and MEMKV_TENANT")]
    WrongKey,
    /// An address has failed to prove who it is too often.
    #[error(
        "too many failed attempts from this address; check MEMKV_AUTH_KEY and MEMKV_TENANT, and wait 10 s"
    )]
    TooManyAttempts,
    /// The tenant lacks a right.
    #[error("this tenant may not {0}; an operator gives rights in the credentials file")]
    NoRight(&'static str),
    /// The space is not the tenant's, or it may not open one like this.
    #[error(
        "this tenant may not open this space; see its spaces, and what is public, in the credentials file"
    )]
    Foreign,
    /// Only an operator may do this.
    #[error("this looks at the pages of all tenants; only an operator may")]
    OperatorOnly,
    /// The tenant has as many spaces as it may.
    #[error("this tenant has {0} spaces, its limit; raise quotas.spaces in the credentials file")]
    TooManySpaces(u64),
    /// The tenant is over its rate.
    #[error("this tenant is over its rate; try again later")]
    OverRate,
    /// The tenant has as many connections as it may.
    #[error(
        "this tenant has as many connections or sessions as it may; close some, or raise quotas.connections in the credentials file"
    )]
    TooManyConnections,
    /// What the calls of the connection or the tenant hold together would be too much.
    #[error(
        "the requests of this connection or tenant that are at work hold too many bytes; wait for some of them, or send smaller ones"
    )]
    TooMuchHeld,
    /// A message is longer than any of its method can be.
    #[error("a message of {bytes} bytes; this method takes {most}")]
    TooLong {
        /// The message's length.
        bytes: u32,
        /// The limit.
        most: u32,
    },
    /// A message has more fields than a request has keys.
    #[error("a message with more than {0} fields; see limits.batch_keys_max and send several requests")]
    TooManyFields(u32),
    /// The call's credential is missing or wrong.
    #[error(transparent)]
    Credential(#[from] CredentialError),
    /// The call's credential was used before.
    #[error("this credential was used before; make a new one for every call")]
    Replayed,
    /// No more credentials can be remembered, so that replays would not be found.
    #[error("too many calls in a short time; try again in a minute, or use the data plane")]
    TooManyCalls,
    /// There are as many sessions as there may be.
    #[error("this server has {0} sessions open, its limit; close some or raise limits.sessions_max")]
    TooManySessions(u32),
    /// A check of all pages is running.
    #[error("this server already checks its pages; wait until that check has ended")]
    Verifying,
    /// The system gives no thread.
    #[error("the system gives no thread: {0}; try again later")]
    NoThread(String),
    /// A drain cannot begin.
    #[error(transparent)]
    Drain(#[from] NoDrain),
    /// The server is stopping.
    #[error("the server is stopping")]
    Stopping,
    /// The peer took too long.
    #[error("the client sent nothing for too long")]
    Silent,
    /// The peer's stream broke.
    #[error("the stream ended early")]
    Broken,
}

impl From<Fault> for Status {
    fn from(fault: Fault) -> Self {
        let code = match &fault {
            Fault::Invalid(_)
            | Fault::Sequence(_)
            | Fault::TooManyKeys { .. }
            | Fault::TooManyFields(_)
            | Fault::TooLong { .. }
            | Fault::BadCursor => Code::InvalidArgument,
            Fault::UnknownSpace(_) | Fault::Version { .. } => Code::FailedPrecondition,
            Fault::TlsRequired | Fault::WrongKey | Fault::Credential(_) | Fault::Replayed => {
                Code::Unauthenticated
            }
            Fault::NoRight(_) | Fault::Foreign | Fault::OperatorOnly => Code::PermissionDenied,
            Fault::OpenSpace(OpenSpaceError::TooMany(_))
            | Fault::TooManyCalls
            | Fault::TooManyAttempts
            | Fault::TooManySpaces(_)
            | Fault::OverRate
            | Fault::TooManyConnections
            | Fault::TooMuchHeld
            | Fault::TooManySessions(_)
            | Fault::Verifying
            | Fault::NoThread(_) => Code::ResourceExhausted,
            Fault::Drain(NoDrain::Itself(_) | NoDrain::NoWeight) => Code::InvalidArgument,
            Fault::Stopping
            | Fault::Drain(NoDrain::NobodyAnswers(_) | NoDrain::Tls(_) | NoDrain::Stopping) => {
                Code::Unavailable
            }
            Fault::Silent => Code::DeadlineExceeded,
            Fault::Broken => Code::Cancelled,
        };
        Status::new(code, fault.to_string())
    }
}
