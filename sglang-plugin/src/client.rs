//! The public client, and the connection that every space shares.

use crate::convert::{Keys, setting, space_description};
use crate::errors::{BadInputError, ClosedError, ConfigError, to_python};
use crate::process::OwnProcess;
use crate::space::Space;
use memkv_client::config::{self, CONFIG_ENV, OPTIONS};
use memkv_client::{Config, DiscoveryStats, OpStats, RdmaStats, Region, ServerState, ServerStats, blocking};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// The longest deadline of one operation. SGLang gives a call ten seconds when it detaches.
const OP_TIMEOUT_MAX: Duration = Duration::from_secs(8);

/// A connected client and whether it may still be used.
pub(crate) struct Connection {
    client: OwnProcess<blocking::Client>,
    closed: AtomicBool,
    op_timeout: Duration,
}

impl Connection {
    /// Refuses to go on in a forked child and after a close.
    pub(crate) fn check(&self) -> PyResult<()> {
        self.client().map(drop)
    }

    /// The deadline of one operation.
    pub(crate) fn op_timeout(&self) -> Duration {
        self.op_timeout
    }

    fn client(&self) -> PyResult<&blocking::Client> {
        let client = self.client.get()?;
        if self.closed.load(Ordering::Acquire) {
            return Err(ClosedError::new_err("the client is closed; make a new one"));
        }
        Ok(client)
    }
}

/// A client of a MemKV cluster.
#[pyclass(frozen, module = "memkv_sglang._native")]
pub struct Client {
    connection: Arc<Connection>,
    own_space: Option<Space>,
    buffers: Mutex<Buffers>,
}

#[pymethods]
impl Client {
    #[new]
    #[pyo3(signature = (servers=None, *, space=SpaceArgument::default(), config=None, **overrides))]
    fn new(
        py: Python<'_>,
        servers: Option<&Bound<'_, PyAny>>,
        space: SpaceArgument<'_>,
        config: Option<PathBuf>,
        overrides: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Self> {
        let description = match space {
            SpaceArgument::Default => Some(
                memkv_core::SpaceDescription::named("default")
                    .expect("the word is short and has no control characters"),
            ),
            SpaceArgument::Given(given) if given.is_none() => None,
            SpaceArgument::Given(given) => Some(space_description(&given)?),
        };
        let mut config = load_config(servers, config, overrides)?;
        config.op_timeout = config.op_timeout.min(OP_TIMEOUT_MAX);
        let op_timeout = config.op_timeout;
        let client = py.detach(|| blocking::Client::connect(config)).map_err(|error| to_python(&error))?;
        let connection = Arc::new(Connection {
            client: OwnProcess::new(client),
            closed: AtomicBool::new(false),
            op_timeout,
        });
        let own_space = match description {
            None => None,
            Some(description) => Some(open(py, &connection, description)?),
        };
        Ok(Self { connection, own_space, buffers: Mutex::default() })
    }

    fn __enter__(this: Py<Self>) -> Py<Self> {
        this
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, py: Python<'_>, _exception: &Bound<'_, PyAny>) -> PyResult<()> {
        self.close(py)
    }

    /// The deadline of one operation, in seconds.
    #[getter]
    fn op_seconds(&self) -> f64 {
        self.connection.op_timeout.as_secs_f64()
    }

    /// Announces memory that pages will be read into and written from. Announcing the same memory again is fine. It must
    /// stay allocated until it is taken back or the client is closed.
    ///
    /// True if its pages move by RDMA without a copy from now on; they move in any case.
    fn register_buffer(&self, py: Python<'_>, ptr: usize, size: usize) -> PyResult<bool> {
        let client = self.connection.client()?;
        if !self.buffers().add(ptr, size).map_err(BadInputError::new_err)? {
            return Ok(self.buffers().is_registered(ptr));
        }
        // Not under the lock of the buffers: a thread that waits for it may hold the interpreter's.
        let registered = py.detach(|| crate::raw::register(client, ptr, size));
        let Ok(region) = registered else { return Ok(false) };
        let late = self.buffers().keep(ptr, region);
        let kept = late.is_none();
        py.detach(|| drop(late));
        Ok(kept)
    }

    /// Takes back an announcement. When it returns, no server reaches the memory any more.
    fn unregister_buffer(&self, py: Python<'_>, ptr: usize) -> PyResult<()> {
        self.connection.check()?;
        let region = self.buffers().remove(ptr).map_err(BadInputError::new_err)?;
        py.detach(|| drop(region));
        Ok(())
    }

    /// Stores `sizes[i]` bytes at `ptrs[i]` under `keys[i]`. A page that is there already counts as stored.
    ///
    /// The memory must stay as it is until the call returns.
    fn batch_set_from(
        &self,
        py: Python<'_>,
        keys: &Bound<'_, PyAny>,
        ptrs: &Bound<'_, PyAny>,
        sizes: &Bound<'_, PyAny>,
    ) -> PyResult<Vec<bool>> {
        Ok(self.own_space()?.put_from(py, keys, ptrs, sizes, None, 0)?.into_flags())
    }

    /// Reads pages to memory. A page of another size is a miss.
    ///
    /// Nobody else may use the memory until the call returns.
    fn batch_get_into(
        &self,
        py: Python<'_>,
        keys: &Bound<'_, PyAny>,
        ptrs: &Bound<'_, PyAny>,
        sizes: &Bound<'_, PyAny>,
    ) -> PyResult<Vec<bool>> {
        Ok(self.own_space()?.get_into(py, keys, ptrs, sizes, None)?.into_flags())
    }

    /// Which of the keys are stored.
    fn batch_exists(&self, py: Python<'_>, keys: &Bound<'_, PyAny>) -> PyResult<Vec<bool>> {
        Ok(self.own_space()?.exists(py, keys)?.into_flags())
    }

    /// How many keys from the first on are stored without a gap.
    fn exists_prefix(&self, py: Python<'_>, keys: &Bound<'_, PyAny>) -> PyResult<usize> {
        self.own_space()?.exists_prefix(py, keys)
    }

    /// Removes the keys; a flag is true if the key was there.
    fn batch_remove(&self, py: Python<'_>, keys: &Bound<'_, PyAny>) -> PyResult<Vec<bool>> {
        Ok(self.own_space()?.remove(py, keys)?.into_flags())
    }

    /// One page, or `None` on a miss.
    fn get<'py>(&self, py: Python<'py>, key: &Bound<'py, PyAny>) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let page = self.own_space()?.get_one(py, &Keys::one(key)?)?;
        Ok(page.map(|page| PyBytes::new(py, &page)))
    }

