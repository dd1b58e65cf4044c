//! Hosts of a test: network namespaces on one bridge, and what goes wrong between them.
//!
//! Everything has a name that begins with [`PREFIX`] and the process id of the test. A [`Network`] removes what it made
//! when it goes away, also in a panic, with the processes that are left in it; and what a killed test left behind goes
//! when the next one begins.
//!
//! Faults sit where packets come in, so that a host's own system calls do not see them.

use anyhow::{Context as _, ensure};
use std::path::Path;
use std::process::Command;

/// What the names of all namespaces begin with.
const PREFIX: &str = "memkv-";
/// The namespace of the bridge.
const SWITCH: &str = "switch";
/// Hosts, in the order of their addresses.
pub(crate) const HOSTS: [&str; 3] = ["client", "bad", "good"];

/// Runs a program, which must succeed.
fn run(line: &str) -> anyhow::Result<String> {
    let mut words = line.split_whitespace();
    let program = words.next().context("name a program")?;
    let output = Command::new(program).args(words).output().with_context(|| format!("run {line}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{line}: {} {}", output.status, complaint.trim());
    Ok(text)
}

/// Why there can be no such network here; `None` if there can.
pub(crate) fn lack() -> Option<String> {
    let name = format!("{PREFIX}{}-try", std::process::id());
    let tried = run(&format!("ip netns add {name}"))
        .and_then(|_| run(&format!("ip -n {name} link add eth0 type veth peer name eth1")));
    // It may not be there.
    run(&format!("ip netns del {name}")).ok();
    tried.err().map(|error| format!("no network namespaces here: {error:#}"))
}

/// Why packets cannot be filtered; `None` if they can.
pub(crate) fn lack_of_nft() -> Option<String> {
    let tried = run("nft --version");
    tried.err().map(|error| format!("no nftables here: {error:#}; install the package nftables"))
}

/// Why a link cannot be made slow; `None` if it can.
pub(crate) fn lack_of_tc() -> Option<String> {
    let name = format!("{PREFIX}{}-try", std::process::id());
    let shape = "tc qdisc add dev lo root tbf rate 1mbit burst 32kbit latency 400ms";
    let tried =
        run(&format!("ip netns add {name}")).and_then(|_| run(&format!("ip netns exec {name} {shape}")));
    run(&format!("ip netns del {name}")).ok();
    tried.err().map(|error| format!("no traffic control here: {error:#}"))
}

/// The hosts of one test. The process that made it removes it; others only use it.
pub(crate) struct Network {
    name: String,
    owned: bool,
}

impl Network {
    /// Makes the hosts and connects them.
    pub(crate) fn new(story: usize) -> anyhow::Result<Self> {
        remove_left_over()?;
        let network = Self { name: format!("{PREFIX}{}-{story}-", std::process::id()), owned: true };
        let switch = network.namespace(SWITCH);
        run(&format!("ip netns add {switch}"))?;
        for bridge in ["br0", "br1"] {
            run(&format!("ip -n {switch} link add {bridge} type bridge"))?;
            run(&format!("ip -n {switch} link set {bridge} up"))?;
        }
        for host in HOSTS {
            let (inside, address) = (network.namespace(host), address(host));
            run(&format!("ip netns add {inside}"))?;
            run(&format!("ip -n {inside} link set lo up"))?;
            run(&format!("ip -n {switch} link add {host} type veth peer name eth0 netns {inside}"))?;
            run(&format!("ip -n {switch} link set {host} master br0 up"))?;
            run(&format!("ip -n {inside} address add {address}/24 dev eth0"))?;
            run(&format!("ip -n {inside} link set eth0 up"))?;
        }
        Ok(network)
    }

    /// The network with this name, which another process made.
    pub(crate) fn of(name: String) -> Self {
        Self { name, owned: false }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    fn namespace(&self, host: &str) -> String {
        format!("{}{host}", self.name)
    }

    /// A command that runs on a host.
    pub(crate) fn command(&self, host: &str, program: &Path) -> Command {
        let mut command = memkv_tests::daemon::clean_command(Path::new("ip"));
        command.args(["netns", "exec", &self.namespace(host)]).arg(program);
        command
    }

    fn on(&self, host: &str, line: &str) {
        run(&format!("ip netns exec {} {line}", self.namespace(host))).unwrap();
    }

    /// Drops packets of `from` that reach `to`, in the words of nftables: all of them, or those that `which` selects.
    pub(crate) fn drop_packets(&self, from: &str, to: &str, which: &str) {
        self.on(to, "nft add table inet memkv");
        self.on(to, "nft add chain inet memkv in { type filter hook input priority 0 ; }");
        self.on(to, &format!("nft add rule inet memkv in ip saddr {} {which} drop", address(from)));
    }

    /// Lets everything through again.
    pub(crate) fn pass_packets(&self, host: &str) {
        self.on(host, "nft delete table inet memkv");
    }

    /// Plugs a host's cable into another switch, to which nobody else is connected; or back.
    pub(crate) fn plug(&self, host: &str, connected: bool) {
        let bridge = if connected { "br0" } else { "br1" };
        self.on(SWITCH, &format!("ip link set {host} master {bridge}"));
    }

    /// Makes what reaches a host's peers slow, or as fast as ever.
    pub(crate) fn slow(&self, host: &str, rate: Option<&str>) {
        match rate {
            Some(rate) => self
                .on(host, &format!("tc qdisc add dev eth0 root tbf rate {rate} burst 16kbit latency 200ms")),
            None => self.on(host, "tc qdisc del dev eth0 root"),
        }
    }
}

/// A host's address.
pub(crate) fn address(host: &str) -> String {
    let at = HOSTS.iter().position(|name| *name == host).unwrap();
    format!("10.77.0.{}", at + 1)
}

impl Drop for Network {
    fn drop(&mut self) {
        if self.owned {
            remove(&self.name);
        }
    }
}

/// Removes the namespaces whose names begin so, and ends what runs in them. Nothing can be done about failures.
fn remove(name: &str) {
    for namespace in namespaces(name).unwrap_or_default() {
        for pid in run(&format!("ip netns pids {namespace}")).unwrap_or_default().split_whitespace() {
            run(&format!("kill -9 {pid}")).ok();
        }
        run(&format!("ip netns del {namespace}")).ok();
    }
}

fn namespaces(name: &str) -> anyhow::Result<Vec<String>> {
    let list = run("ip netns list")?;
    let names = list.lines().filter_map(|line| line.split_whitespace().next());
    Ok(names.filter(|found| found.starts_with(name)).map(str::to_owned).collect())
}

/// Removes what tests made that are no longer running.
fn remove_left_over() -> anyhow::Result<()> {
    for namespace in namespaces(PREFIX)? {
        let pid = namespace[PREFIX.len()..].split('-').next().unwrap_or_default();
        if pid.parse::<u32>().is_ok() && !Path::new("/proc").join(pid).exists() {
            remove(&namespace);
        }
    }
    Ok(())
}
