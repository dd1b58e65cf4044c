//! `doctor credentials`: a credentials file by itself, and beside what the servers have read.

use super::{note, ok, problem};
use crate::args::Global;
use crate::failure::{Code, Failure};
use crate::fleet::{Fleet, configuration};
use crate::output::Output;
use crate::render;
use crate::units::bytes;
use crate::view::{Diagnosis, Finding};
use memkv_client::v1::TenantStatus;
use memkv_credentials::Credentials;
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

const CHECK: &str = "credentials";

/// Looks at the file, and at the servers if any are configured, and prints the findings.
pub(super) async fn run(file: &Path, global: &Global, output: &Output) -> Result<(), Failure> {
    let mut findings = Vec::new();
    match Credentials::load(file) {
        Err(error) => findings.push(problem(
            CHECK,
            error.to_string(),
            "correct it, or make a new one with `memkv-cli tenant add`; servers keep what they have read before",
        )),
        Ok(credentials) => {
            let mode = std::fs::metadata(file).map(|file| file.permissions().mode()).unwrap_or(0);
            findings.extend(judge_file(&credentials, mode));
            findings.extend(beside_servers(&credentials, global).await);
        }
    }
    let problems = findings.iter().filter(|finding| finding.level == "problem").count();
    output.show(&Diagnosis { findings, problems }, render::diagnosis)?;
    if problems == 0 { Ok(()) } else { Err(Failure::new(Code::Negative, "")) }
}

/// What the file says by itself.
fn judge_file(credentials: &Credentials, mode: u32) -> Vec<Finding> {
    let mut findings = Vec::new();
    if mode & 0o077 != 0 {
        findings.push(problem(
            CHECK,
            format!("others than its owner may read or change it (mode {:o})", mode & 0o777),
            "chmod 600 it, and treat its keys as leaked if others could read it",
        ));
    }
    for tenant in &credentials.tenants {
        let check = format!("tenant {}", tenant.name);
        if tenant.keys.is_empty() && tenant.certificates.is_empty() {
            findings.push(note(
                &check,
                "has neither key nor certificate: nobody can be it".to_owned(),
                "memkv-cli tenant rotate",
            ));
        }
        if tenant.keys.len() > 1 {
            findings.push(note(
                &check,
                format!("has {} keys: one is being replaced", tenant.keys.len()),
                "memkv-cli tenant rm NAME --key OLD_ID once all clients have the new one",
            ));
        }
        if tenant.operator {
            findings.push(note(
                &check,
                "is an operator: it sees and may do everything".to_owned(),
                "give its key to people, not to engines",
            ));
        }
    }
    if findings.is_empty() {
        findings.push(ok(
            CHECK,
            format!("{} tenants, {} public", credentials.tenants.len(), credentials.public.len()),
        ));
    }
    findings
}

async fn beside_servers(credentials: &Credentials, global: &Global) -> Vec<Finding> {
    // A file can be looked at where there are no servers.
    if configuration(global).is_err() {
        return Vec::new();
    }
    let fleet = match Fleet::connect(global).await {
        Ok(fleet) => fleet,
        Err(failure) => return vec![note("servers", failure.message, "only the file was looked at")],
    };
    let (tenants, unreachable) = fleet.tenants().await;
    let statuses = fleet.statuses().await;
    fleet.close().await;
    let mut servers: BTreeMap<String, Vec<TenantStatus>> = BTreeMap::new();
    for (server, tenant) in tenants {
        servers.entry(server).or_default().push(tenant);
    }
    let mut findings: Vec<Finding> =
        servers.iter().map(|(server, tenants)| judge_server(credentials, server, tenants)).collect();
    let quotas: u64 = credentials.tenants.iter().filter_map(|tenant| tenant.quotas.dram_bytes).sum();
    for server in &statuses {
        let dram = server.status.as_ref().map(|status| status.dram.capacity_bytes);
        findings.extend(dram.and_then(|dram| judge_quotas(&server.id, quotas, dram)));
    }
    findings.extend(unreachable.into_iter().map(|server| {
        note(format!("server {}", server.server), server.error, "what it has read is not known")
    }));
    findings
}

