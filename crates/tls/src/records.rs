//! A TLS session over a nonblocking socket, without tasks.
//!
//! What looks like one socket is three things here: bytes of the kernel, ciphertext that waits to be sent, and
//! plaintext that waits to be taken. So three rules of sockets change:
//!
//! - plaintext may wait although the socket is not readable ([`Records::has_plaintext`]): read until `WouldBlock`
//!   before waiting for the socket;
//! - bytes that were taken from the caller may still be here: [`Records::flush`] before waiting for an answer;
//! - a read may come back with fewer bytes than there was room for although more are there.
//!
//! Bytes of a page are copied twice on each side: out of a record into memory of rustls and from there to their
//! place, or into a record, which is then encrypted where it is. rustls allocates one record at a time.
//!
//! Deliberately absent: the handshake, which tasks do (tokio-rustls), and the socket.

use rustls::Connection;
use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Read, Write};

/// Ciphertext that may wait to be sent, about, bytes: what one system call should take at once.
const UNSENT_BYTES_MAX: usize = 256 << 10;

/// A TLS session whose handshake is over.
#[derive(Debug)]
pub struct Records {
    connection: Connection,
    /// Bytes of plaintext that were decrypted and not yet taken.
    plaintext: usize,
    /// The peer has closed its side.
    ended: bool,
}

impl Records {
    /// Takes over a session whose handshake is over.
    #[must_use]
    pub fn new(connection: impl Into<Connection>) -> Self {
        let mut connection = connection.into();
        connection.set_buffer_limit(Some(UNSENT_BYTES_MAX));
        let mut records = Self { connection, plaintext: 0, ended: false };
        // Plaintext may have come together with the end of the handshake. An error will come again.
        if let Ok(state) = records.connection.process_new_packets() {
            records.plaintext = state.plaintext_bytes_to_read();
            records.ended = state.peer_has_closed();
        }
        records
    }

    /// Whether a read gets bytes (or the end) without the socket.
    #[must_use]
    pub fn has_plaintext(&self) -> bool {
        self.plaintext > 0 || self.ended
    }

    /// Whether bytes that were taken wait to be sent.
    #[must_use]
    pub fn wants_write(&self) -> bool {
        self.connection.wants_write()
    }

    /// Reads what is there into several places; 0 if the peer has closed its side.
    ///
    /// # Errors
    ///
    /// `WouldBlock` if nothing is there, `InvalidData` if the peer's records are wrong, `UnexpectedEof` if it went
    /// without saying so; else what the socket says.
    pub fn read(
        &mut self,
        socket: &mut (impl Read + Write),
        slices: &mut [IoSliceMut<'_>],
    ) -> io::Result<usize> {
        let (mut came, mut slice, mut at) = (0, 0, 0);
        loop {
            while self.plaintext > 0 && slice < slices.len() {
                let room = &mut slices[slice][at..];
                let taken = if room.is_empty() { 0 } else { self.connection.reader().read(room)? };
                self.plaintext -= taken;
                came += taken;
                at += taken;
                if at == slices[slice].len() {
                    (slice, at) = (slice + 1, 0);
                }
            }
            if slice == slices.len() || self.ended {
                return Ok(came);
            }
            match self.receive(socket) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // What is wrong shows again at the next read.
                Err(_) if came > 0 => return Ok(came),
                Err(error) => return Err(error),
            }
        }
    }

    /// Takes bytes from the socket once, and decrypts what is whole.
    fn receive(&mut self, socket: &mut (impl Read + Write)) -> io::Result<()> {
        if self.connection.read_tls(socket)? == 0 {
            return Err(io::Error::new(
                ErrorKind::UnexpectedEof,
                "the peer closed the connection without saying so",
            ));
        }
        match self.connection.process_new_packets() {
            Ok(state) => {
                self.plaintext = state.plaintext_bytes_to_read();
                self.ended = state.peer_has_closed();
            }
            Err(error) => {
                // The peer is told why, if it still listens.
                self.flush(socket).ok();
                return Err(io::Error::new(ErrorKind::InvalidData, error));
            }
        }
        if self.connection.wants_write() {
            // An answer of TLS itself; the rest of it goes with the next bytes.
            match self.flush(socket) {
                Err(error) if error.kind() != ErrorKind::WouldBlock => return Err(error),
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    }

    /// Takes as many bytes as there is room for, and sends what the socket takes.
    ///
    /// # Errors
    ///
    /// `WouldBlock` if no byte was taken; else what the socket says.
    pub fn write(&mut self, socket: &mut impl Write, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut taken = self.connection.writer().write_vectored(slices)?;
        let sent = self.flush(socket);
        match sent {
            Err(error) if error.kind() != ErrorKind::WouldBlock => return Err(error),
            Ok(()) | Err(_) => {}
        }
        if taken == 0 && slices.iter().any(|slice| !slice.is_empty()) {
            // There was no room before; there may be now.
            taken = self.connection.writer().write_vectored(slices)?;
            if taken == 0 {
                return Err(ErrorKind::WouldBlock.into());
            }
        }
        Ok(taken)
    }

    /// Sends what was taken and is still here.
    ///
    /// # Errors
    ///
    /// `WouldBlock` if the socket is full; else what the socket says.
    pub fn flush(&mut self, socket: &mut impl Write) -> io::Result<()> {
        while self.connection.wants_write() {
            match self.connection.write_tls(socket) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Says that nothing more will be written. Does not wait: the socket is new, or has just been flushed, or the
    /// connection is beyond help.
    pub fn close(&mut self, socket: &mut impl Write) {
        self.connection.send_close_notify();
        self.flush(socket).ok();
    }
}

#[cfg(test)]
mod tests;
