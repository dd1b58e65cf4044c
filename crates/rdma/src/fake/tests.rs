#![allow(unsafe_code, reason = "registers and posts its own memory")]

use super::*;
use crate::choose;
use crate::nic::WorkKind;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// One side: memory that is registered, and a queue pair. The region and the pair go before the bytes.
struct Side {
    pair: Box<dyn QueuePair>,
    region: Box<dyn Region>,
    bytes: Box<[u8]>,
    nic: Arc<dyn Nic>,
}

impl Side {
    fn new(fabric: &Fabric, nic: usize, depth: u32, access: Access) -> Self {
        let places = choose(&fabric.nics().unwrap(), &[], None).unwrap();
        let nic = fabric.open(&places[nic]).unwrap();
        let mut bytes: Box<[u8]> =
            (0..4096u32).map(|i| (i * 7 + nic.place().nic.len() as u32) as u8).collect();
        let start = NonNull::new(bytes.as_mut_ptr()).unwrap();
        // SAFETY: the bytes stay until the region is dropped, see the order of the fields.
        let region = unsafe { nic.register(start, bytes.len(), access) }.unwrap();
        let pair = nic.queue_pair(depth, access).unwrap();
        Self { pair, region, bytes, nic }
    }

    fn start(&self) -> u64 {
        self.bytes.as_ptr().addr() as u64
    }

    fn post(&mut self, work: &[Work]) -> Result<(), RdmaError> {
        // SAFETY: the memory is that of two sides, which nothing else touches while work is under way.
        unsafe { self.pair.post(work) }
    }

    fn poll(&mut self) -> Vec<Completion> {
        let mut out = Vec::new();
        self.pair.poll(&mut out).unwrap();
        out
    }
}

/// A server, which moves bytes, and a client, which allows it.
fn sides(fabric: &Fabric) -> (Side, Side) {
    let mut server = Side::new(fabric, 0, 8, Access::Local);
    let mut client = Side::new(fabric, 1, 1, Access::REMOTE);
    server.bytes.fill(1);
    client.bytes.fill(2);
    server.pair.connect(&client.pair.address(), Timing::default()).unwrap();
    client.pair.connect(&server.pair.address(), Timing::default()).unwrap();
    (server, client)
}

fn work(server: &Side, client: &Side, kind: WorkKind) -> Work {
    Work {
        id: 7,
        kind,
        local: server.start(),
        local_key: server.region.local_key(),
        len: 1000,
        remote: client.start() + 96,
        remote_key: client.region.remote_key(),
        signaled: true,
    }
}

const GOOD: Result<(), WorkError> = Ok(());

fn results(completions: &[Completion]) -> Vec<Result<(), WorkError>> {
    completions.iter().map(|completion| completion.result).collect()
}

#[test]
fn bytes_move_both_ways_and_only_those_meant() {
    let fabric = Fabric::new(2);
    let (mut server, mut client) = sides(&fabric);
    let write = work(&server, &client, WorkKind::Write);
    server.post(&[write]).unwrap();
    assert_eq!(server.poll(), [Completion { id: 7, result: Ok(()) }]);
    assert!(client.bytes[..96].iter().all(|&byte| byte == 2));
    assert!(client.bytes[96..1096].iter().all(|&byte| byte == 1));
    assert!(client.bytes[1096..].iter().all(|&byte| byte == 2));
    client.bytes.fill(3);
    server.post(&[Work { kind: WorkKind::Read, ..write }]).unwrap();
    assert_eq!(results(&server.poll()), [GOOD]);
    assert!(server.bytes[..1000].iter().all(|&byte| byte == 3));
    assert!(server.bytes[1000..].iter().all(|&byte| byte == 1));
}

