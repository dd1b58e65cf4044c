//! One hostile connection: how it begins, what it does each second, and whether the server still has it.

use super::PAGE_BYTES;
use super::crew::Order;
use super::door::{Session, attach, dial, random};
use anyhow::Context as _;
use clap::ValueEnum;
use memkv_core::{Key, SpaceId};
use memkv_transport::frame::{Header, Op};
use memkv_transport::handshake::{Attach, CHALLENGE_BYTES};
use memkv_transport::records;
use serde::{Deserialize, Serialize};
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;

/// How a connection is hostile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub(crate) enum Kind {
    /// Connects and says nothing.
    Silent,
    /// Stops in the middle of its handshake.
    HalfOpen,
    /// Sends its handshake, or HTTP/2 headers, a byte a second.
    SlowHeader,
    /// Proves that it has no key, and comes back.
    FailedProofs,
    /// Has a key, joins a session, and says nothing more.
    Idle,
    /// Has a key, asks for a megabyte of pages, and reads none.
    StoppedReader,
    /// Has a key, and sends its request a byte a second.
    SlowWriter,
}

/// Pages that a reader asks for and does not read.
const UNREAD: usize = 16;
/// The beginning of HTTP/2, empty settings, and the header of a list of headers that would be 16 KiB long.
const HTTP2: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\x40\0\x01\x04\0\0\0\x01";

impl Kind {
    pub(crate) fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// Whether it takes the key.
    pub(crate) fn has_key(self) -> bool {
        matches!(self, Self::Idle | Self::StoppedReader | Self::SlowWriter)
    }

    /// Whether it stays only as long as it takes to be refused.
    pub(crate) fn is_short(self) -> bool {
        self == Self::FailedProofs
    }
}

/// A hostile connection.
pub(crate) struct Besieger {
    stream: TcpStream,
    /// What it sends byte by byte, and how much of it is out.
    slow: &'static [u8],
    sent: usize,
}

/// What all besiegers of a kind have in common.
pub(crate) struct Plan {
    pub(crate) order: Order,
    pub(crate) sessions: Vec<Session>,
    get: Vec<u8>,
    exists: &'static [u8],
    hello: &'static [u8],
}

impl Plan {
    pub(crate) fn new(order: Order, sessions: Vec<Session>) -> anyhow::Result<Self> {
        let space: [u8; 16] = hex::decode(&order.space)?.try_into().ok().context("a space has 16 bytes")?;
        let keys = order.pages.iter().map(hex::decode).collect::<Result<Vec<_>, _>>()?;
        let mut meta = Vec::new();
        for key in keys.iter().cycle().take(UNREAD) {
            records::push_wanted(&mut meta, u32::try_from(PAGE_BYTES)?, Key::new(key)?);
        }
        let mut keys_only = Vec::new();
        records::push_key(&mut keys_only, Key::new(keys.first().context("there are pages")?)?);
        let frame = |op, count, meta: &[u8]| {
            [&Header::request(op, 1, SpaceId(space), count).encode(meta)[..], meta].concat()
        };
        let get = frame(Op::Get, u32::try_from(UNREAD)?, &meta);
        let hello = Attach { session_id: random()?, client_nonce: random()? }.encode();
        Ok(Self {
            get,
            // They live as long as the process.
            exists: frame(Op::Exists, 1, &keys_only).leak(),
            hello: hello.to_vec().leak(),
            order,
            sessions,
        })
    }
}

impl Besieger {
    /// Opens a connection and brings it to where it is hostile.
    ///
    /// # Errors
    ///
    /// If the server does not let it get there.
    pub(crate) fn open(plan: &Plan, number: usize) -> anyhow::Result<Self> {
        let kind = plan.order.kind;
        let mut stream = dial(u8::try_from(number % 16)? + 1, plan.order.address)?;
        let even = number.is_multiple_of(2);
        let mut slow: &[u8] = &[];
        match kind {
            Kind::Silent => {}
            Kind::HalfOpen => stream.write_all(if even { &plan.hello[..40] } else { HTTP2 })?,
            Kind::SlowHeader => slow = if even { plan.hello } else { HTTP2 },
            Kind::FailedProofs => fail(&mut stream, plan)?,
            Kind::Idle | Kind::StoppedReader | Kind::SlowWriter => {
                let sessions = &plan.sessions;
                attach(&mut stream, &sessions[number % sessions.len()])?;
                if kind == Kind::StoppedReader {
                    stream.write_all(&plan.get)?;
                }
                if kind == Kind::SlowWriter {
                    slow = plan.exists;
                }
            }
        }
        stream.set_nonblocking(true)?;
        Ok(Self { stream, slow, sent: 0 })
    }

    /// What it does each second; `false` once the server has closed it.
    pub(crate) fn go_on(&mut self, kind: Kind) -> bool {
        if let Some(byte) = self.slow.get(self.sent) {
            self.sent += 1;
            return self.stream.write(&[*byte]).is_ok();
        }
        // A reader that stopped does not look, and learns of its end when it asks for more.
        if kind == Kind::StoppedReader {
            return !matches!(self.stream.take_error(), Ok(Some(_)))
                && self.stream.write(&[]).is_ok()
                && !hung_up(&self.stream);
        }
        match self.stream.read(&mut [0; 256]) {
            Ok(0) => false,
            Ok(_) => true,
            Err(error) => error.kind() == ErrorKind::WouldBlock,
        }
    }
}

/// Whether the other side has closed, without reading what it sent.
fn hung_up(stream: &TcpStream) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::new(stream, PollFlags::RDHUP)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let said = poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0);
    said && fds[0].revents().intersects(PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR)
}

/// Joins a session with a key that is none, or a session that there is not, and hears the refusal.
fn fail(stream: &mut TcpStream, plan: &Plan) -> anyhow::Result<()> {
    let known = plan.sessions.first().map(|session| session.id);
    let attach = Attach { session_id: known.unwrap_or_default(), client_nonce: random()? };
    stream.write_all(&attach.encode())?;
    let mut challenge = [0; CHALLENGE_BYTES];
    // A server that has had enough of this address closes.
    if stream.read_exact(&mut challenge).is_ok() {
        stream.write_all(&random::<32>()?)?;
        let _refused = stream.read(&mut [0; 64])?;
    }
    Ok(())
}
