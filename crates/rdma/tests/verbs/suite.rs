//! What every implementation of verbs has to do. The same tests run over the simulated network and over real devices.

use crate::side::{Connection, DEADLINE, IMPATIENT, Memory, Side, TIMING, results};
use memkv_rdma::{Access, Place, RdmaError, Verbs, Work, WorkError, WorkKind, register_all};
use std::os::fd::AsFd;
use std::sync::Mutex;
use std::time::{Duration, Instant};

const MIB: usize = 1 << 20;

/// A test of one implementation, between two of its places.
pub(crate) type Test = fn(&dyn Verbs, &[Place; 2]);

pub(crate) const ALL: &[(&str, Test)] = &[
    ("one_page_of_any_length_moves_both_ways", one_page_of_any_length_moves_both_ways),
    ("a_chain_of_64_pages_moves_both_ways", a_chain_of_64_pages_moves_both_ways),
    ("work_completes_in_its_order_and_room_comes_back", work_completes_in_its_order_and_room_comes_back),
    ("what_the_peer_does_not_allow_is_refused", what_the_peer_does_not_allow_is_refused),
    ("the_rights_of_region_and_queue_pair_both_count", the_rights_of_region_and_queue_pair_both_count),
    ("a_failed_queue_pair_answers_all_its_work", a_failed_queue_pair_answers_all_its_work),
    ("a_completion_wakes_who_armed_and_nobody_else", a_completion_wakes_who_armed_and_nobody_else),
    ("a_write_that_is_late_never_lands", a_write_that_is_late_never_lands),
    ("a_dropped_region_is_not_reached", a_dropped_region_is_not_reached),
    ("memory_registered_in_chunks_works_in_each", memory_registered_in_chunks_works_in_each),
    ("misuse_is_an_error", misuse_is_an_error),
    ("a_thousand_connections_leave_nothing_behind", a_thousand_connections_leave_nothing_behind),
];

fn one_page_of_any_length_moves_both_ways(verbs: &dyn Verbs, places: &[Place; 2]) {
    let mut both = Connection::new(verbs, places, 5 * MIB, 4);
    let lengths = [1, 7, 4095, 4096, 4097, 64 << 10, MIB, 4 * MIB];
    for (index, len) in lengths.into_iter().enumerate() {
        both.client.memory.fill(2);
        let (local, remote) = (index * 3, 5 * MIB - len - index);
        both.server.post(&[both.work(WorkKind::Write, local, remote, len)]).unwrap();
        assert_eq!(results(&both.server.await_completions(1)), [Ok(())], "{len} bytes");
        both.client.memory.expect(1, remote, len, local);
        both.client.memory.expect(2, 0, remote, 0);
        both.client.memory.expect(2, remote + len, index, remote + len);

        both.client.memory.fill(3);
        both.server.post(&[both.work(WorkKind::Read, local, remote, len)]).unwrap();
        assert_eq!(results(&both.server.await_completions(1)), [Ok(())], "{len} bytes");
        both.server.memory.expect(3, local, len, remote);
        both.server.memory.fill(1);
    }
}

fn a_chain_of_64_pages_moves_both_ways(verbs: &dyn Verbs, places: &[Place; 2]) {
    let (page, count) = (MIB, 64);
    let mut both = Connection::new(verbs, places, page * count, count as u32);
    both.server.post(&both.pages(WorkKind::Write, page, count)).unwrap();
    let done = both.server.await_completions(1);
    assert_eq!((done.len(), done[0].result), (1, Ok(())), "only the last is signaled");
    both.client.memory.expect_all(1);

    both.client.memory.fill(4);
    both.server.post(&both.pages(WorkKind::Read, page, count)).unwrap();
    assert_eq!(results(&both.server.await_completions(1)), [Ok(())]);
    both.server.memory.expect_all(4);
}

fn work_completes_in_its_order_and_room_comes_back(verbs: &dyn Verbs, places: &[Place; 2]) {
    let mut both = Connection::new(verbs, places, MIB, 8);
    let write = both.work(WorkKind::Write, 0, 0, 4096);
    assert_eq!(both.server.post(&[write; 9]), Err(RdmaError::Full));
    for round in 0..20u64 {
        let chain: Vec<Work> =
            (0..8).map(|i| Work { id: round * 8 + i, signaled: i % 4 == 3, ..write }).collect();
        both.server.post(&chain).unwrap();
        assert_eq!(both.server.post(&[write]), Err(RdmaError::Full));
        let ids: Vec<u64> = both.server.await_completions(2).iter().map(|done| done.id).collect();
        assert_eq!(ids, [round * 8 + 3, round * 8 + 7]);
    }
    assert_eq!(both.server.poll(), []);
}

