//! Subjects that are reached over one or two connections of our own making: plain sockets and other stores.
//!
//! With two connections each batch is shared between them, one thread a connection; both wait for each other after every
//! batch, as a caller waits for its batch.

use super::{Kind, Subject};
use crate::child;
use crate::raw::elapsed_nanos;
use anyhow::ensure;
use std::sync::Barrier;
use std::time::Instant;

/// One connection.
pub(crate) trait Conn: Send {
    /// Stores pages and waits until they are. `first` numbers the first page among those of this connection.
    ///
    /// # Errors
    ///
    /// If a page was not stored.
    fn put(&mut self, first: usize, keys: &[Vec<u8>], pages: &[&[u8]]) -> anyhow::Result<()>;

    /// Reads pages.
    ///
    /// # Errors
    ///
    /// If a page is not there or has another length.
    fn get(&mut self, first: usize, keys: &[Vec<u8>], pages: &mut [&mut [u8]]) -> anyhow::Result<()>;

    /// What can be made ready before the same keys are asked for again and again.
    fn prepare_exists(&mut self, keys: &[Vec<u8>]) {
        let _ = keys;
    }

    /// Asks whether pages are there.
    ///
    /// # Errors
    ///
    /// If one is not.
    fn exists(&mut self, keys: &[Vec<u8>]) -> anyhow::Result<()>;

    /// Forgets all pages, also those of other connections.
    ///
    /// # Errors
    ///
    /// If the connection is broken.
    fn clear(&mut self) -> anyhow::Result<()> {
        Ok(())
    }
}

/// A subject of one or two connections.
pub(crate) struct Connected<C> {
    pub name: String,
    pub kind: Kind,
    pub note: String,
    pub servers: Vec<u32>,
    /// One or two.
    pub conns: Vec<C>,
    /// What must live as long as the connections.
    pub _owner: Option<Box<dyn std::any::Any>>,
}

impl<C: Conn> Subject for Connected<C> {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> Kind {
        self.kind
    }

    fn note(&self) -> String {
        self.note.clone()
    }

    fn servers(&self) -> &[u32] {
        &self.servers
    }

    fn takes(&self, batch: usize) -> bool {
        // The baseline of two connections is no other for a single page.
        batch > 1 || self.conns.len() == 1 || self.kind == Kind::Peer
    }

    fn turn(&self, begins: bool) {
        if self.kind == Kind::Peer {
            self.servers.iter().for_each(|&server| child::set_stopped(server, !begins));
        }
    }

    fn clear(&mut self) -> anyhow::Result<()> {
        self.conns[0].clear()
    }

    fn put_pass(&mut self, batch: usize, keys: &[Vec<u8>], pages: &[&[u8]]) -> anyhow::Result<Vec<u64>> {
        let work = keys.chunks(batch).zip(pages.chunks(batch));
        let [one, two] = match &mut self.conns[..] {
            [one, two] if batch > 1 => [one, two],
            conns => {
                let one = &mut conns[0];
                return alone(batch, work, |first, (keys, pages)| one.put(first, keys, pages));
            }
        };
        let half = batch.div_ceil(2);
        let halves = work.map(|(keys, pages)| {
            let (keys, pages) = (keys.split_at(half.min(keys.len())), pages.split_at(half.min(pages.len())));
            ((keys.0, pages.0), (keys.1, pages.1))
        });
        let (left, right) = halves.unzip();
        in_pairs(
            half,
            left,
            right,
            |first, (keys, pages)| one.put(first, keys, pages),
            |first, (keys, pages): (&[Vec<u8>], &[&[u8]])| {
                if keys.is_empty() { Ok(()) } else { two.put(first, keys, pages) }
            },
        )
    }

