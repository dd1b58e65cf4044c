//! `doctor`: looks for what is wrong and says how to mend it.
//!
//! What was measured and what follows from it are apart: [`server_findings`] and [`machine_findings`] are pure.

mod credentials;
mod rdma;
mod tls;

use crate::args::{Global, Patient};
use crate::failure::{Code, Failure};
use crate::fleet::{Fleet, configuration};
use crate::output::Output;
use crate::render;
use crate::units::{bytes, duration};
use crate::view::{Diagnosis, Finding, Status};
use memkv_client::{Config, ServerAddress};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// A clock this far off is worth a note; credentials fail at 60 seconds.
const SKEW_NOTE_MS: u64 = 5_000;
/// A clock this far off is a problem: credentials are about to fail.
const SKEW_PROBLEM_MS: u64 = 30_000;
/// Less locked memory than this is not enough to register buffers for RDMA.
const MEMLOCK_MIN: u64 = 1 << 30;
/// Fewer open files than this may not be enough for a server's connections.
const FILES_MIN: u64 = 16_384;

/// Looks at everything, or at one subject, and prints the findings.
pub(crate) async fn run(subject: Option<Patient>, global: &Global, output: &Output) -> Result<(), Failure> {
    let only_tls = match subject {
        Some(Patient::Rdma) => return rdma::run(global, output),
        Some(Patient::Credentials { file }) => return credentials::run(&file, global, output).await,
        Some(Patient::Tls { cert }) => Some(cert),
        None => None,
    };
    let spinner = output.spinner("examine");
    let mut findings = Vec::new();
    match configuration(global) {
        Ok(config) => {
            findings.push(ok("configuration", describe(&config)));
            match Fleet::located(config).await {
                Ok(config) => {
                    let cert = only_tls.as_ref().and_then(Option::as_deref);
                    findings.extend(tls::findings(&config, cert).await);
                    if only_tls.is_none() {
                        findings.extend(cluster_findings(&config).await);
                    }
                }
                Err(failure) => {
                    let fix = "start etcd or the name server, and servers that register there; or correct MEMKV_DISCOVERY";
                    findings.push(problem("discovery", failure.message, fix));
                }
            }
        }
        Err(failure) => {
            let fix = "set MEMKV_SERVERS to the servers' [id=]host:port list or MEMKV_DISCOVERY to where they register, or name a file with --config";
            findings.push(problem("configuration", failure.message, fix));
        }
    }
    if only_tls.is_none() {
        findings.extend(machine_findings(&Machine::read()));
    }
    spinner.finish_and_clear();
    let problems = findings.iter().filter(|finding| finding.level == "problem").count();
    output.show(&Diagnosis { findings, problems }, render::diagnosis)?;
    if problems == 0 { Ok(()) } else { Err(Failure::new(Code::Negative, "")) }
}

fn describe(config: &Config) -> String {
    let key = if config.auth_key.is_some() { "with a key" } else { "without a key" };
    let mut names: Vec<String> = config.servers.iter().map(ToString::to_string).collect();
    names.extend(config.discovery.iter().map(ToString::to_string));
    format!("{}; {key}; transport {}", names.join(", "), config.transport)
}

async fn cluster_findings(config: &Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut open = Vec::new();
    for server in &config.servers {
        match reach(server, config.connect_timeout).await {
            Ok(()) => open.push(server),
            Err(why) => findings.push(problem(
                format!("server {}", server.id),
                format!("{} cannot be reached: {why}", server.host_port()),
                "start memkv-server there, or correct the address; a firewall must let its port through",
            )),
        }
    }
    let mut seen = Vec::new();
    for server in open {
        let check = format!("server {}", server.id);
        match ask(config, server).await {
            Ok((status, skew_ms)) => {
                findings.extend(server_findings(&server.id, &status, skew_ms));
                seen.push((server.id.clone(), status));
            }
            Err(failure) => {
                let text = format!("accepts connections, but: {}", failure.message);
                findings.push(problem(check, text, failure.hint.unwrap_or_default()));
            }
        }
    }
    findings.extend(mutual_findings(&seen));
    findings
}