    /// Stores one page; false if it could not be stored.
    fn set(&self, py: Python<'_>, key: &Bound<'_, PyAny>, value: &Bound<'_, PyBytes>) -> PyResult<bool> {
        self.own_space()?.set_one(py, &Keys::one(key)?, value.as_bytes())
    }

    /// Opens a further space over the same connections.
    fn space(&self, py: Python<'_>, fields: &Bound<'_, PyAny>) -> PyResult<Space> {
        open(py, &self.connection, space_description(fields)?)
    }

    /// Every server with `id`, `address`, `state` and `last_error`.
    fn servers<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyDict>>> {
        let views = self.connection.client()?.servers();
        views
            .into_iter()
            .map(|view| {
                let (state, reason) = state_of(&view.state);
                let entry = PyDict::new(py);
                entry.set_item("id", view.address.id)?;
                entry.set_item("address", format!("{}:{}", view.address.host, view.address.port))?;
                entry.set_item("state", state)?;
                entry.set_item("reason", reason)?;
                entry.set_item("transport", view.transport.to_string())?;
                entry.set_item("connections", view.connections)?;
                entry.set_item("last_error", view.last_error)?;
                Ok(entry)
            })
            .collect()
    }

    /// Counters since the client was made. Takes no lock and asks no server.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let found = self.connection.client()?.stats();
        let stats = PyDict::new(py);
        for (name, op) in [
            ("exists", &found.exists),
            ("get", &found.get),
            ("put", &found.put),
            ("delete", &found.delete),
            ("touch", &found.touch),
        ] {
            stats.set_item(name, op_stats(py, op)?)?;
        }
        for (name, count) in [
            ("misses", found.misses),
            ("already_stored", found.already_stored),
            ("size_mismatches", found.size_mismatches),
            ("too_large", found.too_large),
            ("busy", found.busy),
            ("corrupt", found.corrupt),
            ("unavailable", found.unavailable),
            ("timed_out", found.timed_out),
            ("denied", found.denied),
            ("refused", found.refused),
            ("shed_backlog", found.shed_backlog),
            ("shed_slow", found.shed_slow),
        ] {
            stats.set_item(name, count)?;
        }
        stats.set_item("rdma", rdma_stats(py, &found.rdma)?)?;
        stats.set_item("discovery", discovery_stats(py, &found.discovery)?)?;
        let servers: PyResult<Vec<_>> = found.servers.iter().map(|server| server_stats(py, server)).collect();
        stats.set_item("servers", servers?)?;
        Ok(stats)
    }

    /// Closes the connections. Closing twice is fine; everything else raises afterwards.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let client = self.connection.client.get()?;
        if !self.connection.closed.swap(true, Ordering::AcqRel) {
            let buffers = std::mem::take(&mut *self.buffers());
            py.detach(|| {
                drop(buffers);
                client.clone().close();
            });
        }
        Ok(())
    }
}

