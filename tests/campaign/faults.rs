//! What is done to servers, and to the ways to them.

use std::time::Duration;

/// A small generator (xorshift64*).
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed ^ 0x9e37_79b9_7f4a_7c15 | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    #[allow(clippy::cast_possible_truncation, reason = "the remainder fits what `most` fits")]
    pub(crate) fn below(&mut self, most: usize) -> usize {
        ((self.next() >> 16) % most as u64) as usize
    }
}

/// Something that is done to a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    Kill,
    KillAndFlipBits,
    RestartAtAnotherTime,
    ClockJump,
    Freeze,
    Partition,
    Stall,
    Delay,
    FlipOnTheWire,
    Cut,
    SlowWay,
    FlipInMemory,
    FlipOnDisk,
    FullDisk,
    NoMoreMemory,
    Squeeze,
    SlowReaders,
    Silence,
}

impl Fault {
    pub(crate) const ALL: [Self; 18] = [
        Self::Kill,
        Self::KillAndFlipBits,
        Self::RestartAtAnotherTime,
        Self::ClockJump,
        Self::Freeze,
        Self::Partition,
        Self::Stall,
        Self::Delay,
        Self::FlipOnTheWire,
        Self::Cut,
        Self::SlowWay,
        Self::FlipInMemory,
        Self::FlipOnDisk,
        Self::FullDisk,
        Self::NoMoreMemory,
        Self::Squeeze,
        Self::SlowReaders,
        Self::Silence,
    ];

    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Kill => "kill -9, then a start",
            Self::KillAndFlipBits => "kill -9, bits flipped in its files, then a start",
            Self::RestartAtAnotherTime => "stop, then a start with the clock hours away",
            Self::ClockJump => "its clock jumps by hours while it serves, and back",
            Self::Freeze => "SIGSTOP, then SIGCONT",
            Self::Partition => "nothing passes to it or from it",
            Self::Stall => "its data connections stall",
            Self::Delay => "each piece of its data waits 20 ms",
            Self::FlipOnTheWire => "a bit flips on each data connection",
            Self::Cut => "its data connections are cut at a byte",
            Self::SlowWay => "its data passes at 2 MB/s",
            Self::FlipInMemory => "bits flip in the memory for pages while it serves",
            Self::FlipOnDisk => "bits flip in the segments of its drive while it serves",
            Self::FullDisk => "the file system of its drive is full",
            Self::NoMoreMemory => "the system gives its process no more memory; a start if that ended it",
            Self::Squeeze => "it waits for each new page of memory: its group is at its limit",
            Self::SlowReaders => "clients that ask and do not read",
            Self::Silence => "200 connections that say nothing",
        }
    }

    /// Whether the process lives on: what it does not give back adds up over such faults.
    pub(crate) fn is_survived(self) -> bool {
        !matches!(self, Self::Kill | Self::KillAndFlipBits | Self::RestartAtAnotherTime | Self::NoMoreMemory)
    }
}

/// One fault and when it was.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Event {
    pub(crate) server: usize,
    pub(crate) fault: Fault,
    pub(crate) from: Duration,
    pub(crate) to: Duration,
}