/// One server's status, and how far its clock is from ours, in milliseconds.
async fn ask(config: &Config, server: &ServerAddress) -> Result<(Status, u64), Failure> {
    let fleet = Fleet::alone(config, server).await?;
    let before = unix_ms();
    let answer = fleet.only_status().await;
    let skew_ms = |status: &Status| status.now_unix_ms.abs_diff(u64::midpoint(before, unix_ms()));
    let answer = answer.map(|status| (skew_ms(&status), status));
    fleet.close().await;
    let fix = "check that MEMKV_AUTH_KEY is the server's key, and that the port is memkv-server's";
    answer.map(|(skew_ms, status)| (status, skew_ms)).map_err(|why| Failure::new(Code::Other, why).hint(fix))
}

async fn reach(server: &ServerAddress, limit: Duration) -> Result<(), String> {
    match timeout(limit, TcpStream::connect((server.host.as_str(), server.port))).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {} s", limit.as_secs_f64())),
    }
}

/// What one server's status says.
fn server_findings(id: &str, status: &Status, skew_ms: u64) -> Vec<Finding> {
    let check = format!("server {id}");
    let mut findings = Vec::new();
    let ours = env!("CARGO_PKG_VERSION");
    if status.version != ours {
        let text = format!("runs release {}, this program is {ours}", status.version);
        findings.push(note(&check, text, "use one release on servers and clients"));
    }
    if skew_ms >= SKEW_NOTE_MS {
        let text = format!("its clock is {} away from ours; credentials fail at 60 s", duration(skew_ms));
        let fix = "synchronise the clocks of both machines, for example with chrony";
        let finding =
            if skew_ms >= SKEW_PROBLEM_MS { problem(&check, text, fix) } else { note(&check, text, fix) };
        findings.push(finding);
    }
    if status.ops.corrupt > 0 {
        let text = format!("{} pages did not match their checksum since its start", status.ops.corrupt);
        findings.push(note(
            &check,
            text,
            "check the memory and the network of that machine; readers saw misses",
        ));
    }
    if status.ops.put_busy > 0 {
        let text = format!("{} pages were refused because it was full", status.ops.put_busy);
        findings.push(note(&check, text, "give it more memory, or add a server"));
    }
    if findings.is_empty() {
        let text = format!("answers; release {}, up {}", status.version, duration(status.uptime_ms));
        findings.push(ok(check, text));
    }
    findings
}

/// What only several servers together can show.
fn mutual_findings(servers: &[(String, Status)]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (index, (id, status)) in servers.iter().enumerate() {
        let twin = servers[..index].iter().find(|(_, other)| other.incarnation == status.incarnation);
        if let Some((other, _)) = twin {
            findings.push(problem(
                "servers",
                format!("{other} and {id} are the same process"),
                "list each server once: keys are spread over the list",
            ));
        }
    }
    findings
}

/// The limits of this machine that matter to clients and servers.
struct Machine {
    memlock_bytes: Option<u64>,
    open_files: Option<u64>,
    huge_pages: Option<u64>,
    transparent: Option<String>,
}

impl Machine {
    fn read() -> Self {
        let limit = |resource| rustix::process::getrlimit(resource).current.unwrap_or(u64::MAX);
        let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let transparent = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").ok();
        Self {
            memlock_bytes: Some(limit(rustix::process::Resource::Memlock)),
            open_files: Some(limit(rustix::process::Resource::Nofile)),
            huge_pages: huge_pages_total(&meminfo),
            transparent: transparent.and_then(|text| chosen(&text)),
        }
    }
}

/// The number in `HugePages_Total:     512`.
fn huge_pages_total(meminfo: &str) -> Option<u64> {
    meminfo.lines().find_map(|line| line.strip_prefix("HugePages_Total:")?.trim().parse().ok())
}

/// The word in brackets of `always [madvise] never`.
fn chosen(text: &str) -> Option<String> {
    let (_, rest) = text.split_once('[')?;
    Some(rest.split_once(']')?.0.to_owned())
}

