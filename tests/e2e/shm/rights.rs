//! Who gets the memory, and what can be done with it.

use super::raw::{self, NearConn};
use super::{SPACE, lent, wait_until_nothing_is_lent};
use crate::common::PATIENCE;
use crate::sessions::pins;
use memkv_core::{PageMeta, SpaceId};
use memkv_shm::View;
use memkv_tests::control::Control;
use memkv_tests::daemon::Daemon;
use memkv_tests::pages::page;
use memkv_tests::wait_for;
use memkv_tests::wire::checksum;
use memkv_transport::auth::AuthKey;
use memkv_transport::frame::Code;
use memkv_transport::records::{REGION_OWN, Span};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap, mprotect, munmap};
use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd as _};
use std::os::unix::fs::FileExt as _;
use std::ptr::null_mut;

fn with_a_page(len: usize) -> (Daemon, Control, SpaceId) {
    let daemon = Daemon::start().unwrap();
    let control = daemon.control().unwrap();
    let space = control.open_space(SPACE).unwrap();
    control.put(space, &[(b"page", &page(b"page", len))], 1 << 20).unwrap();
    (daemon, control, space)
}

/// Tries to map memory so that it can be written.
fn map_writable(memory: impl AsFd, len: usize) -> bool {
    // SAFETY: a new mapping at an address the kernel chooses touches no memory that exists.
    let mapped =
        unsafe { mmap(null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, memory, 0) };
    // SAFETY: it is what was just mapped, and nobody has its address.
    mapped.is_ok_and(|mapped| unsafe { munmap(mapped, len) }.is_ok())
}

/// Tries to map memory to be read, and then to make it writable.
fn make_writable(memory: impl AsFd, len: usize) -> bool {
    // SAFETY: as in `map_writable`.
    let mapped = unsafe { mmap(null_mut(), len, ProtFlags::READ, MapFlags::SHARED, memory, 0) }.unwrap();
    // SAFETY: it is what was just mapped.
    let changed = unsafe { mprotect(mapped, len, MprotectFlags::READ | MprotectFlags::WRITE) };
    // SAFETY: as above, and nobody has its address.
    unsafe { munmap(mapped, len) }.unwrap();
    changed.is_ok()
}

#[test]
fn a_client_can_read_the_memory_and_nothing_else() {
    let len = 100_000;
    let (_daemon, control, space) = with_a_page(len);
    let session = raw::session(&control);
    let mut conn = NearConn::of(&session);
    let (bound, memory) = conn.bind_well();
    assert!(bound.reads_client);
    let memory = File::from(memory);
    let all = usize::try_from(bound.memory_bytes).unwrap();
    let reopened =
        OpenOptions::new().read(true).write(true).open(format!("/proc/self/fd/{}", memory.as_raw_fd()));
    for memory in [Some(memory.try_clone().unwrap()), reopened.ok()].into_iter().flatten() {
        assert!(!map_writable(&memory, all));
        assert!(!make_writable(&memory, all));
        assert!(memory.write_at(b"evil", 0).is_err());
        assert!(memory.set_len(0).is_err());
        assert!(memory.set_len(2 * bound.memory_bytes).is_err());
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        assert!(fallocate(&memory, hole, 0, 4096).is_err());
        assert!(fallocate(&memory, FallocateFlags::ZERO_RANGE, 0, 4096).is_err());
    }
    let (code, meta, offset) = conn.get(space, &[b"page"], len).unwrap()[0];
    assert_eq!(code, Code::Ok);
    let mut bytes = vec![0; len];
    assert!(View::map(&memory, bound.memory_bytes).unwrap().read(offset, &mut bytes));
    assert!(bytes == page(b"page", len) && meta.checksum == checksum(space, b"page", &bytes));
}

#[test]
fn only_who_knows_the_key_gets_the_memory() {
    let (daemon, control, _space) = with_a_page(10);
    let session = raw::session(&control);
    let socket = session.accepted.shm.clone().unwrap().socket;
    let wrong = AuthKey::from_hex(&"77".repeat(32)).unwrap();
    assert!(Control::connect(daemon.addr(), Some(wrong)).and_then(|control| control.session()).is_err());
    let stranger = memkv_transport::auth::SessionTranscript {
        protocol_min: 1,
        protocol_max: 1,
        protocol: 1,
        client_nonce: &[0; 32],
        server_nonce: &[0; 32],
        session_id: &session.id,
        node_id: &session.node_id,
        key_required: true,
        identity: ("", ""),
        channel: &[],
    };
    let key = stranger.session_key(&AuthKey::from_hex(&"77".repeat(32)).unwrap());
    assert!(NearConn::attach(&socket, session.id, &key).is_err(), "a session's name alone is not enough");
    assert!(NearConn::attach(&socket, [9; 16], &session.key).is_err(), "nor is a key without a session");
    daemon.allow("authentication failed");
}

