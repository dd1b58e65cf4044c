//! The one error type of the crate.
//!
//! A miss is not an error, and a server that fails is not one either: batch ops say per page what became of it
//! ([`crate::PageOutcome`]). Errors are for what the caller has to change, and for calls about servers.

use std::error::Error as StdError;
use std::fmt;

/// What kind of failure an [`Error`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The configuration does not make sense.
    Config,
    /// An argument of a call does not make sense.
    BadInput,
    /// The keys of client and server differ, or one side has none.
    Unauthenticated,
    /// Client and server have no protocol version in common.
    VersionMismatch,
    /// The server cannot be reached, or is stopping.
    Unavailable,
    /// The answer did not come in time.
    Timeout,
    /// The server does not know the space.
    UnknownSpace,
    /// The peer said something that the protocol does not allow.
    Protocol,
    /// This release or this server cannot do that.
    NotSupported,
    /// The client was closed, or belongs to the process before a fork.
    Closed,
}

/// Why a call failed. The text says what to do about it.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    context: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, context: impl Into<String>) -> Self {
        Self { kind, context: context.into(), source: None }
    }

    pub(crate) fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    pub(crate) fn bad_input(context: impl Into<String>) -> Self {
        Self::new(ErrorKind::BadInput, context)
    }

    /// Puts what was being done in front of the text.
    pub(crate) fn context(mut self, doing: impl fmt::Display) -> Self {
        self.context = format!("{doing}: {}", self.context);
        self
    }

    /// The kind of failure.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Whether the same call may succeed later without anything being changed.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self.kind {
            ErrorKind::Unavailable | ErrorKind::Timeout | ErrorKind::UnknownSpace => true,
            ErrorKind::Config
            | ErrorKind::BadInput
            | ErrorKind::Unauthenticated
            | ErrorKind::VersionMismatch
            | ErrorKind::Protocol
            | ErrorKind::NotSupported
            | ErrorKind::Closed => false,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.context)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_ref().map(|source| source.as_ref() as &(dyn StdError + 'static))
    }
}
