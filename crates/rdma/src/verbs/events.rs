//! Whether a device is still there: its asynchronous events, and its entry in sysfs.
//!
//! A driver that can take a device away from under a program tells of it with an event. Others wait until nobody has the
//! device open any more, and tell nothing: there the entry under which the device was opened disappears first.

use crate::error::{Errno, RdmaError};
use rdma_mummy_sys::{ibv_ack_async_event, ibv_async_event, ibv_event_type, ibv_get_async_event};
use sideway::ibverbs::device_context::DeviceContext;
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// Where the kernel lists what can be opened of devices.
const ENTRIES: &str = "/sys/class/infiniband_verbs";

/// What the events so far say of one port and its device.
#[derive(Debug)]
pub(super) struct Health {
    state: Mutex<State>,
    /// `None` where the system does not show it.
    entry: Option<Entry>,
}

/// Under which entry a device was opened.
#[derive(Debug)]
struct Entry {
    path: PathBuf,
    inode: u64,
}

impl Entry {
    /// The entry of this device below `entries`.
    fn find(entries: &Path, nic: &str) -> Option<Self> {
        let mut paths = std::fs::read_dir(entries).ok()?.flatten().map(|entry| entry.path());
        let is_its = |path: &PathBuf| {
            std::fs::read_to_string(path.join("ibdev")).is_ok_and(|name| name.trim_end() == nic)
        };
        let path = paths.find(is_its)?;
        let inode = path.metadata().ok()?.ino();
        Some(Self { path, inode })
    }

    /// Whether it is there, and not another device's of the same name.
    fn is_there(&self) -> bool {
        self.path.metadata().is_ok_and(|found| found.ino() == self.inode)
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    gone: bool,
    port_down: bool,
}

/// Makes the device's event queue readable without waiting.
pub(super) fn prepare(context: &DeviceContext) -> Result<(), RdmaError> {
    // SAFETY: only used while `context` is borrowed.
    let raw = unsafe { context.context() };
    // SAFETY: an open context is valid memory.
    let fd = unsafe { raw.as_ref() }.async_fd;
    set_nonblocking(fd)
}

/// Makes calls that read this file descriptor return at once.
pub(super) fn set_nonblocking(fd: std::os::fd::RawFd) -> Result<(), RdmaError> {
    // SAFETY: the caller has it from an object of the library that it keeps, so it is open.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    let set = rustix::fs::fcntl_getfl(fd)
        .and_then(|flags| rustix::fs::fcntl_setfl(fd, flags | rustix::fs::OFlags::NONBLOCK));
    set.map_err(|errno| RdmaError::System { call: "fcntl", errno: Errno(errno.raw_os_error()) })
}

impl Health {
    /// Of a device that was just opened.
    pub(super) fn of(nic: &str) -> Self {
        Self { state: Mutex::default(), entry: Entry::find(Path::new(ENTRIES), nic) }
    }

    /// Reads the events since the last call, and looks for the entry.
    pub(super) fn check(&self, context: &DeviceContext, nic: &str, port: u8) -> Result<(), RdmaError> {
        let mut state = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        while !state.gone {
            match next_event(context) {
                Ok(Some((kind, number))) => state.enter(kind, number == i32::from(port)),
                Ok(None) => break,
                Err(_) => state.gone = true,
            }
        }
        state.gone |= self.entry.as_ref().is_some_and(|entry| !entry.is_there());
        match *state {
            State { gone: true, .. } => Err(RdmaError::Gone { nic: nic.to_owned() }),
            State { port_down: true, .. } => Err(RdmaError::PortDown { nic: nic.to_owned(), port }),
            State { .. } => Ok(()),
        }
    }
}

impl State {
    fn enter(&mut self, kind: u32, is_our_port: bool) {
        if kind == ibv_event_type::IBV_EVENT_DEVICE_FATAL as u32 {
            self.gone = true;
        } else if is_our_port && kind == ibv_event_type::IBV_EVENT_PORT_ERR as u32 {
            self.port_down = true;
        } else if is_our_port && kind == ibv_event_type::IBV_EVENT_PORT_ACTIVE as u32 {
            self.port_down = false;
        }
    }
}

/// The next event's kind, and its port if it is about one. An error when the device does not answer any more.
fn next_event(context: &DeviceContext) -> Result<Option<(u32, i32)>, Errno> {
    let mut event = MaybeUninit::<ibv_async_event>::zeroed();
    // SAFETY: only used while `context` is borrowed.
    let raw = unsafe { context.context() };
    // SAFETY: the context is open, and the event is memory of its type.
    if unsafe { ibv_get_async_event(raw.as_ptr(), event.as_mut_ptr()) } != 0 {
        let errno = Errno::last();
        return if errno.0 == rustix::io::Errno::AGAIN.raw_os_error() { Ok(None) } else { Err(errno) };
    }
    let at = event.as_mut_ptr();
    // SAFETY: inside the event. It is not read as the enum that it is declared as: a newer kernel may have kinds
    // that the enum lacks.
    let kind = unsafe { &raw const (*at).event_type }.cast::<u32>();
    // SAFETY: four bytes that were zero or that the library wrote.
    let kind = unsafe { kind.read() };
    // SAFETY: as above; for an event about something else than a port this is half of a pointer, and not used.
    let port = unsafe { &raw const (*at).element }.cast::<i32>();
    // SAFETY: as above.
    let port = unsafe { port.read() };
    // SAFETY: it was just filled, and is acknowledged once. Without that, destroying what it is about would wait.
    unsafe { ibv_ack_async_event(at) };
    Ok(Some((kind, port)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_that_disappears_or_is_anothers_is_seen() {
        let entries = tempfile::tempdir().unwrap();
        let add = |entry: &str, nic: &str| {
            let path = entries.path().join(entry);
            std::fs::create_dir(&path).unwrap();
            std::fs::write(path.join("ibdev"), format!("{nic}\n")).unwrap();
            path
        };
        std::fs::write(entries.path().join("abi_version"), "6\n").unwrap();
        assert!(Entry::find(entries.path(), "mlx5_0").is_none());
        let (_, path) = (add("uverbs0", "mlx5_1"), add("uverbs1", "mlx5_0"));
        let entry = Entry::find(entries.path(), "mlx5_0").unwrap();
        assert_eq!((&entry.path, entry.is_there()), (&path, true));
        // Kept under another name, so that its inode is not given to the next one.
        std::fs::rename(&path, entries.path().join("old")).unwrap();
        assert!(!entry.is_there());
        add("uverbs1", "mlx5_0");
        assert!(!entry.is_there(), "it is the entry of another device");
    }
}