impl Client {
    fn own_space(&self) -> PyResult<&Space> {
        self.connection.check()?;
        self.own_space.as_ref().ok_or_else(|| {
            BadInputError::new_err("this client was made with space=None; use a space that it opened")
        })
    }

    fn buffers(&self) -> std::sync::MutexGuard<'_, Buffers> {
        self.buffers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The `space` argument; `None` means something else than leaving it out.
#[derive(Default)]
enum SpaceArgument<'py> {
    #[default]
    Default,
    Given(Bound<'py, PyAny>),
}

impl<'py> FromPyObject<'_, 'py> for SpaceArgument<'py> {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        Ok(Self::Given(object.to_owned()))
    }
}

fn open(
    py: Python<'_>,
    connection: &Arc<Connection>,
    description: memkv_core::SpaceDescription,
) -> PyResult<Space> {
    let client = connection.client()?;
    let space = py.detach(|| client.space(description)).map_err(|error| to_python(&error))?;
    Ok(Space::new(Arc::clone(connection), space))
}

/// File, then environment, then the arguments.
fn load_config(
    servers: Option<&Bound<'_, PyAny>>,
    file: Option<PathBuf>,
    overrides: Option<&Bound<'_, PyDict>>,
) -> PyResult<Config> {
    let mut environment = BTreeMap::new();
    for name in OPTIONS.iter().map(|option| option.env).chain([CONFIG_ENV]) {
        if let Some(value) = std::env::var_os(name) {
            let value = value
                .into_string()
                .map_err(|_| ConfigError::new_err(format!("environment variable {name}: not valid UTF-8")))?;
            environment.insert(name.to_owned(), value);
        }
    }
    if let Some(file) = file {
        let path = file
            .into_os_string()
            .into_string()
            .map_err(|_| BadInputError::new_err("the path of the configuration file is not valid UTF-8"))?;
        environment.insert(CONFIG_ENV.to_owned(), path);
    }
    let mut explicit = Vec::new();
    if let Some(servers) = servers.filter(|servers| !servers.is_none()) {
        explicit.push(("servers".to_owned(), setting("servers", servers)?));
    }
    for (name, value) in overrides.into_iter().flat_map(|overrides| overrides.iter()) {
        let name: String = name.extract()?;
        let value = setting(&name, &value)?;
        explicit.push((name, value));
    }
    config::resolve(&environment, &explicit, &|path| std::fs::read_to_string(path))
        .map_err(|error| to_python(&error))
}

/// The state's name, and why a server is not used.
fn state_of(state: &ServerState) -> (&'static str, Option<&str>) {
    match state {
        ServerState::Ready => ("ready", None),
        ServerState::Connecting => ("connecting", None),
        ServerState::Suspect { reason } => ("suspect", Some(reason)),
    }
}

/// The counters of one kind of operation.
fn op_stats<'py>(py: Python<'py>, stats: &OpStats) -> PyResult<Bound<'py, PyDict>> {
    let OpStats { calls, keys, ok, bytes, micros } = *stats;
    let entry = PyDict::new(py);
    entry.set_item("calls", calls)?;
    entry.set_item("keys", keys)?;
    entry.set_item("ok", ok)?;
    entry.set_item("bytes", bytes)?;
    entry.set_item("micros", micros)?;
    Ok(entry)
}

/// What moved by RDMA, and what had to be copied for it.
fn rdma_stats<'py>(py: Python<'py>, stats: &RdmaStats) -> PyResult<Bound<'py, PyDict>> {
    let RdmaStats {
        nics,
        regions,
        queue_pairs,
        direct_pages,
        direct_bytes,
        bounced_pages,
        bounced_bytes,
        framed_pages,
    } = *stats;
    let entry = PyDict::new(py);
    for (name, count) in [
        ("nics", nics.into()),
        ("regions", regions.into()),
        ("queue_pairs", queue_pairs.into()),
        ("direct_pages", direct_pages),
        ("direct_bytes", direct_bytes),
        ("bounced_pages", bounced_pages),
        ("bounced_bytes", bounced_bytes),
        ("framed_pages", framed_pages),
    ] {
        let count: u64 = count;
        entry.set_item(name, count)?;
    }
    Ok(entry)
}

