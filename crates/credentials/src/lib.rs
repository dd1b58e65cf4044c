//! The credentials file: who may do what on a server, and how much of it.
//!
//! ```yaml
//! tenants:
//!   - name: search
//!     rights: [read, write]          # also admin; read and write without it
//!     keys:                          # one, or two while a key is being replaced
//!       - id: 4f1c2a9be0d35577
//!         verifier: 9b…(128 hex digits)
//!     certificates: [search.example] # names in client certificates that stand for the tenant
//!     spaces: ["llama-*"]            # which spaces it may open; all of its own without it
//!     operator: false                # true: sees and may do everything
//!     quotas: {dram: 4GiB, nvme: 100GiB, requests_per_second: 10000, bytes_per_second: 1GiB, spaces: 64, connections: 256}
//! public:
//!   - owner: search                  # its spaces that match are readable by others
//!     spaces: ["base-*"]
//!     readers: [chat]                # all tenants without it
//! ```
//!
//! Invariants:
//! - the file has [verifiers](memkv_transport::tenant), from which nobody can compute a key;
//! - whatever is not understood is an error: a typing mistake must not open anything;
//! - it is replaced as a whole, and only its owner can read what [`Credentials::save`] writes.
//!
//! Deliberately absent: watching the file, and what the quotas mean; both are the server's. Comments do not survive
//! [`Credentials::save`].

#![forbid(unsafe_code)]

mod file;
mod pattern;
mod size;

pub use file::{CredentialsError, FILE_BYTES_MAX};
pub use pattern::Pattern;

use memkv_transport::tenant::Verifier;
use std::fmt;

/// The most tenants of one file.
pub const TENANTS_MAX: usize = 1024;
/// The most keys of one tenant: the one in use and the one that follows it.
pub const KEYS_MAX: usize = 2;

/// What a tenant may do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rights(u8);

impl Rights {
    /// Reading pages: exists, get, touch.
    pub const READ: Self = Self(1);
    /// Storing and removing pages: put, delete.
    pub const WRITE: Self = Self(2);
    /// Administration: list, inspect, clear, pin.
    pub const ADMIN: Self = Self(4);
    /// Everything.
    pub const ALL: Self = Self(7);

    /// Both.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether these contain all of `other`.
    #[must_use]
    pub const fn allow(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// As a number, for an atomic.
    #[must_use]
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// From [`Rights::bits`]; unknown bits are left out.
    #[must_use]
    pub const fn from_bits(bits: u8) -> Self {
        Self(bits & Self::ALL.0)
    }

    /// The right of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        NAMES.iter().find(|(known, _)| *known == name).map(|(_, right)| *right)
    }

    /// The names of all rights.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        NAMES.iter().filter(move |(_, right)| self.allow(*right)).map(|(name, _)| *name)
    }
}

const NAMES: [(&str, Rights); 3] =
    [("read", Rights::READ), ("write", Rights::WRITE), ("admin", Rights::ADMIN)];

impl fmt::Display for Rights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.names().collect::<Vec<_>>().join(", "))
    }
}

/// Bounds of one tenant on one server; none where there is no number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quotas {
    /// Bytes of pages in memory, each rounded up to 4 KiB.
    pub dram_bytes: Option<u64>,
    /// Bytes of pages that are on drives only, each rounded up to 4 KiB.
    pub nvme_bytes: Option<u64>,
    /// Requests in a second.
    pub requests_per_s: Option<u64>,
    /// Bytes of pages in a second, both ways together.
    pub bytes_per_s: Option<u64>,
    /// Spaces.
    pub spaces: Option<u64>,
    /// Connections to a server, of both planes.
    pub connections: Option<u64>,
}

/// One key of a tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// Its name: 16 hex digits that follow from the key.
    pub id: String,
    /// What proofs are checked against.
    pub verifier: Verifier,
}

/// One tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tenant {
    /// Its name.
    pub name: String,
    /// What it may do.
    pub rights: Rights,
    /// Its keys.
    pub keys: Vec<Key>,
    /// Names in client certificates that stand for it.
    pub certificates: Vec<String>,
    /// The spaces of its own that it may open; all if empty.
    pub spaces: Vec<Pattern>,
    /// Whether it sees and may do everything, to everybody's spaces.
    pub operator: bool,
    /// Its bounds.
    pub quotas: Quotas,
}

/// Spaces that others may read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Public {
    /// Whose spaces.
    pub owner: String,
    /// Which of them; at least one pattern.
    pub spaces: Vec<Pattern>,
    /// Who may read them; all tenants if absent.
    pub readers: Option<Vec<String>>,
}

/// A whole file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Credentials {
    /// The tenants, in the order of the file.
    pub tenants: Vec<Tenant>,
    /// Which spaces are public.
    pub public: Vec<Public>,
}

impl Credentials {
    /// The tenant of this name.
    #[must_use]
    pub fn tenant(&self, name: &str) -> Option<&Tenant> {
        self.tenants.iter().find(|tenant| tenant.name == name)
    }

    /// The tenant of this name, to change it.
    pub fn tenant_mut(&mut self, name: &str) -> Option<&mut Tenant> {
        self.tenants.iter_mut().find(|tenant| tenant.name == name)
    }
}
