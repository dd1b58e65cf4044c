//! The `memkv-server` under load: a process of its own, with a key, on loopback.

use crate::child;
use anyhow::{Context as _, bail, ensure};
use std::ffi::OsString;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(60);
/// The daemon's certificate, in its folder.
const CERT: &str = "server.pem";

/// A running daemon; it is killed with this handle.
pub(crate) struct Daemon {
    child: Child,
    port: u16,
    key: String,
    folder: TempDir,
}

impl Daemon {
    /// Starts `program` with a store of `dram_bytes`, a fresh key and a certificate, and waits until it is ready.
    pub(crate) fn start(program: &Path, dram_bytes: u64) -> anyhow::Result<Self> {
        let mut key = [0; 32];
        getrandom::fill(&mut key).context("make a key")?;
        let folder = tempfile::tempdir().context("make a folder for the daemon")?;
        // Whoever connects in plain text is not touched by it.
        let tls = certify(folder.path())?;
        let tls: Vec<OsString> =
            tls.into_iter().flat_map(|(flag, file)| [flag.into(), file.into_os_string()]).collect();
        Self::start_in(folder, program, dram_bytes, &hex::encode(key), &tls)
    }

    /// Starts `program` with this key and more arguments, without a certificate, and waits until it is ready.
    pub(crate) fn start_as(
        program: &Path,
        dram_bytes: u64,
        key: &str,
        more: &[&str],
    ) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir().context("make a folder for the daemon")?;
        Self::start_in(folder, program, dram_bytes, key, &more.iter().map(OsString::from).collect::<Vec<_>>())
    }

    fn start_in(
        folder: TempDir,
        program: &Path,
        dram_bytes: u64,
        key: &str,
        more: &[OsString],
    ) -> anyhow::Result<Self> {
        let port = free_port_pair()?;
        let log = File::create(folder.path().join("log")).context("make the daemon's log")?;
        let mut command = Command::new(program);
        command.args(["--listen", &format!("127.0.0.1:{port}")]);
        command.args(["--dram", &format!("{}MiB", dram_bytes.div_ceil(1 << 20))]);
        command.args(more);
        command.env("MEMKV_SERVER_AUTH_KEY", key);
        let mut command = child::kept(&command)?;
        command.stdin(Stdio::null());
        command.stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().with_context(|| format!("start {}", program.display()))?;
        let mut daemon = Self { child, port, key: key.to_owned(), folder };
        daemon.wait_ready()?;
        Ok(daemon)
    }

    fn wait_ready(&mut self) -> anyhow::Result<()> {
        let start = Instant::now();
        while !self.is_ready() {
            let ended = self.child.try_wait()?;
            if ended.is_some() || start.elapsed() > PATIENCE {
                let log = std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
                let what =
                    ended.map_or("is not ready yet".to_owned(), |status| format!("ended with {status}"));
                bail!("memkv-server {what}; its log:\n{log}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn is_ready(&self) -> bool {
        let admin = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port + 1));
        let Ok(mut stream) = TcpStream::connect(admin) else { return false };
        let request = "GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        let mut answer = String::new();
        stream.set_read_timeout(Some(Duration::from_secs(5))).is_ok()
            && stream.write_all(request.as_bytes()).is_ok()
            && stream.read_to_string(&mut answer).is_ok()
            && answer.starts_with("HTTP/1.1 200")
    }

    /// Where clients connect, as text.
    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The key, as 64 hex digits.
    pub(crate) fn key(&self) -> &str {
        &self.key
    }

    /// The PEM file of the CA that its certificate comes from.
    pub(crate) fn ca(&self) -> PathBuf {
        self.folder.path().join(CERT)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended already; there is nothing to do about either failure.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Makes a certificate for loopback that is its own CA; returns the daemon's flags.
fn certify(folder: &Path) -> anyhow::Result<[(&'static str, PathBuf); 2]> {
    let key = rcgen::KeyPair::generate().context("make a key for TLS")?;
    let params = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()])?;
    let certificate = params.self_signed(&key).context("make a certificate")?;
    let [cert, private] = [CERT, "server.key"].map(|name| folder.join(name));
    std::fs::write(&cert, certificate.pem()).context("write the certificate")?;
    // The folder is its owner's alone.
    let mut file = File::options().create_new(true).write(true).mode(0o600).open(&private)?;
    file.write_all(key.serialize_pem().as_bytes()).context("write the key for TLS")?;
    Ok([("--tls-cert", cert), ("--tls-key", private)])
}

/// The server to measure: the one given, or the one beside this program.
pub(crate) fn find_server(given: Option<PathBuf>) -> anyhow::Result<PathBuf> {
    if let Some(path) = given {
        ensure!(path.exists(), "there is no server at {}", path.display());
        return Ok(path);
    }
    let own = std::env::current_exe().context("find this program")?;
    let folder = own.parent().context("find this program's folder")?;
    let target = folder.parent().unwrap_or(folder);
    let places = [target.join("daemon"), folder.to_owned()].map(|folder| folder.join("memkv-server"));
    // The newest: one of an earlier build would be measured in the place of this one.
    let built = |path: &PathBuf| std::fs::metadata(path).and_then(|file| file.modified()).ok();
    let found = places.into_iter().filter(|path| path.exists()).max_by_key(built);
    found.context(
        "memkv-server is not beside memkv-bench; build it with: cargo build --release -p memkv-server, \
         or name it with --server",
    )
}

fn free_port_pair() -> anyhow::Result<u16> {
    for _ in 0..1000 {
        let mut random = [0; 2];
        getrandom::fill(&mut random).context("choose a port")?;
        let port = 12_000 + u16::from_le_bytes(random) % 20_000;
        let both = [port, port + 1].map(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)));
        if both.iter().all(Result::is_ok) {
            return Ok(port);
        }
    }
    bail!("no free pair of ports")
}