#[test]
fn what_the_peer_does_not_allow_is_refused_and_fails_both_ends() {
    let alter: [fn(&mut Work); 5] = [
        |work| work.remote_key += 2,
        |work| work.remote_key -= 1,
        |work| work.remote += 4096 - 96 - 999,
        |work| work.remote -= 97,
        |work| work.remote = u64::MAX - 10,
    ];
    for (case, alter) in alter.into_iter().enumerate() {
        let fabric = Fabric::new(2);
        let (mut server, mut client) = sides(&fabric);
        let good = work(&server, &client, WorkKind::Write);
        let mut bad = good;
        alter(&mut bad);
        server.post(&[bad, good]).unwrap();
        let refused = [Err(WorkError::RemoteAccess), Err(WorkError::Flushed)];
        assert_eq!(results(&server.poll()), refused, "case {case}");
        assert!(client.bytes.iter().all(|&byte| byte == 2), "case {case}");
        assert_eq!(server.post(&[good]), Err(RdmaError::NotConnected));
        assert_eq!(client.post(&[good]), Err(RdmaError::NotConnected));
    }
}

#[test]
fn the_rights_of_the_region_and_of_the_queue_pair_both_count() {
    let fabric = Fabric::new(2);
    let (none, read, write) = (
        Access::Local,
        Access::Remote { read: true, write: false },
        Access::Remote { read: false, write: true },
    );
    let all = [none, read, write, Access::REMOTE];
    for (of_region, of_pair) in all.into_iter().flat_map(|region| all.map(|pair| (region, pair))) {
        for kind in [WorkKind::Write, WorkKind::Read] {
            let allows = |access: Access| match kind {
                WorkKind::Write => access.peer_writes(),
                WorkKind::Read => access.peer_reads(),
            };
            let mut server = Side::new(&fabric, 0, 8, Access::Local);
            let mut client = Side::new(&fabric, 1, 1, of_region);
            client.pair = client.nic.queue_pair(1, of_pair).unwrap();
            server.pair.connect(&client.pair.address(), Timing::default()).unwrap();
            client.pair.connect(&server.pair.address(), Timing::default()).unwrap();
            let work = work(&server, &client, kind);
            server.post(&[work]).unwrap();
            let allowed = allows(of_region) && allows(of_pair);
            assert_eq!(server.poll()[0].result.is_ok(), allowed, "{of_region:?} {of_pair:?} {kind:?}");
        }
    }
}

#[test]
fn a_region_of_another_opening_of_the_nic_is_not_reached() {
    let fabric = Fabric::new(2);
    let (mut server, client) = sides(&fabric);
    let other = Side::new(&fabric, 1, 1, Access::REMOTE);
    let stranger = Work {
        remote_key: other.region.remote_key(),
        remote: other.start(),
        ..work(&server, &client, WorkKind::Write)
    };
    server.post(&[stranger]).unwrap();
    assert_eq!(results(&server.poll()), [Err(WorkError::RemoteAccess)]);
}

#[test]
fn a_local_mistake_is_ours() {
    for alter in [(|work| work.local_key += 2) as fn(&mut Work), |work| work.local += 4000] {
        let fabric = Fabric::new(2);
        let (mut server, client) = sides(&fabric);
        let mut bad = work(&server, &client, WorkKind::Write);
        alter(&mut bad);
        server.post(&[bad]).unwrap();
        assert_eq!(results(&server.poll()), [Err(WorkError::Local)]);
    }
}

#[test]
fn room_comes_back_with_signaled_completions_only() {
    let fabric = Fabric::new(2);
    let (mut server, client) = sides(&fabric);
    let quiet = Work { signaled: false, ..work(&server, &client, WorkKind::Write) };
    let loud = Work { signaled: true, ..quiet };
    server.post(&[quiet, quiet, quiet, loud]).unwrap();
    server.post(&[quiet; 4]).unwrap();
    assert_eq!(server.post(&[loud]), Err(RdmaError::Full));
    assert_eq!(server.poll().len(), 1);
    assert_eq!(server.post(&[loud; 5]), Err(RdmaError::Full));
    server.post(&[loud]).unwrap();
    assert_eq!(server.poll().len(), 1);
    server.post(&[loud; 8]).unwrap();
    assert_eq!(fabric.counts().doorbells, 4);
    assert_eq!(fabric.counts().posted, 17);
}

