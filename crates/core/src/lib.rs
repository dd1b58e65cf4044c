//! The words and rules that every part of MemKV shares.
//!
//! - [`key`]: what a page is called;
//! - [`space`]: which pages may be shared with whom;
//! - [`page`]: what travels and rests beside a page's bytes, and its checksum;
//! - [`route`]: which server owns a key;
//! - [`limits`]: every bound that both sides must agree on.
//!
//! Deliberately absent: I/O, sockets, files, threads, clocks and randomness. Time enters as an argument.

#![forbid(unsafe_code)]

pub mod key;
pub mod limits;
pub mod page;
pub mod position;
pub mod route;
pub mod space;

pub use key::{Key, KeyError, MAX_KEY_BYTES};
pub use limits::Limits;
pub use page::{PageHasher, PageMeta};
pub use space::{SpaceDescription, SpaceId};
