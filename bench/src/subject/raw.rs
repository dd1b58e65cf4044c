//! The raw baseline as a subject.

use super::Kind;
use super::conns::{Conn, Connected};
use crate::raw::{self, Server};
use std::rc::Rc;

/// The baseline over so many connections (one or two), each with an array of `bytes`.
///
/// # Errors
///
/// If the server cannot be reached.
pub(crate) fn subject(
    server: &Rc<Server>,
    conns: usize,
    bytes: usize,
) -> anyhow::Result<Connected<raw::Conn>> {
    let connections = (0..conns).map(|_| server.connect(bytes)).collect::<anyhow::Result<_>>()?;
    Ok(Connected {
        name: name(conns).to_owned(),
        kind: Kind::Baseline,
        note: format!("plain sockets, {conns} connection{}", if conns == 1 { "" } else { "s" }),
        servers: vec![server.pid()],
        conns: connections,
        _owner: Some(Box::new(Rc::clone(server))),
    })
}

/// What the baseline is called.
pub(crate) fn name(conns: usize) -> &'static str {
    if conns == 1 { "raw x1" } else { "raw x2" }
}

impl Conn for raw::Conn {
    fn put(&mut self, first: usize, _: &[Vec<u8>], pages: &[&[u8]]) -> anyhow::Result<()> {
        raw::Conn::put(self, first, pages)
    }

    fn get(&mut self, first: usize, _: &[Vec<u8>], pages: &mut [&mut [u8]]) -> anyhow::Result<()> {
        raw::Conn::get(self, first, pages)
    }

    fn prepare_exists(&mut self, keys: &[Vec<u8>]) {
        raw::Conn::prepare_exists(self, keys);
    }

    fn exists(&mut self, keys: &[Vec<u8>]) -> anyhow::Result<()> {
        raw::Conn::exists(self, keys.len())
    }
}
