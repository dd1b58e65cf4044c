//! `cargo xtask demo engine`: what MemKV is for, with an engine written in Rust.
//!
//! Three servers; engine A computes a long prompt and writes its pages through; engine B, a new process with an
//! empty cache, gets a request with the same beginning and answers it twice, without and with MemKV; one server is
//! killed and engine C goes on with misses. The engine is `examples/tiny-engine`: a small transformer on the CPU,
//! which counts the tokens that it computes.

use crate::cluster::{Cluster, SERVERS};
use crate::context::{Context, Profile};
use crate::demo::enter;
use crate::process::{capture, step};
use crate::ui::say;
use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

/// Memory of each server.
const DRAM: &str = "256MiB";
/// Tokens that the prompts of all engines begin with.
const PROMPT_TOKENS: u32 = 4096;
/// The server that is killed.
const VICTIM: usize = 2;
/// How far logits may be from those of an engine without a cache.
const TOLERANCE: f64 = 1e-5;

/// What the person asked for.
struct Options {
    profile: Profile,
    tokens: u32,
}

impl Options {
    fn parse(args: &[String]) -> Result<Self> {
        let mut options = Self { profile: Profile::Release, tokens: PROMPT_TOKENS };
        let mut rest = args.iter();
        while let Some(arg) = rest.next() {
            match arg.as_str() {
                "--dev" => options.profile = Profile::Dev,
                "--tokens" => {
                    options.tokens =
                        rest.next().and_then(|n| n.parse().ok()).context("--tokens needs a number")?;
                }
                _ => bail!("usage: cargo xtask demo engine [--dev] [--tokens N]"),
            }
        }
        ensure!((256..=16_384).contains(&options.tokens), "--tokens takes a number from 256 to 16384");
        Ok(options)
    }
}

/// `cargo xtask demo engine [--dev] [--tokens N]`.
pub(crate) fn run(context: &Context, args: &[String]) -> Result<()> {
    let Options { profile, tokens } = Options::parse(args)?;
    say("MemKV demo: three servers, three processes of an engine in Rust, one crash\n");
    let mut command = context.cargo(&["build", "--profile", profile.name(), "--bins"]);
    command.args(["-p", "memkv-server", "-p", "memkv-tiny-engine"]);
    let title = format!("build the daemon and the engine ({})", profile.name());
    step(context, &title, "build", command)?;
    story(context, profile, tokens)
}

/// The demo; everything it runs has been built.
pub(crate) fn story(context: &Context, profile: Profile, tokens: u32) -> Result<()> {
    let mut cluster = Cluster::start(context, profile, DRAM)?;
    let engine = |cluster: &Cluster, name: &str, task: &str| -> Result<Value> {
        let mut command = context.command(context.binary(profile, "memkv-tiny-engine"));
        enter(&mut command, cluster);
        command.args([task, "--name", name, "--tokens", &tokens.to_string()]);
        let title = format!("engine {name}");
        let printed = capture(context, &title, &format!("demo-engine-{name}"), command)?;
        let line = printed.lines().last().with_context(|| format!("{title} printed no report"))?;
        serde_json::from_str(line).with_context(|| format!("read the report of {title}"))
    };

    let first = engine(&cluster, "A", "write")?;
    let second = engine(&cluster, "B", "compare")?;
    let victim = cluster.kill(VICTIM)?;
    let third = engine(&cluster, "C", "compare")?;

    say(&format!("\n{SERVERS} servers, {DRAM} each. {}", model(&first)?));
    say(&format!("A, B and C are processes of their own; their prompts share the first {tokens} tokens.\n"));
    for line in table(&first, &second, &third, &victim)? {
        say(&line);
    }
    say(&closing(&second, &victim)?);
    check(&second, &third)?;
    cluster.stop()
}

/// `A model of 4.8 million parameters; a page is 64 tokens of all layers, 192 KiB.`
fn model(report: &Value) -> Result<String> {
    #[allow(clippy::cast_precision_loss, reason = "shown with one digit")]
    let millions = number(report, "parameters")? as f64 / 1e6;
    let (page_tokens, page_bytes) = (number(report, "page_tokens")?, number(report, "page_bytes")?);
    Ok(format!(
        "A model of {millions:.1} million parameters; a page is {page_tokens} tokens of all layers, {} KiB.",
        page_bytes >> 10
    ))
}

