//! What only the real kernel does: refuse memory over the memlock limit.

use crate::Ground;
use crate::side::Memory;
use libtest_mimic::Trial;
use memkv_rdma::{Access, RdmaError};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

pub(crate) fn trials(ground: &Ground) -> Vec<Trial> {
    let ground = ground.clone();
    vec![Trial::test("verbs::memory_over_the_memlock_limit_is_refused_with_the_limit", move || {
        over_the_limit(&ground);
        Ok(())
    })]
}

fn over_the_limit((verbs, places): &Ground) {
    let nic = verbs.open(&places[0]).unwrap();
    let before = getrlimit(Resource::Memlock);
    setrlimit(Resource::Memlock, Rlimit { current: Some(64 << 10), ..before }).unwrap();
    // The right to lock any memory belongs to a thread, so only this one gives it up.
    let thread = std::thread::spawn(move || {
        let mut sets = capabilities(None).unwrap();
        sets.effective.remove(CapabilitySet::IPC_LOCK);
        set_capabilities(None, sets).unwrap();
        let memory = Memory::new(1 << 20);
        // SAFETY: it is refused, and dropped before the memory in any case.
        unsafe { nic.register(memory.start(), memory.len(), Access::Local) }.map(drop)
    });
    let result = thread.join().unwrap();
    setrlimit(Resource::Memlock, before).unwrap();
    assert_eq!(result, Err(RdmaError::Memlock { bytes: 1 << 20, limit: 64 << 10 }));
}
