//! What became of each page of a batch, and the one place where the wire's words become ours.

use crate::ErrorKind;
use memkv_proto::v1;
use memkv_transport::frame::{Code, Op};

/// What became of one page or key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PageOutcome {
    /// Get: the page is in its destination and its checksum matches. Exists, touch, delete: it was there.
    Hit,
    /// Put: the page is stored.
    Stored,
    /// Put: the page was there already and stays as it was.
    Exists,
    /// The page is absent.
    Miss,
    /// Get: the stored page has another length than the destination.
    SizeMismatch,
    /// Put: the page is larger than the server's largest.
    TooLarge,
    /// The store, or a queue before it, is full; try again later.
    Busy,
    /// The bytes do not match their checksum. A get's destination holds undefined bytes.
    Corrupt,
    /// The server is not reachable, is stopping, or broke off. A get's destination may hold undefined bytes.
    Unavailable,
    /// The deadline passed. A get's destination may hold undefined bytes.
    TimedOut,
    /// This identity has no right to do this.
    Denied,
}

impl PageOutcome {
    /// Whether the page is where it should be.
    #[must_use]
    pub fn is_success(self) -> bool {
        matches!(self, Self::Hit | Self::Stored | Self::Exists)
    }

    /// Whether the page did not come for another reason than a plain miss.
    #[must_use]
    pub fn is_failure(self) -> bool {
        !self.is_success() && self != Self::Miss
    }
}

/// Sum of a batch op.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BatchReport {
    /// Keys that were found, stored or there already.
    pub ok: usize,
    /// Bytes of pages that moved whole.
    pub bytes: u64,
    /// Keys that failed for another reason than a plain miss.
    pub failed: usize,
}

/// Whether an op of the data plane reads, so that an unknown space is only a miss.
fn reads(op: Op) -> bool {
    match op {
        Op::Exists | Op::Get | Op::Delete | Op::Touch | Op::Ping | Op::Bind | Op::Release => true,
        Op::Put | Op::PutData => false,
    }
}

/// The outcome of a page, or of all pages of a request, with this code.
///
/// `Want` is no outcome and is handled before; `Malformed` and `OverLimit` mean that this client is at fault, and
/// the connection is lost with them. A code that says nothing about such an op is no success and no miss, whatever the server meant.
pub(crate) fn from_code(op: Op, code: Code) -> PageOutcome {
    match code {
        Code::Ok if reads(op) => PageOutcome::Hit,
        Code::Ok => PageOutcome::Stored,
        Code::Miss if reads(op) => PageOutcome::Miss,
        Code::Exists if !reads(op) => PageOutcome::Exists,
        Code::SizeMismatch => PageOutcome::SizeMismatch,
        Code::TooLarge => PageOutcome::TooLarge,
        Code::Busy => PageOutcome::Busy,
        Code::Corrupt => PageOutcome::Corrupt,
        Code::UnknownSpace if reads(op) => PageOutcome::Miss,
        Code::Denied => PageOutcome::Denied,
        Code::Expired => PageOutcome::TimedOut,
        Code::Miss
        | Code::Exists
        | Code::UnknownSpace
        | Code::Want
        | Code::Malformed
        | Code::OverLimit
        | Code::Stopping => PageOutcome::Unavailable,
    }
}

/// The outcome of a page with this status of the gRPC API; `None` for one of another release.
pub(crate) fn from_status(status: v1::Status, put: bool) -> Option<PageOutcome> {
    Some(match status {
        v1::Status::Ok if put => PageOutcome::Stored,
        v1::Status::Ok => PageOutcome::Hit,
        v1::Status::Miss if !put => PageOutcome::Miss,
        v1::Status::Exists if put => PageOutcome::Exists,
        v1::Status::Miss | v1::Status::Exists => PageOutcome::Unavailable,
        v1::Status::SizeMismatch => PageOutcome::SizeMismatch,
        v1::Status::TooLarge => PageOutcome::TooLarge,
        v1::Status::Busy => PageOutcome::Busy,
        v1::Status::Corrupt => PageOutcome::Corrupt,
        v1::Status::Unspecified => return None,
    })
}

/// The kind of error that a gRPC status stands for.
pub(crate) fn kind_of(code: tonic::Code) -> ErrorKind {
    match code {
        tonic::Code::Unauthenticated | tonic::Code::PermissionDenied => ErrorKind::Unauthenticated,
        tonic::Code::DeadlineExceeded | tonic::Code::Cancelled => ErrorKind::Timeout,
        tonic::Code::InvalidArgument | tonic::Code::OutOfRange => ErrorKind::BadInput,
        tonic::Code::FailedPrecondition | tonic::Code::NotFound => ErrorKind::UnknownSpace,
        tonic::Code::Unimplemented => ErrorKind::NotSupported,
        tonic::Code::Unavailable
        | tonic::Code::ResourceExhausted
        | tonic::Code::Aborted
        | tonic::Code::Unknown => ErrorKind::Unavailable,
        tonic::Code::Ok | tonic::Code::AlreadyExists | tonic::Code::Internal | tonic::Code::DataLoss => {
            ErrorKind::Protocol
        }
    }
}

/// The outcome of every page of a gRPC call that failed as a whole.
pub(crate) fn from_call_failure(code: tonic::Code, put: bool) -> PageOutcome {
    match kind_of(code) {
        ErrorKind::UnknownSpace if !put => PageOutcome::Miss,
        ErrorKind::Timeout => PageOutcome::TimedOut,
        ErrorKind::Unauthenticated => PageOutcome::Denied,
        ErrorKind::UnknownSpace
        | ErrorKind::Config
        | ErrorKind::BadInput
        | ErrorKind::VersionMismatch
        | ErrorKind::Unavailable
        | ErrorKind::Protocol
        | ErrorKind::NotSupported
        | ErrorKind::Closed => PageOutcome::Unavailable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_space_is_a_miss_to_readers_only() {
        assert_eq!(from_code(Op::Get, Code::UnknownSpace), PageOutcome::Miss);
        assert_eq!(from_code(Op::Put, Code::UnknownSpace), PageOutcome::Unavailable);
        assert_eq!(from_call_failure(tonic::Code::FailedPrecondition, false), PageOutcome::Miss);
        assert_eq!(from_call_failure(tonic::Code::FailedPrecondition, true), PageOutcome::Unavailable);
    }

    #[test]
    fn a_code_that_does_not_fit_the_op_is_no_success() {
        for op in [Op::Get, Op::Exists, Op::Touch, Op::Delete] {
            assert_eq!(from_code(op, Code::Exists), PageOutcome::Unavailable, "{op:?}");
        }
        for op in [Op::Put, Op::PutData] {
            assert_eq!(from_code(op, Code::Miss), PageOutcome::Unavailable, "{op:?}");
            assert_eq!(from_code(op, Code::Exists), PageOutcome::Exists, "{op:?}");
        }
        assert_eq!(from_status(v1::Status::Exists, false), Some(PageOutcome::Unavailable));
        assert_eq!(from_status(v1::Status::Miss, true), Some(PageOutcome::Unavailable));
    }

    #[test]
    fn success_and_failure_leave_out_the_plain_miss() {
        assert!(PageOutcome::Exists.is_success() && !PageOutcome::Exists.is_failure());
        assert!(!PageOutcome::Miss.is_success() && !PageOutcome::Miss.is_failure());
        assert!(PageOutcome::Corrupt.is_failure());
        assert_eq!(from_code(Op::PutData, Code::Ok), PageOutcome::Stored);
    }
}
