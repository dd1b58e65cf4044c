//! HTTP/2 by hand: calls that are begun and never finished, as no gRPC library sends them.

use memkv_tests::control::Control;
use std::collections::HashSet;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
const FRAME_BYTES: usize = 16 << 10;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// A connection that sends without ever reading more than it must.
pub(crate) struct Raw {
    stream: TcpStream,
    came: Vec<u8>,
    /// Answers to the server's settings and pings, which go before the next frame. Its windows are wide only once its settings are
    /// acknowledged.
    owed: Vec<u8>,
    next: u32,
    /// Bytes that the server allows for all streams.
    window: i64,
    /// Streams that the server has ended.
    ended: HashSet<u32>,
}

impl Raw {
    pub(crate) fn connect(addr: SocketAddr) -> Self {
        let mut stream = memkv_tests::wire::dial(addr).unwrap();
        stream.write_all(PREFACE).unwrap();
        stream.set_nonblocking(true).unwrap();
        let (came, owed) = (Vec::new(), Vec::new());
        let mut raw = Self { stream, came, owed, next: 1, window: 65_535, ended: HashSet::new() };
        let begun = Instant::now();
        while raw.owed.is_empty() && begun.elapsed() < Duration::from_secs(60) {
            raw.listen();
            std::thread::sleep(Duration::from_millis(1));
        }
        raw
    }

    /// Begins a call with the beginning of a message that claims to be `claims` bytes long, nearly all of them one field's; returns
    /// the stream's number.
    pub(crate) fn begin(&mut self, method: &str, credential: Option<&str>, claims: u32) -> u32 {
        let id = self.next;
        self.next += 2;
        // HPACK: POST, http, then literals that nobody has to remember.
        let mut block = vec![0x83, 0x86];
        let mut literal = |name: &[u8], value: &str| {
            block.extend_from_slice(name);
            assert!(value.len() < 127 + 128, "a length of two bytes");
            if value.len() < 127 {
                block.push(value.len() as u8);
            } else {
                block.extend_from_slice(&[127, (value.len() - 127) as u8]);
            }
            block.extend_from_slice(value.as_bytes());
        };
        literal(&[0x04], method);
        literal(&[0x01], "localhost");
        literal(&[0x0f, 0x10], "application/grpc");
        literal(b"\0\x02te", "trailers");
        if let Some(credential) = credential {
            literal(b"\0\x0amemkv-auth", credential);
        }
        self.frame(HEADERS, END_HEADERS, id, &block);
        let mut message = vec![0];
        message.extend_from_slice(&claims.to_be_bytes());
        // Field 4, bytes, with a length of five digits.
        message.push(0x22);
        let len = claims - 6;
        message
            .extend((0..5).map(|digit| (len >> (7 * digit)) as u8 & 0x7f | if digit < 4 { 0x80 } else { 0 }));
        self.window -= message.len() as i64;
        self.frame(DATA, 0, id, &message);
        id
    }

    /// Sends bytes of a stream for as long as the server takes them; how many it took within the time.
    pub(crate) fn fill(&mut self, id: u32, bytes: usize, patience: Duration) -> usize {
        let piece = [0x55; FRAME_BYTES];
        let (mut sent, begun) = (0, Instant::now());
        while sent < bytes && !self.ended.contains(&id) {
            let now = FRAME_BYTES.min(bytes - sent);
            if self.window >= now as i64 {
                if !self.try_frame(DATA, 0, id, &piece[..now], begun + patience) {
                    return sent;
                }
                self.window -= now as i64;
                sent += now;
            } else if begun.elapsed() > patience {
                return sent;
            } else {
                std::thread::sleep(Duration::from_millis(1));
            }
            self.listen();
        }
        sent
    }

    /// Waits until the server has ended so many streams; how many it has.
    pub(crate) fn ended_of(&mut self, least: usize, patience: Duration) -> usize {
        let begun = Instant::now();
        while self.ended.len() < least && begun.elapsed() < patience {
            self.listen();
            self.send(Vec::new(), begun + patience);
            std::thread::sleep(Duration::from_millis(2));
        }
        self.ended.len()
    }

    /// A server that does not read any more is no failure; what is sent next then fails too.
    fn frame(&mut self, kind: u8, flags: u8, id: u32, payload: &[u8]) {
        let _taken = self.try_frame(kind, flags, id, payload, Instant::now() + Duration::from_millis(200));
    }

    fn try_frame(&mut self, kind: u8, flags: u8, id: u32, payload: &[u8], until: Instant) -> bool {
        self.send(frame(kind, flags, id, payload), until)
    }

    /// Sends what is owed and then a frame. `false` if the socket takes nothing until then, and then the connection is of no use any more.
    fn send(&mut self, frame: Vec<u8>, until: Instant) -> bool {
        let bytes = [std::mem::take(&mut self.owed), frame].concat();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            match self.stream.write(rest) {
                Ok(bytes) => rest = &rest[bytes..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if Instant::now() > until {
                        return false;
                    }
                    self.listen();
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(_closed) => return false,
            }
        }
        true
    }

    /// Takes in what the server has said.
    fn listen(&mut self) {
        let mut bytes = [0; 4096];
        while let Ok(count @ 1..) = self.stream.read(&mut bytes) {
            self.came.extend_from_slice(&bytes[..count]);
        }
        while let Some((head, rest)) = self.came.split_at_checked(9) {
            let len = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
            let (kind, flags) = (head[3], head[4]);
            let id = u32::from_be_bytes(head[5..9].try_into().unwrap());
            let Some(payload) = rest.get(..len) else { break };
            match kind {
                WINDOW_UPDATE if id == 0 => {
                    self.window += i64::from(u32::from_be_bytes(payload[..4].try_into().unwrap()));
                }
                HEADERS if flags & END_STREAM != 0 => drop(self.ended.insert(id)),
                RST_STREAM => {
                    assert_ne!(payload, [0, 0, 0, 3], "the server says that its windows were not kept to");
                    self.ended.insert(id);
                }
                SETTINGS | PING if flags & ACK == 0 => {
                    let reply = if kind == PING { payload } else { &[] };
                    self.owed.extend(frame(kind, ACK, 0, reply));
                }
                _ => {}
            }
            self.came.drain(..9 + len);
        }
    }
}

fn frame(kind: u8, flags: u8, id: u32, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&[len[1], len[2], len[3], kind, flags], &id.to_be_bytes()[..], payload].concat()
}

/// A fresh credential for one call.
pub(crate) fn credential(control: &Control, method: &str) -> String {
    let request = control.request(method, ());
    request.metadata().get(memkv_proto::AUTH_METADATA).unwrap().to_str().unwrap().to_owned()
}
