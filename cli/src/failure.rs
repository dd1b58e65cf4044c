//! Errors as a person meets them: what went wrong, what to do, and the exit code.

use memkv_client::{Error, ErrorKind};

/// The exit codes. They are part of the interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    /// The answer is no: not found, absent, refused, or a check failed.
    Negative = 1,
    /// The command line or the configuration is wrong.
    Usage = 2,
    /// A server cannot be reached, or took too long.
    Unreachable = 3,
    /// The key does not fit.
    Unauthenticated = 4,
    /// Anything else.
    Other = 5,
}

/// Why a command did not do what it was asked to.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: Code,
    pub(crate) message: String,
    pub(crate) hint: Option<String>,
}

impl Failure {
    /// A failure without a hint yet.
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: None }
    }

    /// Adds what to do about it.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let (code, hint) = match error.kind() {
            ErrorKind::Config => {
                (Code::Usage, "check --servers, --config and MEMKV_*; `memkv-cli doctor` looks at each")
            }
            ErrorKind::BadInput => (Code::Usage, "see `memkv-cli --help` for how to write spaces and keys"),
            ErrorKind::Unauthenticated => {
                (Code::Unauthenticated, "give the servers' key with --auth-key-file or MEMKV_AUTH_KEY")
            }
            ErrorKind::Unavailable => {
                (Code::Unreachable, "is the server running? `memkv-cli doctor` looks at each one")
            }
            ErrorKind::Timeout => (Code::Unreachable, "the server is slow or frozen; try a longer --timeout"),
            ErrorKind::UnknownSpace => (Code::Negative, "`memkv-cli inspect spaces` lists the known spaces"),
            ErrorKind::VersionMismatch => (Code::Other, "use the memkv-cli of the servers' release"),
            ErrorKind::NotSupported => (Code::Usage, "choose MEMKV_TRANSPORT=auto"),
            ErrorKind::Protocol => {
                (Code::Other, "is this a MemKV server? `memkv-cli doctor` looks at each one")
            }
            ErrorKind::Closed => (Code::Other, "run the command again"),
        };
        Self::new(code, error.to_string()).hint(hint)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::new(Code::Other, error.to_string())
    }
}
