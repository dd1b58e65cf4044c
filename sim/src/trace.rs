//! The events of a run: what ops came to, what was done to the cluster, and what client and server log.
//!
//! The last ones are kept for a failure's report; all of them go into a digest, so that two runs can be compared.

use crate::rng::mix;
use crate::sealed;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering::Relaxed};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Interest;
use tracing::{Event, Metadata, Subscriber};

/// Events that a failure shows.
const KEPT: usize = 150;

/// The record of one run.
pub(crate) struct Trace {
    now_ms: AtomicU64,
    /// The host that runs now, and whom that is when no host runs: the last one.
    current: AtomicUsize,
    hosts: Vec<Host>,
    /// Where this process keeps its files: no two runs have it in common, so it is in no event.
    folder: String,
    print: bool,
    log: Mutex<Log>,
}

struct Host {
    name: String,
    skew_ms: AtomicI64,
}

#[derive(Default)]
struct Log {
    digest: u64,
    count: u64,
    last: VecDeque<String>,
    wrong: Vec<String>,
}

impl Trace {
    /// A record for these hosts, whose files are in `folder`; `print` shows every event at once.
    pub(crate) fn new(hosts: Vec<String>, folder: &Path, print: bool) -> Arc<Self> {
        let hosts = hosts.into_iter().chain(["world".to_owned()]);
        let hosts: Vec<_> = hosts.map(|name| Host { name, skew_ms: AtomicI64::new(0) }).collect();
        Arc::new(Self {
            now_ms: AtomicU64::new(0),
            current: AtomicUsize::new(hosts.len() - 1),
            hosts,
            folder: folder.display().to_string(),
            print,
            log: Mutex::default(),
        })
    }

    /// Sets the simulated time.
    pub(crate) fn set_now_ms(&self, now_ms: u64) {
        self.now_ms.store(now_ms, Relaxed);
        sealed::set_now_ms(now_ms);
    }

    /// The simulated time, as of the present step.
    pub(crate) fn now_ms(&self) -> u64 {
        self.now_ms.load(Relaxed)
    }

    /// Sets how far a host's wall clock is off.
    pub(crate) fn set_skew_ms(&self, host: usize, skew_ms: i64) {
        self.hosts[host].skew_ms.store(skew_ms, Relaxed);
    }

    /// Notes an event of the host that runs now.
    pub(crate) fn note(&self, text: &str) {
        let host = &self.hosts[self.current.load(Relaxed)].name;
        let text = text.replace(&self.folder, "FOLDER");
        let line = format!("{:>7} {host:<5} {text}", self.now_ms());
        if self.print {
            eprintln!("{line}");
        }
        let mut log = self.log.lock();
        let digest = line.bytes().fold(log.digest, |digest, byte| mix(digest ^ u64::from(byte)));
        log.digest = digest;
        log.count += 1;
        if log.last.len() == KEPT {
            log.last.pop_front();
        }
        log.last.push_back(line);
    }

    /// Notes that something happened that must not.
    pub(crate) fn wrong(&self, text: String) {
        self.note(&format!("WRONG: {text}"));
        self.log.lock().wrong.push(text);
    }

    /// What must not have happened and did.
    pub(crate) fn violations(&self) -> Vec<String> {
        self.log.lock().wrong.clone()
    }

    /// A number that two runs have in common only if all their events are the same; and how many events there were.
    pub(crate) fn digest(&self) -> (u64, u64) {
        let log = self.log.lock();
        (log.digest, log.count)
    }

    /// The last events.
    pub(crate) fn last(&self) -> Vec<String> {
        self.log.lock().last.iter().cloned().collect()
    }
}

/// Hands the log lines of client and server to a [`Trace`], and learns from the network's spans which host runs.
pub(crate) struct Listener(pub(crate) Arc<Trace>);

impl Listener {
    fn wants(metadata: &Metadata<'_>) -> bool {
        if metadata.is_span() {
            return metadata.name() == "node" && metadata.target().starts_with("turmoil");
        }
        metadata.target().starts_with("memkv") && *metadata.level() <= tracing::Level::DEBUG
    }

    fn run(&self, host: usize) {
        self.0.current.store(host, Relaxed);
        sealed::set_skew_ms(self.0.hosts[host].skew_ms.load(Relaxed));
    }
}

impl Subscriber for Listener {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if Self::wants(metadata) { Interest::always() } else { Interest::never() }
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        Self::wants(metadata)
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        let mut words = Words::default();
        span.record(&mut words);
        let host = self.0.hosts.iter().position(|host| words.message == host.name);
        Id::from_u64(host.unwrap_or(self.0.hosts.len() - 1) as u64 + 1)
    }

    fn record(&self, _span: &Id, _values: &Record<'_>) {}

    fn record_follows_from(&self, _span: &Id, _follows: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut words = Words::default();
        event.record(&mut words);
        self.0.note(&format!("{} {}{}", event.metadata().target(), words.message, words.fields));
    }

    fn enter(&self, span: &Id) {
        self.run(span.into_u64() as usize - 1);
    }

    fn exit(&self, _span: &Id) {
        self.run(self.0.hosts.len() - 1);
    }
}

/// The words of an event.
#[derive(Default)]
struct Words {
    /// The text of an event, or the name of a host.
    message: String,
    fields: String,
}

impl Visit for Words {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let written = match field.name() {
            "message" | "name" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
        written.expect("a string takes everything");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_a_run_keeps_its_files_is_not_in_its_digest() {
        let digest = |folder: &str, text: &str| {
            let trace = Trace::new(vec!["s0".to_owned()], Path::new(folder), false);
            trace.note(&format!("{text} {folder}/s0-drive"));
            (trace.digest(), trace.last())
        };
        assert_eq!(digest("/tmp/x-1", "full:"), digest("/tmp/x-22", "full:"));
        assert_ne!(digest("/tmp/x-1", "full:").0, digest("/tmp/x-1", "failed:").0);
    }
}
