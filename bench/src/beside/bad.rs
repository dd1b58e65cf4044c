//! A server that goes bad on command: a daemon, and before it a proxy that does what a network or a liar does.

use crate::daemon::Daemon;
use anyhow::Context as _;
use clap::ValueEnum;
use rustix::process::{Pid, Signal, kill_process};
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// How a server is bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Fault {
    /// Killed: connections are reset and refused.
    Dead,
    /// Connections are taken, and nothing passes.
    Unreachable,
    /// Stopped: its kernel still takes connections and bytes.
    Frozen,
    /// Sends 256 KiB a second on each connection.
    Slow,
    /// Sends pages with a flipped bit.
    Lying,
}

/// Bytes a second of a slow server's connection.
const SLOW: f64 = 262_144.0;
/// Pieces of this size and more hold pages for the most part.
const PAGE_PIECE: usize = 16 << 10;

struct Shared {
    target: Mutex<SocketAddr>,
    fault: Mutex<Option<Fault>>,
    changed: Condvar,
    stopped: AtomicBool,
}

impl Shared {
    /// The fault that holds, once bytes may pass.
    fn fault(&self) -> Option<Fault> {
        let mut fault = self.fault.lock().unwrap_or_else(PoisonError::into_inner);
        while *fault == Some(Fault::Unreachable) && !self.stopped.load(SeqCst) {
            fault = self.changed.wait(fault).unwrap_or_else(PoisonError::into_inner);
        }
        *fault
    }
}

/// The server and its proxy.
pub(crate) struct Bad {
    program: PathBuf,
    key: String,
    dram_bytes: u64,
    daemon: Daemon,
    shared: Arc<Shared>,
    addr: SocketAddr,
}

impl Bad {
    pub(crate) fn start(program: PathBuf, dram_bytes: u64, key: String) -> anyhow::Result<Self> {
        let daemon = Daemon::start_as(&program, dram_bytes, &key, &[])?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("bind the proxy")?;
        let addr = listener.local_addr().context("find the proxy's port")?;
        let shared = Arc::new(Shared {
            target: Mutex::new(daemon.address().parse().context("read the daemon's address")?),
            fault: Mutex::new(None),
            changed: Condvar::new(),
            stopped: AtomicBool::new(false),
        });
        let accepting = Arc::clone(&shared);
        std::thread::spawn(move || accept(&listener, &accepting));
        Ok(Self { program, key, dram_bytes, daemon, shared, addr })
    }

    /// Where clients connect.
    pub(crate) fn address(&self) -> String {
        self.addr.to_string()
    }

    /// Goes bad.
    pub(crate) fn begin(&self, fault: Fault) -> anyhow::Result<()> {
        self.set(Some(fault));
        match fault {
            Fault::Dead => self.signal(Signal::KILL),
            Fault::Frozen => self.signal(Signal::STOP),
            Fault::Unreachable | Fault::Slow | Fault::Lying => Ok(()),
        }
    }

    /// Is well again; a killed server is replaced by an empty one.
    pub(crate) fn end(&mut self, fault: Fault) -> anyhow::Result<()> {
        match fault {
            Fault::Dead => {
                self.daemon = Daemon::start_as(&self.program, self.dram_bytes, &self.key, &[])?;
                let target = self.daemon.address().parse().context("read the daemon's address")?;
                *self.shared.target.lock().unwrap_or_else(PoisonError::into_inner) = target;
            }
            Fault::Frozen => self.signal(Signal::CONT)?,
            Fault::Unreachable | Fault::Slow | Fault::Lying => {}
        }
        self.set(None);
        Ok(())
    }

    fn set(&self, fault: Option<Fault>) {
        *self.shared.fault.lock().unwrap_or_else(PoisonError::into_inner) = fault;
        self.shared.changed.notify_all();
    }

    fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let pid = i32::try_from(self.daemon.pid()).ok().and_then(Pid::from_raw);
        kill_process(pid.context("know the daemon's process")?, signal).context("signal the daemon")
    }
}

impl Drop for Bad {
    fn drop(&mut self) {
        self.shared.stopped.store(true, SeqCst);
        self.set(None);
        // Wakes the accepting thread; nobody is left to read an error.
        TcpStream::connect(self.addr).ok();
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for client in listener.incoming().flatten() {
        if shared.stopped.load(SeqCst) {
            return;
        }
        let target = *shared.target.lock().unwrap_or_else(PoisonError::into_inner);
        // A server that is gone shows as a closed connection.
        let Ok(server) = TcpStream::connect(target) else { continue };
        for (from, to, down) in [(&client, &server, false), (&server, &client, true)] {
            let (Ok(from), Ok(to)) = (from.try_clone(), to.try_clone()) else { continue };
            let shared = Arc::clone(shared);
            to.set_nodelay(true).ok();
            std::thread::spawn(move || {
                pump(&from, &to, down, &shared);
                // The other side may have closed already.
                from.shutdown(Shutdown::Both).ok();
                to.shutdown(Shutdown::Both).ok();
            });
        }
    }
}

fn pump(mut from: &TcpStream, mut to: &TcpStream, down: bool, shared: &Shared) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let Ok(got @ 1..) = from.read(&mut buffer) else { return };
        match shared.fault() {
            #[allow(clippy::cast_precision_loss, reason = "a piece is at most 64 KiB")]
            Some(Fault::Slow) if down => std::thread::sleep(Duration::from_secs_f64(got as f64 / SLOW)),
            Some(Fault::Lying) if down && got >= PAGE_PIECE => buffer[got / 2] ^= 1,
            _ => {}
        }
        if to.write_all(&buffer[..got]).is_err() {
            return;
        }
    }
}
