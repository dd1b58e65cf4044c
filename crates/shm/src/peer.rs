//! The process at the other end of a Unix socket.

use rustix::process::geteuid;
use std::io;

/// Pieces of one call. More are taken in several.
const PIECES: usize = 64;

/// Why a process' memory cannot be read.
#[derive(Debug)]
pub enum PeerError {
    /// It is in a process namespace that this one does not see.
    Unseen,
    /// It belongs to another user.
    OtherUser {
        /// The other's number.
        user: u32,
    },
    /// The system does not permit it.
    System(io::Error),
    /// What was read is not what is there: the process is not the one that speaks.
    Elsewhere,
}

impl std::fmt::Display for PeerError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unseen => f.write_str("the process is in another pid namespace"),
            Self::OtherUser { user } => write!(f, "the process belongs to another user ({user})"),
            Self::System(error) => write!(f, "the system does not permit to read its memory ({error})"),
            Self::Elsewhere => f.write_str("the process that opened the connection is another one"),
        }
    }
}

impl std::error::Error for PeerError {}

/// The process that opened a connection, as far as its memory can be read.
#[derive(Debug)]
pub struct Peer {
    pid: libc::pid_t,
}

impl Peer {
    /// The process that connected a socket, by the number and the user that the socket's credentials tell, after a trial:
    /// it says that the eight bytes of `content` are at `address`.
    ///
    /// Only a process of the same user is taken. A server with more rights than its clients would otherwise read for them
    /// what they may not: the process that connected may have become another program meanwhile.
    ///
    /// # Errors
    ///
    /// [`PeerError`] if its memory cannot be read.
    pub fn new(process: Option<i32>, user: u32, address: u64, content: [u8; 8]) -> Result<Self, PeerError> {
        // The kernel's number of a process that has none here is 0.
        let pid = process.filter(|&pid| pid > 0).ok_or(PeerError::Unseen)?;
        if user != geteuid().as_raw() {
            return Err(PeerError::OtherUser { user });
        }
        let peer = Self { pid };
        let mut found = [0; 8];
        peer.read([(address, found.len())], &mut found).map_err(PeerError::System)?;
        if found == content { Ok(peer) } else { Err(PeerError::Elsewhere) }
    }

    /// Copies pieces of the process' memory, each an address and a length in bytes, one after the other into `out`, which
    /// they fill.
    ///
    /// # Errors
    ///
    /// What the system says; `out` is then filled in part. Also if the pieces are more or fewer bytes than `out`.
    pub fn read(&self, pieces: impl IntoIterator<Item = (u64, usize)>, out: &mut [u8]) -> io::Result<()> {
        let mut pieces = pieces.into_iter();
        let mut rest = out;
        while !rest.is_empty() {
            let mut remote = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; PIECES];
            let (mut used, mut bytes) = (0, 0);
            for (entry, (address, len)) in remote.iter_mut().zip(pieces.by_ref()) {
                let address = usize::try_from(address).map_err(|_| io::ErrorKind::InvalidInput)?;
                *entry = libc::iovec { iov_base: std::ptr::without_provenance_mut(address), iov_len: len };
                used += 1;
                bytes += len;
            }
            if used == 0 || bytes > rest.len() {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            let (now, later) = rest.split_at_mut(bytes);
            let local = libc::iovec { iov_base: now.as_mut_ptr().cast(), iov_len: bytes };
            let (locals, remotes) = (&raw const local, remote.as_ptr());
            // SAFETY: the kernel writes at most `bytes` bytes at `now`, which is exclusively borrowed and has that many;
            // both lists live until the call returns. The addresses of the other process are only numbers here: the
            // kernel checks them against that process' memory, and never writes there.
            let read = unsafe { libc::process_vm_readv(self.pid, locals, 1, remotes, used, 0) };
            match usize::try_from(read) {
                Ok(read) if read == bytes => rest = later,
                // The kernel stops at the first byte that is not there.
                Ok(_) => return Err(io::Error::from_raw_os_error(libc::EFAULT)),
                Err(_) => return Err(io::Error::last_os_error()),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(bytes: &[u8]) -> u64 {
        bytes.as_ptr().expose_provenance() as u64
    }

    fn trial(address: u64, content: [u8; 8]) -> Result<Peer, PeerError> {
        Peer::new(i32::try_from(std::process::id()).ok(), geteuid().as_raw(), address, content)
    }

    fn own() -> Peer {
        let content = std::hint::black_box(*b"12345678");
        trial(address(&content), content).unwrap()
    }

    #[test]
    fn pieces_are_read_in_order_however_many_they_are() {
        let source: Vec<u8> = (0..1000_u32).map(|i| i as u8).collect();
        let pieces = (0..500).rev().map(|i| (address(&source) + 2 * i, 2));
        let mut out = vec![0; 1000];
        own().read(pieces, &mut out).unwrap();
        let expected: Vec<u8> = source.chunks(2).rev().flatten().copied().collect();
        assert_eq!(out, expected);
    }

    #[test]
    fn what_is_not_there_or_does_not_fit_is_an_error() {
        let (peer, source) = (own(), [1_u8; 8]);
        let mut out = [0; 8];
        assert!(peer.read([(8, 8)], &mut out).is_err(), "nothing is mapped at the start");
        assert!(
            peer.read([(address(&source), 4), (8, 4)], &mut out).is_err(),
            "only the first half is there"
        );
        assert!(peer.read([(address(&source), 7)], &mut out).is_err());
        assert!(peer.read([(address(&source), 9)], &mut out).is_err());
        peer.read([(address(&source), 8)], &mut out).unwrap();
        assert_eq!(out, source);
    }

    #[test]
    fn a_trial_that_finds_other_bytes_or_none_fails() {
        let content = std::hint::black_box(*b"12345678");
        let here = address(&content);
        assert!(matches!(trial(here, *b"12345679"), Err(PeerError::Elsewhere)));
        assert!(matches!(trial(16, content), Err(PeerError::System(_))));
        let user = geteuid().as_raw();
        assert!(matches!(Peer::new(Some(0), user, here, content), Err(PeerError::Unseen)));
        assert!(matches!(Peer::new(None, user, here, content), Err(PeerError::Unseen)));
        let other = Peer::new(Some(1), user ^ 1, here, content);
        assert!(matches!(other, Err(PeerError::OtherUser { .. })));
    }
}
