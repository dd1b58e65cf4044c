//! Tenants as operators see them.

use super::{Tenant, Tenants};
use memkv_proto::v1;
use memkv_storage::Engine;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// The name under which the holders of the cluster's key are counted.
const CLUSTER: &str = "-";

impl Tenants {
    /// The tenants that one of them may look at: all for an operator, else itself.
    pub(crate) fn statuses(&self, asker: &Arc<Tenant>, engine: &Engine) -> Vec<v1::TenantStatus> {
        let shown = if asker.is_operator() { self.with_operator() } else { vec![Arc::clone(asker)] };
        shown.iter().map(|tenant| status(tenant, engine)).collect()
    }

    fn with_operator(&self) -> Vec<Arc<Tenant>> {
        std::iter::once(Arc::clone(&self.operator)).chain(self.all()).collect()
    }

    /// Every tenant's numbers as Prometheus text; nothing on a server without a credentials file. There are at most as
    /// many as the file may have.
    pub(crate) fn render(&self, engine: &Engine, out: &mut String) {
        if !self.are_several() {
            return;
        }
        let statuses: Vec<_> = self.with_operator().iter().map(|tenant| status(tenant, engine)).collect();
        for (name, help, kind, value) in SERIES {
            // Writing to a string does not fail.
            let _written = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
            for status in &statuses {
                let _written = writeln!(out, "{name}{{tenant=\"{}\"}} {}", status.name, value(status));
            }
        }
    }
}

/// A series' name, description, kind and value.
type Series = (&'static str, &'static str, &'static str, fn(&v1::TenantStatus) -> u64);

const SERIES: [Series; 7] = [
    ("memkv_tenant_requests_total", "Requests of the tenant", "counter", |t| t.requests),
    ("memkv_tenant_refused_total", "Requests refused because the tenant was over its rate", "counter", |t| {
        t.refused
    }),
    (
        "memkv_tenant_delayed_total",
        "Requests that waited because the tenant was over its rate",
        "counter",
        |t| t.delayed,
    ),
    ("memkv_tenant_sent_bytes_total", "Bytes of pages sent to the tenant", "counter", |t| t.sent_bytes),
    ("memkv_tenant_received_bytes_total", "Bytes of pages that came from the tenant", "counter", |t| {
        t.received_bytes
    }),
    (
        "memkv_tenant_dram_bytes",
        "Bytes of the tenant's pages in memory, rounded up to 4 KiB each",
        "gauge",
        |t| t.dram_bytes,
    ),
    (
        "memkv_tenant_nvme_bytes",
        "Bytes of the tenant's pages that are on drives only, rounded likewise",
        "gauge",
        |t| t.nvme_bytes,
    ),
];

fn status(tenant: &Tenant, engine: &Engine) -> v1::TenantStatus {
    let get = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    let usage = engine.usage(tenant.name());
    let counters = &tenant.counters;
    v1::TenantStatus {
        name: if tenant.name().is_empty() { CLUSTER } else { tenant.name() }.to_owned(),
        rights: tenant.rights().names().map(str::to_owned).collect(),
        operator: tenant.is_operator(),
        key_ids: tenant.key_ids(),
        spaces: tenant.own_spaces(),
        pages: usage.pages,
        dram_bytes: usage.dram_bytes,
        dram_bytes_max: usage.dram_bytes_max.unwrap_or(0),
        nvme_bytes: usage.nvme_bytes,
        nvme_bytes_max: usage.nvme_bytes_max.unwrap_or(0),
        requests: get(&counters.requests),
        refused: get(&counters.refused),
        delayed: get(&counters.delayed),
        sent_bytes: get(&counters.sent_bytes),
        received_bytes: get(&counters.received_bytes),
        evicted_pages: usage.evicted_pages,
        puts_refused: usage.refused,
    }
}