#[test]
fn memory_is_lent_until_it_is_released_or_anything_else_is_asked() {
    let len = 5000;
    let (daemon, control, space) = with_a_page(len);
    let session = raw::session(&control);
    let mut conn = NearConn::of(&session);
    conn.bind_well();
    let lend = |conn: &mut NearConn| {
        assert_eq!(conn.get(space, &[b"page", b"absent"], len).unwrap()[0].0, Code::Ok);
        assert_eq!((lent(&daemon), pins(&control, space, b"page")), (1.0, 1));
    };
    lend(&mut conn);
    conn.release();
    wait_until_nothing_is_lent(&daemon);
    assert_eq!(pins(&control, space, b"page"), 0);
    lend(&mut conn);
    lend(&mut conn);
    assert_eq!(conn.get(space, &[b"absent"], len).unwrap()[0].0, Code::Miss);
    wait_until_nothing_is_lent(&daemon);
    lend(&mut conn);
    drop(conn);
    wait_until_nothing_is_lent(&daemon);
    assert_eq!(pins(&control, space, b"page"), 0);
}

#[test]
fn a_client_that_cannot_be_read_puts_through_its_socket() {
    let (_daemon, control, space) = with_a_page(10);
    let session = raw::session(&control);
    for (address, content) in [(0, [0; 8]), (64, *b"nowhere!")] {
        let mut conn = NearConn::of(&session);
        let (bound, memory) = conn.bind(address, content).unwrap();
        assert!(!bound.reads_client && memory.is_some());
        let span = Span { region: REGION_OWN, len: 4, offset: 64 };
        let put = conn.put(space, &[(b"new", PageMeta { len: 4, ..Default::default() }, span)]);
        assert!(put.is_err() || put.is_ok_and(|codes| codes == [Code::Malformed]));
    }
}

#[test]
fn bytes_that_are_not_there_or_not_what_they_should_be_are_not_stored() {
    let (_daemon, control, space) = with_a_page(10);
    let session = raw::session(&control);
    let mut conn = NearConn::of(&session);
    conn.bind_well();
    let bytes = page(b"new", 3000);
    let offset = bytes.as_ptr().expose_provenance() as u64;
    let span = Span { region: REGION_OWN, len: 3000, offset };
    let meta = PageMeta { len: 3000, checksum: checksum(space, b"new", &bytes), ..Default::default() };
    let wrong = PageMeta { checksum: meta.checksum ^ 1, ..meta };
    assert_eq!(conn.put(space, &[(b"new", wrong, span)]).unwrap(), [Code::Corrupt]);
    assert_eq!(conn.put(space, &[(b"other", meta, span)]).unwrap(), [Code::Corrupt], "the key is part of it");
    let codes = conn.put(space, &[(b"page", meta, span), (b"new", meta, span)]).unwrap();
    assert_eq!(codes, [Code::Exists, Code::Ok]);
    let elsewhere = Span { region: 1, ..span };
    assert!(conn.put(space, &[(b"third", meta, elsewhere)]).is_ok_and(|codes| codes == [Code::Malformed]));
    let mut conn = NearConn::of(&session);
    conn.bind_well();
    let nowhere = Span { offset: 64, ..span };
    assert!(conn.put(space, &[(b"third", meta, nowhere)]).is_err(), "the connection ends");
    assert!(
        NearConn::of(&session)
            .put(space, &[(b"third", meta, span)])
            .is_ok_and(|codes| codes == [Code::Malformed])
    );
    let only_two = || (control.status().unwrap().dram.unwrap().pages == 2).then_some(());
    wait_for("nothing else is stored", PATIENCE, only_two).unwrap();
    let slots =
        control.status().unwrap().dram.unwrap().classes.iter().map(|class| class.slots_used).sum::<u64>();
    assert_eq!(slots, 2);
}
