//! The memory of a run, registered for RDMA.

use memkv_client::Region;
use memkv_client::blocking::Client;

/// Registers both halves of a workload. They are never resized, and the subject goes before them.
///
/// # Errors
///
/// If no NIC takes them.
pub(super) fn register(client: &Client, memory: [(*mut u8, usize); 2]) -> anyhow::Result<Vec<Region>> {
    let region = |(start, len)| {
        // SAFETY: a run drops its subjects, and so these regions, before its workload, which keeps its memory where it
        // is until then; between two ops of a subject nobody writes to it but the run itself.
        unsafe { client.register_region(start, len) }
    };
    Ok(memory.into_iter().map(region).collect::<Result<_, _>>()?)
}
