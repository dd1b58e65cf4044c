//! `memkv-bench hot`: one prefix that many clients read, with and without copies of hot pages.
//!
//! On one machine all servers share its processors, and another server is no help. What another server brings in a cluster
//! is its own network card. So each server is behind a relay that lets through so many bytes a second and no more; with
//! the relays far below what the processors can do, the figures are those of the cards.

use crate::daemon::{Daemon, find_server};
use crate::machine::Machine;
use crate::parse_size;
use crate::stats::Spread;
use anyhow::{Context as _, ensure};
use clap::Args;
use memkv_client::blocking::{Client, Space};
use memkv_client::{Config, PageOutcome, SpaceDescription, Transport};
use serde::Serialize;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How long copies may take to be everywhere.
const PATIENCE: Duration = Duration::from_secs(30);
/// Bytes that a relay takes at once.
const CHUNK: usize = 64 << 10;
const DRAM_BYTES: u64 = 256 << 20;

/// What `memkv-bench hot` takes.
#[derive(Args)]
pub(crate) struct HotArgs {
    /// Servers.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u8).range(2..=8))]
    servers: u8,
    /// Clients, each with its own connections and a thread that reads without a pause.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=16))]
    clients: u8,
    /// Pages of the prefix.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=256))]
    pages: u16,
    /// Bytes of a page.
    #[arg(long, value_parser = parse_size, default_value = "256KiB")]
    page: usize,
    /// Bytes a second that each server may send.
    #[arg(long, value_parser = parse_size, default_value = "100MiB")]
    card: usize,
    /// Copies of a hot page, at most.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u8).range(2..=8))]
    copies: u8,
    /// Rounds of each kind, in turns.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds of a round.
    #[arg(long, default_value = "3", value_parser = crate::parse_seconds)]
    seconds: f64,
    /// The memkv-server to start; the one beside this program by default.
    #[arg(long, env = "MEMKV_SERVER_BIN")]
    server: Option<PathBuf>,
    /// Prints JSON instead of a table.
    #[arg(long)]
    json: bool,
}

/// What one kind of client reached.
#[derive(Serialize)]
struct Reached {
    /// GB/s of all clients together.
    gb_per_s: Spread,
    /// Which part of the bytes each server sent.
    shares: Vec<f64>,
}

#[derive(Serialize)]
struct Report {
    command: String,
    machine: Machine,
    servers: u8,
    clients: u8,
    /// GB/s that one server may send.
    card_gb_per_s: f64,
    without: Reached,
    with: Reached,
    /// With copies, as a multiple of without.
    gain: f64,
}

/// Runs the measurement and prints it.
pub(crate) fn run(args: &HotArgs, command: String) -> anyhow::Result<()> {
    let program = find_server(args.server.clone())?;
    let key = hex::encode([7_u8; 32]);
    // A second of pings would be the resolution of everything here.
    let extra = ["--limits-ping-interval", "200ms", "--hot-reads", "50"];
    let start = |_| Daemon::start_as(&program, DRAM_BYTES, &key, &extra);
    let daemons: Vec<Daemon> = (0..args.servers).map(start).collect::<anyhow::Result<_>>()?;
    let relays = daemons.iter().map(|daemon| Relay::start(daemon.address().parse()?, args.card));
    let relays: Vec<Relay> = relays.collect::<anyhow::Result<_>>()?;
    let named = relays.iter().enumerate().map(|(at, relay)| format!("kv-{at}={}", relay.address));
    let servers = named.collect::<Vec<_>>().join(",");
    let crews = [Crew::start(&servers, &key, args, 1)?, Crew::start(&servers, &key, args, args.copies)?];
    crews[0].store()?;
    crews[1].spread(args)?;
    let mut rates = [Vec::new(), Vec::new()];
    let mut sent = [vec![0; relays.len()], vec![0; relays.len()]];
    for round in 0..args.rounds {
        // Neither is always first.
        for kind in if round % 2 == 0 { [0, 1] } else { [1, 0] } {
            let crew = &crews[kind];
            let before: Vec<u64> = relays.iter().map(Relay::sent).collect();
            rates[kind].push(crew.read(Duration::from_secs_f64(args.seconds))? / 1e9);
            for ((sum, relay), before) in sent[kind].iter_mut().zip(&relays).zip(before) {
                *sum += relay.sent() - before;
            }
        }
    }
    let [without, with] = [0, 1].map(|kind| reached(&rates[kind], &sent[kind]));
    let (without, with) = (without.context("no rounds")?, with.context("no rounds")?);
    let gain = with.gb_per_s.median / without.gb_per_s.median;
    let report = Report {
        command,
        machine: Machine::describe(),
        servers: args.servers,
        clients: args.clients,
        card_gb_per_s: args.card as f64 / 1e9,
        without,
        with,
        gain,
    };
    print(&report, args.json)
}

