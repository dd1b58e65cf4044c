//! Three real daemons with a key on free loopback ports, gone when the value is dropped.

use crate::context::{Context, Profile};
use crate::process::{KillOnDrop, show_tail};
use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How many daemons there are.
pub(crate) const SERVERS: usize = 3;
/// How long a daemon may take until it is ready.
const READY: Duration = Duration::from_secs(60);
/// How long a daemon may take to stop.
const STOP: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(50);

/// The daemons of one demo.
pub(crate) struct Cluster {
    nodes: Vec<Node>,
    key: String,
    /// What the daemons keep on drives; removed after they have ended.
    _folder: Option<TempDir>,
}

struct Node {
    id: String,
    port: u16,
    admin: SocketAddr,
    log: PathBuf,
    /// Its whole setting, for a start after a stop.
    settings: Vec<(&'static str, String)>,
    child: KillOnDrop,
}

impl Cluster {
    /// Starts the daemons, each with `dram` of memory, and waits until all are ready.
    ///
    /// # Errors
    ///
    /// When one does not get ready; the end of its log has been printed by then.
    pub(crate) fn start(context: &Context, profile: Profile, dram: &str) -> Result<Self> {
        Self::start_in(context, profile, dram, None)
    }

    /// Like [`Cluster::start`], and every page is also written to a drive before its put is acknowledged.
    ///
    /// # Errors
    ///
    /// As [`Cluster::start`].
    pub(crate) fn start_on_drives(context: &Context, profile: Profile, dram: &str) -> Result<Self> {
        let folder = tempfile::tempdir().context("make a folder for the daemons' drives")?;
        Self::start_in(context, profile, dram, Some(folder))
    }

    fn start_in(context: &Context, profile: Profile, dram: &str, folder: Option<TempDir>) -> Result<Self> {
        let mut cluster = Self { nodes: Vec::new(), key: random_key()?, _folder: folder };
        for index in 1..=SERVERS {
            let node = cluster.start_node(context, profile, dram, format!("kv-{index}"))?;
            cluster.nodes.push(node);
        }
        for node in &mut cluster.nodes {
            node.wait_until_ready(context)?;
        }
        Ok(cluster)
    }

    fn start_node(&self, context: &Context, profile: Profile, dram: &str, id: String) -> Result<Node> {
        // Both are held until the daemon is about to start, so that they differ from each other.
        let (data, admin) = (free_port()?, free_port()?);
        let (port, admin_address) = (data.local_addr()?.port(), admin.local_addr()?);
        let log = context.logs.join(format!("demo-{id}.log"));
        let noise = File::create(&log).with_context(|| format!("create {}", log.display()))?;
        let mut settings = vec![
            ("MEMKV_SERVER_LISTEN", format!("127.0.0.1:{port}")),
            ("MEMKV_SERVER_ADMIN_LISTEN", admin_address.to_string()),
            ("MEMKV_SERVER_NODE_ID", id.clone()),
            ("MEMKV_SERVER_AUTH_KEY", self.key.clone()),
            ("MEMKV_SERVER_DRAM", dram.to_owned()),
        ];
        if let Some(folder) = &self._folder {
            let path = folder.path().join(&id);
            settings.push(("MEMKV_SERVER_NVME_PATHS", format!("{}:1GiB", path.display())));
            settings.push(("MEMKV_SERVER_NVME_SEGMENT", "64MiB".to_owned()));
            settings.push(("MEMKV_SERVER_NVME_MODE", "write-through".to_owned()));
        }
        drop((data, admin));
        let child = spawn(context, profile, &settings, noise)?;
        Ok(Node { id, port, admin: admin_address, log, settings, child })
    }

    /// Stops one daemon as an operator would (SIGTERM) and starts it again; returns its id.
    ///
    /// # Errors
    ///
    /// When it does not stop cleanly or does not get ready again.
    pub(crate) fn restart(&mut self, context: &Context, profile: Profile, index: usize) -> Result<String> {
        let node = &mut self.nodes[index];
        node.ask_to_stop()?;
        node.wait_until_stopped()?;
        let noise = File::options().append(true).open(&node.log);
        let noise = noise.with_context(|| format!("open {}", node.log.display()))?;
        node.child = spawn(context, profile, &node.settings, noise)?;
        node.wait_until_ready(context)?;
        Ok(node.id.clone())
    }

