//! Tidy rules: what a reviewer would otherwise have to check by eye.
//!
//! - [`arrows`]: which crate may depend on which;
//! - [`deny`]: which licences and packages dependencies may have and be;
//! - [`hooks`]: hooks for faults are in nothing that is shipped;
//! - [`size`]: files and functions stay small;
//! - [`unsafety`]: where `unsafe` may be, and how often it is there;
//! - [`words`]: no promises and no paths of somebody's machine;
//! - [`dashboards`]: they ask only for series that exist;
//! - [`links`]: what a document points at exists.
//!
//! Each rule is a pure function of text with its own tests; the tests named `the_repository…` apply it to the
//! tree.

#![forbid(unsafe_code)]

mod arrows;
mod dashboards;
mod deny;
mod hooks;
mod links;
mod size;
mod source;
mod unsafety;
mod words;
