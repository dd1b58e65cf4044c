//! `doctor rdma`: the RDMA devices of this machine, which of them would be used, and whether they work.

use super::{note, ok, problem};
use crate::args::Global;
use crate::failure::{Code, Failure};
use crate::fleet::configuration;
use crate::output::Output;
use crate::render;
use crate::units::bytes;
use crate::view::{Diagnosis, Finding};
use memkv_rdma::{
    GidInfo, GidKind, Link, NicInfo, Place, PortInfo, RdmaError, SelfTestError, Verbs, choose, memlock_limit,
    self_test,
};
use std::net::Ipv6Addr;

/// Less locked memory than this is not enough to register buffers.
const MEMLOCK_MIN: u64 = 1 << 30;

/// Which devices are to be used.
#[derive(Debug, Default)]
struct Wish {
    devices: Vec<String>,
    gid_index: Option<u32>,
}

/// Looks at the devices and prints the findings.
pub(super) fn run(global: &Global, output: &Output) -> Result<(), Failure> {
    let spinner = output.spinner("try the RDMA devices");
    let wish = Wish::read(global);
    let mut findings = match memkv_rdma::system() {
        Ok(verbs) => findings(verbs.as_ref(), &wish),
        Err(error) => vec![failed("verbs", &error)],
    };
    findings.push(memlock_finding(memlock_limit()));
    spinner.finish_and_clear();
    let problems = findings.iter().filter(|finding| finding.level == "problem").count();
    output.show(&Diagnosis { findings, problems }, render::diagnosis)?;
    if problems == 0 { Ok(()) } else { Err(Failure::new(Code::Negative, "")) }
}

impl Wish {
    /// From the client's configuration, or from the variables alone where that names no servers: none is needed here.
    fn read(global: &Global) -> Self {
        if let Ok(config) = configuration(global) {
            return Self { devices: config.rdma_devices.clone(), gid_index: config.rdma_gid_index };
        }
        let variable = |name| std::env::var(name).unwrap_or_default();
        let names = variable("MEMKV_RDMA_DEVICES");
        let names = names.split(',').map(str::trim).filter(|name| !name.is_empty());
        Self {
            devices: names.map(str::to_owned).collect(),
            gid_index: variable("MEMKV_RDMA_GID_INDEX").trim().parse().ok(),
        }
    }
}

fn findings(verbs: &dyn Verbs, wish: &Wish) -> Vec<Finding> {
    let nics = match verbs.nics() {
        Ok(nics) => nics,
        Err(error) => return vec![failed("devices", &error)],
    };
    let mut findings: Vec<Finding> = nics.iter().flat_map(device_findings).collect();
    match choose(&nics, &wish.devices, wish.gid_index) {
        Ok(places) => {
            let names: Vec<String> = places.iter().map(name_of).collect();
            let near = match verbs.home_node() {
                Some(node) if wish.devices.is_empty() => format!("; near NUMA node {node} first"),
                Some(_) | None => String::new(),
            };
            findings.push(ok("choice", format!("{} would be used, in this order{near}", names.join(", "))));
            findings.extend(places.iter().map(|place| trial(verbs, place)));
        }
        Err(error) => findings.push(failed("choice", &error)),
    }
    findings
}

fn device_findings(nic: &NicInfo) -> Vec<Finding> {
    let numa = nic.numa.map_or_else(|| "NUMA node unknown".to_owned(), |node| format!("NUMA node {node}"));
    let limits = nic.limits;
    let text = format!(
        "{numa}; {} queue pairs of up to {} requests, {} reads at a time, regions of up to {}",
        limits.queue_pairs,
        limits.work_requests,
        limits.reads,
        bytes(limits.region_bytes)
    );
    let mut findings = vec![ok(format!("device {}", nic.name), text)];
    findings.extend(nic.ports.iter().map(|port| port_finding(&nic.name, port)));
    findings
}

fn port_finding(nic: &str, port: &PortInfo) -> Finding {
    let check = format!("port {nic}:{}", port.number);
    let error = |error: RdmaError| note(&check, error.to_string(), error.fix());
    let (nic, number) = (nic.to_owned(), port.number);
    if !port.active {
        return error(RdmaError::PortDown { nic, port: number });
    }
    if port.gids.is_empty() {
        return error(RdmaError::NoGid { nic, port: number });
    }
    let link = match port.link {
        Link::InfiniBand => format!("InfiniBand, LID {}", port.lid),
        Link::Ethernet => "Ethernet".to_owned(),
    };
    let gids: Vec<String> = port.gids.iter().map(describe_gid).collect();
    ok(&check, format!("active, {link}, MTU {}; GIDs: {}", port.mtu_bytes, gids.join(", ")))
}

/// `1 = 10.0.0.1 (RoCE v2, eth0)`.
fn describe_gid(gid: &GidInfo) -> String {
    let address = Ipv6Addr::from(gid.gid);
    let address = address.to_ipv4_mapped().map_or_else(|| address.to_string(), |short| short.to_string());
    let kind = match gid.kind {
        GidKind::Ib => "InfiniBand",
        GidKind::RoceV1 => "RoCE v1",
        GidKind::RoceV2 => "RoCE v2",
    };
    let netdev = gid.netdev.as_ref().map(|netdev| format!(", {netdev}")).unwrap_or_default();
    format!("{} = {address} ({kind}{netdev})", gid.index)
}