fn reached(rates: &[f64], sent: &[u64]) -> Option<Reached> {
    let all = sent.iter().sum::<u64>().max(1) as f64;
    let shares = sent.iter().map(|&sent| sent as f64 / all).collect();
    Some(Reached { gb_per_s: Spread::of(rates)?, shares })
}

fn print(report: &Report, json: bool) -> anyhow::Result<()> {
    if json {
        println!("{}", serde_json::to_string_pretty(report)?);
        return Ok(());
    }
    println!("`{}`\n\n{}\n", report.command, report.machine.line());
    println!(
        "| {} servers of {:.2} GB/s | GB/s | sent by each server |",
        report.servers, report.card_gb_per_s
    );
    println!("|---|---:|---|");
    for (name, reached) in [("one copy", &report.without), ("copies of hot pages", &report.with)] {
        let shares: Vec<_> = reached.shares.iter().map(|share| format!("{:.0} %", share * 100.0)).collect();
        let (rate, iqr) = (reached.gb_per_s.median, reached.gb_per_s.iqr);
        println!("| {name} | {rate:.3} ± {iqr:.3} | {} |", shares.join(", "));
    }
    println!("\n{:.2} times as much with copies.", report.gain);
    Ok(())
}

/// Clients that allow hot pages so many copies.
struct Crew {
    clients: Vec<(Client, Space)>,
    keys: Vec<Vec<u8>>,
    page: usize,
}

impl Crew {
    fn start(servers: &str, key: &str, args: &HotArgs, copies: u8) -> anyhow::Result<Self> {
        let client = |_| {
            let config = Config::builder()
                .without_environment()
                .servers(servers)
                .auth_key_hex(key)
                .transport(Transport::Tcp)
                .op_timeout(Duration::from_secs(30))
                .set("hot_copies", copies.to_string())
                .set("hedge", "off")
                .build()?;
            let client = Client::connect(config)?;
            let space = client.space(SpaceDescription::named("hot")?)?;
            Ok((client, space))
        };
        let clients = (0..args.clients).map(client).collect::<anyhow::Result<_>>()?;
        let keys = (0..args.pages).map(|page| format!("prefix page {page}").into_bytes()).collect();
        Ok(Self { clients, keys, page: args.page })
    }

    fn store(&self) -> anyhow::Result<()> {
        for (at, key) in self.keys.iter().enumerate() {
            let outcome = self.clients[0].1.put(key, &page(at, self.page))?;
            ensure!(outcome == PageOutcome::Stored, "a page was not stored: {outcome:?}");
        }
        Ok(())
    }

