//! What the machine would tell the simulation: its randomness, its clocks, its process number. Here they come from the seed.
//!
//! Nonces, jitter, the seeds of hash maps and of the runtime's choices all come from the C library's `getrandom`, and every
//! clock from its `clock_gettime`. This file defines these functions for the whole program, so that none of the code that is
//! simulated has to know. On a thread that was sealed they answer from the seed and from simulated time; on any other
//! thread they ask the kernel.
//!
//! This is the one file of the simulation with `unsafe`: a C library's functions take addresses.

use crate::rng::{Rng, mix};
use std::cell::Cell;
use std::ffi::{c_int, c_long, c_uint, c_void};

/// Unix time at the start of every simulation: a day in 2026.
const START_S: i64 = 1_780_000_000;
/// What monotonic clocks say at the start.
const MONOTONIC_S: i64 = 100_000;
const NS: i64 = 1_000_000_000;

thread_local! {
    static SEALED: Cell<bool> = const { Cell::new(false) };
    static RANDOM: Cell<u64> = const { Cell::new(0) };
    static NOW_NS: Cell<i64> = const { Cell::new(0) };
    static SKEW_NS: Cell<i64> = const { Cell::new(0) };
    /// How far every look at a clock moves it on.
    static HURRY_NS: Cell<i64> = const { Cell::new(0) };
}

/// From here on this thread hears of randomness and time only from the simulation.
pub(crate) fn seal(seed: u64) {
    RANDOM.set(Rng::new(seed, 0x5EA1).next());
    SEALED.set(true);
}

/// Runs something that waits for time to pass by looking at the clock again and again.
pub(crate) fn hurry(waits: impl FnOnce()) {
    HURRY_NS.set(5_000_000);
    waits();
    HURRY_NS.set(0);
    NOW_NS.set(0);
}

/// Sets the simulated time, in milliseconds since the start.
pub(crate) fn set_now_ms(now_ms: u64) {
    NOW_NS.set(now_ms as i64 * 1_000_000);
}

/// Sets how far the wall clock is from the true time, for the host that runs now.
pub(crate) fn set_skew_ms(skew_ms: i64) {
    SKEW_NS.set(skew_ms * 1_000_000);
}

/// What a right clock says so long after the start, in milliseconds.
pub(crate) fn unix_ms(now_ms: u64) -> u64 {
    START_S as u64 * 1000 + now_ms
}

fn next_random() -> u64 {
    let state = RANDOM.get().wrapping_add(0x9E37_79B9_7F4A_7C15);
    RANDOM.set(state);
    mix(state)
}

/// The C library's source of random bytes.
///
/// # Safety
///
/// `buffer` must be valid for writes of `len` bytes, as for the C library's function.
// SAFETY: it has the C library's signature and does what that function promises.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn getrandom(buffer: *mut c_void, len: usize, flags: c_uint) -> isize {
    if !SEALED.get() {
        // SAFETY: the caller's buffer and length go on to the kernel as they are.
        return unsafe { libc::syscall(libc::SYS_getrandom, buffer, len, flags) as isize };
    }
    let bytes = buffer.cast::<u8>();
    for at in 0..len {
        let byte = next_random() as u8;
        // SAFETY: `at` is below `len`, and the caller promises that many bytes.
        unsafe { bytes.wrapping_add(at).write(byte) };
    }
    len as isize
}

/// The C library's clocks.
///
/// # Safety
///
/// `out` must be valid for a write, as for the C library's function.
// SAFETY: it has the C library's signature and does what that function promises.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn clock_gettime(clock: c_int, out: *mut libc::timespec) -> c_int {
    if !SEALED.get() {
        // SAFETY: the caller's address goes on to the kernel as it is.
        return unsafe { libc::syscall(libc::SYS_clock_gettime, c_long::from(clock), out) as c_int };
    }
    let wall = matches!(clock, libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_COARSE | libc::CLOCK_TAI);
    let (start, skew) = if wall { (START_S, SKEW_NS.get()) } else { (MONOTONIC_S, 0) };
    NOW_NS.set(NOW_NS.get() + HURRY_NS.get());
    let ns = start * NS + NOW_NS.get() + skew;
    let time = libc::timespec { tv_sec: ns / NS, tv_nsec: ns % NS };
    // SAFETY: the caller promises that `out` may be written.
    unsafe { out.write(time) };
    0
}

/// The C library's process number: clients tell it to servers, and its length must not depend on the run.
// SAFETY: it has the C library's signature and does what that function promises.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn getpid() -> libc::pid_t {
    if SEALED.get() {
        return 1000;
    }
    // SAFETY: the call has no arguments and cannot fail.
    unsafe { libc::syscall(libc::SYS_getpid) as libc::pid_t }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;
    use std::time::{Instant, SystemTime, UNIX_EPOCH};

    fn sealed_thread(seed: u64) -> (Vec<u32>, u64, Instant) {
        let sealed = std::thread::spawn(move || {
            seal(seed);
            set_now_ms(1500);
            set_skew_ms(-500);
            // The order of a map's entries comes from its random seed.
            let map: HashMap<u32, ()> = (0..100).map(|number| (number, ())).collect();
            let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
            (map.into_keys().collect(), wall as u64, Instant::now())
        });
        sealed.join().unwrap()
    }

    #[test]
    fn a_sealed_thread_hears_only_of_the_seed_and_of_simulated_time() {
        let first = sealed_thread(1);
        assert_eq!(first, sealed_thread(1));
        assert_ne!(first.0, sealed_thread(2).0);
        assert_eq!(first.1, START_S as u64 * 1000 + 1000);
        // This thread is not sealed.
        let begun = Instant::now();
        while begun.elapsed().is_zero() {}
        let keys = || (0..100).map(|number| (number, ())).collect::<HashMap<u32, ()>>().into_keys();
        assert_eq!(keys().count(), 100);
    }
}