fn what_the_peer_does_not_allow_is_refused(verbs: &dyn Verbs, places: &[Place; 2]) {
    let alter: [fn(&mut Work); 4] = [
        |work| work.remote_key ^= 0x5a5a,
        |work| work.remote += 1,
        |work| work.remote -= 1 << 30,
        |work| work.len += 1,
    ];
    for (case, alter) in alter.into_iter().enumerate() {
        for kind in [WorkKind::Write, WorkKind::Read] {
            let mut both = Connection::new(verbs, places, 64 << 10, 4);
            let good = both.work(kind, 0, (64 << 10) - 8192, 8192);
            let mut bad = good;
            alter(&mut bad);
            both.server.post(&[bad, good]).unwrap();
            let refused = [Err(WorkError::RemoteAccess), Err(WorkError::Flushed)];
            assert_eq!(results(&both.server.await_completions(2)), refused, "case {case}, {kind:?}");
            both.client.memory.expect_all(2);
            both.server.memory.expect_all(1);
            assert_eq!(both.server.post(&[good]), Err(RdmaError::NotConnected));
        }
    }
}

fn the_rights_of_region_and_queue_pair_both_count(verbs: &dyn Verbs, places: &[Place; 2]) {
    let (all, read, write) = (
        Access::REMOTE,
        Access::Remote { read: true, write: false },
        Access::Remote { read: false, write: true },
    );
    let cases = [
        ([Access::Local; 2], false, false),
        ([read, all], false, true),
        ([write, all], true, false),
        ([all, read], false, true),
        ([all, write], true, false),
        ([all, Access::Local], false, false),
    ];
    for (access, may_write, may_read) in cases {
        for (kind, allowed) in [(WorkKind::Write, may_write), (WorkKind::Read, may_read)] {
            let mut both = Connection::with(verbs, places, 4096, 4, access, TIMING);
            both.server.post(&[both.work(kind, 0, 0, 4096)]).unwrap();
            let result = both.server.await_completions(1)[0].result;
            assert_eq!(result.is_ok(), allowed, "{access:?} {kind:?}");
            if !allowed {
                both.client.memory.expect_all(2);
                both.server.memory.expect_all(1);
            }
        }
    }
}

fn a_failed_queue_pair_answers_all_its_work(verbs: &dyn Verbs, places: &[Place; 2]) {
    let mut both = Connection::new(verbs, places, 8 * MIB, 32);
    let chain: Vec<Work> = (0..32).map(|_| both.work(WorkKind::Write, 0, 0, 8 * MIB)).collect();
    both.server.post(&chain).unwrap();
    both.server.pair().fail();
    // How many succeed before depends on the network; every one is answered, and none succeeds after one that did not.
    let all = results(&both.server.await_completions(32));
    let good = all.iter().take_while(|result| result.is_ok()).count();
    assert_eq!(all[good..], vec![Err(WorkError::Flushed); 32 - good]);
    assert_eq!(both.server.post(&chain[..1]), Err(RdmaError::NotConnected));
}

fn a_completion_wakes_who_armed_and_nobody_else(verbs: &dyn Verbs, places: &[Place; 2]) {
    let mut both = Connection::new(verbs, places, 4096, 4);
    let write = both.work(WorkKind::Write, 0, 0, 4096);
    both.server.post(&[write]).unwrap();
    both.server.await_completions(1);
    assert!(!both.server.is_readable(Duration::ZERO), "nobody armed");
    for _ in 0..50 {
        both.server.pair().arm().unwrap();
        assert_eq!(both.server.poll(), []);
        both.server.post(&[write]).unwrap();
        assert!(both.server.is_readable(DEADLINE), "a completion wakes");
        assert_eq!(results(&both.server.await_completions(1)), [Ok(())]);
    }
    both.server.pair().arm().unwrap();
    assert!(!both.server.is_readable(Duration::ZERO), "arming takes the event back");
}

/// The promise that a client rests on when it gives up: once its queue pair is gone, its memory is its own.
fn a_write_that_is_late_never_lands(verbs: &dyn Verbs, places: &[Place; 2]) {
    for round in 0..10 {
        let mut both = Connection::with(verbs, places, 8 * MIB, 16, [Access::REMOTE; 2], IMPATIENT);
        let chain: Vec<Work> = (0..16).map(|_| both.work(WorkKind::Write, 0, 0, 8 * MIB)).collect();
        both.server.post(&chain).unwrap();
        if round % 2 == 1 {
            std::thread::sleep(Duration::from_millis(round));
        }
        both.client.pair = None;
        both.client.memory.fill(7);
        let (start, mut done) = (Instant::now(), Vec::new());
        while done.len() < 16 && done.iter().all(Result::is_ok) {
            assert!(start.elapsed() < DEADLINE, "the server notices");
            done.extend(results(&both.server.poll()));
            both.client.memory.expect_all(7);
        }
        both.client.memory.expect_all(7);
    }
}

