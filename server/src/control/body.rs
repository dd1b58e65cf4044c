//! What comes of a call before it is a message: counted while it is put together, and looked through before it is decoded.
//!
//! gRPC gathers a whole message before anybody sees it, and decoding makes of three bytes a key of fifty. So bytes are counted
//! as they come, against the [allowances](crate::allowance) of connection, tenant and server; and a message with more fields
//! than a request may have keys is refused before it is decoded, as is one that is longer than its method's messages can be.
//!
//! Invariants:
//! - bytes are counted from their arrival until the message that they belong to has been taken out, or, where a call is one
//!   message, until the call is over;
//! - what is refused ends its call only, with a status that says which bound it was.

use super::status::Fault;
use crate::allowance::{Allowance, FREE_BYTES, Lease};
use crate::line::{Call, Line};
use crate::node::Node;
use crate::tenants::Tenant;
use axum::BoxError;
use axum::body::{Body, BodyDataStream, Bytes};
use parking_lot::Mutex;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio_stream::Stream;
use tonic::Status;

/// Fields that a message may have for each of its keys, and beside them.
const FIELDS_OF_KEY: u32 = 2;
const OTHER_FIELDS: u32 = 64;
/// Largest message of a method whose messages have keys: as many of the longest as there may be.
const KEYS_BYTES: u32 = 10 << 20;
/// Largest message of a method whose messages have none.
const SMALL_BYTES: u32 = 256 << 10;
/// Largest message of sessions: RDMA regions have a key for each of their parts.
const SESSION_BYTES: u32 = 4 << 20;

/// What a call holds; it is shared by the call's body and by whoever works on its message.
#[derive(Clone, Debug)]
pub(crate) struct Holding(Arc<Held>);

#[derive(Debug)]
struct Held {
    line: Arc<Line>,
    /// Whose call it is; of a call that opens a session, whose the connection turns out to be.
    caller: Option<Arc<Tenant>>,
    server: Allowance,
    lease: Mutex<Option<Lease>>,
    _call: Call,
}

impl Holding {
    pub(crate) fn new(node: &Node, line: &Arc<Line>, caller: Option<Arc<Tenant>>) -> Self {
        let lease = Mutex::default();
        let server = node.held.clone();
        Self(Arc::new(Held { line: Arc::clone(line), caller, server, lease, _call: line.call() }))
    }

    /// Holds so many bytes from now on. A guest has no allowance: the little that is read of it is its bound.
    fn hold(&self, bytes: usize) -> bool {
        let mut lease = self.0.lease.lock();
        let counted = if bytes > FREE_BYTES { bytes } else { 0 };
        let Some(tenant) = self.0.caller.as_ref().or_else(|| self.0.line.owner()) else { return true };
        let of = || tenant.allowances(&self.0.line.allowance, &self.0.server).lease();
        lease.get_or_insert_with(of).hold(counted)
    }

    /// A lease of its own for an answer.
    pub(crate) fn lease(&self) -> Option<Lease> {
        let tenant = self.0.caller.as_ref()?;
        Some(tenant.allowances(&self.0.line.allowance, &self.0.server).lease())
    }
}

/// Puts a counter between a call's body and whoever reads it.
pub(crate) fn counted(body: Body, method: &str, keys_max: u32, holding: Holding) -> Body {
    let fields_max = keys_max.saturating_mul(FIELDS_OF_KEY).saturating_add(OTHER_FIELDS);
    let scanner = Scanner::new(fields_max, bytes_max(method));
    let by_message = is_stream(method);
    Body::from_stream(Counted { inner: body.into_data_stream(), scanner, holding, by_message, ended: false })
}

/// Whether a call of the method is many messages, each of which is done with before the next is taken.
fn is_stream(method: &str) -> bool {
    method == "/memkv.v1.Kv/Put"
        || method == "/memkv.v1.Session/Open"
        || method.starts_with("/grpc.reflection.")
}

fn bytes_max(method: &str) -> u32 {
    let name = method.rsplit('/').next().unwrap_or_default();
    match name {
        "Put" => u32::try_from(super::MESSAGE_BYTES_MAX).unwrap_or(u32::MAX),
        "Get" | "Exists" | "Touch" | "Delete" | "Pin" | "Unpin" => KEYS_BYTES,
        "Open" => SESSION_BYTES,
        _ => SMALL_BYTES,
    }
}

