use super::*;
use crate::{ClientFiles, ClientTls, Plane, ServerFiles, ServerTls};
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, ServerConnection};
use std::collections::VecDeque;
use std::sync::Arc;

/// One end of a socket: what came, and what was sent, of which the kernel takes `room` bytes.
#[derive(Default)]
struct End {
    came: VecDeque<u8>,
    sent: Vec<u8>,
    room: usize,
    closed: bool,
}

impl Read for End {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self.came.read(bytes)? {
            0 if !self.closed => Err(ErrorKind::WouldBlock.into()),
            came => Ok(came),
        }
    }
}

impl Write for End {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(self.room);
        if taken == 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        self.room -= taken;
        self.sent.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Both ends of a session whose handshake is over.
fn pair() -> (Records, Records) {
    let folder = tempfile::tempdir().unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec!["kv".to_owned()]).unwrap().self_signed(&key).unwrap();
    let [cert, private] = ["cert", "key"].map(|name| folder.path().join(name));
    std::fs::write(&cert, certificate.pem()).unwrap();
    std::fs::write(&private, key.serialize_pem()).unwrap();
    let files = ServerFiles { cert: cert.clone(), key: private, client_auth: crate::ClientAuth::Off };
    let server = ServerTls::open(files).unwrap().main();
    let client = ClientTls::open(ClientFiles { ca: cert, own: None }).unwrap().connector(Plane::Data);
    let name = ServerName::try_from("kv").unwrap();
    let mut client = ClientConnection::new(Arc::clone(client.config()), name).unwrap();
    let mut server = ServerConnection::new(Arc::clone(server.config())).unwrap();
    while client.is_handshaking() || server.is_handshaking() || client.wants_write() {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        let mut came = wire.as_slice();
        while !came.is_empty() {
            server.read_tls(&mut came).unwrap();
            server.process_new_packets().unwrap();
        }
        let mut wire = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        let mut came = wire.as_slice();
        while !came.is_empty() {
            client.read_tls(&mut came).unwrap();
            client.process_new_packets().unwrap();
        }
    }
    (Records::new(client), Records::new(server))
}

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 31 % 251) as u8).collect()
}

fn is_blocked(result: &io::Result<usize>) -> bool {
    matches!(result, Err(error) if error.kind() == ErrorKind::WouldBlock)
}

#[test]
fn bytes_arrive_whatever_the_pieces() {
    let (mut client, mut server) = pair();
    let (mut from, mut to) = (End::default(), End::default());
    let sent = bytes(700_000);
    let (mut written, mut got) = (0, Vec::<u8>::new());
    let mut step = 0;
    while got.len() < sent.len() {
        step += 1;
        // Room for ciphertext and for plaintext come in odd portions.
        from.room = 1 + step * 7919 % 60_000;
        if written < sent.len() {
            let slices: Vec<_> = sent[written..].chunks(10_007).take(9).map(IoSlice::new).collect();
            match client.write(&mut from, &slices) {
                Ok(taken) => written += taken,
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
        } else if let Err(error) = client.flush(&mut from) {
            assert_eq!(error.kind(), ErrorKind::WouldBlock);
        }
        to.came.extend(from.sent.drain(..));
        let (mut one, mut two) = (vec![0; step % 30_000], vec![0; step * 13 % 40_000 + 1]);
        loop {
            let mut slices = [IoSliceMut::new(&mut one), IoSliceMut::new(&mut []), IoSliceMut::new(&mut two)];
            match server.read(&mut to, &mut slices) {
                Ok(came) => {
                    assert!(came > 0, "nobody has closed");
                    got.extend(one.iter().chain(&two).take(came));
                }
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::WouldBlock);
                    break;
                }
            }
        }
    }
    assert!(got == sent);
    assert!(!client.wants_write() && !server.has_plaintext());
}

#[test]
fn what_was_taken_may_still_be_here_until_it_is_flushed() {
    let (mut client, mut server) = pair();
    let (mut from, mut to) = (End::default(), End::default());
    assert_eq!(client.write(&mut from, &[IoSlice::new(b"a request")]).unwrap(), 9);
    assert!(from.sent.is_empty() && client.wants_write(), "the socket had no room");
    assert_eq!(client.flush(&mut from).unwrap_err().kind(), ErrorKind::WouldBlock);
    from.room = 10;
    assert_eq!(client.flush(&mut from).unwrap_err().kind(), ErrorKind::WouldBlock);
    from.room = 1000;
    client.flush(&mut from).unwrap();
    to.came.extend(from.sent.drain(..));
    // One byte is taken; the others are there without the socket.
    let mut one = [0];
    assert_eq!(server.read(&mut to, &mut [IoSliceMut::new(&mut one)]).unwrap(), 1);
    assert!(server.has_plaintext() && to.came.is_empty());
    let mut rest = [0; 20];
    assert_eq!(server.read(&mut to, &mut [IoSliceMut::new(&mut rest)]).unwrap(), 8);
    assert_eq!(&rest[..8], b" request");
    assert!(is_blocked(&server.read(&mut to, &mut [IoSliceMut::new(&mut rest)])));
}

#[test]
fn what_waits_to_be_sent_is_bounded() {
    let (mut client, _server) = pair();
    let mut from = End::default();
    let much = bytes(64 << 10);
    let mut taken = 0;
    loop {
        let result = client.write(&mut from, &[IoSlice::new(&much)]);
        if is_blocked(&result) {
            break;
        }
        taken += result.unwrap();
        assert!(taken <= UNSENT_BYTES_MAX, "{taken} bytes were taken and none was sent");
    }
}

#[test]
fn an_end_is_told_from_a_cut() {
    let (mut client, mut server) = pair();
    let (mut from, mut to) = (End { room: 1000, ..End::default() }, End::default());
    client.write(&mut from, &[IoSlice::new(b"last")]).unwrap();
    client.close(&mut from);
    to.came.extend(from.sent.drain(..));
    let mut all = [0; 10];
    assert_eq!(server.read(&mut to, &mut [IoSliceMut::new(&mut all)]).unwrap(), 4);
    assert!(server.has_plaintext(), "that it is over is known");
    assert_eq!(server.read(&mut to, &mut [IoSliceMut::new(&mut all)]).unwrap(), 0);
    // Somebody on the way closes: the bytes before count, the end is an error.
    let (_client, mut server) = pair();
    let mut to = End { closed: true, ..End::default() };
    let cut = server.read(&mut to, &mut [IoSliceMut::new(&mut all)]).unwrap_err();
    assert_eq!(cut.kind(), ErrorKind::UnexpectedEof);
}

#[test]
fn a_flipped_bit_is_an_error_and_never_a_byte() {
    for at in [0, 3, 5, 20, 60] {
        let (mut client, mut server) = pair();
        let (mut from, mut to) = (End { room: 1000, ..End::default() }, End { room: 1000, ..End::default() });
        client.write(&mut from, &[IoSlice::new(&bytes(50))]).unwrap();
        from.sent[at] ^= 0x10;
        to.came.extend(from.sent.drain(..));
        to.closed = true;
        let mut all = [0; 100];
        let error = server.read(&mut to, &mut [IoSliceMut::new(&mut all)]).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::InvalidData | ErrorKind::UnexpectedEof), "{at}: {error}");
        assert_eq!(all, [0; 100]);
    }
}
