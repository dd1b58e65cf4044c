//! What a siege costs others: memory of the server, and the times of a client that reads meanwhile, beside the same without it.
//!
//! Figures, not judgements: it runs when `MEMKV_SIEGE` says how many connections, and prints a table for `docs/budget.md`.

use memkv_core::SpaceId;
use memkv_tests::daemon::{Daemon, Setup};
use memkv_tests::wire::{self, DataConn};
use memkv_transport::handshake::PREFACE;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const PAGE: usize = 64 << 10;
const MEASURED: Duration = Duration::from_secs(4);

/// What was measured in one situation.
struct Figures {
    p50: Duration,
    p99: Duration,
    gets: usize,
    resident: u64,
}

fn measure(daemon: &Daemon, data: &mut DataConn, space: SpaceId) -> Figures {
    let mut times = Vec::new();
    let begun = Instant::now();
    while begun.elapsed() < MEASURED {
        let one = Instant::now();
        data.get(space, b"page", u32::try_from(PAGE).unwrap()).unwrap();
        times.push(one.elapsed());
    }
    times.sort_unstable();
    let at = |share: usize| times[times.len() * share / 100];
    Figures { p50: at(50), p99: at(99), gets: times.len(), resident: daemon.resident_bytes().unwrap() }
}

/// Some peers connect and drop what they have, over and over, until told to stop.
fn flood(to: SocketAddr, over: &AtomicBool) {
    let mut held = Vec::new();
    while !over.load(Ordering::Relaxed) {
        held.extend(TcpStream::connect(to));
        if held.len() >= 512 {
            held.clear();
        }
    }
}

/// Peers that send one byte of a frame a second.
fn trickle(mut slow: Vec<DataConn>, space: SpaceId, over: &AtomicBool) {
    let frame = wire::exists_frame(1, space, &[b"page"]);
    for byte in frame {
        if over.load(Ordering::Relaxed) {
            return;
        }
        slow.retain_mut(|conn| conn.send(&[byte]).is_ok());
        std::thread::sleep(Duration::from_secs(1));
    }
}

#[test]
fn a_siege_and_what_it_costs() {
    let Some(count) = std::env::var("MEMKV_SIEGE").ok().and_then(|text| text.parse::<usize>().ok()) else {
        println!("skipped: MEMKV_SIEGE=10000 measures a siege of so many connections");
        return;
    };
    let wanted = 2 * count as u64 + 1000;
    let now = getrlimit(Resource::Nofile);
    if now.maximum.is_some_and(|most| most < wanted) {
        println!("skipped: {wanted} open files are needed and {:?} allowed; raise `ulimit -Hn`", now.maximum);
        return;
    }
    setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: now.maximum }).unwrap();
    let daemon = Daemon::start_with(Setup { dram: "256MiB".to_owned(), ..Setup::default() }).unwrap();
    let control = daemon.control().unwrap();
    let space = control.open_space("siege").unwrap();
    let session = control.session().unwrap();
    let mut data = session.attach().unwrap();
    data.put(space, b"page", &vec![7; PAGE]).unwrap();
    let over = AtomicBool::new(false);
    let mut rows = vec![("nothing else", measure(&daemon, &mut data, space))];
    {
        let addr = daemon.addr();
        let dial = |beginning: &'static [u8]| {
            move |_| {
                let mut stream = TcpStream::connect(addr).ok()?;
                stream.write_all(beginning).ok()?;
                Some(stream)
            }
        };
        let silent: Vec<_> = (0..count).filter_map(dial(b"")).collect();
        rows.push(("connections that say nothing", measure(&daemon, &mut data, space)));
        drop(silent);
        let half: Vec<_> = (0..count).filter_map(dial(&PREFACE)).collect();
        rows.push(("connections in the middle of a handshake", measure(&daemon, &mut data, space)));
        drop(half);
    }
    {
        let mut sessions = Vec::new();
        let mut idle = Vec::new();
        while idle.len() < count {
            let session = control.session().unwrap();
            idle.extend((0..64.min(count - idle.len())).map(|_| session.attach().unwrap()));
            sessions.push(session);
        }
        rows.push(("idle connections of sessions", measure(&daemon, &mut data, space)));
    }
    std::thread::scope(|scope| {
        scope.spawn(|| flood(daemon.addr(), &over));
        rows.push(("one peer that connects without end", measure(&daemon, &mut data, space)));
        over.store(true, Ordering::Relaxed);
    });
    over.store(false, Ordering::Relaxed);
    std::thread::scope(|scope| {
        let slow: Vec<DataConn> = (0..32).map(|_| session.attach().unwrap()).collect();
        let over = &over;
        scope.spawn(move || trickle(slow, space, over));
        rows.push(("32 writers of one byte a second", measure(&daemon, &mut data, space)));
        over.store(true, Ordering::Relaxed);
    });
    {
        let pages: Vec<(&[u8], u32)> = vec![(b"page", u32::try_from(PAGE).unwrap()); 64];
        let mut stopped: Vec<DataConn> = (0..16).map(|_| session.attach().unwrap()).collect();
        stopped.iter_mut().for_each(|conn| conn.send(&wire::get_frame(1, space, &pages, false)).unwrap());
        rows.push(("16 readers that stopped at 4 MiB", measure(&daemon, &mut data, space)));
    }
    rows.push(("nothing else, again", measure(&daemon, &mut data, space)));
    println!(
        "\n| beside {count} … | gets | p50 µs | p99 µs | p99, share of alone | memory MiB |\n|---|--:|--:|--:|--:|--:|"
    );
    let alone = rows[0].1.p99.as_secs_f64();
    for (what, figures) in &rows {
        println!(
            "| {what} | {} | {} | {} | {:.2} | {} |",
            figures.gets,
            figures.p50.as_micros(),
            figures.p99.as_micros(),
            figures.p99.as_secs_f64() / alone,
            figures.resident >> 20
        );
    }
}