struct Counted {
    inner: BodyDataStream,
    scanner: Scanner,
    holding: Holding,
    by_message: bool,
    ended: bool,
}

impl Stream for Counted {
    type Item = Result<Bytes, BoxError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        if self.by_message {
            // Whoever asks for more has taken the messages that were whole.
            self.scanner.taken = self.scanner.unfinished;
            let _less = self.holding.hold(self.scanner.taken);
        }
        let chunk = match ready!(Pin::new(&mut self.inner).poll_next(context)) {
            Some(Ok(chunk)) => chunk,
            Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
            None => return Poll::Ready(None),
        };
        self.scanner.taken = self.scanner.taken.saturating_add(chunk.len());
        let fault = match self.scanner.feed(&chunk) {
            Ok(()) if self.holding.hold(self.scanner.taken) => return Poll::Ready(Some(Ok(chunk))),
            Ok(()) => Fault::TooMuchHeld,
            Err(fault) => fault,
        };
        self.ended = true;
        Poll::Ready(Some(Err(Box::new(Status::from(fault)))))
    }
}

/// Where messages begin and end in a call's bytes, and how many fields each has.
struct Scanner {
    fields_max: u32,
    bytes_max: u32,
    at: At,
    /// Bytes of the message that are still to come.
    left: u32,
    fields: u32,
    /// Bytes of the message that has begun.
    unfinished: usize,
    /// Bytes that are held for the call.
    taken: usize,
}

/// What the next byte is.
#[derive(Clone, Copy)]
enum At {
    /// Of the five bytes before a message; how many came, and the length so far.
    Prefix(u8, u32),
    /// Of a field's number and kind; bits that came, and their number.
    Tag(u64, u32),
    /// Of a number.
    Number,
    /// Of a length; bits that came, and their number.
    Length(u64, u32),
    /// Of a value of so many bytes.
    Value(u64),
}

impl Scanner {
    fn new(fields_max: u32, bytes_max: u32) -> Self {
        Self { fields_max, bytes_max, at: At::Prefix(0, 0), left: 0, fields: 0, unfinished: 0, taken: 0 }
    }

    fn feed(&mut self, mut bytes: &[u8]) -> Result<(), Fault> {
        while let Some((&byte, rest)) = bytes.split_first() {
            let used = if let At::Value(left) = self.at {
                let here = left.min(self.left.into()).min(bytes.len() as u64);
                self.at = if left > here { At::Value(left - here) } else { At::Tag(0, 0) };
                here as usize
            } else {
                self.step(byte)?;
                1
            };
            bytes = if used == 1 { rest } else { &bytes[used..] };
            self.count(used);
        }
        Ok(())
    }

    /// Notes that bytes are done with; the last of a message is followed by the next message's first.
    fn count(&mut self, used: usize) {
        self.unfinished += used;
        match self.at {
            At::Prefix(5, len) => {
                (self.left, self.fields) = (len, 0);
                self.at = At::Tag(0, 0);
            }
            At::Prefix(..) => return,
            // At most `left` were used, which fits.
            _ => self.left -= used as u32,
        }
        if self.left == 0 {
            (self.at, self.unfinished) = (At::Prefix(0, 0), 0);
        }
    }

