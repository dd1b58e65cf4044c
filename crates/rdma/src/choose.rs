//! Which NICs to use, and which GID of each.

use crate::error::RdmaError;
use crate::info::{GidInfo, GidKind, Link, NicInfo, Place, PortInfo};

/// Chooses where queue pairs live: every usable port, in order of preference.
///
/// `wanted` names devices in order of preference, each as `mlx5_0`, or `mlx5_0:2` for one port of it. Empty means
/// every device, sorted by name. `gid_index` overrides the choice of the GID on every port.
///
/// A port is usable when it is active and has a GID. Of several GIDs the best is RoCE v2 over IPv4, then over a routed
/// IPv6 address, then over a link-local one, then InfiniBand, then RoCE v1; among equals the lowest index.
///
/// # Errors
///
/// A device that is wanted and not there is always an error: it is a mistyped setting. Apart from that, an error
/// only when no port is usable: the reason of the first one.
pub fn choose(nics: &[NicInfo], wanted: &[String], gid_index: Option<u32>) -> Result<Vec<Place>, RdmaError> {
    let candidates = if wanted.is_empty() { all_ports(nics) } else { wanted_ports(nics, wanted)? };
    let mut places: Vec<Place> = Vec::new();
    let mut reason = None;
    for (nic, port) in candidates {
        match place(nic, port, gid_index) {
            Ok(place) if places.contains(&place) => {}
            Ok(place) => places.push(place),
            Err(error) => reason = reason.or(Some(error)),
        }
    }
    if places.is_empty() { Err(reason.unwrap_or(RdmaError::NoDevice)) } else { Ok(places) }
}

/// Finds a port again that was opened before as `place`, when its NIC was as `was` says: after a removal it may have its GID at
/// another index, and has it a moment later than the rest. Another GID is not taken for it.
///
/// # Errors
///
/// What is not there, or not active, now.
pub fn find_again(nics: &[NicInfo], was: &NicInfo, place: &Place) -> Result<Place, RdmaError> {
    let (name, number) = (place.nic.clone(), place.port);
    let gid = was.port(number).and_then(|port| port.gids.iter().find(|gid| gid.index == place.gid_index));
    let port = nics.iter().find(|nic| nic.name == name).and_then(|nic| nic.port(number));
    let port = port.ok_or(RdmaError::Gone { nic: name.clone() })?;
    if !port.active {
        return Err(RdmaError::PortDown { nic: name, port: number });
    }
    let is_it = |found: &&GidInfo| gid.is_some_and(|gid| (gid.gid, gid.kind) == (found.gid, found.kind));
    match port.gids.iter().find(is_it) {
        Some(found) => Ok(Place { nic: name, port: number, gid_index: found.index }),
        None => Err(RdmaError::NoGid { nic: name, port: number }),
    }
}

/// Which of several NICs are near a process on NUMA node `home`, given the node of each. Where a NIC's node or `home` is
/// not known, the NIC counts as near; and where none is near, all are equally far, and so near.
#[must_use]
pub fn near(nics: &[Option<u32>], home: Option<u32>) -> Vec<bool> {
    let is_near = |nic: &Option<u32>| nic.is_none() || home.is_none() || *nic == home;
    let any = nics.iter().any(is_near);
    nics.iter().map(|nic| !any || is_near(nic)).collect()
}

fn all_ports(nics: &[NicInfo]) -> Vec<(&NicInfo, &PortInfo)> {
    let mut sorted: Vec<&NicInfo> = nics.iter().collect();
    sorted.sort_by(|a, b| a.name.cmp(&b.name));
    sorted.into_iter().flat_map(|nic| nic.ports.iter().map(move |port| (nic, port))).collect()
}

fn wanted_ports<'a>(
    nics: &'a [NicInfo],
    wanted: &[String],
) -> Result<Vec<(&'a NicInfo, &'a PortInfo)>, RdmaError> {
    let mut found = Vec::new();
    for name in wanted {
        let ports = ports_named(nics, name.trim());
        if ports.is_empty() {
            let names: Vec<&str> = nics.iter().map(|nic| nic.name.as_str()).collect();
            let present = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            return Err(RdmaError::NoSuchDevice { wanted: name.clone(), present });
        }
        found.extend(ports);
    }
    Ok(found)
}