fn a_dropped_region_is_not_reached(verbs: &dyn Verbs, places: &[Place; 2]) {
    let mut both = Connection::new(verbs, places, MIB, 4);
    let write = both.work(WorkKind::Write, 0, 0, MIB);
    both.client.region = None;
    both.server.post(&[write]).unwrap();
    assert_eq!(results(&both.server.await_completions(1)), [Err(WorkError::RemoteAccess)]);
    both.client.memory.expect_all(2);
}

fn memory_registered_in_chunks_works_in_each(verbs: &dyn Verbs, places: &[Place; 2]) {
    let mut both = Connection::new(verbs, places, MIB, 4);
    let (chunk, len) = (256 << 10, 1000 << 10);
    let large = Memory::new(len);
    large.fill(9);
    let seen = Mutex::new(Vec::new());
    let progress = |done: u64, all: u64| seen.lock().unwrap().push((done, all));
    // SAFETY: the memory goes after the regions.
    let regions = unsafe {
        register_all(both.client.nic.as_ref(), large.start(), len, Access::REMOTE, chunk, &progress)
    };
    let regions = regions.unwrap();
    assert_eq!(regions.len(), 4);
    let mut seen = seen.into_inner().unwrap();
    seen.sort_unstable();
    assert_eq!((seen.len(), seen[3]), (4, (len as u64, len as u64)));
    for (index, region) in regions.iter().enumerate() {
        let (from, bytes) = (index * chunk, chunk.min(len - index * chunk));
        let read = both.work(WorkKind::Read, 0, 0, bytes);
        let read = Work { remote: large.address() + from as u64, remote_key: region.remote_key(), ..read };
        both.server.post(&[read]).unwrap();
        assert_eq!(results(&both.server.await_completions(1)), [Ok(())], "chunk {index}");
        both.server.memory.expect(9, 0, bytes, from);
    }
    drop(regions);
}

fn misuse_is_an_error(verbs: &dyn Verbs, places: &[Place; 2]) {
    let nowhere = Place { nic: "none7".into(), ..places[0].clone() };
    assert_eq!(verbs.open(&nowhere).unwrap_err().reason(), "no_device");
    let nowhere = Place { gid_index: 3999, ..places[0].clone() };
    assert_eq!(verbs.open(&nowhere).unwrap_err().reason(), "no_gid");

    let mut side = Side::new(verbs, &places[0], 4096, 1, Access::Local);
    assert_eq!(side.nic.health(), Ok(()));
    assert_eq!(side.nic.queue_pair(0, Access::Local).unwrap_err().reason(), "device_limit");
    assert_eq!(side.nic.queue_pair(u32::MAX, Access::Local).unwrap_err().reason(), "device_limit");
    let address = side.pair().address();
    let work = Work {
        id: 0,
        kind: WorkKind::Write,
        local: 0,
        local_key: 0,
        len: 0,
        remote: 0,
        remote_key: 0,
        signaled: true,
    };
    assert_eq!(side.post(&[work]), Err(RdmaError::NotConnected));
    side.pair().connect(&address, TIMING).unwrap();
    assert_eq!(side.pair().connect(&address, TIMING), Err(RdmaError::NotConnected));
    side.pair().fail();
    side.pair().fail();
    assert_eq!(side.post(&[work]), Err(RdmaError::NotConnected));

    // Not a dma-buf: whether the device could or not, it says no.
    let file = std::fs::File::open("/proc/self/exe").unwrap();
    // SAFETY: it is refused.
    let region = unsafe { side.nic.register_dmabuf(file.as_fd(), 0, 4096, 0, Access::REMOTE) };
    assert_eq!(region.unwrap_err().reason(), "register");
}

fn a_thousand_connections_leave_nothing_behind(verbs: &dyn Verbs, places: &[Place; 2]) {
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let nics = places.each_ref().map(|place| verbs.open(place).unwrap());
    let before = (descriptors(), kernel_objects());
    for _ in 0..1000 {
        let mut server = nics[0].queue_pair(16, Access::Local).unwrap();
        let mut client = nics[1].queue_pair(1, Access::REMOTE).unwrap();
        client.connect(&server.address(), TIMING).unwrap();
        server.connect(&client.address(), TIMING).unwrap();
        server.arm().unwrap();
        server.fail();
    }
    for _ in 0..10 {
        let both = Connection::new(verbs, places, 64 << 10, 4);
        let Connection { server, client } = both;
        // Whatever the order: a region keeps its domain, and a queue pair all it needs.
        let Side { pair, region, memory, nic } = client;
        drop(nic);
        drop((server, pair, region, memory));
    }
    assert_eq!((descriptors(), kernel_objects()), before);
}

/// What the kernel says of queue pairs, completion queues, regions and domains on all devices, where it can say it.
fn kernel_objects() -> Option<String> {
    let output = std::process::Command::new("rdma").args(["resource", "show"]).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}
