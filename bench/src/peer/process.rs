//! Programs of peers that run while they are measured.

use crate::child;
use anyhow::{Context as _, bail};
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(60);
const LOG_TAIL_BYTES: usize = 1500;

/// A running server of a peer; it is killed with this handle.
pub(crate) struct Process {
    child: Child,
    log: PathBuf,
    /// Where it works and writes its log; removed with it.
    _folder: TempDir,
}

impl Process {
    /// Starts a command in an empty folder; its output goes to a log there.
    ///
    /// # Errors
    ///
    /// If it cannot be started.
    pub(crate) fn start(command: Command) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir().context("make a folder for a server")?;
        let path = folder.path().join("log");
        let log = File::create(&path).context("make a log")?;
        let name = command.get_program().to_string_lossy().into_owned();
        let mut command = child::kept(&command)?;
        command.current_dir(folder.path()).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().with_context(|| format!("start {name}"))?;
        Ok(Self { child, log: path, _folder: folder })
    }

    /// Waits until it listens.
    ///
    /// # Errors
    ///
    /// If it ends or does not listen for a minute; the end of its log is in the text.
    pub(crate) fn wait_port(&mut self, port: u16) -> anyhow::Result<TcpStream> {
        let begun = Instant::now();
        loop {
            if let Ok(stream) = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))) {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            let ended = self.child.try_wait()?;
            if ended.is_some() || begun.elapsed() > PATIENCE {
                bail!("it does not listen ({ended:?}); its log ends with:\n{}", self.log_tail());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The end of its log.
    pub(crate) fn log_tail(&self) -> String {
        let bytes = std::fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(LOG_TAIL_BYTES)..]).into_owned()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already; there is nothing to do about either failure.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// A port of loopback that is free now.
///
/// # Errors
///
/// If there is none.
pub(crate) fn free_port() -> anyhow::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("look for a free port")?;
    Ok(listener.local_addr()?.port())
}