/// The ports that a setting such as `mlx5_0` or `mlx5_0:2` names.
fn ports_named<'a>(nics: &'a [NicInfo], name: &str) -> Vec<(&'a NicInfo, &'a PortInfo)> {
    let (device, number) = match name.rsplit_once(':') {
        Some((device, number)) => (device, Some(number)),
        None => (name, None),
    };
    let is_meant = |port: &PortInfo| number.is_none_or(|number| number == port.number.to_string());
    let Some(nic) = nics.iter().find(|nic| nic.name == device) else { return Vec::new() };
    nic.ports.iter().filter(|port| is_meant(port)).map(|port| (nic, port)).collect()
}

fn place(nic: &NicInfo, port: &PortInfo, gid_index: Option<u32>) -> Result<Place, RdmaError> {
    let (name, number) = (nic.name.clone(), port.number);
    if !port.active {
        return Err(RdmaError::PortDown { nic: name, port: number });
    }
    let index = match gid_index {
        Some(index) if port.gids.iter().any(|gid| gid.index == index) => index,
        Some(index) => return Err(RdmaError::NoSuchGid { nic: name, port: number, index }),
        None => match port.gids.iter().min_by_key(|gid| (rank(port, gid), gid.index)) {
            Some(gid) => gid.index,
            None => return Err(RdmaError::NoGid { nic: name, port: number }),
        },
    };
    Ok(Place { nic: name, port: number, gid_index: index })
}

