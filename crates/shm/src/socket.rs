//! Names of Unix sockets, and which host this is.

use std::fs;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::SocketAddr;

/// Random at every boot, and the same in all containers of a host.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// What tells this host from others until its next boot. Empty if the system does not say.
#[must_use]
pub fn host_id() -> String {
    fs::read_to_string(BOOT_ID).map(|text| text.trim().to_owned()).unwrap_or_default()
}

/// The address of a socket: `@NAME` for an abstract one, which has no file, or a path.
///
/// # Errors
///
/// [`io::ErrorKind::InvalidInput`] if it is too long, about a hundred bytes.
pub fn address(name: &str) -> io::Result<SocketAddr> {
    match name.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_abstract_or_paths() {
        assert_eq!(address("@memkv").unwrap().as_abstract_name(), Some(&b"memkv"[..]));
        assert_eq!(address("/run/memkv").unwrap().as_pathname(), Some("/run/memkv".as_ref()));
        assert!(address(&format!("@{}", "x".repeat(108))).is_err());
        assert!(address(&"x".repeat(108)).is_err());
        assert!(!host_id().is_empty());
    }
}
