//! Who the members of a cluster are.

#![forbid(unsafe_code)]
