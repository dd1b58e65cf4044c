//! `memkv.v1`: the gRPC messages and services, and their conversion to and from core types.
//!
//! The `.proto` file is the documentation of every message; it is compiled at build time without `protoc`.

#![forbid(unsafe_code)]

mod convert;
mod version;

pub use convert::{Invalid, keys_from_wire, space_id_from_wire};
pub use version::{NoCommonVersion, VERSIONS, Versions};

/// The generated messages, clients and servers of package `memkv.v1`.
pub mod v1 {
    #![allow(
        missing_docs,
        unreachable_pub,
        clippy::all,
        clippy::allow_attributes_without_reason,
        reason = "generated code"
    )]
    tonic::include_proto!("memkv.v1");
}

/// The compiled descriptors, for the reflection service.
pub const FILE_DESCRIPTOR_SET: &[u8] = tonic::include_file_descriptor_set!("memkv_descriptor");

/// The newest protocol version of this release. [`VERSIONS`] are all it speaks.
pub const PROTOCOL_VERSION: u32 = 1;

/// The gRPC metadata entry that carries the per-call credential.
pub const AUTH_METADATA: &str = "memkv-auth";
