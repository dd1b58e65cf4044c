//! `cargo xtask rdma`: the tests that need RDMA devices, in a VM that has two (`xtask/rdma-vm`).
//!
//! One boot runs all of [`JOBS`] and the tensor tests of the plugin ([`tensors`]). Programs and the Python environment
//! are made here and run there at the same paths, on a read-only view of this machine's files. [`figures`] measures there.
//!
//! Where the VM is impossible the level is skipped with its reason; with `MEMKV_REQUIRE_RDMA` set that is a failure.

mod figures;
mod tensors;

use crate::context::{Context, Profile, SELECTION};
use crate::process::{capture, probe, show_tail, step, watch};
use crate::report::{CargoReader, Suite, closing_line, table};
use crate::ui::say;
use anyhow::{Context as _, Result, bail, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What turns RDMA on in everything that is built for tests and releases.
pub(crate) const FEATURES: [&str; 2] = ["--features", "memkv-server/rdma,memkv-client/rdma,memkv-cli/rdma"];

/// Set where skipping these tests is not acceptable.
pub(crate) const REQUIRED: &str = "MEMKV_REQUIRE_RDMA";

/// What building with RDMA takes besides Rust, as packages of Debian.
const PACKAGES: [&str; 4] = ["cmake", "make", "libclang-dev", "gcc"];
/// Seconds that all jobs together may take in the VM, also on a busy machine without KVM.
const TIMEOUT_S: &str = "1200";
/// Memory of the VM in MiB: PyTorch and SGLang take the better part.
const MEMORY_MIB: &str = "4096";
/// How `run.sh` says that the VM itself failed.
const VM_FAILED: i32 = 125;

/// A test program that runs in the VM. Another one is another line here.
struct Job {
    /// The test target.
    test: &'static str,
    /// The package that has it.
    package: &'static str,
    /// Only tests whose names contain this, unless somebody asks for others among them.
    filter: &'static str,
    /// Variables that it runs with.
    variables: &'static [(&'static str, &'static str)],
    /// Whether it runs when all others have ended, because it takes the devices away from them.
    alone: bool,
}

impl Job {
    /// What takes the devices away runs with everything, or when it is asked for.
    fn is_selected(&self, filter: Option<&str>) -> bool {
        !self.alone || filter.is_none_or(|filter| self.filter.contains(filter))
    }
}

const JOBS: &[Job] = &[
    Job {
        test: "verbs",
        package: "memkv-rdma",
        filter: "verbs::",
        variables: &[("MEMKV_TEST_RDMA", "required")],
        alone: false,
    },
    Job {
        test: "transport",
        package: "memkv-tests",
        filter: "rdma::",
        variables: &[("MEMKV_TEST_TRANSPORT", "rdma"), ("MEMKV_TEST_SMALL", "1")],
        alone: false,
    },
    Job {
        test: "transport",
        package: "memkv-tests",
        filter: "ports::",
        variables: &[("MEMKV_TEST_PORTS", "1"), ("MEMKV_TEST_SMALL", "1")],
        alone: true,
    },
];

/// `cargo xtask rdma [--keep] [FILTER]`, `cargo xtask rdma --figures`, or `cargo xtask rdma -- COMMAND …` for any command.
pub(crate) fn run(context: &Context, args: &[String]) -> Result<()> {
    if let Some((first, command)) = args.split_first()
        && first == "--"
    {
        ensure!(!command.is_empty(), "usage: cargo xtask rdma -- COMMAND …");
        let status = vm(context, &[]).arg("--").args(command).status().context("start the VM")?;
        return if status.success() { Ok(()) } else { bail!("the command ended with {status}") };
    }
    let (keep, filter) = match args {
        [] => (false, None),
        [flag] if flag == "--figures" => return figures::run(context),
        [flag] if flag == "--keep" => (true, None),
        [filter] => (false, Some(filter.as_str())),
        [flag, filter] if flag == "--keep" => (true, Some(filter.as_str())),
        _ => bail!("usage: cargo xtask rdma [--keep] [FILTER] | --figures | -- COMMAND …"),
    };
    install_tools(context)?;
    let mut build = context.cargo(&["build", "--bins"]);
    build.args(SELECTION).args(FEATURES);
    step(context, "build programs with RDMA", "rdma-build", build)?;
    if tensors::is_selected(filter) {
        tensors::install(context)?;
    }
    let suites = run_jobs(context, filter, keep)?;
    say(&format!("\n{}\n{}", table(&suites), closing_line(&suites)));
    let (passed, failed) =
        suites.iter().fold((0, 0), |sum, suite| (sum.0 + suite.passed, sum.1 + suite.failed));
    ensure!(failed == 0, "{failed} tests failed");
    ensure!(passed > 0, "no test ran");
    Ok(())
}

/// The level of `cargo xtask test`. Programs, tests and the plugin have been built, with RDMA unless `missing` says why
/// not.
pub(crate) fn level(context: &Context, filter: Option<&str>, missing: Option<&str>) -> Result<Vec<Suite>> {
    let reason = match missing {
        Some(reason) => reason.to_owned(),
        None => match prepare(context) {
            Ok(()) => return run_jobs(context, filter, false),
            Err(error) => format!("{error:#}"),
        },
    };
    context.check_stop()?;
    ensure!(std::env::var_os(REQUIRED).is_none(), "{reason}");
    Ok(vec![Suite { name: "rdma".to_owned(), skipped: 1, reasons: vec![reason], ..Suite::default() }])
}

/// Fetches what the VM consists of.
fn prepare(context: &Context) -> Result<()> {
    let mut command = vm(context, &[]);
    command.arg("--prepare");
    step(context, "prepare the VM with RDMA devices", "rdma-prepare", command)
}

fn vm(context: &Context, options: &[&str]) -> Command {
    let mut command = context.command(context.root.join("xtask/rdma-vm/run.sh"));
    command.args(["--timeout", TIMEOUT_S, "--memory", MEMORY_MIB]).args(options);
    command
}

fn run_jobs(context: &Context, filter: Option<&str>, keep: bool) -> Result<Vec<Suite>> {
    let mut text = String::from("# Runs in the VM; made by `cargo xtask rdma`.\nstatus=0\n");
    let mut tensors = tensors::Reader::new(tensors::is_selected(filter));
    let (begin, end) =
        if tensors.is_expected() { tensors::script(&tensors::python(context)?) } else { (String::new(), "") };
    text.push_str(&begin);
    for alone in [false, true] {
        for job in JOBS.iter().filter(|job| job.alone == alone && job.is_selected(filter)) {
            text.push_str(&script(job, &executable(context, job)?, filter));
        }
        if !alone {
            text.push_str(end);
        }
    }
    text.push_str("exit $status\n");
    let path = context.logs.join("rdma-jobs.sh");
    std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    let mut command = vm(context, if keep { &["--keep"] } else { &[] });
    command.args(["--", "sh"]).arg(&path);
    command.env("MEMKV_SERVER_BIN", context.binary(Profile::Dev, "memkv-server"));
    command.env("MEMKV_CLI_BIN", context.binary(Profile::Dev, "memkv-cli"));
    let log = context.logs.join("rdma-vm.log");
    let mut reader = CargoReader::default();
    let mut lines = Vec::new();
    let status = watch(context, "run the RDMA tests in a VM", &log, command, |line| {
        if !tensors.line(line) {
            reader.line(line);
            lines.push(line.to_owned());
        }
    })?;
    let mut suites = reader.finish();
    for suite in &mut suites {
        suite.name = suite.name.replace("tests:", "rdma:");
    }
    let (tensors, show) = tensors.finish();
    suites.extend(tensors);
    let failed = suites.iter().any(|suite| suite.failed > 0);
    if status.code() == Some(VM_FAILED) || (!status.success() && !failed) {
        show_tail(&log)?;
        bail!("the VM with RDMA devices failed ({status}); see {}", log.display());
    }
    if failed {
        lines.iter().skip_while(|line| !line.starts_with("failures:")).for_each(|line| say(line));
        show.iter().for_each(|line| say(line));
    }
    Ok(suites)
}

/// The lines that run one job, headed as Cargo heads a test program.
fn script(job: &Job, executable: &Path, filter: Option<&str>) -> String {
    let variables: String = job.variables.iter().map(|(name, value)| format!("{name}={value} ")).collect();
    let path = executable.display();
    let filter = quoted(filter.unwrap_or(job.filter));
    format!("echo '     Running {} ({path})'\n{variables}'{path}' {filter} || status=1\n", job.test)
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// Builds a job's program, if it is not built, and says where it is.
fn executable(context: &Context, job: &Job) -> Result<PathBuf> {
    let mut command = context.cargo(&["test", "--no-run", "--message-format=json-render-diagnostics"]);
    command.args(SELECTION).args(FEATURES).args(["--test", job.test]);
    let title = format!("build {}'s tests {}", job.package, job.test);
    let printed = capture(context, &title, &format!("rdma-build-{}", job.test), command)?;
    let found = printed.lines().find_map(|line| executable_in(line, job));
    found.with_context(|| format!("{} has no test {}", job.package, job.test))
}

/// The program that one of Cargo's messages is about, if it is the job's.
fn executable_in(message: &str, job: &Job) -> Option<PathBuf> {
    let message: serde_json::Value = serde_json::from_str(message).ok()?;
    let target = &message["target"];
    let is_test = target["kind"].as_array()?.iter().any(|kind| kind == "test");
    let is_ours = target["name"] == job.test && message["package_id"].as_str()?.contains(job.package);
    (is_test && is_ours).then(|| message["executable"].as_str().map(PathBuf::from))?
}

/// Installs what building with RDMA takes, unless it is there.
///
/// # Errors
///
/// When it is not there and cannot be installed: the reason.
pub(crate) fn install_tools(context: &Context) -> Result<()> {
    let works = |program: &str| {
        let mut command = Command::new(program);
        command.arg("--version");
        probe(command).is_some()
    };
    if works("cmake") && works("make") && works("cc") && has_libclang() {
        return Ok(());
    }
    let hint = format!("building with RDMA takes {}", PACKAGES.join(", "));
    ensure!(works("apt-get"), "{hint}, and there is no apt-get");
    let apt = |args: &[&str]| {
        let mut command = context.command("apt-get");
        command.args(["-qq", "-y", "--no-install-recommends"]).args(args);
        command.env("DEBIAN_FRONTEND", "noninteractive");
        command
    };
    let install: Vec<&str> = std::iter::once("install").chain(PACKAGES).collect();
    // The lists of a fresh machine are empty or old.
    drop(step(context, "update the package lists", "rdma-tools-update", apt(&["update"])));
    context.check_stop()?;
    step(context, "install cmake and libclang", "rdma-tools", apt(&install)).context(hint)
}

fn has_libclang() -> bool {
    let in_folder = |folder: PathBuf| {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        entries.into_iter().any(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            name.starts_with("libclang.so") || name.starts_with("libclang-") && name.contains(".so")
        })
    };
    let llvm = std::fs::read_dir("/usr/lib").into_iter().flatten().flatten();
    let llvm = llvm.filter(|entry| entry.file_name().to_string_lossy().starts_with("llvm"));
    std::env::var_os("LIBCLANG_PATH").is_some()
        || ["/usr/lib64", "/usr/lib/x86_64-linux-gnu", "/usr/local/lib"]
            .iter()
            .any(|path| in_folder(path.into()))
        || llvm.into_iter().any(|entry| in_folder(entry.path().join("lib")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_headed_as_cargo_heads_it_and_its_result_is_read() {
        let text = script(&JOBS[0], Path::new("/t/debug/deps/verbs-01ab"), None);
        let heading = text.lines().next().unwrap().trim_start_matches("echo '").trim_end_matches('\'');
        let mut reader = CargoReader::default();
        reader.line(heading);
        reader.line("test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; finished in 0.10s");
        let suites = reader.finish();
        assert_eq!((suites[0].name.as_str(), suites[0].passed), ("tests: verbs", 3));
        assert!(text.contains("MEMKV_TEST_RDMA=required '/t/debug/deps/verbs-01ab' 'verbs::' || status=1"));
        assert!(script(&JOBS[0], Path::new("/x"), Some("it's")).contains(r"'it'\''s'"));
    }

    #[test]
    fn the_program_is_found_in_cargos_messages() {
        let message = |kind: &str, name: &str, package: &str| {
            format!(
                r#"{{"reason":"compiler-artifact","package_id":"path+file:///r/crates/rdma#{package}@0.1.0",
                "manifest_path":"/r/crates/rdma/Cargo.toml",
                "target":{{"kind":["{kind}"],"name":"{name}"}},"executable":"/t/deps/{name}-1"}}"#
            )
        };
        let found = |text: &str| executable_in(text, &JOBS[0]);
        assert_eq!(found(&message("test", "verbs", "memkv-rdma")), Some("/t/deps/verbs-1".into()));
        assert_eq!(found(&message("lib", "verbs", "memkv-rdma")), None);
        assert_eq!(found(&message("test", "other", "memkv-rdma")), None);
        assert_eq!(found(&message("test", "verbs", "memkv-else")), None);
        assert_eq!(found("   Compiling memkv-rdma"), None);
    }

    #[test]
    fn what_is_missing_is_a_skip_with_its_reason() {
        let dir = tempfile::tempdir().unwrap();
        let context = Context::for_tests(dir.path());
        if std::env::var_os(REQUIRED).is_some() {
            assert!(level(&context, None, Some("no cmake")).is_err());
        } else {
            let suites = level(&context, None, Some("no cmake")).unwrap();
            assert_eq!((suites[0].skipped, suites[0].reasons.as_slice()), (1, &["no cmake".to_owned()][..]));
        }
    }
}
