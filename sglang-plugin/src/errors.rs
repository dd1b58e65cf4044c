//! One exception class per error kind.

use memkv_client::{Error, ErrorKind};
use pyo3::exceptions::PyException;
use pyo3::prelude::*;
use pyo3::{PyErr, create_exception};

create_exception!(memkv_sglang, MemKVError, PyException, "Base of every error of this package.");
create_exception!(memkv_sglang, ConfigError, MemKVError, "The configuration is wrong.");
create_exception!(memkv_sglang, BadInputError, MemKVError, "An argument is wrong.");
create_exception!(memkv_sglang, UnauthenticatedError, MemKVError, "Server and client do not share a key.");
create_exception!(memkv_sglang, VersionMismatchError, MemKVError, "No protocol version in common.");
create_exception!(memkv_sglang, UnavailableError, MemKVError, "No server answered.");
create_exception!(memkv_sglang, DeadlineError, MemKVError, "The deadline passed.");
create_exception!(memkv_sglang, UnknownSpaceError, MemKVError, "The server does not know the space.");
create_exception!(memkv_sglang, ProtocolError, MemKVError, "The server said something that makes no sense.");
create_exception!(memkv_sglang, NotSupportedError, MemKVError, "Not in this release.");
create_exception!(memkv_sglang, ClosedError, MemKVError, "The client is closed.");
create_exception!(memkv_sglang, ForkedError, MemKVError, "The client belongs to the parent process.");

/// Adds every class to the module.
pub(crate) fn add_classes(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    module.add("MemKVError", py.get_type::<MemKVError>())?;
    module.add("ConfigError", py.get_type::<ConfigError>())?;
    module.add("BadInputError", py.get_type::<BadInputError>())?;
    module.add("UnauthenticatedError", py.get_type::<UnauthenticatedError>())?;
    module.add("VersionMismatchError", py.get_type::<VersionMismatchError>())?;
    module.add("UnavailableError", py.get_type::<UnavailableError>())?;
    module.add("DeadlineError", py.get_type::<DeadlineError>())?;
    module.add("UnknownSpaceError", py.get_type::<UnknownSpaceError>())?;
    module.add("ProtocolError", py.get_type::<ProtocolError>())?;
    module.add("NotSupportedError", py.get_type::<NotSupportedError>())?;
    module.add("ClosedError", py.get_type::<ClosedError>())?;
    module.add("ForkedError", py.get_type::<ForkedError>())
}

/// The exception for an error of the client crate.
#[must_use]
pub fn to_python(error: &Error) -> PyErr {
    let text = describe(error);
    match error.kind() {
        ErrorKind::Config => ConfigError::new_err(text),
        ErrorKind::BadInput => BadInputError::new_err(text),
        ErrorKind::Unauthenticated => UnauthenticatedError::new_err(text),
        ErrorKind::VersionMismatch => VersionMismatchError::new_err(text),
        ErrorKind::Unavailable => UnavailableError::new_err(text),
        ErrorKind::Timeout => DeadlineError::new_err(text),
        ErrorKind::UnknownSpace => UnknownSpaceError::new_err(text),
        ErrorKind::Protocol => ProtocolError::new_err(text),
        ErrorKind::NotSupported => NotSupportedError::new_err(text),
        ErrorKind::Closed => ClosedError::new_err(text),
    }
}

/// The error and everything below it in one line.
fn describe(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