fn name_of(place: &Place) -> String {
    format!("{}:{} with GID {}", place.nic, place.port, place.gid_index)
}

/// Moves bytes through one port and back.
fn trial(verbs: &dyn Verbs, place: &Place) -> Finding {
    let check = format!("self test {}:{}", place.nic, place.port);
    match self_test(verbs, place) {
        Ok(done) => {
            let ms = |time: std::time::Duration| time.as_secs_f64() * 1e3;
            let (moved, write, read) = (bytes(done.bytes), ms(done.write), ms(done.read));
            ok(
                check,
                format!("{moved} written in {write:.1} ms and read in {read:.1} ms, every byte compared"),
            )
        }
        Err(SelfTestError::Step(error)) => failed(&check, &error),
        Err(error) => {
            let fix = "check `dmesg`, and that the port reaches itself: a firewall must let RoCE through (UDP port 4791)";
            problem(check, error.to_string(), fix)
        }
    }
}

fn failed(check: &str, error: &RdmaError) -> Finding {
    problem(check, error.to_string(), error.fix())
}

fn memlock_finding(limit: Option<u64>) -> Finding {
    match limit {
        None => ok("locked memory", "without a limit".to_owned()),
        Some(limit) if limit >= MEMLOCK_MIN => ok("locked memory", format!("up to {}", bytes(limit))),
        Some(limit) => note(
            "locked memory",
            format!("this process may lock {}; the whole host pool or arena is registered", bytes(limit)),
            "ulimit -l unlimited; for services LimitMEMLOCK=infinity",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use memkv_rdma::fake::Fabric;

    fn levels(findings: &[Finding]) -> Vec<(&str, &str)> {
        findings.iter().map(|finding| (finding.check.as_str(), finding.level)).collect()
    }

    fn wish(devices: &[&str]) -> Wish {
        Wish { devices: devices.iter().map(|&name| name.to_owned()).collect(), gid_index: None }
    }

    #[test]
    fn devices_ports_the_choice_and_the_self_test_are_told() {
        let findings = findings(&Fabric::new(2), &wish(&["fake1"]));
        let expected = [
            ("device fake0", "ok"),
            ("port fake0:1", "ok"),
            ("device fake1", "ok"),
            ("port fake1:1", "ok"),
            ("choice", "ok"),
            ("self test fake1:1", "ok"),
        ];
        assert_eq!(levels(&findings), expected);
        assert!(findings[0].text.starts_with("NUMA node 0; 65536 queue pairs"), "{}", findings[0].text);
        assert_eq!(findings[1].text, "active, Ethernet, MTU 4096; GIDs: 0 = 10.0.0.1 (RoCE v2)");
        assert_eq!(findings[4].text, "fake1:1 with GID 0 would be used, in this order");
        assert!(findings[5].text.starts_with("1.0 MiB written in "), "{}", findings[5].text);
    }

    #[test]
    fn devices_near_the_process_are_told_to_come_first_unless_some_are_named() {
        let fabric = Fabric::new(2).at_node(1);
        let choice = |wish: &Wish| {
            let findings = findings(&fabric, wish);
            findings.into_iter().find(|finding| finding.check == "choice").unwrap().text
        };
        assert!(choice(&Wish::default()).ends_with("in this order; near NUMA node 1 first"));
        assert!(choice(&wish(&["fake0"])).ends_with("in this order"));
    }

    #[test]
    fn what_is_missing_is_a_problem_with_its_fix() {
        let empty = findings(&Fabric::new(0), &Wish::default());
        assert_eq!(levels(&empty), [("choice", "problem")]);
        assert_eq!(empty[0].text, "no RDMA device");
        assert!(empty[0].fix.as_ref().unwrap().contains("/sys/class/infiniband"));
        let wrong = findings(&Fabric::new(1), &wish(&["mlx5_0"]));
        assert_eq!(wrong[2].text, "no RDMA device \"mlx5_0\"; there are: fake0");
        let fabric = Fabric::new(1);
        fabric.refuse_registrations(1);
        let refused = findings(&fabric, &Wish::default());
        assert_eq!(refused[3].level, "problem");
        assert!(refused[3].fix.as_ref().unwrap().contains("LimitMEMLOCK"));
    }

    #[test]
    fn a_port_that_is_down_or_has_no_address_is_noted() {
        let mut nic = Fabric::new(1).nics().unwrap().remove(0);
        nic.ports[0].gids.clear();
        assert!(port_finding("a", &nic.ports[0]).text.contains("has no usable GID"));
        nic.ports[0].active = false;
        let finding = port_finding("a", &nic.ports[0]);
        assert_eq!((finding.level, finding.text.as_str()), ("note", "port 1 of a is down"));
    }

    #[test]
    fn the_limit_on_locked_memory_is_judged() {
        assert_eq!(memlock_finding(None).level, "ok");
        assert_eq!(memlock_finding(Some(1 << 30)).level, "ok");
        assert_eq!(memlock_finding(Some(8 << 20)).level, "note");
    }
}
