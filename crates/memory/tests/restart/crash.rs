//! A process that is killed at any moment leaves every page that it had and none that it had not.

use super::*;
use std::collections::BTreeMap;
use std::env;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};
use std::thread;

const PLACE: &str = "MEMKV_TEST_ARENA";
const ROUND: &str = "MEMKV_TEST_ROUND";
const ROUNDS: u64 = 24;
const WRITERS: u64 = 2;

/// Numbers that look random.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % below
    }
}

/// The child: not a test of its own. Puts and dooms pages until it is killed, and tells what it did.
#[test]
fn child() {
    let Some(place) = env::var_os(PLACE) else { return };
    let round: u64 = env::var(ROUND).unwrap().parse().unwrap();
    let (arena, recovered) = open(Path::new(&place));
    let mut shares: Vec<Vec<(Vec<u8>, SlotId)>> = vec![Vec::new(); WRITERS as usize];
    for (n, page) in recovered.enumerate() {
        shares[n % WRITERS as usize].push((page.key().to_vec(), page.slot));
    }
    thread::scope(|scope| {
        for (writer, share) in shares.into_iter().enumerate() {
            let arena = &arena;
            scope.spawn(move || write(arena, round, writer as u64, share));
        }
    });
}

fn say(line: &str) {
    // One write of less than a pipe's atomic size: lines of two threads do not mix.
    std::io::stdout().write_all(line.as_bytes()).unwrap();
    std::io::stdout().flush().unwrap();
}

fn write(arena: &Arc<Arena>, round: u64, writer: u64, mut own: Vec<(Vec<u8>, SlotId)>) {
    let mut numbers = Numbers(round << 8 | writer);
    for n in 0_u64.. {
        let key = format!("key-{round}-{writer}-{n}").into_bytes();
        match put(arena, &key) {
            Ok(id) => {
                say(&format!("\nput {}\n", String::from_utf8_lossy(&key)));
                own.push((key, id));
            }
            Err(_) if own.is_empty() => {}
            Err(_) => {
                for _ in 0..4.min(own.len()) {
                    let (key, id) = own.swap_remove(numbers.next(own.len() as u64) as usize);
                    let key = String::from_utf8_lossy(&key).into_owned();
                    // A reader holds some of them when they go.
                    let pin = (numbers.next(2) == 0).then(|| arena.pin(id));
                    say(&format!("\ndooming {key}\n"));
                    assert!(arena.doom(id));
                    say(&format!("\ndoomed {key}\n"));
                    drop(pin);
                }
            }
        }
        if numbers.next(4) == 0
            && let Ok((mut slot, _)) = arena.reserve(5000)
        {
            slot.bytes_mut().fill(0xee);
        }
    }
}

/// What may be there: `true` if it must.
type Expected = BTreeMap<String, bool>;

fn note(expected: &mut Expected, line: &str) {
    let Some((what, key)) = line.trim_end().split_once(' ') else { return };
    match what {
        "put" => _ = expected.insert(key.to_owned(), true),
        "dooming" => _ = expected.insert(key.to_owned(), false),
        "doomed" => _ = expected.remove(key),
        _ => {}
    }
}

#[test]
fn a_killed_process_leaves_exactly_its_pages() {
    let place = place();
    let mut expected = Expected::new();
    let mut numbers = Numbers(42);
    let mut kept = 0;
    for round in 0..ROUNDS {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "crash::child", "--nocapture", "--test-threads=1"])
            .env(PLACE, place.path())
            .env(ROUND, round.to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        // At least as many lines as two writers need to fill the arena in the first round, then any number.
        for _ in 0..10 + numbers.next(400) {
            line.clear();
            assert_ne!(output.read_line(&mut line).unwrap(), 0, "the child ended by itself");
            note(&mut expected, &line);
        }
        child.kill().unwrap();
        child.wait().unwrap();
        for line in output.lines() {
            note(&mut expected, &line.unwrap());
        }
        kept += check(place.path(), round, &mut expected);
    }
    assert!(kept > 10 * ROUNDS, "the test means nothing with {kept} pages");
}

/// Compares what is there with what must and may be.
fn check(place: &Path, round: u64, expected: &mut Expected) -> u64 {
    let (arena, recovered) = open(place);
    assert_eq!(recovered.dropped(), 0, "round {round}");
    let mut seen = BTreeMap::new();
    for page in recovered {
        let key = String::from_utf8(page.key().to_vec()).unwrap();
        let pin = arena.pin(page.slot).unwrap();
        assert_eq!(page.record, record_of(page.key()), "round {round}, {key}");
        assert!(pin[..] == page_of(page.key()), "round {round}: {key} has other bytes");
        assert!(seen.insert(key, ()).is_none(), "round {round}: a page is there twice");
    }
    for (key, must) in &*expected {
        assert!(!must || seen.contains_key(key), "round {round}: {key} is lost");
    }
    for key in seen.keys() {
        // A page may be there that was put and not yet told; it is of this round then.
        let told = expected.contains_key(key) || key.starts_with(&format!("key-{round}-"));
        assert!(told, "round {round}: {key} was gone");
    }
    // From now on what is there is there.
    *expected = seen.into_keys().map(|key| (key, true)).collect();
    expected.len() as u64
}