#[test]
fn a_dropped_queue_pair_ends_every_late_write() {
    let fabric = Fabric::new(2);
    let (mut server, client) = sides(&fabric);
    let write = work(&server, &client, WorkKind::Write);
    fabric.hold(Hold::Transfers);
    server.post(&[write, write]).unwrap();
    assert_eq!(fabric.counts().held, 2);
    assert_eq!(fabric.deliver(1, Order::Oldest), 1);
    let Side { pair, mut bytes, region, nic } = client;
    assert_eq!(bytes[96], 1, "while the queue pair is there, what is late lands");
    drop(pair);
    bytes.fill(5);
    assert_eq!(fabric.deliver(9, Order::Oldest), 1);
    assert!(bytes.iter().all(|&byte| byte == 5));
    assert_eq!(results(&server.poll()), [GOOD, Err(WorkError::RetryExceeded)]);
    drop((region, nic));
}

#[test]
fn a_dropped_region_is_not_reached() {
    let fabric = Fabric::new(2);
    let (mut server, client) = sides(&fabric);
    let write = work(&server, &client, WorkKind::Write);
    fabric.hold(Hold::Transfers);
    server.post(&[write]).unwrap();
    let Side { pair: _pair, bytes, region, nic: _nic } = client;
    drop(region);
    fabric.hold(Hold::Nothing);
    assert_eq!(results(&server.poll()), [Err(WorkError::RemoteAccess)]);
    assert!(bytes.iter().all(|&byte| byte == 2));
}

#[test]
fn completions_wait_while_bytes_move() {
    let fabric = Fabric::new(2);
    let (mut server, client) = sides(&fabric);
    fabric.hold(Hold::Completions);
    let write = work(&server, &client, WorkKind::Write);
    server.post(&[write]).unwrap();
    assert_eq!(client.bytes[96], 1);
    assert_eq!(server.poll(), []);
    fabric.deliver(1, Order::Oldest);
    assert_eq!(results(&server.poll()), [GOOD]);
}

#[test]
fn work_of_two_queue_pairs_is_reordered_and_of_one_is_not() {
    let fabric = Fabric::new(2);
    let (mut server_a, mut client_a) = sides(&fabric);
    let (mut server_b, client_b) = sides(&fabric);
    fabric.hold(Hold::Transfers);
    let first = work(&server_a, &client_a, WorkKind::Write);
    server_a.post(&[Work { id: 1, ..first }, Work { id: 2, ..first }]).unwrap();
    let other = work(&server_b, &client_b, WorkKind::Write);
    server_b.post(&[other]).unwrap();
    assert_eq!(fabric.deliver(1, Order::Newest), 1);
    assert_eq!((client_a.bytes[96], client_b.bytes[96]), (2, 1));
    assert_eq!(server_b.poll().len(), 1);
    assert_eq!(fabric.deliver(9, Order::Newest), 2);
    client_a.bytes[0] = 0;
    let ids: Vec<u64> = server_a.poll().iter().map(|completion| completion.id).collect();
    assert_eq!(ids, [1, 2]);
}

#[test]
fn a_scripted_failure_hits_the_piece_that_was_meant_and_flushes_the_rest() {
    for error in [WorkError::RnrRetry, WorkError::RetryExceeded, WorkError::Other(99)] {
        let fabric = Fabric::new(2);
        let (mut server, client) = sides(&fabric);
        fabric.fail_work(1, error);
        let quiet = Work { signaled: false, ..work(&server, &client, WorkKind::Write) };
        server.post(&[quiet; 3]).unwrap();
        assert_eq!(results(&server.poll()), [Err(error), Err(WorkError::Flushed)]);
    }
}

#[test]
fn failing_a_queue_pair_answers_all_its_work() {
    let fabric = Fabric::new(2);
    let (mut server, client) = sides(&fabric);
    fabric.hold(Hold::Transfers);
    let write = work(&server, &client, WorkKind::Write);
    server.post(&[write, write]).unwrap();
    server.pair.fail();
    assert_eq!(results(&server.poll()), [Err(WorkError::Flushed), Err(WorkError::Flushed)]);
    assert_eq!(fabric.deliver(9, Order::Oldest), 0);
    assert_eq!(client.bytes[96], 2);
    assert_eq!(server.pair.connect(&client.pair.address(), Timing::default()), Err(RdmaError::NotConnected));
}

