//! `cargo xtask sim`: clusters on a simulated network, from seeds; and proof that they find bugs.

use crate::context::{Context, Profile};
use crate::process::{step, watch};
use crate::ui::say;
use anyhow::{Context as _, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Seeds that are tried until a planted bug is found.
const BUG_SEEDS: &str = "400";

/// Runs seeds, or shows with `--bugs` that planted bugs are found.
pub(crate) fn run(context: &Context, args: &[String]) -> Result<()> {
    match args.split_first() {
        Some((first, rest)) if first == "--bugs" => bugs(context, rest),
        _ => seeds(context, args),
    }
}

/// More seeds than this are worth a build that runs them fast.
const FAST_FROM: u64 = 2000;

/// The profile for a choice of seeds. Both give the same events for a seed.
fn profile(args: &[String]) -> Profile {
    let count = args.iter().position(|arg| arg == "--seeds").and_then(|at| args.get(at + 1));
    let many = count.and_then(|count| count.parse().ok()).is_some_and(|count: u64| count > FAST_FROM);
    if many { Profile::Sim } else { Profile::Dev }
}

fn seeds(context: &Context, args: &[String]) -> Result<()> {
    let profile = profile(args);
    let build = context.cargo(&["build", "--package", "memkv-sim", "--profile", profile.name()]);
    step(context, "build memkv-sim", "build-sim", build)?;
    let mut command = context.command(context.binary(profile, "memkv-sim"));
    let status = command.args(args).status().context("start memkv-sim")?;
    if status.success() { Ok(()) } else { bail!("memkv-sim ended with {status}") }
}

/// A copy of the committed tree, removed in the end.
struct Copy<'a> {
    context: &'a Context,
    path: PathBuf,
}

impl<'a> Copy<'a> {
    fn new(context: &'a Context) -> Result<Self> {
        let path = context.target.join("sim-bugs").join("tree");
        let copy = Self { context, path };
        copy.remove();
        let mut add = copy.git(&context.root, &["worktree", "add", "--detach", "--force"]);
        add.arg(&copy.path).arg("HEAD");
        step(context, "copy the committed tree", "sim-bugs-copy", add)?;
        Ok(copy)
    }

    fn git(&self, folder: &Path, args: &[&str]) -> Command {
        let mut command = self.context.command("git");
        command.current_dir(folder).args(args);
        command
    }

    /// Fails quietly if there is none.
    fn remove(&self) {
        let mut remove = self.git(&self.context.root, &["worktree", "remove", "--force"]);
        drop(remove.arg(&self.path).output());
    }

    fn apply(&self, patch: &Path, reverse: bool) -> Result<()> {
        let mut apply = self.git(&self.path, &["apply", "--whitespace=nowarn"]);
        if reverse {
            apply.arg("--reverse");
        }
        apply.arg(patch);
        let title = if reverse { "take the bug out again" } else { "plant the bug" };
        step(self.context, title, "sim-bugs-apply", apply)
    }
}

impl Drop for Copy<'_> {
    fn drop(&mut self) {
        self.remove();
    }
}

/// Plants each bug of `sim/bugs` in a copy of the tree, and runs seeds until one fails.
fn bugs(context: &Context, names: &[String]) -> Result<()> {
    let folder = context.root.join("sim/bugs");
    let entries = std::fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))?;
    let mut patches: Vec<PathBuf> =
        entries.map(|entry| Ok(entry?.path())).collect::<Result<_>>().context("read sim/bugs")?;
    patches.retain(|path| path.extension().is_some_and(|end| end == "patch"));
    patches.sort();
    let copy = Copy::new(context)?;
    let mut missed = Vec::new();
    for patch in patches {
        let name = patch.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if !names.is_empty() && !names.contains(&name) {
            continue;
        }
        say(&format!("\n{name}"));
        copy.apply(&patch, false)?;
        let found = find(context, &copy)?;
        copy.apply(&patch, true)?;
        match found {
            Some(seed) => say(&format!("  found: {seed}")),
            None => missed.push(name),
        }
        context.check_stop()?;
    }
    if missed.is_empty() { Ok(()) } else { bail!("{BUG_SEEDS} seeds did not find: {}", missed.join(", ")) }
}

/// The line that names the first failing seed.
fn find(context: &Context, copy: &Copy<'_>) -> Result<Option<String>> {
    let target = context.target.join("sim-bugs");
    let mut build = context.cargo(&["build", "--package", "memkv-sim"]);
    build.current_dir(&copy.path).env("CARGO_TARGET_DIR", &target);
    step(context, "build memkv-sim with it", "sim-bugs-build", build)?;
    let mut command = context.command(target.join("debug/memkv-sim"));
    command.args(["--seeds", BUG_SEEDS, "--failures", "1"]);
    let mut found = None;
    let log = context.logs.join("sim-bugs-run.log");
    // A run that fails is what is looked for.
    watch(context, "run seeds", &log, command, |line| {
        if found.is_none() && line.contains("FAILED") {
            found = Some(line.trim_end_matches(':').to_owned());
        }
    })?;
    Ok(found)
}
