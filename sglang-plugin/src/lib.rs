//! The native half of the Python package `memkv_sglang`: a thin PyO3 shell over `memkv-client`.
//!
//! - [`client`]: the public client and the connection that every space shares;
//! - [`space`]: batch operations of one space, and what became of a batch;
//! - [`pages`]: where the pages of a host pool lie;
//! - [`convert`]: Python values to Rust values, checked once;
//! - [`errors`]: one exception class per error kind;
//! - [`raw`]: the only place where addresses from Python become memory.
//!
//! Invariants:
//! - the interpreter lock is released while an operation runs;
//! - nothing here is global: a process may make, close and make clients again;
//! - a forked child is refused, because the client's threads stayed in the parent.
//!
//! Deliberately absent: routing, retries and deadlines of single requests, which belong to the client crate, and
//! SGLang's pools and policies, which belong to the Python package.

#![deny(unsafe_code)]

pub mod client;
pub mod convert;
pub mod errors;
pub mod pages;
pub mod process;
pub mod raw;
pub mod space;

use pyo3::prelude::*;

/// The extension module `memkv_sglang._native`.
#[pymodule]
#[pyo3(name = "_native")]
fn native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_class::<client::Client>()?;
    module.add_class::<space::Space>()?;
    module.add_class::<space::BatchResult>()?;
    module.add_class::<pages::PageMap>()?;
    errors::add_classes(module)
}
