//! A TCP proxy whose open connections can get stuck: they stay open, and nothing comes back on them any more. New
//! connections are not affected.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub(crate) struct Stuck {
    addr: SocketAddr,
    /// Connections of an earlier generation are stuck.
    generation: Arc<AtomicU64>,
}

impl Stuck {
    /// Starts a proxy in front of `target`; it ends with the process.
    pub(crate) fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let addr = listener.local_addr().unwrap();
        let generation = Arc::new(AtomicU64::new(0));
        let now = Arc::clone(&generation);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(target) else { continue };
                let (up, down) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                let (born, now) = (now.load(Ordering::SeqCst), Arc::clone(&now));
                std::thread::spawn(move || pass(up, server, || true));
                std::thread::spawn(move || pass(down, client, || now.load(Ordering::SeqCst) == born));
            }
        });
        Self { addr, generation }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// From now on nothing comes back on the connections that are open.
    pub(crate) fn stick(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
    }
}

/// Passes bytes on; those that come when it does not flow are lost.
fn pass(mut from: TcpStream, mut to: TcpStream, flows: impl Fn() -> bool) {
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        if flows() && to.write_all(&buffer[..count]).is_err() {
            return;
        }
    }
}
