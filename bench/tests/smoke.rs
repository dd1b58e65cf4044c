//! Every subcommand once, with as little as it takes: that it runs, and that its JSON has what it should.
//!
//! Nothing here judges speed.

#![allow(clippy::print_stderr, reason = "a test that skips says so")]

use serde_json::Value;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// The server, if it was built; `MEMKV_SERVER_BIN` names it, as for all tests.
fn server() -> Option<PathBuf> {
    let named = std::env::var_os("MEMKV_SERVER_BIN").map(PathBuf::from);
    let beside = Path::new(env!("CARGO_BIN_EXE_memkv-bench")).with_file_name("memkv-server");
    let found = named.or_else(|| beside.exists().then_some(beside));
    if found.is_none() {
        eprintln!("skipped: build memkv-server first, or name it with MEMKV_SERVER_BIN");
    }
    found
}

fn bench(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_memkv-bench"));
    command.args(args).stdin(Stdio::null());
    command
}

/// Runs it, and returns what it printed.
fn run(args: &[&str], server: &Path) -> String {
    let output = bench(args).arg("--server").arg(server).output().expect("it starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {said}");
    String::from_utf8(output.stdout).expect("it prints text")
}

fn names(document: &Value, list: &str) -> Vec<String> {
    let list = document[list].as_array().expect("a list");
    list.iter().map(|entry| entry["subject"].as_str().expect("a name").to_owned()).collect()
}

#[test]
fn targets_measures_every_kind_of_row() {
    let Some(server) = server() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let json = folder.path().join("run.json");
    let args =
        ["targets", "--quick", "--rounds", "1", "--working-set", "128MiB", "--transports", "tcp", "--json"];
    let mut args = args.to_vec();
    args.push(json.to_str().expect("a path"));
    let printed = run(&args, &server);
    assert!(printed.contains("| get 1 MiB, speed, of raw |"), "{printed}");
    let document: Value =
        serde_json::from_slice(&std::fs::read(&json).expect("it was written")).expect("JSON");
    assert_eq!(names(&document, "subjects"), ["memkv tcp", "raw x1", "raw x2", "file"]);
    let measured = |quantity: &str| {
        let targets = document["targets"].as_array().expect("targets");
        let line =
            targets.iter().find(|line| line["quantity"].as_str().is_some_and(|q| q.starts_with(quantity)));
        line.expect("a target")["reached"].as_f64()
    };
    for quantity in [
        "put 64 KiB, speed, of raw",
        "get 1 MiB, CPU",
        "exists of 1024, p50, of raw",
        "single get 64 KiB, p50, of raw",
        "4 client processes",
        "server memory",
        "server idle",
    ] {
        assert!(measured(quantity).is_some_and(|value| value >= 0.0), "{quantity}");
    }
    assert_eq!(measured("shm get 1 MiB"), None, "it was not asked for");
    assert_eq!(measured("get 1 MiB, speed, of the fastest peer"), None);
    // The same run, from its file.
    let again = bench(&["render", "--from", json.to_str().expect("a path")]).output().expect("it starts");
    assert_eq!(String::from_utf8_lossy(&again.stdout), printed);
}