/// One line per way of answering.
fn table(first: &Value, second: &Value, third: &Value, victim: &str) -> Result<Vec<String>> {
    let row = |title: &str, way: &Value, difference: Option<&Value>| -> Result<String> {
        let difference = match difference {
            Some(report) => match real(report, "logit_difference")? {
                0.0 => "0".to_owned(),
                difference => format!("{difference:.1e}"),
            },
            None => "-".to_owned(),
        };
        Ok(format!(
            "{title:<28} {:>9.1} ms {:>9} {:>7} {difference:>10}",
            real(way, "first_token_ms")?,
            number(way, "tokens_computed")?,
            number(way, "pages_loaded")?,
        ))
    };
    Ok(vec![
        format!("{:<28} {:>12} {:>9} {:>7} {:>10}", "", "FIRST TOKEN", "COMPUTED", "PAGES", "MAX |Δ|"),
        row("A, writes pages through", &first["reloaded"], None)?,
        row("B without MemKV", &second["recomputed"], None)?,
        row("B with MemKV", &second["reloaded"], Some(second))?,
        row(&format!("C without MemKV, {victim} dead"), &third["recomputed"], None)?,
        row(&format!("C with MemKV, {victim} dead"), &third["reloaded"], Some(third))?,
    ])
}

/// What the table means.
fn closing(second: &Value, victim: &str) -> Result<String> {
    let (recomputed, reloaded) =
        (real(&second["recomputed"], "first_token_ms")?, real(&second["reloaded"], "first_token_ms")?);
    Ok(format!(
        "\nFIRST TOKEN: from the request to its first token. COMPUTED: tokens that the executor computed for it.\n\
         PAGES: loaded from MemKV. MAX |Δ|: largest difference of any logit to the recomputed answer.\n\n\
         With MemKV, B's first token came after {:.1} % of the time of computing. The pages of {victim} are misses\n\
         now, and a prefix is usable up to its first missing page: C computes the rest, and its answer is right.",
        100.0 * reloaded / recomputed
    ))
}

/// Fails unless the engines did what the demo is there to show.
fn check(second: &Value, third: &Value) -> Result<()> {
    for (name, report) in [("B", second), ("C", third)] {
        let difference = real(report, "logit_difference")?;
        ensure!(difference < TOLERANCE, "engine {name}: logits differ by {difference}");
        ensure!(report["same_answer"] == true, "engine {name}: the answers differ");
    }
    let (with, without) = (&second["reloaded"], &second["recomputed"]);
    ensure!(number(with, "pages_loaded")? > 0, "engine B loaded nothing");
    let (with, without) = (number(with, "tokens_computed")?, number(without, "tokens_computed")?);
    ensure!(with * 10 < without, "engine B computed {with} of {without} tokens although A had written them");
    Ok(())
}

fn number(report: &Value, name: &str) -> Result<u64> {
    report[name].as_u64().with_context(|| format!("the engine's report has no count {name:?}"))
}

fn real(report: &Value, name: &str) -> Result<f64> {
    report[name].as_f64().with_context(|| format!("the engine's report has no number {name:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn report(computed: u64, difference: f64) -> Value {
        let way = |ms: f64, computed: u64| json!({ "first_token_ms": ms, "tokens_computed": computed, "pages_loaded": 64 });
        json!({
            "parameters": 4_754_688, "page_tokens": 64, "page_bytes": 196_608,
            "recomputed": way(3000.0, 4128), "reloaded": way(30.0, computed),
            "logit_difference": difference, "same_answer": true
        })
    }

    #[test]
    fn a_report_becomes_a_table_whose_columns_line_up() {
        let good = report(32, 1e-6);
        let lines = table(&good, &good, &good, "kv-2").unwrap();
        assert!(lines.iter().all(|line| line.chars().count() == lines[0].chars().count()), "{lines:#?}");
        assert_eq!(lines[3], "B with MemKV                      30.0 ms        32      64     1.0e-6");
        assert!(
            model(&good)
                .unwrap()
                .contains("4.8 million parameters; a page is 64 tokens of all layers, 192 KiB")
        );
        assert!(closing(&good, "kv-2").unwrap().contains("after 1.0 % of the time"));
    }

    #[test]
    fn a_demo_that_shows_nothing_fails() {
        let good = report(32, 1e-6);
        assert!(check(&good, &good).is_ok());
        assert!(check(&report(4128, 1e-6), &good).is_err());
        assert!(check(&good, &report(32, 1e-3)).is_err());
        let mut wrong = report(32, 1e-6);
        wrong["same_answer"] = json!(false);
        assert!(check(&wrong, &good).is_err());
    }
}