    /// Reads until all copies are there.
    fn spread(&self, args: &HotArgs) -> anyhow::Result<()> {
        let wanted = usize::from(args.copies.min(args.servers));
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            self.read(Duration::from_millis(500))?;
            let all_hot = self.clients.iter().all(|(client, _)| {
                client.stats().copies.hot_pages as usize == self.keys.len()
                    && client.stats().copies.pending == 0
            });
            let (client, space) = &self.clients[0];
            let homes =
                |key: &Vec<u8>| client.route(space.id(), key).iter().filter(|entry| entry.home).count();
            if all_hot && self.keys.iter().all(|key| homes(key) >= wanted) {
                return Ok(());
            }
        }
        anyhow::bail!("the pages did not become hot; is --card so small that they are read too seldom?")
    }

    /// Reads the prefix from all clients, again and again; returns the bytes a second of all together.
    fn read(&self, time: Duration) -> anyhow::Result<f64> {
        let (begun, bytes) = (Instant::now(), AtomicU64::new(0));
        let read = |space: &Space| -> anyhow::Result<()> {
            let mut room = vec![vec![0; self.page]; self.keys.len()];
            let mut out = vec![PageOutcome::Miss; self.keys.len()];
            while begun.elapsed() < time {
                let mut pages: Vec<&mut [u8]> = room.iter_mut().map(Vec::as_mut_slice).collect();
                let report = space.get_into(&self.keys, &mut pages, &mut out)?;
                ensure!(report.ok == self.keys.len(), "a page did not come: {out:?}");
                bytes.fetch_add(report.bytes, Relaxed);
            }
            for (at, came) in room.iter().enumerate() {
                ensure!(*came == page(at, self.page), "wrong bytes of page {at}");
            }
            Ok(())
        };
        thread::scope(|scope| {
            let threads: Vec<_> =
                self.clients.iter().map(|(_, space)| scope.spawn(move || read(space))).collect();
            threads.into_iter().try_for_each(|thread| {
                thread.join().map_err(|_| anyhow::anyhow!("a client's thread panicked"))?
            })
        })?;
        Ok(bytes.load(Relaxed) as f64 / begun.elapsed().as_secs_f64())
    }
}

/// The bytes of a page.
fn page(at: usize, len: usize) -> Vec<u8> {
    let word = |i: usize| (i as u64 ^ (at as u64) << 40).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
    let mut bytes: Vec<u8> = (0..len.div_ceil(8)).flat_map(word).collect();
    bytes.truncate(len);
    bytes
}

/// Stands between clients and one server, and lets through so many bytes a second on the way back.
struct Relay {
    address: SocketAddr,
    shared: Arc<Card>,
}

struct Card {
    bytes_per_s: f64,
    /// When the next byte may go.
    next: Mutex<Instant>,
    sent: AtomicU64,
    ended: AtomicBool,
}

impl Card {
    /// Waits until these bytes may go.
    fn pass(&self, bytes: usize) {
        let takes = Duration::from_secs_f64(bytes as f64 / self.bytes_per_s);
        let at = {
            let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
            *next = (*next).max(Instant::now()) + takes;
            *next
        };
        thread::sleep(at.saturating_duration_since(Instant::now()));
        self.sent.fetch_add(bytes as u64, Relaxed);
    }
}

impl Relay {
    fn start(server: SocketAddr, bytes_per_s: usize) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listen for a relay")?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Card {
            bytes_per_s: bytes_per_s as f64,
            next: Mutex::new(Instant::now()),
            sent: AtomicU64::new(0),
            ended: AtomicBool::new(false),
        });
        let card = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if card.ended.load(Relaxed) {
                    return;
                }
                // A client whose connection breaks opens another one.
                join(&client, server, &card).ok();
            }
        });
        Ok(Self { address, shared })
    }

    fn sent(&self) -> u64 {
        self.shared.sent.load(Relaxed)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.ended.store(true, Relaxed);
        // Wakes the thread that accepts; if it cannot, the process ends soon anyway.
        TcpStream::connect(self.address).ok();
    }
}

/// Two threads that carry bytes between a client and the server.
fn join(client: &TcpStream, server: SocketAddr, card: &Arc<Card>) -> io::Result<()> {
    let server = TcpStream::connect(server)?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (from, to) = (client.try_clone()?, server.try_clone()?);
    thread::spawn(move || carry(from, to, None));
    let (from, to, card) = (server, client.try_clone()?, Arc::clone(card));
    thread::spawn(move || carry(from, to, Some(&card)));
    Ok(())
}

fn carry(mut from: TcpStream, mut to: TcpStream, card: Option<&Card>) {
    let mut buffer = vec![0; CHUNK];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        if let Some(card) = card {
            card.pass(count);
        }
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    to.shutdown(Shutdown::Both).ok();
}
