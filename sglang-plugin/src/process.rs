//! What must not survive a fork.
//!
//! A forked child has the client's memory but none of its threads: an operation would wait for ever, and even
//! dropping the client would. So every use asks whether this is still the process that made it, and in another
//! process the value is abandoned instead of dropped.

use crate::errors::ForkedError;
use pyo3::PyResult;

/// A value that only the process that made it may use.
pub(crate) struct OwnProcess<T> {
    pid: u32,
    value: Option<T>,
}

impl<T> OwnProcess<T> {
    /// Ties a value to this process.
    pub(crate) fn new(value: T) -> Self {
        Self { pid: std::process::id(), value: Some(value) }
    }

    /// The value, in the process that made it.
    pub(crate) fn get(&self) -> PyResult<&T> {
        if self.pid != std::process::id() {
            return Err(ForkedError::new_err(format!(
                "this client was made by process {} and cannot be used after a fork; make a new client in the child",
                self.pid
            )));
        }
        Ok(self.value.as_ref().expect("the value is taken out only by drop"))
    }
}

impl<T> Drop for OwnProcess<T> {
    fn drop(&mut self) {
        if self.pid != std::process::id() {
            // Leaks on purpose: see the module's documentation.
            Box::leak(Box::new(self.value.take()));
        }
    }
}
