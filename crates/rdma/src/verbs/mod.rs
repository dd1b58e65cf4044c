//! The real verbs.
//!
//! The verbs library is looked for when the program starts, and is not needed for it to start. Devices, protection
//! domains and regions come from `sideway`, whose owners know their order. Queue pairs, completion queues and events
//! are called directly (`pair.rs`): there, a destroy that the system refuses must not end the process, and a poll must
//! not allocate.
//!
//! Unsafe code is here because the verbs library is C.

#![allow(unsafe_code, reason = "the verbs library is C")]

mod events;
mod nic;
mod pair;
mod query;

use crate::error::{Errno, RdmaError};
use crate::info::{NicInfo, Place};
use crate::nic::{Nic, Verbs};
use nic::VerbsNic;
use sideway::ibverbs::device::{Device, DeviceInfo, DeviceList, GetDeviceListErrorKind, OpenDeviceErrorKind};
use sideway::ibverbs::device_context::DeviceContext;
use std::sync::Arc;

/// What the binding answers when the library was not found.
const NOT_LOADED: Errno = Errno(95);
/// What the library answers when the kernel has no verbs.
const NOT_IN_KERNEL: Errno = Errno(38);

/// The verbs of this machine.
#[derive(Debug)]
pub(crate) struct System;

impl System {
    pub(crate) fn new() -> Result<Self, RdmaError> {
        devices()?;
        Ok(Self)
    }
}

impl Verbs for System {
    fn nics(&self) -> Result<Vec<NicInfo>, RdmaError> {
        let list = devices()?;
        let mut nics = Vec::new();
        let mut refusal = None;
        for device in &list {
            match open(&device).and_then(|context| query::info(&context)) {
                Ok(info) => nics.push(info),
                Err(error) => refusal = refusal.or(Some(error)),
            }
        }
        nics.sort_by(|a, b| a.name.cmp(&b.name));
        // One that does not answer does not hide the others.
        match refusal {
            Some(error) if nics.is_empty() => Err(error),
            _ => Ok(nics),
        }
    }

    fn open(&self, place: &Place) -> Result<Arc<dyn Nic>, RdmaError> {
        let list = devices()?;
        let Some(device) = list.iter().find(|device| device.name() == place.nic) else {
            let names: Vec<String> = list.iter().map(|device| device.name()).collect();
            let present = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            return Err(RdmaError::NoSuchDevice { wanted: place.nic.clone(), present });
        };
        Ok(Arc::new(VerbsNic::new(open(&device)?, place)?))
    }
}

fn devices() -> Result<DeviceList, RdmaError> {
    DeviceList::new().map_err(|error| match error.0 {
        GetDeviceListErrorKind::Ibverbs(error) => match errno(&error) {
            NOT_LOADED => RdmaError::NoLibrary,
            NOT_IN_KERNEL => RdmaError::NoKernel,
            errno => RdmaError::System { call: "ibv_get_device_list", errno },
        },
        _ => RdmaError::NoKernel,
    })
}

fn open(device: &Device<'_>) -> Result<Arc<DeviceContext>, RdmaError> {
    device.open().map_err(|error| {
        let errno = match error.0 {
            OpenDeviceErrorKind::Ibverbs(error) => errno(&error),
            _ => Errno(0),
        };
        RdmaError::Open { nic: device.name(), errno }
    })
}

fn errno(error: &std::io::Error) -> Errno {
    Errno(error.raw_os_error().unwrap_or(0))
}