    /// One byte that is not a value's.
    fn step(&mut self, byte: u8) -> Result<(), Fault> {
        let more = byte & 0x80 != 0;
        let with = |bits: u64, count: u32| bits | (u64::from(byte & 0x7f)).checked_shl(count).unwrap_or(0);
        self.at = match self.at {
            At::Prefix(0, _) => At::Prefix(1, 0),
            At::Prefix(came, len) => {
                let len = len << 8 | u32::from(byte);
                if came == 4 && len > self.bytes_max {
                    return Err(Fault::TooLong { bytes: len, most: self.bytes_max });
                }
                At::Prefix(came + 1, len)
            }
            At::Tag(bits, count) if more => At::Tag(with(bits, count), count + 7),
            At::Tag(bits, count) => {
                self.fields += 1;
                if self.fields > self.fields_max {
                    return Err(Fault::TooManyFields(self.fields_max));
                }
                match with(bits, count) & 7 {
                    0 => At::Number,
                    1 => At::Value(8),
                    2 => At::Length(0, 0),
                    // The beginning and the end of a group have nothing of their own.
                    3 | 4 => At::Tag(0, 0),
                    5 => At::Value(4),
                    // The decoder will say that this is no message.
                    _ => At::Value(u64::MAX),
                }
            }
            At::Number if more => At::Number,
            At::Number => At::Tag(0, 0),
            At::Length(bits, count) if more => At::Length(with(bits, count), count + 7),
            At::Length(bits, count) => match with(bits, count) {
                0 => At::Tag(0, 0),
                len => At::Value(len),
            },
            At::Value(left) => At::Value(left),
        };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use memkv_proto::v1;

    /// A message as it travels.
    fn framed(message: &[u8]) -> Vec<u8> {
        let len = u32::try_from(message.len()).unwrap();
        [&[0][..], &len.to_be_bytes(), message].concat()
    }

    fn keys(count: usize) -> Vec<u8> {
        let keys = (0..count).map(|number| number.to_string().into_bytes()).collect();
        let message = v1::ExistsRequest { space_id: vec![7; 16], keys };
        framed(&prost_bytes(&message))
    }

    /// Field 1: bytes; field 2, repeated: bytes.
    fn prost_bytes(message: &v1::ExistsRequest) -> Vec<u8> {
        let mut out = vec![0x0a, 16];
        out.extend_from_slice(&message.space_id);
        for key in &message.keys {
            out.extend_from_slice(&[0x12, u8::try_from(key.len()).unwrap()]);
            out.extend_from_slice(key);
        }
        out
    }

    fn feed(scanner: &mut Scanner, bytes: &[u8], piece: usize) -> Result<(), Fault> {
        bytes.chunks(piece).try_for_each(|piece| scanner.feed(piece))
    }

    #[test]
    fn messages_are_followed_however_they_are_cut() {
        let other =
            framed(&[0x08, 0x96, 0x01, 0x11, 1, 2, 3, 4, 5, 6, 7, 8, 0x1d, 1, 2, 3, 4, 0x22, 0, 0x2b, 0x2c]);
        let all = [keys(300), other, framed(&[]), keys(2)].concat();
        for piece in [1, 2, 3, 7, 64, all.len()] {
            let mut scanner = Scanner::new(301, 1 << 20);
            feed(&mut scanner, &all, piece).unwrap();
            assert_eq!((scanner.unfinished, scanner.left), (0, 0), "pieces of {piece}");
            feed(&mut scanner, &all[..20], piece).unwrap();
            assert_eq!(scanner.unfinished, 20, "what has begun is counted");
        }
    }

    #[test]
    fn a_message_with_too_many_fields_or_bytes_is_refused_before_it_is_whole() {
        for piece in [1, 5, 1 << 20] {
            let mut scanner = Scanner::new(100, 1 << 20);
            assert!(matches!(feed(&mut scanner, &keys(100), piece), Err(Fault::TooManyFields(100))));
            assert!(feed(&mut Scanner::new(101, 1 << 20), &keys(100), piece).is_ok());
            let long = feed(&mut Scanner::new(9, 99), &framed(&[0; 100])[..5], piece);
            assert!(matches!(long, Err(Fault::TooLong { bytes: 100, most: 99 })));
        }
        // Each message has its own count.
        assert!(feed(&mut Scanner::new(101, 1 << 20), &[keys(100), keys(100)].concat(), 9).is_ok());
    }

    #[test]
    fn what_is_no_message_breaks_nothing() {
        let beginnings: [&[u8]; 5] =
            [&[0x0e], &[0xff; 20], &[0x12, 0xff, 0xff, 0xff, 0xff, 0x0f, 1], &[0x80], &[0x0b]];
        for bytes in beginnings {
            let mut scanner = Scanner::new(4, 1 << 20);
            let whole = framed(bytes);
            if feed(&mut scanner, &whole, 1).is_ok() {
                assert_eq!(scanner.unfinished, 0, "{bytes:?} ends where its length says");
            }
        }
    }
}
