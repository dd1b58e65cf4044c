//! A real etcd, on loopback ports and in a folder of its own.
//!
//! It is the distribution's: `etcd` must be on the path (Debian: `apt-get install etcd-server`). It is killed, by its
//! process id, when its handle goes away.

use crate::{http, random, wait_for};
use anyhow::{Context as _, ensure};
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// How long etcd may take to start on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running (or killed) etcd with one member.
#[derive(Debug)]
pub struct Etcd {
    child: Child,
    folder: TempDir,
    port: u16,
    peer_port: u16,
    /// The port inside TLS, and the files for it.
    tls: Option<(u16, EtcdFiles)>,
}

/// PEM files of an etcd that speaks TLS.
#[derive(Clone, Debug)]
pub struct EtcdFiles {
    /// Its certificate.
    pub cert: PathBuf,
    /// The certificate's key.
    pub key: PathBuf,
    /// The CA of clients' certificates, without which nobody is let in inside TLS.
    pub client_ca: PathBuf,
}

impl Etcd {
    /// Starts an etcd without data and waits until it is healthy.
    ///
    /// # Errors
    ///
    /// If there is no etcd, or it does not become healthy; the error has its log.
    pub fn start() -> anyhow::Result<Self> {
        Self::start_with(None)
    }

    /// Starts an etcd that also speaks TLS, on a port of its own; see [`Etcd::tls_location`].
    ///
    /// # Errors
    ///
    /// As [`Etcd::start`].
    pub fn start_with(files: Option<EtcdFiles>) -> anyhow::Result<Self> {
        const ATTEMPTS: usize = 5;
        for _ in 1..ATTEMPTS {
            let mut etcd = Self::spawned(files.clone())?;
            match etcd.wait_healthy() {
                // Somebody else took the port in between.
                Err(_) if etcd.log().contains("address already in use") => {}
                outcome => return outcome.map(|()| etcd),
            }
        }
        let mut etcd = Self::spawned(files)?;
        etcd.wait_healthy().map(|()| etcd)
    }