    fn get_pass(
        &mut self,
        batch: usize,
        keys: &[Vec<u8>],
        pages: &mut [&mut [u8]],
    ) -> anyhow::Result<Vec<u64>> {
        let work = keys.chunks(batch).zip(pages.chunks_mut(batch));
        let [one, two] = match &mut self.conns[..] {
            [one, two] if batch > 1 => [one, two],
            conns => {
                let one = &mut conns[0];
                return alone(batch, work, |first, (keys, pages)| one.get(first, keys, pages));
            }
        };
        let half = batch.div_ceil(2);
        let halves = work.map(|(keys, pages)| {
            let at = half.min(keys.len());
            let (keys, pages) = (keys.split_at(at), pages.split_at_mut(at));
            ((keys.0, pages.0), (keys.1, pages.1))
        });
        let (left, right) = halves.unzip();
        in_pairs(
            half,
            left,
            right,
            |first, (keys, pages)| one.get(first, keys, pages),
            |first, (keys, pages): (&[Vec<u8>], &mut [&mut [u8]])| {
                if keys.is_empty() { Ok(()) } else { two.get(first, keys, pages) }
            },
        )
    }

    fn exists(&mut self, keys: &[Vec<u8>], times: usize) -> anyhow::Result<Vec<u64>> {
        let one = &mut self.conns[0];
        one.prepare_exists(keys);
        let mut nanos = Vec::with_capacity(times);
        for _ in 0..times {
            let start = Instant::now();
            one.exists(keys)?;
            nanos.push(elapsed_nanos(start));
        }
        Ok(nanos)
    }
}

fn alone<T>(
    batch: usize,
    work: impl Iterator<Item = T>,
    mut each: impl FnMut(usize, T) -> anyhow::Result<()>,
) -> anyhow::Result<Vec<u64>> {
    let mut nanos = Vec::new();
    for (i, part) in work.enumerate() {
        let start = Instant::now();
        each(i * batch, part)?;
        nanos.push(elapsed_nanos(start));
    }
    Ok(nanos)
}