/// Whether a server has read this file.
fn judge_server(credentials: &Credentials, server: &str, tenants: &[TenantStatus]) -> Finding {
    let check = format!("server {server}");
    let ids = |ids: &[String]| {
        let mut ids = ids.to_vec();
        ids.sort();
        ids
    };
    let has: BTreeMap<&str, Vec<String>> = tenants
        .iter()
        .filter(|tenant| tenant.name != "-")
        .map(|tenant| (tenant.name.as_str(), ids(&tenant.key_ids)))
        .collect();
    let file: BTreeMap<&str, Vec<String>> = credentials
        .tenants
        .iter()
        .map(|tenant| {
            let keys: Vec<String> = tenant.keys.iter().map(|key| key.id.clone()).collect();
            (tenant.name.as_str(), ids(&keys))
        })
        .collect();
    let names = has.keys().chain(file.keys());
    let mut differ: Vec<&str> = names.filter(|name| has.get(*name) != file.get(*name)).copied().collect();
    differ.sort_unstable();
    differ.dedup();
    if differ.is_empty() {
        return ok(check, "has the tenants and keys of the file".to_owned());
    }
    problem(
        check,
        format!("has other keys or tenants than the file: {}", differ.join(", ")),
        "copy the file there; a server reads it within two seconds, and its log says why not",
    )
}

/// Whether the quotas of memory fit into a server's memory.
fn judge_quotas(server: &str, quotas: u64, dram: u64) -> Option<Finding> {
    // Pages of different sizes cannot use each other's last slots.
    (quotas > dram / 10 * 9).then(|| {
        note(
            format!("server {server}"),
            format!("the quotas of memory add up to {}, of {}", bytes(quotas), bytes(dram)),
            "keep them a tenth below the memory, so that nobody's hits depend on others",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credentials(text: &str) -> Credentials {
        Credentials::parse(text).unwrap()
    }

    fn levels(findings: &[Finding]) -> Vec<&str> {
        findings.iter().map(|finding| finding.level).collect()
    }

    #[test]
    fn a_file_that_others_read_is_a_problem_and_odd_tenants_are_noted() {
        let fine = format!(
            "tenants: [{{name: a, keys: [{{id: '{}', verifier: '{}'}}]}}]",
            "0".repeat(16),
            "1".repeat(128)
        );
        assert_eq!(levels(&judge_file(&credentials(&fine), 0o100_600)), ["ok"]);
        assert_eq!(levels(&judge_file(&credentials(&fine), 0o100_640)), ["problem"]);
        let odd = "tenants: [{name: a}, {name: b, operator: true, certificates: [x]}]";
        assert_eq!(levels(&judge_file(&credentials(odd), 0o100_600)), ["note", "note"]);
    }

    #[test]
    fn a_server_with_other_keys_is_found() {
        let file = format!(
            "tenants: [{{name: a, keys: [{{id: '{}', verifier: '{}'}}]}}, {{name: b}}]",
            "0".repeat(16),
            "1".repeat(128)
        );
        let file = credentials(&file);
        let of = |name: &str, ids: &[&str]| TenantStatus {
            name: name.into(),
            key_ids: ids.iter().map(|id| (*id).to_owned()).collect(),
            ..TenantStatus::default()
        };
        let same = [of("-", &[]), of("b", &[]), of("a", &["0000000000000000"])];
        assert_eq!(judge_server(&file, "s", &same).level, "ok");
        let other = judge_server(&file, "s", &[of("a", &["0000000000000001"]), of("c", &[])]);
        assert!(other.level == "problem" && other.text.ends_with("a, b, c"), "{}", other.text);
        assert!(judge_quotas("s", 90, 100).is_none() && judge_quotas("s", 91, 100).is_some());
    }
}
