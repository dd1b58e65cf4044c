//! `cargo xtask check`: everything about the code that can be said without running it.

use crate::context::{Context, SELECTION};
use crate::process::step;
use anyhow::{Result, bail};

/// Runs all checks, also after one has failed, and fails if any has.
pub(crate) fn run(context: &Context, args: &[String]) -> Result<()> {
    if !args.is_empty() {
        bail!("usage: cargo xtask check");
    }
    let format = context.cargo(&["fmt", "--all", "--check"]);
    let lints =
        context.cargo(&["clippy", "--workspace", "--all-targets", "--keep-going", "--", "-D", "warnings"]);
    let mut docs =
        context.cargo(&["doc", "--workspace", "--no-deps", "--document-private-items", "--keep-going"]);
    docs.env("RUSTDOCFLAGS", "-D warnings");
    let mut tidy = context.cargo(&["test", "--test", "tidy"]);
    tidy.args(SELECTION);
    let steps = [
        ("format", "check-format", format),
        ("lints", "check-lints", lints),
        ("documentation", "check-docs", docs),
        ("tidy rules", "check-tidy", tidy),
    ];
    let mut failed = Vec::new();
    for (title, log, command) in steps {
        let outcome = step(context, title, log, command);
        context.check_stop()?;
        if outcome.is_err() {
            failed.push(title);
        }
    }
    if failed.is_empty() { Ok(()) } else { bail!("failed: {}", failed.join(", ")) }
}
