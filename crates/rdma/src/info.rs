//! What is known about a NIC before it is used.

/// One NIC: what selection needs and `memkv-cli doctor rdma` prints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NicInfo {
    /// Its name, such as `mlx5_0`.
    pub name: String,
    /// The NUMA node that it is attached to, where known.
    pub numa: Option<u32>,
    /// Its ports.
    pub ports: Vec<PortInfo>,
    /// What it can do.
    pub limits: NicLimits,
}

impl NicInfo {
    /// The port with this number, counted from 1.
    #[must_use]
    pub fn port(&self, number: u8) -> Option<&PortInfo> {
        self.ports.iter().find(|port| port.number == number)
    }
}

/// One port of a NIC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortInfo {
    /// Counted from 1.
    pub number: u8,
    /// Whether it can send.
    pub active: bool,
    /// What is below it.
    pub link: Link,
    /// The active MTU in bytes: 256, 512, 1024, 2048 or 4096.
    pub mtu_bytes: u32,
    /// The local identifier; 0 on Ethernet.
    pub lid: u16,
    /// The longest message in bytes.
    pub message_bytes: u64,
    /// The GID table, without its empty entries.
    pub gids: Vec<GidInfo>,
}

/// The link layer of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// InfiniBand: addressed by LID, inside a subnet.
    InfiniBand,
    /// Ethernet, so RoCE: addressed by GID.
    Ethernet,
}

/// One entry of a port's GID table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GidInfo {
    /// Its place in the table.
    pub index: u32,
    /// The address, as an IPv6 address is written.
    pub gid: [u8; 16],
    /// The protocol it stands for.
    pub kind: GidKind,
    /// The network interface behind it, where there is one.
    pub netdev: Option<String>,
}

impl GidInfo {
    /// Whether it was made from an IPv4 address.
    #[must_use]
    pub fn is_ipv4(&self) -> bool {
        std::net::Ipv6Addr::from(self.gid).to_ipv4_mapped().is_some()
    }

    /// Whether it is a link-local address, which routers do not pass on.
    #[must_use]
    pub fn is_link_local(&self) -> bool {
        std::net::Ipv6Addr::from(self.gid).is_unicast_link_local()
    }
}

/// The protocol that a GID stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GidKind {
    /// InfiniBand.
    Ib,
    /// RoCE v1: Ethernet frames, not routed.
    RoceV1,
    /// RoCE v2: UDP, routed.
    RoceV2,
}

/// What a NIC can do at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NicLimits {
    /// Queue pairs.
    pub queue_pairs: u32,
    /// Work requests outstanding in one queue pair.
    pub work_requests: u32,
    /// Pieces of local memory in one work request.
    pub spans: u32,
    /// Reads that one queue pair has outstanding at the other end.
    pub reads: u8,
    /// Bytes of one region.
    pub region_bytes: u64,
    /// Regions.
    pub regions: u32,
}

/// Where a queue pair lives: what [`crate::choose`] answers and [`crate::Verbs::open`] takes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// The NIC's name.
    pub nic: String,
    /// Its port, counted from 1.
    pub port: u8,
    /// The entry of the port's GID table.
    pub gid_index: u32,
}