/// Works on both halves of each batch at once, on two threads that wait for each other after every batch.
fn in_pairs<T: Send>(
    half: usize,
    left: Vec<T>,
    right: Vec<T>,
    mut on_left: impl FnMut(usize, T) -> anyhow::Result<()>,
    mut on_right: impl FnMut(usize, T) -> anyhow::Result<()> + Send,
) -> anyhow::Result<Vec<u64>> {
    ensure!(left.len() == right.len(), "the halves of the batches differ in number");
    let barrier = &Barrier::new(2);
    std::thread::scope(|scope| {
        let helper = scope.spawn(move || {
            barrier.wait();
            let mut result = Ok(());
            for (i, part) in right.into_iter().enumerate() {
                // A failed side keeps the pace, or the other one would wait for ever.
                result = result.and_then(|()| on_right(i * half, part));
                barrier.wait();
            }
            result
        });
        let mut nanos = Vec::with_capacity(left.len());
        let mut result = Ok(());
        barrier.wait();
        for (i, part) in left.into_iter().enumerate() {
            let start = Instant::now();
            result = result.and_then(|()| on_left(i * half, part));
            barrier.wait();
            nanos.push(elapsed_nanos(start));
        }
        helper.join().map_err(|_| anyhow::anyhow!("the second connection's thread panicked"))??;
        result.map(|()| nanos)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;
    use std::sync::{Arc, Mutex};

    /// Keeps pages in a map, and what each connection was asked.
    #[derive(Clone)]
    struct Map {
        pages: Arc<Mutex<HashMap<Vec<u8>, Vec<u8>>>>,
        firsts: Arc<Mutex<Vec<usize>>>,
    }

    impl Conn for Map {
        fn put(&mut self, first: usize, keys: &[Vec<u8>], pages: &[&[u8]]) -> anyhow::Result<()> {
            self.firsts.lock().unwrap().push(first);
            let pairs = keys.iter().cloned().zip(pages.iter().map(|page| page.to_vec()));
            self.pages.lock().unwrap().extend(pairs);
            Ok(())
        }

        fn get(&mut self, _: usize, keys: &[Vec<u8>], pages: &mut [&mut [u8]]) -> anyhow::Result<()> {
            let stored = self.pages.lock().unwrap();
            for (key, page) in keys.iter().zip(pages) {
                page.copy_from_slice(stored.get(key).ok_or_else(|| anyhow::anyhow!("no such page"))?);
            }
            Ok(())
        }

        fn exists(&mut self, keys: &[Vec<u8>]) -> anyhow::Result<()> {
            let stored = self.pages.lock().unwrap();
            ensure!(keys.iter().all(|key| stored.contains_key(key)), "no such page");
            Ok(())
        }
    }

    fn connected(conns: usize) -> (Connected<Map>, Vec<Map>) {
        let pages = Arc::default();
        let maps: Vec<Map> =
            (0..conns).map(|_| Map { pages: Arc::clone(&pages), firsts: Arc::default() }).collect();
        let subject = Connected {
            name: "map".into(),
            kind: Kind::Peer,
            note: String::new(),
            servers: Vec::new(),
            conns: maps.clone(),
            _owner: None,
        };
        (subject, maps)
    }

    #[test]
    fn one_and_two_connections_move_every_page_once() {
        for (conns, batch, batches) in [(1, 4, 4), (2, 4, 4), (2, 5, 3), (2, 1, 15), (2, 64, 1)] {
            let (mut subject, maps) = connected(conns);
            let keys = crate::workload::keys("conns", 15);
            let source: Vec<Vec<u8>> = (0..15_u8).map(|i| vec![i; 64]).collect();
            let pages: Vec<&[u8]> = source.iter().map(Vec::as_slice).collect();
            assert_eq!(subject.put_pass(batch, &keys, &pages).unwrap().len(), batches);
            let mut target = vec![vec![0; 64]; 15];
            let mut pages: Vec<&mut [u8]> = target.iter_mut().map(Vec::as_mut_slice).collect();
            assert_eq!(subject.get_pass(batch, &keys, &mut pages).unwrap().len(), batches);
            assert_eq!(target, source);
            // The pages of a connection are numbered one after the other, so that fixed slots do not overlap.
            let firsts = maps[0].firsts.lock().unwrap().clone();
            let step = if conns == 2 && batch > 1 { usize::div_ceil(batch, 2) } else { batch };
            assert_eq!(firsts, (0..batches).map(|i| i * step).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_peer_s_server_is_stopped_between_its_turns() {
        let (mut subject, _) = connected(1);
        let mut server = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let becomes = |state: &str| {
            let of = || std::fs::read_to_string(format!("/proc/{}/stat", server.id())).unwrap();
            (0..1000).any(|_| {
                std::thread::sleep(std::time::Duration::from_millis(5));
                of().contains(&format!(") {state} "))
            })
        };
        subject.servers = vec![server.id()];
        subject.turn(false);
        assert!(becomes("T"));
        subject.turn(true);
        assert!(becomes("S"));
        subject.kind = Kind::Baseline;
        subject.turn(false);
        subject.kind = Kind::Peer;
        assert!(becomes("S"), "a baseline is never stopped");
        server.kill().unwrap();
        server.wait().unwrap();
    }

    #[test]
    fn a_failure_of_either_connection_is_the_pass_s_failure() {
        let (mut subject, _) = connected(2);
        let keys = crate::workload::keys("conns", 4);
        let mut target = vec![vec![0; 64]; 4];
        for missing in [0, 3] {
            let stored = keys.iter().enumerate().filter(|(i, _)| *i != missing);
            let pages = stored.map(|(_, key)| (key.clone(), vec![1; 64])).collect();
            *subject.conns[0].pages.lock().unwrap() = pages;
            let mut pages: Vec<&mut [u8]> = target.iter_mut().map(Vec::as_mut_slice).collect();
            assert!(subject.get_pass(4, &keys, &mut pages).is_err());
            assert!(subject.exists(&keys, 1).is_err());
        }
    }
}
