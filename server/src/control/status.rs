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
    #[error("the client's key is not this server's key; check MEMKV_AUTH_KEY")]
    WrongKey,
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
            Fault::Invalid(_) | Fault::Sequence(_) | Fault::TooManyKeys { .. } | Fault::BadCursor => {
                Code::InvalidArgument
            }
            Fault::UnknownSpace(_) | Fault::Version { .. } => Code::FailedPrecondition,
            Fault::TlsRequired | Fault::WrongKey | Fault::Credential(_) | Fault::Replayed => {
                Code::Unauthenticated
            }
            Fault::OpenSpace(OpenSpaceError::TooMany(_))
            | Fault::TooManyCalls
            | Fault::TooManySessions(_)
            | Fault::Verifying
            | Fault::NoThread(_) => Code::ResourceExhausted,
            Fault::Drain(NoDrain::Itself(_) | NoDrain::NoWeight) => Code::InvalidArgument,
            Fault::Stopping | Fault::Drain(NoDrain::NobodyAnswers(_) | NoDrain::Stopping) => {
                Code::Unavailable
            }
            Fault::Silent => Code::DeadlineExceeded,
            Fault::Broken => Code::Cancelled,
        };
        Status::new(code, fault.to_string())
    }
}
