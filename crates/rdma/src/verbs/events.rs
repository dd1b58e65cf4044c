//! Asynchronous events of a device: whether it is still there.

use crate::error::{Errno, RdmaError};
use rdma_mummy_sys::{ibv_ack_async_event, ibv_async_event, ibv_event_type, ibv_get_async_event};
use sideway::ibverbs::device_context::DeviceContext;
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::sync::Mutex;

/// What the events so far say of one port and its device.
#[derive(Debug, Default)]
pub(super) struct Health {
    state: Mutex<State>,
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
    /// Reads the events since the last call.
    pub(super) fn check(&self, context: &DeviceContext, nic: &str, port: u8) -> Result<(), RdmaError> {
        let mut state = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        while !state.gone {
            match next_event(context) {
                Ok(Some((kind, number))) => state.enter(kind, number == i32::from(port)),
                Ok(None) => break,
                Err(_) => state.gone = true,
            }
        }
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
