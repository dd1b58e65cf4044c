//! What happens to the cluster in one run: a function of the seed.

use crate::rng::Rng;
use std::fmt;

/// How long the cluster is disturbed, in milliseconds.
pub(crate) const DISTURBED_MS: u64 = 4000;

/// What becomes of a server's memory when it dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Memory {
    /// It is there when the server starts again.
    Kept,
    /// It is gone.
    Lost,
    /// It is there, but for some blocks: they are zero, old, or have wrong bits.
    Torn,
}

/// Which way a partition blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Both,
    ToServer,
    FromServer,
}

/// A disturbance of one server. With `client: None`, of its links to all clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing leaves or reaches it; what was sent meanwhile comes afterwards.
    Frozen,
    /// Segments are lost, and TCP brings them late: the link stands still for a moment.
    Loss {
        client: usize,
    },
    Cut {
        client: Option<usize>,
        way: Way,
    },
    /// Segments take up to this long.
    Slow {
        client: Option<usize>,
        ms: u64,
    },
    /// Connections are reset.
    Resets,
    /// Bits are flipped on its data connections.
    Flips {
        permille: u64,
    },
    Crash {
        memory: Memory,
    },
    /// It is stopped gracefully and started again.
    Restart,
    /// It is no member meanwhile.
    Left,
    /// It has this weight meanwhile.
    Weight(u32),
    /// Its wall clock is off by this much more meanwhile.
    ClockJump {
        ms: i64,
    },
}

/// A fault of a server from a moment to another.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    pub(crate) from_ms: u64,
    pub(crate) to_ms: u64,
    pub(crate) server: usize,
    pub(crate) fault: Fault,
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>6} to {:>6} ms  s{}  {:?}", self.from_ms, self.to_ms, self.server, self.fault)
    }
}

/// One run, before it begins.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) servers: usize,
    pub(crate) clients: usize,
    /// Memory for pages of every server.
    pub(crate) dram_bytes: u64,
    /// Whether that memory outlives the server.
    pub(crate) durable: bool,
    /// Segments take up to this long on a quiet link.
    pub(crate) latency_ms: u64,
    /// Bytes that one end of a connection may have under way.
    pub(crate) window_bytes: usize,
    pub(crate) op_timeout_ms: u64,
    /// By how much each host's wall clock is off, servers first.
    pub(crate) skews_ms: Vec<i64>,
    /// Copies that clients keep of a page.
    pub(crate) replicas: usize,
    /// Clients that use gRPC for everything.
    pub(crate) grpc: Vec<bool>,
    pub(crate) windows: Vec<Window>,
}