/// How members are found.
fn discovery_stats<'py>(py: Python<'py>, stats: &DiscoveryStats) -> PyResult<Bound<'py, PyDict>> {
    let DiscoveryStats { epoch, lists, changes, failures, told_stale, skipped_records } = *stats;
    let entry = PyDict::new(py);
    for (name, count) in [
        ("epoch", epoch),
        ("lists", lists),
        ("changes", changes),
        ("failures", failures),
        ("told_stale", told_stale),
        ("skipped_records", skipped_records),
    ] {
        entry.set_item(name, count)?;
    }
    Ok(entry)
}

/// One server's counters.
fn server_stats<'py>(py: Python<'py>, stats: &ServerStats) -> PyResult<Bound<'py, PyDict>> {
    let entry = PyDict::new(py);
    entry.set_item("id", &stats.id)?;
    entry.set_item("available", stats.available)?;
    entry.set_item("connections", stats.connections)?;
    for (name, count) in [
        ("completed", stats.completed),
        ("timeouts", stats.timeouts),
        ("broken", stats.broken),
        ("breaker_opened", stats.breaker_opened),
        ("stores_closed", stats.stores_closed),
        ("corrupt", stats.corrupt),
        ("refused", stats.refused),
        ("shed_backlog", stats.shed_backlog),
        ("shed_slow", stats.shed_slow),
        ("sessions", stats.sessions),
    ] {
        entry.set_item(name, count)?;
    }
    Ok(entry)
}

/// Memory announced for transfers, by its start. Ranges do not overlap.
#[derive(Default)]
struct Buffers {
    ranges: BTreeMap<usize, Buffer>,
}

struct Buffer {
    bytes: usize,
    /// How often it was announced.
    count: usize,
    /// What the NICs know of it; `None` if its pages are copied.
    region: Option<Region>,
}

impl Buffers {
    /// Announces memory; whether it is new.
    fn add(&mut self, ptr: usize, size: usize) -> Result<bool, String> {
        let end = ptr.checked_add(size).filter(|_| ptr != 0 && size != 0);
        let Some(end) = end else {
            return Err(format!("not a buffer: address {ptr:#x}, {size} bytes"));
        };
        if let Some(held) = self.ranges.get_mut(&ptr).filter(|held| held.bytes == size) {
            held.count += 1;
            return Ok(false);
        }
        let below = self.ranges.range(..end).next_back();
        if let Some((&start, held)) = below.filter(|(start, held)| *start + held.bytes > ptr) {
            return Err(format!(
                "the buffer at {ptr:#x} overlaps the one at {start:#x} of {} bytes",
                held.bytes
            ));
        }
        self.ranges.insert(ptr, Buffer { bytes: size, count: 1, region: None });
        Ok(true)
    }

    /// Keeps what the NICs know of announced memory; gives it back if the announcement is gone by now.
    fn keep(&mut self, ptr: usize, region: Region) -> Option<Region> {
        match self.ranges.get_mut(&ptr) {
            Some(held) if held.region.is_none() && held.bytes == region.len() => {
                held.region = Some(region);
                None
            }
            _ => Some(region),
        }
    }

    fn is_registered(&self, ptr: usize) -> bool {
        self.ranges.get(&ptr).is_some_and(|held| held.region.is_some())
    }

    /// Takes one announcement back; with the last one goes what the NICs know.
    fn remove(&mut self, ptr: usize) -> Result<Option<Region>, String> {
        let Some(held) = self.ranges.get_mut(&ptr) else {
            return Err(format!("no buffer is registered at {ptr:#x}"));
        };
        held.count -= 1;
        if held.count > 0 {
            return Ok(None);
        }
        Ok(self.ranges.remove(&ptr).and_then(|held| held.region))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_do_not_overlap() {
        let mut buffers = Buffers::default();
        buffers.add(100, 50).unwrap();
        buffers.add(150, 50).unwrap();
        for (ptr, size) in [(99, 2), (149, 1), (100, 49), (120, 10), (10, 1000), (199, 1)] {
            assert!(buffers.add(ptr, size).unwrap_err().contains("overlaps"), "{ptr} {size}");
        }
        buffers.add(200, 1).unwrap();
    }

    #[test]
    fn a_buffer_is_held_as_often_as_it_was_announced() {
        let mut buffers = Buffers::default();
        buffers.add(100, 50).unwrap();
        buffers.add(100, 50).unwrap();
        buffers.remove(100).unwrap();
        assert!(buffers.add(120, 1).is_err());
        buffers.remove(100).unwrap();
        assert!(buffers.remove(100).is_err());
        buffers.add(120, 1).unwrap();
    }

    #[test]
    fn what_is_no_memory_is_refused() {
        let mut buffers = Buffers::default();
        assert!(buffers.add(0, 1).is_err());
        assert!(buffers.add(1, 0).is_err());
        assert!(buffers.add(usize::MAX, 2).is_err());
    }
}