fn is_readable(side: &Side) -> bool {
    let fd = side.pair.fd().unwrap();
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() == 1
}

#[test]
fn the_fd_tells_of_completions_once_and_only_when_asked() {
    let fabric = Fabric::new(2);
    let (mut server, client) = sides(&fabric);
    let write = work(&server, &client, WorkKind::Write);
    server.post(&[write]).unwrap();
    assert!(!is_readable(&server), "not armed");
    server.pair.arm().unwrap();
    assert!(!is_readable(&server), "what completed before does not count");
    server.poll();
    server.post(&[write]).unwrap();
    assert!(is_readable(&server));
    server.pair.arm().unwrap();
    assert!(!is_readable(&server));
    server.pair.fail();
    assert!(!is_readable(&server), "nothing was under way");
}

#[test]
fn a_device_that_goes_away_takes_its_queue_pairs_along() {
    let fabric = Fabric::new(2);
    let (mut server, client) = sides(&fabric);
    let (mut server2, client2) = sides(&fabric);
    fabric.hold(Hold::Transfers);
    let write = work(&server, &client, WorkKind::Write);
    server.post(&[write]).unwrap();
    fabric.remove("fake0");
    assert_eq!(results(&server.poll()), [Err(WorkError::Flushed)]);
    let gone = RdmaError::Gone { nic: "fake0".into() };
    assert_eq!(server.post(&[write]), Err(gone.clone()));
    assert_eq!(server.nic.queue_pair(1, Access::Local).unwrap_err(), gone);
    assert_eq!(fabric.nics().unwrap().len(), 1);
    fabric.restore("fake0");
    fabric.hold(Hold::Nothing);
    assert_eq!(server2.post(&[write]), Err(gone.clone()), "what was opened before stays gone");
    assert_eq!(server2.nic.health(), Err(gone));
    assert_eq!(fabric.openings_of("fake0"), 2);
    // A peer's device that is gone does not answer.
    let (mut server, client) = sides(&fabric);
    fabric.remove("fake1");
    let write = work(&server, &client, WorkKind::Write);
    server.post(&[write]).unwrap();
    assert_eq!(results(&server.poll()), [Err(WorkError::RetryExceeded)]);
    drop((client2, server2.nic));
}

#[test]
fn limits_are_those_of_the_device() {
    let mut nic = fake_nic(0);
    nic.limits.queue_pairs = 1;
    nic.limits.work_requests = 4;
    nic.limits.region_bytes = 4095;
    let fabric = Fabric::with(vec![nic]);
    let place = Place { nic: "fake0".into(), port: 1, gid_index: 0 };
    let nic = fabric.open(&place).unwrap();
    let too_deep = RdmaError::Limit { what: "work requests", wanted: 5, limit: 4 };
    assert_eq!(nic.queue_pair(5, Access::Local).unwrap_err(), too_deep);
    let pair = nic.queue_pair(4, Access::Local).unwrap();
    let too_many = RdmaError::Limit { what: "queue pairs", wanted: 2, limit: 1 };
    assert_eq!(nic.queue_pair(4, Access::Local).unwrap_err(), too_many);
    drop(pair);
    nic.queue_pair(4, Access::Local).unwrap();
    let mut bytes = [0u8; 4096];
    // SAFETY: it is refused.
    let error = unsafe { nic.register(NonNull::new(bytes.as_mut_ptr()).unwrap(), 4096, Access::Local) };
    assert_eq!(error.unwrap_err().reason(), "device_limit");
    let nowhere = Place { gid_index: 3, ..place };
    assert_eq!(fabric.open(&nowhere).unwrap_err().reason(), "no_gid");
}

#[test]
fn nothing_is_left_behind() {
    let fabric = Fabric::new(2);
    for _ in 0..100 {
        let (mut server, client) = sides(&fabric);
        let write = work(&server, &client, WorkKind::Write);
        server.post(&[write]).unwrap();
    }
    let counts = fabric.counts();
    assert_eq!((counts.regions, counts.queue_pairs, counts.held), (0, 0, 0));
}