/// The lower, the better.
fn rank(port: &PortInfo, gid: &GidInfo) -> u32 {
    match gid.kind {
        GidKind::RoceV2 if gid.is_ipv4() => 0,
        GidKind::RoceV2 if !gid.is_link_local() => 1,
        GidKind::RoceV2 => 2,
        GidKind::Ib if port.link == Link::InfiniBand => 3,
        GidKind::RoceV1 => 4,
        GidKind::Ib => 5,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::info::NicLimits;

    fn gid(index: u32, kind: GidKind, address: &str) -> GidInfo {
        let gid = address.parse::<std::net::Ipv6Addr>().unwrap().octets();
        GidInfo { index, gid, kind, netdev: None }
    }

    fn port(number: u8, active: bool, gids: Vec<GidInfo>) -> PortInfo {
        let link = Link::Ethernet;
        PortInfo { number, active, link, mtu_bytes: 4096, lid: 0, message_bytes: 1 << 30, gids }
    }

    fn nic(name: &str, numa: Option<u32>, ports: Vec<PortInfo>) -> NicInfo {
        NicInfo { name: name.into(), numa, ports, limits: NicLimits::default() }
    }

    fn roce(address: &str) -> Vec<GidInfo> {
        vec![
            gid(0, GidKind::RoceV1, "fe80::1"),
            gid(1, GidKind::RoceV2, "fe80::1"),
            gid(2, GidKind::RoceV1, address),
            gid(3, GidKind::RoceV2, address),
        ]
    }

    fn names(places: &[Place]) -> Vec<String> {
        places.iter().map(|place| format!("{}:{}/{}", place.nic, place.port, place.gid_index)).collect()
    }

    fn wanted(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn roce_v2_over_ipv4_is_the_best_gid() {
        let nics = [nic("a", None, vec![port(1, true, roce("::ffff:10.0.0.1"))])];
        assert_eq!(names(&choose(&nics, &[], None).unwrap()), ["a:1/3"]);
    }

    #[test]
    fn a_routed_address_beats_a_link_local_one_and_v2_beats_v1() {
        let nics = [nic("a", None, vec![port(1, true, roce("2001:db8::1"))])];
        assert_eq!(names(&choose(&nics, &[], None).unwrap()), ["a:1/3"]);
        let only_local = vec![gid(0, GidKind::RoceV1, "fe80::1"), gid(1, GidKind::RoceV2, "fe80::1")];
        let nics = [nic("a", None, vec![port(1, true, only_local)])];
        assert_eq!(names(&choose(&nics, &[], None).unwrap()), ["a:1/1"]);
    }

    #[test]
    fn infiniband_uses_its_first_gid() {
        let mut port = port(1, true, vec![gid(0, GidKind::Ib, "fe80::2"), gid(1, GidKind::Ib, "fe80::3")]);
        port.link = Link::InfiniBand;
        assert_eq!(names(&choose(&[nic("ib", None, vec![port])], &[], None).unwrap()), ["ib:1/0"]);
    }

    #[test]
    fn all_active_ports_are_taken_in_the_order_of_their_names() {
        let gids = || roce("::ffff:10.0.0.1");
        let nics = [
            nic("c", None, vec![port(1, true, gids())]),
            nic("a", None, vec![port(1, false, gids()), port(2, true, gids())]),
            nic("b", None, vec![port(1, true, Vec::new())]),
        ];
        assert_eq!(names(&choose(&nics, &[], None).unwrap()), ["a:2/3", "c:1/3"]);
    }

    #[test]
    fn what_is_wanted_comes_in_the_order_of_preference_and_once() {
        let gids = || roce("::ffff:10.0.0.1");
        let two = || vec![port(1, true, gids()), port(2, true, gids())];
        let nics = [nic("a", None, two()), nic("b", None, two())];
        assert_eq!(names(&choose(&nics, &wanted(&["b:2", "a"]), None).unwrap()), ["b:2/3", "a:1/3", "a:2/3"]);
        assert_eq!(names(&choose(&nics, &wanted(&["a:2", "a"]), None).unwrap()), ["a:2/3", "a:1/3"]);
        assert_eq!(names(&choose(&nics, &wanted(&["b"]), Some(1)).unwrap()), ["b:1/1", "b:2/1"]);
    }

    #[test]
    fn a_mistyped_device_is_an_error_even_beside_a_good_one() {
        let nics = [nic("a", None, vec![port(1, true, roce("::ffff:10.0.0.1"))])];
        for name in ["x", "a:2", "a:x", ""] {
            let error = choose(&nics, &wanted(&["a", name]), None).unwrap_err();
            assert_eq!(error, RdmaError::NoSuchDevice { wanted: name.into(), present: "a".into() });
        }
    }

    #[test]
    fn the_reason_is_that_of_the_first_port() {
        assert_eq!(choose(&[], &[], None), Err(RdmaError::NoDevice));
        let down = nic("a", None, vec![port(1, false, roce("::ffff:10.0.0.1"))]);
        let bare = nic("b", None, vec![port(1, true, Vec::new())]);
        let both = [down, bare];
        assert_eq!(choose(&both, &[], None), Err(RdmaError::PortDown { nic: "a".into(), port: 1 }));
        let error = choose(&both, &wanted(&["b", "a"]), None);
        assert_eq!(error, Err(RdmaError::NoGid { nic: "b".into(), port: 1 }));
        let error = choose(&both, &wanted(&["b"]), Some(7));
        assert_eq!(error, Err(RdmaError::NoSuchGid { nic: "b".into(), port: 1, index: 7 }));
    }

    #[test]
    fn nics_of_the_own_node_are_near_and_so_are_those_of_which_nothing_is_known() {
        let nodes = [Some(0), Some(1), None, Some(1)];
        assert_eq!(near(&nodes, Some(1)), [false, true, true, true]);
        assert_eq!(near(&nodes, Some(0)), [true, false, true, false]);
        assert_eq!(near(&nodes, None), [true; 4]);
        assert_eq!(near(&[Some(0), Some(1)], Some(7)), [true; 2], "where none is near, none is left out");
        assert_eq!(near(&[], Some(0)), [false; 0]);
    }

    #[test]
    fn a_port_is_found_again_by_its_gid_wherever_that_is_now() {
        let (ours, other) = ("::ffff:10.0.0.1", "fe80::1");
        let was = nic("a", None, vec![port(1, true, vec![gid(3, GidKind::RoceV2, ours)])]);
        let place = Place { nic: "a".into(), port: 1, gid_index: 3 };
        let again = |active: bool, gids: Vec<GidInfo>| {
            find_again(&[nic("b", None, vec![]), nic("a", None, vec![port(1, active, gids)])], &was, &place)
        };
        let moved = vec![
            gid(0, GidKind::RoceV2, other),
            gid(1, GidKind::RoceV1, ours),
            gid(2, GidKind::RoceV2, ours),
        ];
        assert_eq!(again(true, moved.clone()).unwrap(), Place { gid_index: 2, ..place.clone() });
        assert_eq!(again(true, moved[..2].to_vec()).unwrap_err().reason(), "no_gid");
        assert_eq!(again(false, moved).unwrap_err().reason(), "port_down");
        assert_eq!(find_again(&[], &was, &place).unwrap_err().reason(), "device_gone");
    }
}
