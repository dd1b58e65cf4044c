//! Clients and servers on a simulated network, from a seed: the real code of both, in one thread, in simulated time.
//!
//! A seed decides everything: the cluster, what clients do, how long segments take, what fails and when, every nonce and
//! every random choice of the runtime. The same seed with the same commit gives the same events, so a failure can be
//! looked at as often as one likes.
//!
//! - [`plan`]: what happens in a run;
//! - [`cluster`]: carries it out, with the [`faults`], and looks at what is left;
//! - [`work`]: the clients, and [`book`]: what they may find;
//! - [`net`]: the network; [`disk`]: files of servers that died; [`source`]: who the members are;
//! - [`sealed`]: the machine's randomness and clocks, replaced; [`trace`]: the events and their digest;
//! - [`runner`]: many seeds, each in a process of its own.
//!
//! Deliberately absent: threads in a run, and anything that only a simulation would do inside client and server.

#![deny(unsafe_code)]
#![allow(clippy::print_stdout, reason = "a command-line program")]

mod book;
mod cluster;
mod disk;
mod faults;
mod net;
mod plan;
mod rng;
mod runner;
#[allow(unsafe_code, reason = "defines functions of the C library, whose arguments are addresses")]
mod sealed;
mod source;
mod trace;
mod work;

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Panics of this process, in whichever task.
static PANICS: AtomicU64 = AtomicU64::new(0);

/// How many panics there were. Tasks of a runtime swallow theirs, so that the hook has to count.
fn panics() -> u64 {
    PANICS.load(Relaxed)
}

fn main() -> ExitCode {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        PANICS.fetch_add(1, Relaxed);
        hook(info);
    }));
    let args: Vec<String> = std::env::args().skip(1).collect();
    match runner::Choice::parse(&args).and_then(|choice| runner::run(&choice)) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("memkv-sim: {error:#}");
            ExitCode::from(2)
        }
    }
}
