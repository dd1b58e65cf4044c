//! Peers whose client is a library for Python: a small script does the passes and reports the time of each batch.
//!
//! The script takes one order a line on its standard input and answers with one line that begins with `=`; other lines
//! are noise of libraries. Its pages are its own; it compares them itself, outside of the timed calls.

use super::install::{Cache, Python};
use super::process::{Process, free_port};
use crate::child;
use crate::subject::{Kind, Subject};
use anyhow::{Context as _, bail};
use serde_json::{Value, json};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use tempfile::TempDir;

const MOONCAKE: &str = include_str!("../../peers/mooncake_peer.py");

/// Mooncake Store from PyPI: its master, a process that holds the pages, and a client, over TCP.
///
/// # Errors
///
/// If it is absent or does not start.
pub(super) fn mooncake(cache: &Cache, room_bytes: u64) -> anyhow::Result<Box<dyn Subject>> {
    let found = cache.mooncake()?;
    let folder = tempfile::tempdir().context("make a folder for a script")?;
    let script = folder.path().join("mooncake_peer.py");
    std::fs::write(&script, MOONCAKE).context("write a script")?;
    let (port, metrics) = (free_port()?.to_string(), free_port()?.to_string());
    let mut command = Command::new(&found.master);
    cache.with_libraries(&mut command);
    command.args(["-rpc_port", &port, "-metrics_port", &metrics]);
    let mut master = Process::start(command)?;
    master.wait_port(port.parse()?)?;
    let server = Script::start(&found.python, cache, &script, &["server", &port, &room_bytes.to_string()])?;
    let size = room_bytes / 2;
    let client = Script::start(&found.python, cache, &script, &["client", &port, &size.to_string()])?;
    Ok(Box::new(Scripted {
        name: "mooncake",
        note: format!(
            "Mooncake Store {}, TCP; its Python client, batch_put_from and batch_get_into",
            found.version
        ),
        servers: vec![master.pid(), server.child.id()],
        client,
        stored: String::new(),
        _owned: (server, master, folder),
    }))
}

/// A peer with a script for a client.
struct Scripted {
    name: &'static str,
    note: String,
    servers: Vec<u32>,
    client: Script,
    /// The name of the keys that were put last.
    stored: String,
    _owned: (Script, Process, TempDir),
}

impl Scripted {
    fn nanos(&mut self, order: &Value) -> anyhow::Result<Vec<u64>> {
        let mut answer = self.client.order(order)?;
        serde_json::from_value(answer["nanos"].take()).context("understand a script's times")
    }

    fn pass(&mut self, what: &str, batch: usize, count: usize, page: usize) -> anyhow::Result<Vec<u64>> {
        let order = json!({ "do": what, "page": page, "batch": batch, "count": count, "name": self.stored });
        self.nanos(&order)
    }
}

/// What names a list of keys.
fn name_of(keys: &[Vec<u8>]) -> String {
    String::from_utf8_lossy(keys.first().map_or(&[][..], |key| &key[..key.len().min(16)])).into_owned()
}

impl Subject for Scripted {
    fn name(&self) -> &str {
        self.name
    }

    fn kind(&self) -> Kind {
        Kind::Peer
    }

    fn note(&self) -> String {
        self.note.clone()
    }

    fn servers(&self) -> &[u32] {
        &self.servers
    }

    fn client(&self) -> Option<u32> {
        Some(self.client.child.id())
    }

    fn compares_itself(&self) -> bool {
        true
    }

    fn clear(&mut self) -> anyhow::Result<()> {
        self.client.order(&json!({ "do": "clear" })).map(drop)
    }

    fn put_pass(&mut self, batch: usize, keys: &[Vec<u8>], pages: &[&[u8]]) -> anyhow::Result<Vec<u64>> {
        self.stored = name_of(keys);
        self.pass("put", batch, keys.len(), pages.first().map_or(0, |page| page.len()))
    }

    fn get_pass(
        &mut self,
        batch: usize,
        keys: &[Vec<u8>],
        pages: &mut [&mut [u8]],
    ) -> anyhow::Result<Vec<u64>> {
        self.pass("get", batch, keys.len(), pages.first().map_or(0, |page| page.len()))
    }

    fn exists(&mut self, keys: &[Vec<u8>], times: usize) -> anyhow::Result<Vec<u64>> {
        self.nanos(&json!({ "do": "exists", "count": keys.len(), "name": self.stored, "times": times }))
    }
}

/// A running script; it is killed with this handle.
struct Script {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Script {
    /// Starts a script and waits until it is ready.
    fn start(python: &Python, cache: &Cache, script: &Path, args: &[&str]) -> anyhow::Result<Self> {
        let mut command = python.command();
        cache.with_libraries(&mut command);
        command.arg(script).args(args);
        // The libraries log every transfer otherwise.
        command.env("GLOG_minloglevel", "2").env("MC_LOG_LEVEL", "ERROR");
        let mut command = child::kept(&command)?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().context("start a script")?;
        let orders = child.stdin.take().context("write to a script")?;
        let answers = BufReader::new(child.stdout.take().context("read from a script")?);
        let mut script = Self { child, orders, answers };
        script.answer().context("wait until a script is ready")?;
        Ok(script)
    }

    fn answer(&mut self) -> anyhow::Result<String> {
        let mut line = Vec::new();
        loop {
            line.clear();
            if self.answers.read_until(b'\n', &mut line).context("read from a script")? == 0 {
                bail!("the script ended; run it by hand to see why");
            }
            if let Some(answer) = line.strip_prefix(b"=") {
                return Ok(String::from_utf8_lossy(answer).trim().to_owned());
            }
        }
    }

    fn order(&mut self, order: &Value) -> anyhow::Result<Value> {
        writeln!(self.orders, "{order}").context("write to a script")?;
        let answer: Value = serde_json::from_str(&self.answer()?).context("understand a script")?;
        match answer.get("error") {
            Some(error) => bail!("the script failed: {error}"),
            None => Ok(answer),
        }
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        // It may have ended already; there is nothing to do about either failure.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_is_passed_over_and_errors_are_told() {
        let python = Python::system();
        let Ok(cache) = Cache::new(false, None) else { panic!("a cache has a place") };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.py");
        let text = "import sys\nprint('noise')\nprint('=ready', flush=True)\nfor line in sys.stdin:\n    \
                    print('noise'); print('={\"nanos\": [1, 2]}' if 'put' in line else '={\"error\": \"no\"}', flush=True)\n";
        std::fs::write(&path, text).unwrap();
        let mut script = Script::start(&python, &cache, &path, &[]).unwrap();
        assert_eq!(script.order(&json!({ "do": "put" })).unwrap()["nanos"], json!([1, 2]));
        assert!(script.order(&json!({ "do": "get" })).unwrap_err().to_string().contains("no"));
        std::fs::write(&path, "pass\n").unwrap();
        assert!(Script::start(&python, &cache, &path, &[]).is_err(), "it ends before it is ready");
    }
}
