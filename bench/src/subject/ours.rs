//! MemKV over one transport, as a subject.

use super::{Kind, Subject, region};
use crate::daemon::Daemon;
use crate::raw::elapsed_nanos;
use anyhow::{Context as _, ensure};
use memkv_client::blocking::{Client, Space};
use memkv_client::{Config, PageOutcome, Region, Transport};
use memkv_core::SpaceDescription;
use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant};

/// A bench must not time out on a busy machine: it measures, it does not judge.
const OP_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a transport may take until it works.
const PATIENCE: Duration = Duration::from_secs(5);

/// A client with one transport, and a space of its own.
pub(crate) struct Ours {
    name: String,
    client: Client,
    space: Space,
    servers: Vec<u32>,
    outcomes: Vec<PageOutcome>,
    /// The run's memory, where pages move by RDMA.
    regions: Vec<Region>,
}

/// How pages move, and whether they are encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Over {
    /// A transport, in plain text.
    Plain(Transport),
    /// TCP, inside TLS.
    Tls,
}

impl FromStr for Over {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "tls" {
            return Ok(Self::Tls);
        }
        text.parse().map(Self::Plain).map_err(|error: String| format!("{error}, or tls for TCP inside TLS"))
    }
}

impl fmt::Display for Over {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain(transport) => transport.fmt(f),
            Self::Tls => f.write_str("tls"),
        }
    }
}

/// What MemKV over a transport is called.
pub(crate) fn name(over: Over) -> String {
    format!("memkv {over}")
}

/// Connects over one transport.
///
/// # Errors
///
/// If the client refuses the transport.
pub(crate) fn connect(address: &str, key: Option<&str>, transport: Transport) -> anyhow::Result<Client> {
    let config = Config::builder().servers(address).transport(transport).op_timeout(OP_TIMEOUT);
    let config = match key {
        Some(key) => config.auth_key_hex(key),
        None => config,
    };
    Ok(Client::connect(config.build()?)?)
}

/// Connects over TCP inside TLS.
fn connect_secure(daemon: &Daemon) -> anyhow::Result<Client> {
    let config = Config::builder().servers(daemon.address()).transport(Transport::Tcp).op_timeout(OP_TIMEOUT);
    let config = config.auth_key_hex(daemon.key()).set("tls", "on");
    let config = config.set("tls_ca", daemon.ca().display().to_string());
    Ok(Client::connect(config.build()?)?)
}

/// Puts and gets one page, so that a transport that does not work is noticed, and why.
///
/// # Errors
///
/// If it does not work here.
pub(crate) fn probe(client: &Client, space: &Space) -> anyhow::Result<()> {
    let begun = Instant::now();
    loop {
        let mut target = [0; 4096];
        let put = space.put(b"probe", &[7; 4096]);
        let got = space.get_into(&[b"probe"], &mut [&mut target], &mut [PageOutcome::Miss]);
        if matches!(put, Ok(PageOutcome::Stored | PageOutcome::Exists)) && got.is_ok() && target == [7; 4096]
        {
            return Ok(());
        }
        if begun.elapsed() > PATIENCE {
            let views = client.servers();
            let why = views.iter().find_map(|view| view.last_error.clone());
            let outcome = format!("a put of a page ended with {put:?}");
            anyhow::bail!("{}", why.unwrap_or(outcome));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

impl Ours {
    /// Connects to the daemon; fails with the reason if this build or machine lacks the transport.
    ///
    /// # Errors
    ///
    /// As said.
    pub(crate) fn new(daemon: &Daemon, over: Over, memory: [(*mut u8, usize); 2]) -> anyhow::Result<Self> {
        let client = match over {
            Over::Plain(transport) => connect(&daemon.address(), Some(daemon.key()), transport)?,
            Over::Tls => connect_secure(daemon)?,
        };
        let space = client.space(SpaceDescription::named(&format!("bench-{over}"))?)?;
        probe(&client, &space)?;
        let regions = if over == Over::Plain(Transport::Rdma) {
            region::register(&client, memory)?
        } else {
            Vec::new()
        };
        let (servers, outcomes) = (vec![daemon.pid()], Vec::new());
        Ok(Self { name: name(over), client, space, servers, outcomes, regions })
    }

    fn outcomes(&mut self, count: usize) {
        self.outcomes.clear();
        self.outcomes.resize(count, PageOutcome::Miss);
    }

    fn expect(&self, wanted: PageOutcome) -> anyhow::Result<()> {
        let bad = self.outcomes.iter().find(|&&outcome| outcome != wanted);
        ensure!(bad.is_none(), "a page was {bad:?} and not {wanted:?}");
        Ok(())
    }
}

impl Drop for Ours {
    fn drop(&mut self) {
        if !self.regions.is_empty() {
            let moved = self.client.stats().rdma;
            eprintln!(
                "by RDMA: {} pages without a copy, {} through the bounce buffer, {} in frames",
                moved.direct_pages, moved.bounced_pages, moved.framed_pages
            );
            self.regions.clear();
        }
        self.client.clone().close();
    }
}

impl Subject for Ours {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> Kind {
        Kind::Memkv
    }

    fn note(&self) -> String {
        "memkv-server with authentication and checksums".into()
    }

    fn servers(&self) -> &[u32] {
        &self.servers
    }

    fn clear(&mut self) -> anyhow::Result<()> {
        self.space.clear().context("clear the space")?;
        Ok(())
    }

    fn put_pass(&mut self, batch: usize, keys: &[Vec<u8>], pages: &[&[u8]]) -> anyhow::Result<Vec<u64>> {
        let mut nanos = Vec::with_capacity(keys.len() / batch);
        for (keys, pages) in keys.chunks(batch).zip(pages.chunks(batch)) {
            self.outcomes(keys.len());
            let start = Instant::now();
            self.space.put_from(keys, pages, &mut self.outcomes)?;
            nanos.push(elapsed_nanos(start));
            self.expect(PageOutcome::Stored)?;
        }
        Ok(nanos)
    }

    fn get_pass(
        &mut self,
        batch: usize,
        keys: &[Vec<u8>],
        pages: &mut [&mut [u8]],
    ) -> anyhow::Result<Vec<u64>> {
        let mut nanos = Vec::with_capacity(keys.len() / batch);
        for (keys, pages) in keys.chunks(batch).zip(pages.chunks_mut(batch)) {
            self.outcomes(keys.len());
            let start = Instant::now();
            self.space.get_into(keys, pages, &mut self.outcomes)?;
            nanos.push(elapsed_nanos(start));
            self.expect(PageOutcome::Hit)?;
        }
        Ok(nanos)
    }

    fn exists(&mut self, keys: &[Vec<u8>], times: usize) -> anyhow::Result<Vec<u64>> {
        let mut found = vec![false; keys.len()];
        let mut nanos = Vec::with_capacity(times);
        for _ in 0..times {
            found.fill(false);
            let start = Instant::now();
            self.space.exists(keys, &mut found)?;
            nanos.push(elapsed_nanos(start));
            ensure!(found.iter().all(|&found| found), "exists lost a key");
        }
        Ok(nanos)
    }
}