impl Plan {
    /// The plan of a seed.
    pub(crate) fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed, 0x91A7);
        let servers = rng.range(1, 5) as usize;
        let clients = rng.range(1, 4) as usize;
        let durable = rng.permille(600);
        let mut plan = Self {
            servers,
            clients,
            dram_bytes: *rng.pick(&[8, 16, 24, 48]) << 20,
            durable,
            latency_ms: rng.range(1, 20),
            window_bytes: *rng.pick(&[12, 40, 100, 400]) << 10,
            op_timeout_ms: rng.range(150, 600),
            skews_ms: (0..servers + clients).map(|_| rng.range(0, 40_000) as i64 - 20_000).collect(),
            replicas: if rng.permille(600) { 1 } else { (rng.range(1, 4) as usize).min(servers) },
            grpc: (0..clients).map(|_| rng.permille(150)).collect(),
            windows: Vec::new(),
        };
        // One run in sixteen is left alone: there, nothing may be lost.
        if !rng.permille(63) {
            for server in 0..servers {
                plan.disturb(server, &mut rng);
            }
        }
        plan
    }

    /// Whether nothing is done to the cluster.
    pub(crate) fn is_calm(&self) -> bool {
        self.windows.is_empty()
    }

    /// Whether a page is only ever on one and the same server.
    pub(crate) fn keeps_owners(&self) -> bool {
        self.replicas == 1
            && !self.windows.iter().any(|window| matches!(window.fault, Fault::Left | Fault::Weight(_)))
    }

    /// Whether bytes are damaged somewhere.
    pub(crate) fn damages(&self) -> bool {
        self.tears() || self.windows.iter().any(|window| matches!(window.fault, Fault::Flips { .. }))
    }

    /// Whether clocks jump.
    pub(crate) fn jumps(&self) -> bool {
        self.windows.iter().any(|window| matches!(window.fault, Fault::ClockJump { .. }))
    }

    /// Whether some memory is torn.
    pub(crate) fn tears(&self) -> bool {
        let torn = Fault::Crash { memory: Memory::Torn };
        self.windows.iter().any(|window| window.fault == torn)
    }

    /// Lays one fault after the other on a server.
    fn disturb(&mut self, server: usize, rng: &mut Rng) {
        let mut at = rng.range(150, 1500);
        loop {
            let mut lasts = if rng.permille(700) { rng.range(20, 600) } else { rng.range(600, 2000) };
            let fault = self.fault(rng);
            if matches!(fault, Fault::Loss { .. }) {
                lasts = lasts.min(250);
            }
            if at + lasts >= DISTURBED_MS {
                return;
            }
            self.windows.push(Window { from_ms: at, to_ms: at + lasts, server, fault });
            at += lasts + rng.range(30, 1200);
        }
    }

    fn fault(&self, rng: &mut Rng) -> Fault {
        let client = rng.range(0, self.clients as u64) as usize;
        let one = rng.permille(500).then_some(client);
        match rng.range(0, 100) {
            0..10 => Fault::Frozen,
            10..20 => Fault::Loss { client },
            20..32 => {
                Fault::Cut { client: one, way: *rng.pick(&[Way::Both, Way::ToServer, Way::FromServer]) }
            }
            32..42 => Fault::Slow { client: one, ms: rng.range(30, 700) },
            42..52 => Fault::Resets,
            52..62 => Fault::Flips { permille: rng.range(5, 150) },
            62..76 => Fault::Crash { memory: self.memory(rng) },
            76..84 => Fault::Restart,
            84..90 if self.servers > 1 => Fault::Left,
            90..94 if self.servers > 1 => Fault::Weight(*rng.pick(&[1, 30, 250])),
            _ => Fault::ClockJump { ms: *rng.pick(&[-90_000, -5_000, 5_000, 90_000]) },
        }
    }

    fn memory(&self, rng: &mut Rng) -> Memory {
        let memory = *rng.pick(&[Memory::Kept, Memory::Kept, Memory::Torn, Memory::Lost]);
        if self.durable { memory } else { Memory::Lost }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} servers of {} MiB{}, {} clients, segments up to {} ms, windows of {} KiB, ops up to {} ms",
            self.servers,
            self.dram_bytes >> 20,
            if self.durable { " that outlive them" } else { "" },
            self.clients,
            self.latency_ms,
            self.window_bytes >> 10,
            self.op_timeout_ms,
        )?;
        writeln!(f, "{} copies of a page", self.replicas)?;
        writeln!(f, "clocks off by {:?} ms; clients over gRPC: {:?}", self.skews_ms, self.grpc)?;
        self.windows.iter().try_for_each(|window| writeln!(f, "{window}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_has_one_plan_and_every_fault_is_in_some() {
        assert_eq!(Plan::new(7).to_string(), Plan::new(7).to_string());
        let all: String = (0..300).map(|seed| Plan::new(seed).to_string()).collect();
        let faults = [
            "Frozen",
            "Loss",
            "Both",
            "ToServer",
            "FromServer",
            "Slow",
            "Resets",
            "Flips",
            "Kept",
            "Lost",
            "Torn",
            "Restart",
            "Left",
            "Weight",
            "ClockJump",
        ];
        for fault in faults {
            assert!(all.contains(fault), "{fault}");
        }
        assert!((0..100).any(|seed| Plan::new(seed).is_calm()));
    }

    #[test]
    fn a_server_has_one_fault_at_a_time() {
        for seed in 0..100 {
            let plan = Plan::new(seed);
            for pair in plan.windows.windows(2).filter(|pair| pair[0].server == pair[1].server) {
                assert!(pair[0].to_ms < pair[1].from_ms, "{plan}");
            }
        }
    }
}
