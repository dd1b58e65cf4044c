//! Descriptors that travel with bytes over a Unix socket.

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Writes bytes, and a descriptor with the first of them; returns how many bytes went.
///
/// # Errors
///
/// What the system says; then neither bytes nor descriptor went.
pub fn send(socket: impl AsFd, bytes: &[u8], descriptor: BorrowedFd<'_>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut with = SendAncillaryBuffer::new(&mut space);
    let descriptors = [descriptor];
    assert!(with.push(SendAncillaryMessage::ScmRights(&descriptors)), "the buffer has room for one");
    Ok(sendmsg(socket, &[IoSlice::new(bytes)], &mut with, SendFlags::NOSIGNAL)?)
}

/// Reads bytes, and the descriptor that came with them, if there is one.
///
/// # Errors
///
/// What the system says.
pub fn receive(socket: impl AsFd, bytes: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut with = RecvAncillaryBuffer::new(&mut space);
    let came = recvmsg(socket, &mut [IoSliceMut::new(bytes)], &mut with, RecvFlags::CMSG_CLOEXEC)?;
    let mut descriptors = with.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    Ok((came.bytes, descriptors.next().and_then(|mut descriptors| descriptors.next())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{Read as _, Seek as _, Write as _};
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_descriptor_arrives_with_its_bytes_and_only_with_them() {
        let (mut near, far) = UnixStream::pair().unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"inside").unwrap();
        assert_eq!(send(&near, b"hello", file.as_fd()).unwrap(), 5);
        near.write_all(b"more").unwrap();
        let mut bytes = [0; 5];
        let (came, descriptor) = receive(&far, &mut bytes).unwrap();
        assert_eq!((came, &bytes), (5, b"hello"));
        let (mut other, mut text) = (File::from(descriptor.unwrap()), String::new());
        other.rewind().unwrap();
        other.read_to_string(&mut text).unwrap();
        assert_eq!(text, "inside");
        let (came, descriptor) = receive(&far, &mut bytes).unwrap();
        assert_eq!((came, descriptor.is_none()), (4, true));
    }
}
