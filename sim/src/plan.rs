//! What happens to the cluster in one run: a function of the seed.

use crate::rng::Rng;
use memkv_storage::PolicyKind;
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
    /// It dies. With `power: true` its drives lose what they were not told to keep, too.
    Crash {
        memory: Memory,
        power: bool,
    },
    /// Its drives refuse writes: there is no room, or they are broken.
    Drive {
        full: bool,
    },
    /// It hands its pages over to the others. In the end it is started anew, empty, if it has, and serves again if not.
    Drain,
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

/// The drives of every server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Drives {
    /// A page or a removal counts only once the drive keeps it.
    pub(crate) sync: bool,
    /// Pages are written before their puts are acknowledged, and not only when memory needs their room.
    pub(crate) through: bool,
    pub(crate) quota_bytes: u64,
}

/// What a run is made to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Everything at once.
    Mixed,
    /// Nothing is done to the cluster, so nothing may be lost.
    Calm,
    /// Servers die again and again, and what they acknowledged must be on their drives.
    Durable,
    /// Slots change hands all the time while slow readers hold them, and bytes are damaged nowhere.
    Churn,
    /// One server hands its pages over again and again, and the others lose none.
    Handover,
}

/// One run, before it begins.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) kind: Kind,
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
    pub(crate) drives: Option<Drives>,
    pub(crate) policy: PolicyKind,
    /// Over which time a new member takes its weight, and how long a lost one keeps its keys.
    pub(crate) member_ramp_ms: u64,
    pub(crate) member_grace_ms: u64,
    /// From when to when the source of members does not answer.
    pub(crate) source_away_ms: Option<(u64, u64)>,
    pub(crate) windows: Vec<Window>,
}

