//! `cargo xtask demo`: what MemKV is for, in a minute of text.
//!
//! Three servers; engine A computes pages and backs them up; engine B, a new process with an empty cache, gets
//! them back and compares every byte; one server is restarted and still has its pages; another one is killed and B's
//! successor goes on with misses. The engine is
//! SGLang's own cache stack (`sglang-plugin/demo/engine.py`), or with `--quick` an example of the client crate
//! with the same command line and the same report. `demo engine` is another story: [`crate::engine`].

use crate::cluster::{Cluster, SERVERS};
use crate::context::{Context, Profile};
use crate::engine;
use crate::process::{capture, probe, step};
use crate::python::{Purpose, venv};
use crate::ui::say;
use crate::wheel;
use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use std::process::Command;

/// Memory of each server in the demo.
const DRAM: &str = "512MiB";
/// Memory of each server in the quick demo.
const DRAM_QUICK: &str = "256MiB";
const PAGES: u32 = 256;
/// The server that is restarted.
const RESTARTED: usize = 0;
/// The server that is killed.
const VICTIM: usize = 1;

/// What the person asked for.
struct Options {
    quick: bool,
    profile: Profile,
    pages: u32,
}

impl Options {
    fn parse(args: &[String]) -> Result<Self> {
        let mut options = Self { quick: false, profile: Profile::Release, pages: PAGES };
        let mut rest = args.iter();
        while let Some(arg) = rest.next() {
            match arg.as_str() {
                "--quick" => options.quick = true,
                "--dev" => options.profile = Profile::Dev,
                "--pages" => {
                    options.pages =
                        rest.next().and_then(|n| n.parse().ok()).context("--pages needs a number")?;
                }
                _ => bail!("usage: cargo xtask demo [--quick] [--dev] [--pages N]"),
            }
        }
        ensure!((1..=512).contains(&options.pages), "--pages takes a number from 1 to 512");
        Ok(options)
    }
}

/// `cargo xtask demo [--quick] [--dev] [--pages N]`, or `demo engine` with options of its own.
pub(crate) fn run(context: &Context, args: &[String]) -> Result<()> {
    if let Some((word, rest)) = args.split_first()
        && word == "engine"
    {
        return engine::run(context, rest);
    }
    let Options { quick: is_quick, profile, pages } = Options::parse(args)?;
    say("MemKV demo: three servers, four engine processes, one restart, one crash\n");
    build(context, profile)?;
    if is_quick {
        return quick(context, profile, pages);
    }
    let venv = venv(context, Purpose::Sglang)?;
    let file = wheel::build(context, &venv, profile, false)?;
    wheel::install(context, &venv, &file)?;
    say(&format!("\nThe engine is SGLang's own code: {}.", venv.sglang));
    let engine = || venv.run(context, &["sglang-plugin/demo/engine.py"]);
    story(context, profile, DRAM, pages, &engine)
}

/// Builds the same packages for both demos, so that one after the other builds nothing twice.
fn build(context: &Context, profile: Profile) -> Result<()> {
    let mut command =
        context.cargo(&["build", "--profile", profile.name(), "--bins", "--example", "demo_engine"]);
    command.args(["-p", "memkv-server", "-p", "memkv-cli", "-p", "memkv-client"]);
    let title = format!("build the daemon, the CLI and the client ({})", profile.name());
    step(context, &title, "build", command)
}

/// The demo without Python; everything it runs has been built.
pub(crate) fn quick(context: &Context, profile: Profile, pages: u32) -> Result<()> {
    let engine = || context.command(context.binary(profile, "examples/demo_engine"));
    story(context, profile, DRAM_QUICK, pages, &engine)
}

fn story(
    context: &Context,
    profile: Profile,
    dram: &str,
    pages: u32,
    engine: &dyn Fn() -> Command,
) -> Result<()> {
    let mut cluster = Cluster::start_on_drives(context, profile, dram)?;
    say(&format!(
        "\n1. {SERVERS} servers are up, {dram} of memory and 1GiB on a drive each, with a random key:\n   {}",
        cluster.describe()
    ));
    let stage = Stage { context, profile, pages, engine };

    let report = stage.engine(&cluster, "A", &["write"])?;
    say(&format!(
        "\n2. Engine A computed {pages} pages of {} and backed them up:",
        mib(&report, "page_bytes")?
    ));
    say(&format!("   {} pages stored, {} GB/s", number(&report, "pages_stored")?, rate(&report)?));
    say(&format!("   spread: {}", stage.spread(&cluster)?));

    let report = stage.engine(&cluster, "B", &["read"])?;
    say("\n3. A has exited. Engine B started with an empty cache and asked for the same prompt:");
    say(&format!("   {}", hits(&report)?));
    ensure!(number(&report, "pages_hit")? == u64::from(pages), "engine B did not get every page back");

    let restarted = cluster.restart(context, profile, RESTARTED)?;
    let found = stage.recovered(&cluster, RESTARTED)?;
    let report = stage.engine(&cluster, "C", &["read"])?;
    say(&format!(
        "\n4. {restarted} was stopped (SIGTERM) and started again; it found {found} pages on its drive."
    ));
    say("   Engine C asked for the same prompt:");
    say(&format!("   {}", hits(&report)?));
    ensure!(number(&report, "pages_hit")? == u64::from(pages), "pages were lost by the restart");

    let victim = cluster.kill(VICTIM)?;
    let report = stage.engine(&cluster, "D", &["read", "--after-kill"])?;
    say(&format!("\n5. kill -9 {victim}. Engine D asked for the same prompt:"));
    say(&format!("   {}, exceptions: {}", hits(&report)?, number(&report, "exceptions")?));
    say("   What was on the dead server is a miss, and an engine computes it again.");

    say("\n6. memkv-cli inspect\n");
    let shown = stage.cli(&cluster, &["inspect"]).status().context("start memkv-cli")?;
    ensure!(shown.success(), "memkv-cli inspect ended with {shown}");
    cluster.stop()?;
    say("\nAll servers are stopped. Bytes wrong: 0.");
    Ok(())
}