#[test]
fn a_peer_that_is_absent_is_skipped_with_the_reason() {
    let Some(server) = server() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let json = folder.path().join("run.json");
    let mut command =
        bench(&["peers", "--peers", "mooncake", "--pages", "64KiB", "--batches", "1,4", "--rounds", "1"]);
    command.args(["--working-set", "8MiB", "--transports", "tcp,grpc", "--json"]).arg(&json);
    command.arg("--server").arg(server).env("MEMKV_CACHE_DIR", folder.path());
    let output = command.output().expect("it starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let document: Value =
        serde_json::from_slice(&std::fs::read(&json).expect("it was written")).expect("JSON");
    assert_eq!(names(&document, "subjects"), ["memkv tcp", "memkv grpc", "raw x1", "raw x2", "file"]);
    assert_eq!(names(&document, "skipped"), ["mooncake"]);
    let reason = document["skipped"][0]["reason"].as_str().expect("a reason");
    assert!(reason.contains("--install") && reason.contains("mooncake-transfer-engine"), "{reason}");
}

fn load(args: &[&str], server: &Path) -> Value {
    let small = ["load", "--page", "64KiB", "--seconds", "0.1", "--json"];
    serde_json::from_str(&run(&[&small[..], args].concat(), server)).expect("JSON")
}

#[test]
fn load_of_several_processes_is_merged_and_compared() {
    let Some(server) = server() else { return };
    let found =
        load(&["--op", "mixed", "--processes", "2", "--batch", "16", "--working-set", "4MiB"], &server);
    let memkv = &found["memkv"];
    assert_eq!(memkv["hit_ratio"], 1.0);
    // Two processes, some batches each; every page of every batch was compared with its source.
    let batches = memkv["from_begin"]["count"].as_u64().expect("a count");
    assert!(batches >= 4 && memkv["pages_compared"].as_u64() == Some(16 * batches), "{found}");
    assert!(found["raw"]["gb_per_s"]["median"].as_f64().is_some_and(|speed| speed > 0.0), "{found}");
}

#[test]
fn an_open_loop_keeps_its_rate_and_counts_from_when_a_batch_was_due() {
    let Some(server) = server() else { return };
    let args =
        ["--rate", "40", "--batch", "1", "--working-set", "1MiB", "--keys", "zipf:0.9", "--processes", "2"];
    let found = load(&args, &server);
    let memkv = &found["memkv"];
    let rate = memkv["batches_per_s"].as_f64().expect("a rate");
    // On a busy machine less may come; more never does. (Two of each process are due 50 ms apart.)
    assert!(rate < 90.0, "40 were asked for, {rate} came");
    let p50 = |from: &str| memkv[from]["p50_us"].as_f64().expect("a time");
    assert!(p50("from_intended") >= p50("from_begin") && p50("from_begin") > 0.0, "{found}");
}

#[test]
fn a_cache_smaller_than_its_pages_misses_and_fills() {
    let Some(server) = server() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("trace");
    // Twice the same request, then others that push it out.
    let line = |first: u64| {
        let ids: Vec<String> = (first..first + 64).map(|id| id.to_string()).collect();
        format!("{{\"timestamp\": 0, \"input_length\": 32768, \"hash_ids\": [{}]}}\n", ids.join(","))
    };
    let lines: String = [0, 0].into_iter().chain((1..20).map(|n| n * 64)).map(line).collect();
    std::fs::write(&path, lines).expect("it is written");
    let keys = format!("trace:{}", path.display());
    let found = load(&["--op", "cache", "--dram", "32MiB", "--batch", "64", "--keys", &keys], &server);
    let ratio = found["memkv"]["hit_ratio"].as_f64().expect("a ratio");
    assert!(ratio > 0.0 && ratio < 1.0, "some of 80 MiB stay in 32: {ratio}");
    assert!(found["raw"].is_null(), "the baseline has no names");
}

#[test]
fn exists_moves_no_pages() {
    let Some(server) = server() else { return };
    let found = load(&["--op", "exists", "--batch", "128", "--working-set", "8MiB"], &server);
    assert_eq!(found["memkv"]["hit_ratio"], 1.0);
    assert_eq!(found["memkv"]["gb_per_s"]["median"], 0.0);
}

/// A child that is killed with its handle.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[test]
fn the_raw_server_ends_with_its_parent() {
    let mut command = bench(&["raw-server"]);
    let mut child = Killed(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it starts"));
    let mut line = String::new();
    let stdout = child.0.stdout.take().expect("a pipe");
    BufReader::new(stdout).read_line(&mut line).expect("it tells its address");
    assert!(line.trim().parse::<std::net::SocketAddr>().is_ok(), "{line}");
    drop(child.0.stdin.take());
    assert!(child.0.wait().expect("it ends").success());
}

/// The processes that `parent` has started.
fn children(parent: u32) -> Vec<u32> {
    let tasks = std::fs::read_dir(format!("/proc/{parent}/task")).into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    lists
        .flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
        .collect()
}

/// Whether a process runs, and not only waits to be waited for.
fn runs(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X']))
}

fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = std::time::Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < std::time::Duration::from_secs(30), "{what}: did not happen");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

/// However it ends, its servers end with it; and after a signal that can be caught nothing is left in the temporary folder.
#[test]
fn servers_end_with_it_and_leave_nothing() {
    let Some(server) = server() else { return };
    for signal in ["-TERM", "-INT", "-KILL"] {
        let temporary = tempfile::tempdir().expect("a folder");
        // Two servers and more time than this test has.
        let mut command = bench(&["beside", "--seconds", "600", "--server"]);
        command.arg(&server).env("TMPDIR", temporary.path()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = Killed(command.spawn().expect("it starts"));
        let pid = child.0.id();
        let is_server = |pid: &u32| {
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            name.trim() == "memkv-server"
        };
        let mut servers = Vec::new();
        wait_for("two servers start", || {
            servers = children(pid).into_iter().filter(is_server).collect();
            servers.len() >= 2
        });
        let sent = Command::new("kill").args([signal, &pid.to_string()]).status().expect("kill runs");
        assert!(sent.success());
        wait_for("it ends", || child.0.try_wait().expect("it can be waited for").is_some());
        wait_for("its servers end", || servers.iter().all(|server| !runs(*server)));
        if signal != "-KILL" {
            let left: Vec<_> =
                std::fs::read_dir(temporary.path()).expect("the folder is there").flatten().collect();
            assert!(left.is_empty(), "after {signal} there is {left:?}");
        }
    }
}

#[test]
fn a_siege_of_every_kind_comes_stands_and_goes() {
    let Some(server) = server() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let json = folder.path().join("siege.json");
    let path = json.to_str().expect("a path");
    let args = ["siege", "--connections", "96", "--rounds", "1", "--seconds", "0.4", "--json", path];
    let printed = run(&args, &server);
    let document: Value =
        serde_json::from_slice(&std::fs::read(&json).expect("it was written")).expect("JSON");
    let kinds = document["kinds"].as_array().expect("kinds");
    assert_eq!(kinds.len(), 7, "{printed}");
    for row in kinds {
        let kind = row["kind"].as_str().expect("a name");
        let number = |name: &str| row[name].as_u64().expect("a number");
        // They fit into the guests' places; who fails a proof does not stay.
        assert_eq!(number("standing"), if kind == "failed-proofs" { 0 } else { 96 }, "{kind}: {printed}");
        assert!(kind != "failed-proofs" || number("closed") > 0, "{kind}: {printed}");
        for part in ["before", "during", "after"] {
            assert!(row[part]["gets"]["count"].as_u64() > Some(0), "{kind}, {part}: {printed}");
            assert!(row[part]["resident_bytes"].as_u64() > Some(0), "{kind}, {part}: {printed}");
            assert_eq!(row[part]["newcomers_refused"], 0, "{kind}, {part}: {printed}");
        }
    }
}
