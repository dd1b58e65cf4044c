//! Runs other programs: output to a log, one line for the person, the log's tail when something fails.

use crate::context::Context;
use crate::ui::{Line, say};
use anyhow::{Context as _, Result, bail};
use std::fs::File;
use std::io::{BufRead as _, BufReader, PipeReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

/// Lines of a log that are shown when its step fails.
const TAIL_LINES: usize = 40;
/// How often a running program is looked at.
const POLL: Duration = Duration::from_millis(100);
/// How long output is still read after the program ended: something it left behind may hold the pipe open.
const DRAIN: Duration = Duration::from_secs(2);

/// Runs `command` as one step of the work.
///
/// # Errors
///
/// When it cannot start, fails, or somebody pressed Ctrl-C; the log's tail has been printed by then.
pub(crate) fn step(context: &Context, title: &str, log: &str, command: Command) -> Result<()> {
    let path = context.logs.join(format!("{log}.log"));
    let status = watch(context, title, &path, command, |_| {})?;
    if status.success() {
        return Ok(());
    }
    show_tail(&path)?;
    bail!("{title} failed ({status}); the whole log is {}", path.display())
}

/// Runs `command`, hands every line of its output to `each`, and returns how it ended.
///
/// Standard output and error go, in the order they are written, to the log at `path`.
pub(crate) fn watch(
    context: &Context,
    title: &str,
    path: &Path,
    mut command: Command,
    mut each: impl FnMut(&str),
) -> Result<ExitStatus> {
    let mut log = File::create(path).with_context(|| format!("create {}", path.display()))?;
    let (reader, writer) = std::io::pipe()?;
    command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
    let mut line = Line::start(title);
    let child = command.spawn().with_context(|| format!("start {}", program_of(&command)))?;
    // The command holds the pipe's writing ends; the reader would wait for them for ever.
    drop(command);
    let mut child = KillOnDrop(child);
    let lines = read_lines(reader);
    let mut last = String::new();
    let mut ended: Option<(ExitStatus, Instant)> = None;
    loop {
        match lines.recv_timeout(POLL) {
            Ok(text) => {
                writeln!(log, "{text}")?;
                each(&text);
                last = text;
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        context.check_stop()?;
        line.tick(&last);
        match ended {
            Some((_, at)) if at.elapsed() > DRAIN => break,
            Some(_) => {}
            None => ended = child.0.try_wait()?.map(|status| (status, Instant::now())),
        }
    }
    let status = match ended {
        Some((status, _)) => status,
        None => child.0.wait()?,
    };
    line.end(status.success());
    Ok(status)
}

/// Runs `command` and returns what it printed on standard output; its standard error goes to a log.
pub(crate) fn capture(context: &Context, title: &str, log: &str, mut command: Command) -> Result<String> {
    let path = context.logs.join(format!("{log}.log"));
    let noise = File::create(&path).with_context(|| format!("create {}", path.display()))?;
    let (reader, writer) = std::io::pipe()?;
    command.stdin(Stdio::null()).stdout(writer).stderr(noise);
    let child = command.spawn().with_context(|| format!("start {}", program_of(&command)))?;
    drop(command);
    let mut child = KillOnDrop(child);
    let lines = read_lines(reader);
    let mut printed = String::new();
    let mut line = Line::start(title);
    loop {
        match lines.recv_timeout(POLL) {
            Ok(text) => {
                printed.push_str(&text);
                printed.push('\n');
            }
            Err(RecvTimeoutError::Timeout) => context.check_stop()?,
            Err(RecvTimeoutError::Disconnected) => break,
        }
        line.tick("");
    }
    let status = child.0.wait()?;
    line.end(status.success());
    if status.success() {
        return Ok(printed);
    }
    say(printed.trim_end());
    show_tail(&path)?;
    bail!("{title} failed ({status}); its messages are in {}", path.display())
}

/// Runs `command` quietly; `None` if it does not exist or fails, else its trimmed standard output.
pub(crate) fn probe(mut command: Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Prints the end of a log.
pub(crate) fn show_tail(path: &Path) -> Result<()> {
    let bytes = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    say(&format!("\n--- the last lines of {} ---", path.display()));
    for line in &lines[lines.len().saturating_sub(TAIL_LINES)..] {
        say(line);
    }
    say("---");
    Ok(())
}

/// A child that does not outlive its owner.
pub(crate) struct KillOnDrop(pub(crate) Child);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        // Fails only for a child that has ended; then there is nothing to do.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Reads lines on a thread of its own, so that the caller can look at other things meanwhile.
fn read_lines(reader: PipeReader) -> Receiver<String> {
    let (sender, receiver) = sync_channel(1024);
    std::thread::spawn(move || {
        let mut reader = BufReader::new(reader);
        let mut bytes = Vec::new();
        while matches!(reader.read_until(b'\n', &mut bytes), Ok(n) if n > 0) {
            let text = String::from_utf8_lossy(&bytes).trim_end().to_owned();
            if sender.send(text).is_err() {
                return;
            }
            bytes.clear();
        }
    });
    receiver
}

fn program_of(command: &Command) -> String {
    PathBuf::from(command.get_program()).display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn both_streams_are_seen_in_order_and_logged() {
        let dir = tempfile::tempdir().unwrap();
        let context = Context::for_tests(dir.path());
        let log = dir.path().join("x.log");
        let mut seen = Vec::new();
        let script = "echo one; echo two >&2; echo three; exit 3";
        let status = watch(&context, "x", &log, shell(script), |line| seen.push(line.to_owned())).unwrap();
        assert_eq!(status.code(), Some(3));
        assert_eq!(seen, ["one", "two", "three"]);
        assert_eq!(std::fs::read_to_string(log).unwrap(), "one\ntwo\nthree\n");
    }

    #[test]
    fn what_a_program_leaves_behind_does_not_hold_us_up() {
        let dir = tempfile::tempdir().unwrap();
        let context = Context::for_tests(dir.path());
        let script = "sleep 60 & echo $!";
        let mut pid = String::new();
        let log = dir.path().join("x.log");
        let status = watch(&context, "x", &log, shell(script), |line| line.clone_into(&mut pid)).unwrap();
        assert!(status.success());
        assert!(Command::new("kill").arg(&pid).status().unwrap().success(), "the sleep still ran");
    }

    #[test]
    fn a_failed_step_names_its_log_and_ctrl_c_ends_a_step() {
        let dir = tempfile::tempdir().unwrap();
        let context = Context::for_tests(dir.path());
        let error = step(&context, "the step", "noise", shell("echo oops; exit 1")).unwrap_err().to_string();
        assert!(error.contains("the step failed") && error.contains("noise.log"), "{error}");
        context.press_stop();
        let error = step(&context, "x", "x", shell("exec sleep 60")).unwrap_err().to_string();
        assert_eq!(error, "interrupted");
    }

    #[test]
    fn capture_separates_the_answer_from_the_talk() {
        let dir = tempfile::tempdir().unwrap();
        let context = Context::for_tests(dir.path());
        assert_eq!(capture(&context, "x", "x", shell("echo talk >&2; echo data")).unwrap(), "data\n");
        assert!(capture(&context, "x", "x", shell("exit 1")).is_err());
        assert_eq!(probe(shell("echo ' a '")).as_deref(), Some("a"));
        assert_eq!(probe(Command::new("no-such-program")), None);
    }
}