impl Plan {
    /// The plan of a seed.
    pub(crate) fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed, 0x91A7);
        let kind = match rng.range(0, 1000) {
            0..60 => Kind::Calm,
            60..140 => Kind::Durable,
            140..220 => Kind::Churn,
            220..280 => Kind::Handover,
            _ => Kind::Mixed,
        };
        let servers = rng.range(1, 5) as usize;
        let clients = rng.range(1, 4) as usize;
        let source_away_ms = rng.permille(200).then(|| (rng.range(0, 2000), rng.range(2000, DISTURBED_MS)));
        let mut plan = Self {
            kind,
            servers,
            clients,
            dram_bytes: *rng.pick(&[8, 8, 12, 16, 24]) << 20,
            durable: rng.permille(600),
            latency_ms: rng.range(1, 20),
            window_bytes: *rng.pick(&[12, 40, 100, 400]) << 10,
            op_timeout_ms: rng.range(150, 600),
            skews_ms: (0..servers + clients).map(|_| rng.range(0, 40_000) as i64 - 20_000).collect(),
            replicas: if rng.permille(600) { 1 } else { (rng.range(1, 4) as usize).min(servers) },
            grpc: (0..clients).map(|_| rng.permille(150)).collect(),
            drives: rng.permille(400).then(|| Drives {
                sync: rng.permille(500),
                through: rng.permille(400),
                quota_bytes: *rng.pick(&[2, 4, 16]) << 20,
            }),
            policy: *rng.pick(&[PolicyKind::Lru, PolicyKind::Lru, PolicyKind::S3Fifo, PolicyKind::Sieve]),
            member_ramp_ms: *rng.pick(&[0, 500, 1500]),
            member_grace_ms: *rng.pick(&[0, 300, 1000]),
            source_away_ms,
            windows: Vec::new(),
        };
        if rng.permille(100) {
            plan.policy = PolicyKind::Chain;
        }
        plan.suit(&mut rng);
        for server in (0..plan.servers).filter(|_| kind != Kind::Calm) {
            plan.disturb(server, &mut rng);
        }
        if plan.is_calm() {
            // Where nothing is done to the cluster nothing may time out, so the links have to be fast enough for that.
            plan.op_timeout_ms = plan.op_timeout_ms.max(plan.longest_op_ms());
        }
        plan
    }

    /// What a batch takes at most on quiet links, twice over: a window of bytes for each round trip.
    fn longest_op_ms(&self) -> u64 {
        const BATCH_BYTES: usize = 16 * (56 << 10);
        const OTHER_TRIPS: u64 = 10;
        let trips = OTHER_TRIPS + BATCH_BYTES.div_ceil(self.window_bytes) as u64;
        2 * trips * 2 * self.latency_ms
    }

    /// What a run of its kind needs, whatever the seed says.
    fn suit(&mut self, rng: &mut Rng) {
        match self.kind {
            Kind::Mixed | Kind::Calm => {}
            Kind::Durable => {
                self.replicas = 1;
                self.drives = Some(Drives { sync: rng.permille(500), through: true, quota_bytes: 64 << 20 });
            }
            Kind::Churn => {
                self.servers = self.servers.min(2);
                self.replicas = 1;
                self.skews_ms.truncate(self.servers + self.clients);
                self.dram_bytes = 8 << 20;
                self.latency_ms = rng.range(5, 16);
                self.window_bytes = 12 << 10;
                self.op_timeout_ms = rng.range(600, 1200);
            }
            Kind::Handover => {
                self.servers = self.servers.max(2);
                self.replicas = self.replicas.min(2);
                self.skews_ms.resize(self.servers + self.clients, 0);
                self.dram_bytes = 48 << 20;
                if let Some(drives) = &mut self.drives {
                    drives.quota_bytes = 64 << 20;
                }
            }
        }
    }

    /// Whether nothing is done to the cluster.
    pub(crate) fn is_calm(&self) -> bool {
        self.windows.is_empty()
    }

    /// Whether what was acknowledged outlives everything that is done to the servers.
    pub(crate) fn is_durable(&self) -> bool {
        self.kind == Kind::Durable
    }

    fn has(&self, such: impl Fn(&Fault) -> bool) -> bool {
        self.windows.iter().any(|window| such(&window.fault))
    }

    /// Whether a page is only ever on one and the same server.
    pub(crate) fn keeps_owners(&self) -> bool {
        self.replicas == 1
            && !self.has(|fault| matches!(fault, Fault::Left | Fault::Weight(_) | Fault::Drain))
    }

    /// Whether a removal that was acknowledged holds, whatever becomes of the servers.
    pub(crate) fn keeps_removals(&self) -> bool {
        let noted = self.drives.is_none_or(|drives| drives.sync || !self.cuts_power());
        self.keeps_owners() && !self.tears() && !self.fails_drives() && noted
    }

    /// Whether bytes are damaged on their way. What a server has is compared with its checksum before it is sent.
    pub(crate) fn flips(&self) -> bool {
        self.has(|fault| matches!(fault, Fault::Flips { .. }))
    }

    /// Whether clocks jump.
    pub(crate) fn jumps(&self) -> bool {
        self.has(|fault| matches!(fault, Fault::ClockJump { .. }))
    }

    /// Whether drives lose what they were not told to keep.
    pub(crate) fn cuts_power(&self) -> bool {
        self.has(|fault| matches!(fault, Fault::Crash { power: true, .. }))
    }

    /// Whether drives refuse writes.
    pub(crate) fn fails_drives(&self) -> bool {
        self.has(|fault| matches!(fault, Fault::Drive { .. }))
    }

    /// Whether some memory is torn.
    pub(crate) fn tears(&self) -> bool {
        self.has(|fault| matches!(fault, Fault::Crash { memory: Memory::Torn, .. }))
    }

    /// Lays one fault after the other on a server.
    fn disturb(&mut self, server: usize, rng: &mut Rng) {
        let mut at = rng.range(150, 1500);
        loop {
            let mut lasts = if rng.permille(700) { rng.range(20, 600) } else { rng.range(600, 2000) };
            let fault = match self.kind {
                Kind::Mixed | Kind::Calm => self.fault(rng),
                Kind::Durable => self.end_of_life(rng),
                Kind::Churn => {
                    *rng.pick(&[Fault::Frozen, Fault::Resets, Fault::Slow { client: None, ms: 60 }])
                }
                Kind::Handover if server == 0 => Fault::Drain,
                Kind::Handover => *rng.pick(&[Fault::Resets, Fault::Slow { client: None, ms: 60 }]),
            };
            match fault {
                Fault::Loss { .. } => lasts = lasts.min(250),
                Fault::Drain => lasts = rng.range(800, 2000),
                _ => {}
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
            0..9 => Fault::Frozen,
            9..18 => Fault::Loss { client },
            18..30 => {
                Fault::Cut { client: one, way: *rng.pick(&[Way::Both, Way::ToServer, Way::FromServer]) }
            }
            30..38 => Fault::Slow { client: one, ms: rng.range(30, 700) },
            38..46 => Fault::Resets,
            46..55 => Fault::Flips { permille: rng.range(5, 150) },
            55..70 => self.crash(rng),
            70..77 => Fault::Restart,
            77..82 if self.servers > 1 => Fault::Left,
            82..86 if self.servers > 1 => Fault::Weight(*rng.pick(&[1, 30, 250])),
            86..92 if self.servers > 1 => Fault::Drain,
            92..95 if self.drives.is_some() => Fault::Drive { full: rng.permille(500) },
            _ => Fault::ClockJump { ms: *rng.pick(&[-90_000, -5_000, 5_000, 90_000]) },
        }
    }

    fn crash(&self, rng: &mut Rng) -> Fault {
        let power = self.drives.is_some() && rng.permille(500);
        let memory = *rng.pick(&[Memory::Kept, Memory::Kept, Memory::Torn, Memory::Lost]);
        // Memory that outlives the power does not, unless its file is torn.
        let memory = match memory {
            _ if !self.durable => Memory::Lost,
            Memory::Kept if power => Memory::Lost,
            memory => memory,
        };
        Fault::Crash { memory, power }
    }

    /// The end of a server that has to find again all it acknowledged.
    fn end_of_life(&self, rng: &mut Rng) -> Fault {
        let sync = self.drives.is_some_and(|drives| drives.sync);
        match rng.range(0, 10) {
            0..3 => Fault::Restart,
            3..6 if sync => Fault::Crash { memory: Memory::Lost, power: true },
            _ if self.durable && rng.permille(500) => Fault::Crash { memory: Memory::Kept, power: false },
            _ => Fault::Crash { memory: Memory::Lost, power: false },
        }
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
        writeln!(f, "{:?}: {} copies of a page, {}", self.kind, self.replicas, self.policy.name())?;
        match self.drives {
            None => writeln!(f, "no drives")?,
            Some(drives) => writeln!(f, "{drives:?}")?,
        }
        let (ramp, grace) = (self.member_ramp_ms, self.member_grace_ms);
        writeln!(f, "members: ramp {ramp} ms, grace {grace} ms, source away {:?}", self.source_away_ms)?;
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
            "power: true",
            "full: true",
            "full: false",
            "Drain",
            "Durable",
            "Churn",
            "Handover",
            "sync: true",
            "through: false",
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
