//! A server and a client in this process, over one simulated network, and memory that pages move to and from.

use memkv_client::blocking::{Client, Space};
use memkv_client::{
    Config, ConfigBuilder, PageOutcome, RawPieces, Region, ServerState, SpaceDescription, Transport,
};
use memkv_rdma::fake::Fabric;
use memkv_server::Server;
use memkv_server::config::Config as ServerConfig;
use memkv_tests::wait_for;
use std::cell::UnsafeCell;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// How long anything may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// Deadline of calls in tests that wait for it to pass.
pub(crate) const SHORT: Duration = Duration::from_millis(400);

pub(crate) fn server_config() -> ServerConfig {
    ServerConfig {
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        // The next port may be somebody else's.
        admin_listen: Some(SocketAddr::from(([127, 0, 0, 1], 0))),
        dram_bytes: 64 << 20,
        shutdown_timeout: Duration::from_secs(2),
        ..ServerConfig::default()
    }
}

pub(crate) fn server(fabric: &Fabric) -> Server {
    server_with(fabric, server_config())
}

pub(crate) fn server_with(fabric: &Fabric, config: ServerConfig) -> Server {
    Server::start_with(config, Some(Arc::new(fabric.clone()))).unwrap()
}

pub(crate) fn config(servers: &[&Server]) -> ConfigBuilder {
    let servers: Vec<String> = servers.iter().map(|server| server.address().to_string()).collect();
    Config::builder()
        .without_environment()
        .servers(servers.join(","))
        .transport(Transport::Rdma)
        .set("rdma_bounce", "1MiB")
        .op_timeout(PATIENCE)
        .connect_timeout(PATIENCE)
}

pub(crate) fn connect(fabric: &Fabric, config: ConfigBuilder) -> Client {
    let client = Client::connect_with(config.build().unwrap(), Some(Arc::new(fabric.clone()))).unwrap();
    wait_ready(&client);
    client
}

pub(crate) fn client(fabric: &Fabric, servers: &[&Server]) -> Client {
    connect(fabric, config(servers))
}

pub(crate) fn wait_ready(client: &Client) {
    wait_for("all servers are ready", PATIENCE, || {
        client.servers().iter().all(|server| server.state == ServerState::Ready).then_some(())
    })
    .unwrap();
}

pub(crate) fn space(client: &Client) -> Space {
    client.space(SpaceDescription::named("rdma").unwrap()).unwrap()
}

/// Memory that a peer may write at any time, so that it is only read byte by byte.
pub(crate) struct Memory {
    cells: Box<[UnsafeCell<u8>]>,
    region: Option<Region>,
}

// SAFETY: the cells are only touched through raw pointers, byte by byte.
unsafe impl Sync for Memory {}

impl Memory {
    /// Bytes that are in no region.
    pub(crate) fn new(bytes: usize) -> Self {
        Self { cells: (0..bytes).map(|_| UnsafeCell::new(0)).collect(), region: None }
    }

    /// Bytes that are a region of `client`.
    pub(crate) fn registered(client: &Client, bytes: usize) -> Self {
        let mut memory = Self::new(bytes);
        // SAFETY: the cells are dropped after the region (see `Drop`), and are only touched through raw pointers.
        memory.region = Some(unsafe { client.register_region(memory.at(0), bytes) }.unwrap());
        memory
    }

    pub(crate) fn at(&self, offset: usize) -> *mut u8 {
        self.cells[offset].get()
    }

    pub(crate) fn fill(&self, offset: usize, bytes: &[u8]) {
        for (cell, byte) in self.cells[offset..].iter().zip(bytes) {
            // SAFETY: the test is between two ops, so nobody else touches the cell.
            unsafe { cell.get().write_volatile(*byte) };
        }
    }

    pub(crate) fn read(&self, offset: usize, len: usize) -> Vec<u8> {
        // SAFETY: as in `fill`; what a late write would do is what the tests look for.
        self.cells[offset..offset + len].iter().map(|cell| unsafe { cell.get().read_volatile() }).collect()
    }

    pub(crate) fn forget(&mut self) {
        self.region = None;
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.forget();
    }
}

/// Pieces of memory, one or more for each page.
pub(crate) struct Pieces {
    pub(crate) ptrs: Vec<*mut u8>,
    pub(crate) lens: Vec<usize>,
    pub(crate) per_page: usize,
}

impl Pieces {
    /// Pages of `len` bytes, one after the other.
    pub(crate) fn pages(memory: &Memory, count: usize, len: usize) -> Self {
        Self {
            ptrs: (0..count).map(|page| memory.at(page * len)).collect(),
            lens: vec![len; count],
            per_page: 1,
        }
    }

    fn raw(&self) -> RawPieces<'_> {
        RawPieces { ptrs: &self.ptrs, lens: &self.lens, per_page: self.per_page }
    }

    pub(crate) fn put(&self, space: &Space, keys: &[Vec<u8>]) -> Vec<PageOutcome> {
        let mut out = vec![PageOutcome::Unavailable; keys.len()];
        // SAFETY: the memory lives until the call returns, and the test does not touch it meanwhile.
        unsafe { space.put_from_raw(keys, self.raw(), &mut out) }.unwrap();
        out
    }

    pub(crate) fn get(&self, space: &Space, keys: &[Vec<u8>]) -> Vec<PageOutcome> {
        let mut out = vec![PageOutcome::Unavailable; keys.len()];
        // SAFETY: as for `put`; pieces do not overlap.
        unsafe { space.get_into_raw(keys, self.raw(), &mut out) }.unwrap();
        out
    }
}

/// The sum of a series at the server's admin port.
pub(crate) fn metric(server: &Server, name: &str) -> u64 {
    let metrics = memkv_tests::http::Metrics::scrape(server.admin_address()).unwrap();
    assert!(metrics.names().contains(name), "{name} is not a series");
    let value = metrics.sum(name, &[]);
    assert!(value >= 0.0 && value.fract() == 0.0, "{name} is {value}");
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked above")]
    let whole = value as u64;
    whole
}
