//! How much a data connection between two processes of one host buffers.
//!
//! There the kernel copies a page from the sender's memory into a buffer and from there to the receiver's, on the same
//! processor if it can. Left alone it lets megabytes collect in between, so the second copy finds nothing in the
//! processor's own cache. A sender that may be ahead by little makes both copies, and the receiver's checksum, work in
//! the cache. Between hosts the buffer has to hold what is on the line, which the system knows best.

use std::net::SocketAddr;

/// Bytes that a sender to the same host asks to be buffered. Linux doubles them for its own use, which leaves room for about
/// seven of the loopback's packets. With two or less, a sender waits for acknowledgements that the receiver delays.
pub const SEND_BYTES: usize = 256 << 10;

/// Whether both ends of a connection are on one host.
#[must_use]
pub fn is_near(local: SocketAddr, peer: SocketAddr) -> bool {
    peer.ip().to_canonical().is_loopback() || local.ip().to_canonical() == peer.ip().to_canonical()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_of_one_host_are_near() {
        let near = |local: &str, peer: &str| is_near(local.parse().unwrap(), peer.parse().unwrap());
        assert!(near("127.0.0.1:1", "127.0.0.1:2"));
        assert!(near("10.0.0.7:1", "127.0.0.2:2"));
        assert!(near("[::1]:1", "[::1]:2"));
        assert!(near("10.0.0.7:1", "10.0.0.7:2"));
        assert!(near("[::ffff:10.0.0.7]:1", "10.0.0.7:2"));
        assert!(!near("10.0.0.7:1", "10.0.0.8:1"));
        assert!(!near("[fe80::1]:1", "[fe80::2]:1"));
    }
}
