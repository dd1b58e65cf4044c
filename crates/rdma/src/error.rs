//! What goes wrong, with a label for metrics and a hint that says what to do.

use std::fmt;

/// An error number of the operating system.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Errno(pub i32);

impl Errno {
    /// The number that the last failed call of this thread left.
    #[must_use]
    pub fn last() -> Self {
        Self(std::io::Error::last_os_error().raw_os_error().unwrap_or(0))
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        std::io::Error::from_raw_os_error(self.0).fmt(f)
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why RDMA is not available, or why one call failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RdmaError {
    /// The program was built without verbs.
    #[error("this program was built without RDMA")]
    NotBuilt,
    /// The verbs library could not be loaded.
    #[error("libibverbs.so.1 could not be loaded")]
    NoLibrary,
    /// The kernel has no verbs.
    #[error("the kernel offers no RDMA verbs")]
    NoKernel,
    /// There is no RDMA device.
    #[error("no RDMA device")]
    NoDevice,
    /// A device that was asked for is not there.
    #[error("no RDMA device {wanted:?}; there are: {present}")]
    NoSuchDevice {
        /// What was asked for.
        wanted: String,
        /// The names of those that are there, with commas between.
        present: String,
    },
    /// No usable port of the device is active.
    #[error("port {port} of {nic} is down")]
    PortDown {
        /// The device.
        nic: String,
        /// Its port, counted from 1.
        port: u8,
    },
    /// The port has no usable entry in its GID table.
    #[error("port {port} of {nic} has no usable GID")]
    NoGid {
        /// The device.
        nic: String,
        /// Its port, counted from 1.
        port: u8,
    },
    /// The GID that was asked for is not in the table.
    #[error("port {port} of {nic} has no GID at index {index}")]
    NoSuchGid {
        /// The device.
        nic: String,
        /// Its port, counted from 1.
        port: u8,
        /// The index that was asked for.
        index: u32,
    },
    /// The device could not be opened.
    #[error("{nic} cannot be opened: {errno}")]
    Open {
        /// The device.
        nic: String,
        /// What the system said.
        errno: Errno,
    },
    /// Registering takes more locked memory than this process may have.
    #[error("registering {bytes} bytes is over the memlock limit of {limit} bytes")]
    Memlock {
        /// How much was to be registered.
        bytes: u64,
        /// The soft limit of this process.
        limit: u64,
    },
    /// Registering failed.
    #[error("registering {bytes} bytes failed: {errno}")]
    Register {
        /// How much was to be registered.
        bytes: u64,
        /// What the system said.
        errno: Errno,
    },
    /// More was asked for than the device can do.
    #[error("{wanted} {what} asked for, the device has {limit}")]
    Limit {
        /// Of what.
        what: &'static str,
        /// How much was asked for.
        wanted: u64,
        /// How much there is.
        limit: u64,
    },
    /// The two ends of a connection do not fit together.
    #[error("the peer's queue pair does not fit: {0}")]
    Peer(&'static str),
    /// The send queue has no room for this work.
    #[error("the queue pair's send queue is full")]
    Full,
    /// The queue pair is in the error state or not connected.
    #[error("the queue pair is not connected")]
    NotConnected,
    /// The device was removed.
    #[error("the device {nic} is gone")]
    Gone {
        /// The device.
        nic: String,
    },
    /// A call failed.
    #[error("{call} failed: {errno}")]
    System {
        /// Which call.
        call: &'static str,
        /// What the system said.
        errno: Errno,
    },
}

impl RdmaError {
    /// A short name of a closed set, for metrics and logs.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NotBuilt => "not_built",
            Self::NoLibrary => "no_library",
            Self::NoKernel => "no_kernel",
            Self::NoDevice | Self::NoSuchDevice { .. } => "no_device",
            Self::PortDown { .. } => "port_down",
            Self::NoGid { .. } | Self::NoSuchGid { .. } => "no_gid",
            Self::Open { .. } => "open",
            Self::Memlock { .. } => "memlock_limit",
            Self::Register { .. } => "register",
            Self::Limit { .. } => "device_limit",
            Self::Peer(_) => "peer",
            Self::Full => "full",
            Self::NotConnected => "not_connected",
            Self::Gone { .. } => "device_gone",
            Self::System { .. } => "system",
        }
    }

    /// What an operator can do about it.
    #[must_use]
    pub fn fix(&self) -> &'static str {
        match self {
            Self::NotBuilt => "build with `--features rdma`, or take a released binary",
            Self::NoLibrary => "install rdma-core (Debian: libibverbs1 ibverbs-providers; RHEL: libibverbs)",
            Self::NoKernel => "load the kernel modules: `modprobe ib_uverbs`, and that of the NIC",
            Self::NoDevice => {
                "check `ls /sys/class/infiniband`; in a container, pass /dev/infiniband; \
                 without a NIC, `rdma link add rxe0 type rxe netdev eth0` makes one in software"
            }
            Self::NoSuchDevice { .. } => {
                "set MEMKV_RDMA_DEVICES to devices of this machine, or leave it empty"
            }
            Self::PortDown { .. } => "check the cable and `rdma link`; a RoCE port is up when its netdev is",
            Self::NoGid { .. } => {
                "give the port's network interface an IP address, or start the subnet manager"
            }
            Self::NoSuchGid { .. } => "choose an index that `memkv-cli doctor rdma` shows, or none",
            Self::Open { .. } => {
                "check the rights on /dev/infiniband/uverbs*, and that it is passed to the container"
            }
            Self::Memlock { .. } => {
                "raise it: `ulimit -l unlimited`, systemd `LimitMEMLOCK=infinity`, or the container's memlock ulimit"
            }
            Self::Register { .. } => {
                "check the memlock limit (`ulimit -l`), free memory, and the device's region limits"
            }
            Self::Limit { .. } => "use fewer connections or smaller batches, or raise the device's limits",
            Self::Peer(_) => {
                "check that both ends use the same kind of network, and that they can reach each other"
            }
            Self::Full => "post less before polling",
            Self::NotConnected => "make a new queue pair and connect it",
            Self::Gone { .. } => "check `dmesg`; the device comes back after its driver is loaded again",
            Self::System { .. } => "check `dmesg`",
        }
    }
}