    fn spawned(files: Option<EtcdFiles>) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir().context("make a folder for etcd")?;
        let (port, peer_port) = (free_port()?, free_port()?);
        let tls = files.map(|files| anyhow::Ok((free_port()?, files))).transpose()?;
        let child = spawn(&folder, port, peer_port, tls.as_ref())?;
        Ok(Self { child, folder, port, peer_port, tls })
    }

    /// Where clients connect.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// What a configuration says to find members under `prefix`.
    #[must_use]
    pub fn location(&self, prefix: &str) -> String {
        format!("etcd://{}/{prefix}", self.addr())
    }

    /// As [`Etcd::location`], inside TLS. The location still wants its parameters.
    ///
    /// # Panics
    ///
    /// If it was started without TLS.
    #[must_use]
    pub fn tls_location(&self, prefix: &str) -> String {
        let (port, _) = self.tls.as_ref().expect("the test started it with TLS");
        format!("etcds://127.0.0.1:{port}/{prefix}")
    }

    /// From now on only users are let in: `root`, and `user`, who may read and write what is under `prefix`. Both have
    /// this password.
    ///
    /// # Errors
    ///
    /// If etcd does not do it.
    pub fn require_users(&self, user: &str, password: &str, prefix: &str) -> anyhow::Result<()> {
        let (begin, end) = (base64(format!("{prefix}/").as_bytes()), base64(format!("{prefix}0").as_bytes()));
        for name in ["root", user] {
            self.post("/v3/auth/user/add", &format!(r#"{{"name":"{name}","password":"{password}"}}"#))?;
            self.post("/v3/auth/role/add", &format!(r#"{{"name":"{name}"}}"#))?;
            self.post("/v3/auth/user/grant", &format!(r#"{{"user":"{name}","role":"{name}"}}"#))?;
        }
        let range = format!(r#"{{"permType":"READWRITE","key":"{begin}","range_end":"{end}"}}"#);
        self.post("/v3/auth/role/grant", &format!(r#"{{"name":"{user}","perm":{range}}}"#))?;
        self.post("/v3/auth/enable", "{}")
    }

    /// Gives a user another password, as root; all of the user's tokens end.
    ///
    /// # Errors
    ///
    /// If etcd does not do it.
    pub fn change_password(&self, root_password: &str, user: &str, password: &str) -> anyhow::Result<()> {
        let login = format!(r#"{{"name":"root","password":"{root_password}"}}"#);
        let answer = self.ask("/v3/auth/authenticate", &login, "")?;
        let (_, token) = answer.split_once(r#""token":""#).context("there is a token")?;
        let token = token.split('"').next().unwrap_or_default();
        let change = format!(r#"{{"name":"{user}","password":"{password}"}}"#);
        self.ask("/v3/auth/user/changepw", &change, &format!("Authorization: {token}\r\n")).map(drop)
    }

    /// `kill -9`; returns when the process is gone.
    ///
    /// # Errors
    ///
    /// If it cannot be killed.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill().context("kill etcd")?;
        self.child.wait().context("wait for etcd")?;
        Ok(())
    }

    /// Starts a killed etcd again, on the same ports: with its data, or without.
    ///
    /// # Errors
    ///
    /// If it does not become healthy.
    pub fn restart(&mut self, keep_data: bool) -> anyhow::Result<()> {
        if !keep_data {
            std::fs::remove_dir_all(self.folder.path().join("data")).context("remove etcd's data")?;
        }
        self.child = spawn(&self.folder, self.port, self.peer_port, self.tls.as_ref())?;
        self.wait_healthy()
    }

    /// Writes a key, as an operator would with `etcdctl put`.
    ///
    /// # Errors
    ///
    /// If etcd does not take it.
    pub fn put(&self, key: &[u8], value: &[u8]) -> anyhow::Result<()> {
        self.post("/v3/kv/put", &format!(r#"{{"key":"{}","value":"{}"}}"#, base64(key), base64(value)))
    }

    /// Removes a key.
    ///
    /// # Errors
    ///
    /// If etcd does not answer.
    pub fn delete(&self, key: &[u8]) -> anyhow::Result<()> {
        self.post("/v3/kv/deleterange", &format!(r#"{{"key":"{}"}}"#, base64(key)))
    }

    /// Whether a key is there.
    ///
    /// # Errors
    ///
    /// If etcd does not answer.
    pub fn has(&self, key: &[u8]) -> anyhow::Result<bool> {
        let answer = self.ask("/v3/kv/range", &format!(r#"{{"key":"{}"}}"#, base64(key)), "")?;
        Ok(answer.contains("\"kvs\""))
    }

    fn post(&self, path: &str, body: &str) -> anyhow::Result<()> {
        self.ask(path, body, "").map(drop)
    }

    fn ask(&self, path: &str, body: &str, more: &str) -> anyhow::Result<String> {
        let mut stream = TcpStream::connect(self.addr()).context("connect to etcd")?;
        stream.set_read_timeout(Some(PATIENCE)).context("set the read timeout")?;
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: etcd\r\nConnection: close\r\n{more}Content-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(format!("{head}{body}").as_bytes()).context("ask etcd")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).context("read etcd's answer")?;
        ensure!(answer.starts_with("HTTP/1.1 200"), "etcd says: {answer}");
        Ok(answer)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("etcd.log")).unwrap_or_default()
    }

    fn wait_healthy(&mut self) -> anyhow::Result<()> {
        let addr = self.addr();
        let mut ended = None;
        let healthy = wait_for("etcd becomes healthy", PATIENCE, || {
            ended = self.child.try_wait().ok().flatten();
            let healthy = http::get(addr, "/health").is_ok_and(|(code, _)| code == 200);
            (ended.is_some() || healthy).then_some(())
        });
        ensure!(ended.is_none() && healthy.is_ok(), "etcd does not become healthy; its log:\n{}", self.log());
        Ok(())
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        // Both fail only if the process is gone already.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn spawn(
    folder: &TempDir,
    port: u16,
    peer_port: u16,
    tls: Option<&(u16, EtcdFiles)>,
) -> anyhow::Result<Child> {
    let log = File::options().create(true).append(true).open(folder.path().join("etcd.log"));
    let log = log.context("open etcd's log")?;
    let (mut clients, peers) = (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{peer_port}"));
    let mut command = Command::new("etcd");
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("ETCD_") {
            command.env_remove(name);
        }
    }
    if let Some((port, files)) = tls {
        clients += &format!(",https://127.0.0.1:{port}");
        command.arg("--cert-file").arg(&files.cert).arg("--key-file").arg(&files.key);
        command.arg("--trusted-ca-file").arg(&files.client_ca).arg("--client-cert-auth");
    }
    command.arg("--data-dir").arg(folder.path().join("data"));
    command.args(["--name", "test", "--initial-cluster", &format!("test={peers}")]);
    command.args(["--listen-client-urls", &clients, "--advertise-client-urls", &clients]);
    command.args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers]);
    command.stdin(Stdio::null()).stdout(log.try_clone().context("share the log")?).stderr(log);
    command.spawn().context(
        "there is no etcd on this machine; install it, for example with: apt-get install etcd-server",
    )
}

/// A port below those that the system gives to outgoing connections.
fn free_port() -> anyhow::Result<u16> {
    let port = || 12_000 + u16::from_le_bytes(random()) % 20_000;
    let free = |port: &u16| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
    std::iter::repeat_with(port).take(1000).find(free).context("no free port")
}

/// Base64, as etcd's JSON wants bytes.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let byte = |at: usize| group.get(at).copied().map_or(0, u32::from);
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for digit in 0..4 {
            let index = (bits >> (18 - 6 * digit)) & 63;
            text.push(if digit <= group.len() { char::from(DIGITS[index as usize]) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_padded() {
        assert_eq!(
            ["", "f", "fo", "foo", "foob"].map(|text| base64(text.as_bytes())),
            ["", "Zg==", "Zm8=", "Zm9v", "Zm9vYg=="]
        );
        assert_eq!(base64(&[0xff, 0xfe, 0xfd]), "//79");
    }
}