/// What every act of the story needs.
struct Stage<'a> {
    context: &'a Context,
    profile: Profile,
    pages: u32,
    engine: &'a dyn Fn() -> Command,
}

impl Stage<'_> {
    /// Runs one engine to its end and returns its report; wrong bytes and exceptions end the demo.
    fn engine(&self, cluster: &Cluster, name: &str, args: &[&str]) -> Result<Value> {
        let mut command = (self.engine)();
        enter(&mut command, cluster);
        command.args(args).args(["--pages", &self.pages.to_string()]);
        let title = format!("engine {name}");
        let printed = capture(self.context, &title, &format!("demo-engine-{name}"), command)?;
        let line = printed.lines().last().with_context(|| format!("{title} printed no report"))?;
        let report: Value =
            serde_json::from_str(line).with_context(|| format!("read the report of {title}"))?;
        for count in ["bytes_wrong", "exceptions"] {
            let found = report.get(count).and_then(Value::as_u64).unwrap_or(0);
            ensure!(found == 0, "{title}: {count} is {found}");
        }
        Ok(report)
    }

    fn cli(&self, cluster: &Cluster, args: &[&str]) -> Command {
        let mut command = self.context.command(self.context.binary(self.profile, "memkv-cli"));
        enter(&mut command, cluster);
        command.args(args);
        command
    }

    fn inspect(&self, cluster: &Cluster) -> Result<Value> {
        let text =
            probe(self.cli(cluster, &["inspect", "--json"])).context("run memkv-cli inspect --json")?;
        serde_json::from_str(&text).context("read what memkv-cli inspect --json printed")
    }

    /// How many pages a server found on its drive when it started.
    fn recovered(&self, cluster: &Cluster, index: usize) -> Result<u64> {
        let view = self.inspect(cluster)?;
        let pages = view["servers"][index]["status"]["recovery"]["nvme_pages"].as_u64();
        pages.context("the server does not say what it recovered")
    }

    /// How many pages each server holds.
    fn spread(&self, cluster: &Cluster) -> Result<String> {
        let view = self.inspect(cluster)?;
        let servers = view["servers"].as_array().context("inspect --json has no servers")?;
        let one = |server: &Value| {
            let id = server["id"].as_str().unwrap_or("?").to_owned();
            format!("{id} {}", server["status"]["dram"]["pages"].as_u64().unwrap_or(0))
        };
        Ok(servers.iter().map(one).collect::<Vec<_>>().join(", "))
    }
}

/// Gives a program the cluster's address and key, and nothing that this shell says about another cluster.
pub(crate) fn enter(command: &mut Command, cluster: &Cluster) {
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("MEMKV_")) {
        command.env_remove(name);
    }
    command.envs(cluster.client_env());
}

fn number(report: &Value, name: &str) -> Result<u64> {
    report[name].as_u64().with_context(|| format!("the engine's report has no number {name:?}"))
}

fn rate(report: &Value) -> Result<String> {
    let rate = report["gb_per_s"].as_f64().context("the engine's report has no gb_per_s")?;
    Ok(format!("{rate:.2}"))
}

fn mib(report: &Value, name: &str) -> Result<String> {
    #[allow(clippy::cast_precision_loss, reason = "a page's size, shown with two digits")]
    let mib = number(report, name)? as f64 / f64::from(1 << 20);
    Ok(format!("{mib:.2} MiB"))
}

fn hits(report: &Value) -> Result<String> {
    let (hit, pages) = (number(report, "pages_hit")?, number(report, "pages")?);
    let wrong = number(report, "bytes_wrong")?;
    let percent = hit * 100 / pages.max(1);
    Ok(format!(
        "{hit} of {pages} pages came back ({percent} %), {} GB/s, bytes wrong: {wrong}",
        rate(report)?
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_told_in_words() {
        let report = serde_json::json!({
            "pages": 4, "pages_hit": 3, "bytes_wrong": 0, "gb_per_s": 1.234, "page_bytes": 3 << 19
        });
        assert_eq!(hits(&report).unwrap(), "3 of 4 pages came back (75 %), 1.23 GB/s, bytes wrong: 0");
        assert_eq!(mib(&report, "page_bytes").unwrap(), "1.50 MiB");
        assert!(number(&report, "pages_stored").is_err());
    }
}
