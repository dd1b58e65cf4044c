//! The Unix socket for clients on the same host.
//!
//! An abstract socket has no file and ends with the process. Its default name is new at every start and told only to
//! clients that have proved the key, so nobody can take it in advance. A socket with a path is for clients in containers
//! that do not share the network namespace; a file that an earlier process left is replaced.

use crate::app::StartError;
use crate::config::shm::ShmSocket;
use memkv_shm::socket::address;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A socket that takes connections, or keeps them waiting until somebody does. Its file, if it has one, goes with it.
pub(crate) struct Near {
    listener: UnixListener,
    _file: Option<File>,
}

/// Removes a socket's file when it is dropped.
struct File(PathBuf);

impl Drop for File {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0) {
            tracing::debug!(%error, path = %self.0.display(), "the socket's file stays");
        }
    }
}

/// Opens the socket, and says how clients find it.
pub(crate) fn open(
    socket: &ShmSocket,
    port: u16,
    incarnation: u64,
) -> Result<Option<(Near, String)>, StartError> {
    let name = match socket {
        ShmSocket::Off => return Ok(None),
        ShmSocket::Auto => format!("@memkv-{port}-{incarnation:016x}"),
        ShmSocket::Named(name) => name.clone(),
    };
    match listen(&name) {
        Ok(near) => Ok(Some((near, name))),
        Err(error) if *socket == ShmSocket::Auto => {
            tracing::warn!(%error, "no unix socket, clients on this host use tcp; set shm.socket");
            Ok(None)
        }
        Err(error) => Err(StartError::Near { name, error }),
    }
}

fn listen(name: &str) -> io::Result<Near> {
    let address = address(name)?;
    let listener = match UnixListener::bind_addr(&address) {
        Err(error) if error.kind() == ErrorKind::AddrInUse && is_left_over(&address) => {
            std::fs::remove_file(name)?;
            UnixListener::bind_addr(&address)?
        }
        outcome => outcome?,
    };
    let file = address.as_pathname().map(|path| File(path.to_owned()));
    listener.set_nonblocking(true)?;
    Ok(Near { listener, _file: file })
}

/// Whether a socket's file is there and nobody listens.
fn is_left_over(address: &SocketAddr) -> bool {
    let refused = |error: &io::Error| error.kind() == ErrorKind::ConnectionRefused;
    // A plain file refuses connections too, and is somebody's.
    let is_socket = |path: &Path| std::fs::metadata(path).is_ok_and(|about| about.file_type().is_socket());
    address.as_pathname().is_some_and(is_socket)
        && UnixStream::connect_addr(address).is_err_and(|error| refused(&error))
}

impl Near {
    /// Gives connections to `each`, one after the other, until dropped. Inside a runtime only.
    pub(crate) async fn run(self, pause: Duration, each: impl Fn(tokio::net::UnixStream)) {
        let listener = match tokio::net::UnixListener::from_std(self.listener) {
            Ok(listener) => listener,
            Err(error) => {
                tracing::error!(%error, "the unix socket cannot be waited for; clients on this host use tcp");
                return;
            }
        };
        loop {
            match listener.accept().await {
                Ok((stream, _peer)) => each(stream),
                Err(error) => {
                    tracing::debug!(%error, "accept failed");
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_nobody_listens_at_is_replaced_and_one_in_use_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let socket = ShmSocket::Named(path.to_str().unwrap().to_owned());
        drop(UnixListener::bind(&path).unwrap());
        let (near, name) = open(&socket, 1, 1).unwrap().unwrap();
        assert_eq!(name, path.to_str().unwrap());
        assert!(matches!(open(&socket, 1, 1), Err(StartError::Near { .. })));
        UnixStream::connect(&path).unwrap();
        drop(near);
        assert!(!path.exists());
        std::fs::write(&path, "a file of somebody else").unwrap();
        assert!(matches!(open(&socket, 1, 1), Err(StartError::Near { .. })));
        assert!(path.exists());
    }

    #[test]
    fn names_are_new_at_every_start() {
        let (_near, name) = open(&ShmSocket::Auto, 1, 7).unwrap().unwrap();
        assert_eq!(name, "@memkv-1-0000000000000007");
        assert!(open(&ShmSocket::Auto, 1, 7).unwrap().is_none(), "a name that is taken is not fatal");
        assert!(open(&ShmSocket::Auto, 1, 8).unwrap().is_some());
        assert!(open(&ShmSocket::Off, 1, 7).unwrap().is_none());
    }
}
