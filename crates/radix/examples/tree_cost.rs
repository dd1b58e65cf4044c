//! One run over a tree of a million pages: memory per page, and seconds for insert, match and evict, as JSON lines.
//!
//! `cargo run --release -p memkv-radix --example tree_cost`. The script `benches/beside_sglang.py` runs it beside
//! SGLang's tree.

#[path = "../benches/workload.rs"]
mod workload;

use memkv_radix::{Access, Namespace, Tokens};
use std::alloc::{GlobalAlloc, Layout, System};
use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use workload::{PAGE, PROMPT, PROMPTS, cache, insert, prompt};

/// Counts the bytes that are allocated now.
struct Counting;

static BYTES: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator with the arguments that it came with; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        BYTES.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises about the layout are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        BYTES.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the pointer came from `alloc` above, thus from the system, with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn run(chunk: usize, hashes: bool) -> std::io::Result<()> {
    let namespace = Namespace::default();
    let before = BYTES.load(Ordering::Relaxed);
    let mut cache = cache(hashes);
    let pools = BYTES.load(Ordering::Relaxed);
    let (mut inserting, mut pages) = (Duration::ZERO, 0);
    for number in 0..PROMPTS {
        let tokens = prompt(number);
        let start = Instant::now();
        pages += insert(&mut cache, &namespace, &tokens, chunk);
        inserting += start.elapsed();
    }
    let tree = BYTES.load(Ordering::Relaxed) - pools;
    let mut times = Vec::new();
    for at in 0..400 {
        let tokens = prompt(at * 97 % PROMPTS);
        let start = Instant::now();
        let found = cache.match_prefix(Access::of(&namespace), Tokens::from(&tokens));
        times.push(start.elapsed());
        assert_eq!(found.pages.len(), PROMPT / PAGE);
    }
    times.sort_unstable();
    let start = Instant::now();
    let evicted = cache.evict_device(PAGE * pages / 2);
    let evicting = start.elapsed();
    writeln!(
        std::io::stdout(),
        "{{\"chunk_pages\": {chunk}, \"digests\": {hashes}, \"pages\": {pages}, \"insert_pages_per_s\": {:.0}, \
         \"match_us_p50\": {:.2}, \"match_us_p99\": {:.2}, \"evict_pages_per_s\": {:.0}, \
         \"tree_bytes_per_page\": {:.1}, \"token_bytes_per_page\": {}, \"pool_bytes_per_page\": {:.1}}}",
        pages as f64 / inserting.as_secs_f64(),
        times[times.len() / 2].as_secs_f64() * 1e6,
        times[times.len() * 99 / 100].as_secs_f64() * 1e6,
        (evicted.tokens / PAGE) as f64 / evicting.as_secs_f64(),
        tree as f64 / pages as f64,
        PAGE * 4,
        (pools - before) as f64 / cache.device().capacity() as f64,
    )
}

fn main() -> std::io::Result<()> {
    for (chunk, hashes) in [(512, false), (512, true), (32, false), (32, true), (4, false)] {
        run(chunk, hashes)?;
    }
    Ok(())
}