fn machine_findings(machine: &Machine) -> Vec<Finding> {
    let mut findings = Vec::new();
    match machine.memlock_bytes {
        Some(limit) if limit < MEMLOCK_MIN => findings.push(note(
            "locked memory",
            format!("this machine allows {}; RDMA needs the whole host pool or arena", bytes(limit)),
            "ulimit -l unlimited; for services LimitMEMLOCK=infinity",
        )),
        _ => findings.push(ok("locked memory", "the limit is high enough".to_owned())),
    }
    match machine.open_files {
        Some(limit) if limit < FILES_MIN => findings.push(note(
            "open files",
            format!("this machine allows {limit} to a process; a busy server needs {FILES_MIN}"),
            "ulimit -n 65536; for services LimitNOFILE=65536",
        )),
        _ => findings.push(ok("open files", "the limit is high enough".to_owned())),
    }
    let transparent = matches!(machine.transparent.as_deref(), Some("always" | "madvise"));
    match machine.huge_pages {
        Some(pages) if pages > 0 => findings.push(ok("huge pages", format!("{pages} are reserved here"))),
        _ if transparent => findings.push(ok("huge pages", "transparent ones are available here".to_owned())),
        _ => findings.push(note(
            "huge pages",
            "this machine has none; a server here is slower by a tenth".to_owned(),
            "sysctl vm.nr_hugepages=N (2 MiB each, for the whole arena), or allow transparent huge pages by madvise",
        )),
    }
    findings
}

fn unix_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

fn ok(check: impl Into<String>, text: String) -> Finding {
    Finding { level: "ok", check: check.into(), text, fix: None }
}

fn note(check: impl Into<String>, text: String, fix: impl Into<String>) -> Finding {
    Finding { level: "note", check: check.into(), text, fix: Some(fix.into()) }
}

fn problem(check: impl Into<String>, text: String, fix: impl Into<String>) -> Finding {
    Finding { level: "problem", check: check.into(), text, fix: Some(fix.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use memkv_proto::v1;

    fn status(change: impl FnOnce(&mut v1::GetStatusResponse)) -> Status {
        let mut status =
            v1::GetStatusResponse { version: env!("CARGO_PKG_VERSION").into(), ..Default::default() };
        change(&mut status);
        status.into()
    }

    fn levels(findings: &[Finding]) -> Vec<&str> {
        findings.iter().map(|finding| finding.level).collect()
    }

    #[test]
    fn a_healthy_server_is_one_ok() {
        assert_eq!(levels(&server_findings("a", &status(|_| ()), 4_999)), ["ok"]);
    }

    #[test]
    fn clocks_versions_and_refusals_are_found_with_their_fix() {
        let bad = status(|status| {
            status.version = "0.0.9".into();
            status.ops = Some(v1::OpCounters { corrupt: 1, put_busy: 2, ..Default::default() });
        });
        let findings = server_findings("a", &bad, 30_000);
        assert_eq!(levels(&findings), ["note", "problem", "note", "note"]);
        assert!(findings.iter().all(|finding| finding.fix.is_some()));
        assert_eq!(levels(&server_findings("a", &status(|_| ()), 5_000)), ["note"]);
    }

    #[test]
    fn one_process_under_two_names_is_a_problem() {
        let server =
            |id: &str, incarnation| (id.to_owned(), status(|status| status.incarnation = incarnation));
        assert!(mutual_findings(&[server("a", 1), server("b", 2)]).is_empty());
        assert_eq!(levels(&mutual_findings(&[server("a", 1), server("b", 1)])), ["problem"]);
    }

    #[test]
    fn limits_of_the_machine_are_judged() {
        let poor = Machine {
            memlock_bytes: Some(8 << 20),
            open_files: Some(1024),
            huge_pages: Some(0),
            transparent: Some("never".into()),
        };
        assert_eq!(levels(&machine_findings(&poor)), ["note", "note", "note"]);
        let rich = Machine {
            memlock_bytes: Some(u64::MAX),
            open_files: Some(65_536),
            huge_pages: Some(0),
            transparent: Some("madvise".into()),
        };
        assert_eq!(levels(&machine_findings(&rich)), ["ok", "ok", "ok"]);
    }

    #[test]
    fn kernel_files_are_read() {
        assert_eq!(huge_pages_total("MemTotal: 1 kB\nHugePages_Total:     512\n"), Some(512));
        assert_eq!(chosen("always [madvise] never\n").as_deref(), Some("madvise"));
        assert_eq!(chosen("none"), None);
    }
}