    /// What a client needs to find and enter this cluster.
    pub(crate) fn client_env(&self) -> [(&'static str, String); 2] {
        let server = |node: &Node| format!("{}=127.0.0.1:{}", node.id, node.port);
        let servers: Vec<String> = self.nodes.iter().map(server).collect();
        [("MEMKV_SERVERS", servers.join(",")), ("MEMKV_AUTH_KEY", self.key.clone())]
    }

    /// `kv-1 on 127.0.0.1:9900, …`.
    pub(crate) fn describe(&self) -> String {
        let names: Vec<String> =
            self.nodes.iter().map(|node| format!("{} on 127.0.0.1:{}", node.id, node.port)).collect();
        names.join(", ")
    }

    /// Kills one daemon as `kill -9` does, and returns its id.
    pub(crate) fn kill(&mut self, index: usize) -> Result<String> {
        let node = &mut self.nodes[index];
        node.child.0.kill().context("kill a daemon")?;
        node.child.0.wait().context("wait for a killed daemon")?;
        Ok(node.id.clone())
    }

    /// Asks all daemons to stop, as an operator would, and fails if one does not do it cleanly.
    pub(crate) fn stop(mut self) -> Result<()> {
        let mut asked = Vec::new();
        for (index, node) in self.nodes.iter_mut().enumerate() {
            if node.child.0.try_wait()?.is_some() {
                continue;
            }
            node.ask_to_stop()?;
            asked.push(index);
        }
        for index in asked {
            self.nodes[index].wait_until_stopped()?;
        }
        Ok(())
    }
}

/// Starts a daemon with these settings and nothing that this shell says about another one.
fn spawn(
    context: &Context,
    profile: Profile,
    settings: &[(&'static str, String)],
    noise: File,
) -> Result<KillOnDrop> {
    let mut command = context.command(context.binary(profile, "memkv-server"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("MEMKV_")) {
        command.env_remove(name);
    }
    command.envs(settings.iter().cloned());
    command.stdin(Stdio::null()).stdout(noise.try_clone()?).stderr(noise);
    Ok(KillOnDrop(command.spawn().context("start memkv-server")?))
}

impl Node {
    fn ask_to_stop(&self) -> Result<()> {
        let pid = i32::try_from(self.child.0.id()).ok().and_then(Pid::from_raw).context("a daemon's pid")?;
        kill_process(pid, Signal::TERM).context("send SIGTERM to a daemon")
    }

    fn wait_until_ready(&mut self, context: &Context) -> Result<()> {
        let started = Instant::now();
        while !is_ready(self.admin) {
            context.check_stop()?;
            if let Some(status) = self.child.0.try_wait()? {
                show_tail(&self.log)?;
                bail!("the daemon {} ended at once ({status})", self.id);
            }
            if started.elapsed() > READY {
                show_tail(&self.log)?;
                bail!("the daemon {} was not ready within {} s", self.id, READY.as_secs());
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    fn wait_until_stopped(&mut self) -> Result<()> {
        let started = Instant::now();
        loop {
            match self.child.0.try_wait()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => {
                    show_tail(&self.log)?;
                    bail!("the daemon {} did not stop cleanly ({status})", self.id);
                }
                None if started.elapsed() > STOP => {
                    show_tail(&self.log)?;
                    bail!("the daemon {} did not stop within {} s", self.id, STOP.as_secs());
                }
                None => std::thread::sleep(POLL),
            }
        }
    }
}

/// Whether `/readyz` answers 200.
fn is_ready(admin: SocketAddr) -> bool {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&admin, Duration::from_secs(1))?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.take(4096).read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
}

fn free_port() -> Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("find a free port")
}

fn random_key() -> Result<String> {
    let mut bytes = [0_u8; 32];
    File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .context("make a random key")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_64_hex_digits_and_differ() {
        let (a, b) = (random_key().unwrap(), random_key().unwrap());
        assert!(a.len() == 64 && a.bytes().all(|byte| byte.is_ascii_hexdigit()));
        assert_ne!(a, b);
    }

    #[test]
    fn a_closed_port_is_not_ready() {
        let listener = free_port().unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        assert!(!is_ready(address));
    }
}
