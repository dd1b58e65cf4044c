//! What a device says of itself.

use crate::error::{Errno, RdmaError};
use crate::info::{GidInfo, GidKind, Link, NicInfo, NicLimits, PortInfo};
use rdma_mummy_sys::{
    _ibv_query_gid_table, IBV_LINK_LAYER_INFINIBAND, ibv_gid, ibv_gid_entry, ibv_mtu, ibv_port_attr,
    ibv_port_state,
};
use sideway::ibverbs::device::DeviceInfo;
use sideway::ibverbs::device_context::DeviceContext;
use std::path::{Path, PathBuf};

/// Entries of a GID table that are looked at, for all ports together. The kernel takes less than 64 KiB of them.
const GIDS_MAX: usize = 65_535 / size_of::<ibv_gid_entry>();

pub(super) fn info(context: &DeviceContext) -> Result<NicInfo, RdmaError> {
    let name = context.name();
    let system = |call| RdmaError::System { call, errno: Errno::last() };
    let device = context.query_device().map_err(|_| system("ibv_query_device"))?.attr.orig_attr;
    let gids = gid_table(context)?;
    let mut ports = Vec::new();
    for number in 1..=device.phys_port_cnt {
        let attr = context.query_port(number).map_err(|_| system("ibv_query_port"))?.attr;
        ports.push(port(&name, number, &attr, &gids));
    }
    let limits = NicLimits {
        queue_pairs: positive(device.max_qp),
        work_requests: positive(device.max_qp_wr),
        spans: positive(device.max_sge),
        reads: positive(device.max_qp_rd_atom.min(device.max_qp_init_rd_atom)).min(255) as u8,
        region_bytes: device.max_mr_size,
        regions: positive(device.max_mr),
    };
    let numa = std::fs::read_to_string(folder(&name).join("device/numa_node"));
    let numa = numa.ok().and_then(|text| text.trim().parse().ok());
    Ok(NicInfo { name, numa, ports, limits })
}

fn positive(value: i32) -> u32 {
    u32::try_from(value).unwrap_or(0)
}

fn folder(nic: &str) -> PathBuf {
    Path::new("/sys/class/infiniband").join(nic)
}

fn port(nic: &str, number: u8, attr: &ibv_port_attr, gids: &[ibv_gid_entry]) -> PortInfo {
    let is_infiniband = attr.link_layer == IBV_LINK_LAYER_INFINIBAND;
    let gids = gids.iter().filter(|entry| entry.port_num == u32::from(number));
    PortInfo {
        number,
        active: attr.state == ibv_port_state::IBV_PORT_ACTIVE,
        link: if is_infiniband { Link::InfiniBand } else { Link::Ethernet },
        mtu_bytes: mtu_bytes(attr.active_mtu),
        lid: attr.lid,
        message_bytes: u64::from(attr.max_msg_sz),
        gids: gids.filter_map(|entry| gid(nic, number, entry)).collect(),
    }
}

/// One entry, unless it is empty or of a kind that we do not know.
fn gid(nic: &str, port: u8, entry: &ibv_gid_entry) -> Option<GidInfo> {
    // SAFETY: both views of the union are 16 bytes without padding.
    let gid = unsafe { entry.gid.raw };
    let kind = match entry.gid_type {
        0 => GidKind::Ib,
        1 => GidKind::RoceV1,
        2 => GidKind::RoceV2,
        _ => return None,
    };
    let index = entry.gid_index;
    let path = folder(nic).join(format!("ports/{port}/gid_attrs/ndevs/{index}"));
    let netdev = std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
    (gid != [0; 16]).then_some(GidInfo { index, gid, kind, netdev: netdev.filter(|name| !name.is_empty()) })
}

/// The GIDs of all ports. Only entries that are in use are in it.
fn gid_table(context: &DeviceContext) -> Result<Vec<ibv_gid_entry>, RdmaError> {
    let empty = ibv_gid_entry {
        gid: ibv_gid { raw: [0; 16] },
        gid_index: 0,
        port_num: 0,
        gid_type: 0,
        ndev_ifindex: 0,
    };
    let mut entries = vec![empty; GIDS_MAX];
    // SAFETY: only used while `context` is borrowed.
    let raw = unsafe { context.context() };
    // SAFETY: the context is open, and the table has as many entries, of this size, as we say.
    let found = unsafe {
        _ibv_query_gid_table(raw.as_ptr(), entries.as_mut_ptr(), GIDS_MAX, 0, size_of::<ibv_gid_entry>())
    };
    let Ok(found) = usize::try_from(found) else {
        let errno = Errno(i32::try_from(found.unsigned_abs()).unwrap_or(0));
        return Err(RdmaError::System { call: "ibv_query_gid_table", errno });
    };
    entries.truncate(found);
    Ok(entries)
}

/// The length in bytes of an MTU as the library encodes it; 0 if it is none.
fn mtu_bytes(mtu: ibv_mtu::Type) -> u32 {
    if (ibv_mtu::IBV_MTU_256..=ibv_mtu::IBV_MTU_4096).contains(&mtu) { 128 << mtu } else { 0 }
}

/// The library's code of the longest MTU that is not over this many bytes.
pub(super) fn mtu_code(bytes: u32) -> Option<ibv_mtu::Type> {
    (ibv_mtu::IBV_MTU_256..=ibv_mtu::IBV_MTU_4096).rev().find(|&code| mtu_bytes(code) <= bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_mtu_is_coded_by_the_longest_that_fits() {
        let codes = [(256, 1), (511, 1), (512, 2), (1024, 3), (1500, 3), (2048, 4), (4096, 5), (9000, 5)];
        for (bytes, code) in codes {
            assert_eq!(mtu_code(bytes), Some(code), "{bytes}");
        }
        assert_eq!(mtu_code(255), None);
        assert_eq!((0..7).map(mtu_bytes).collect::<Vec<_>>(), [0, 256, 512, 1024, 2048, 4096, 0]);
    }
}
