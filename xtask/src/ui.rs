//! What a person sees: one line per step, with the time it took.
//!
//! On a terminal the line of a running step shows the last line of its log. Elsewhere (CI) a line says every
//! minute that the step still runs.

use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

/// Columns that a line may use on a terminal.
const WIDTH: usize = 79;
/// How often a step that is not on a terminal says that it still runs.
const HEARTBEAT: Duration = Duration::from_secs(60);

/// The line of one running step.
pub(crate) struct Line {
    title: String,
    started: Instant,
    spoken: Instant,
    live: bool,
}

impl Line {
    /// Starts the step's line.
    pub(crate) fn start(title: &str) -> Self {
        let live = std::io::stdout().is_terminal();
        let now = Instant::now();
        if !live {
            say(&format!("  …  {title}"));
        }
        Self { title: title.to_owned(), started: now, spoken: now, live }
    }

    /// Shows that the step goes on; `detail` is its latest output.
    pub(crate) fn tick(&mut self, detail: &str) {
        let elapsed = seconds(self.started.elapsed());
        if self.live {
            let text = format!("  …  {} ({elapsed}) {detail}", self.title);
            print!("\r\x1b[2K{}", shorten(&text, WIDTH));
            flush();
        } else if self.spoken.elapsed() >= HEARTBEAT {
            self.spoken = Instant::now();
            say(&format!("  …  {} ({elapsed})", self.title));
        }
    }

    /// Ends the line.
    pub(crate) fn end(self, ok: bool) {
        if self.live {
            print!("\r\x1b[2K");
        }
        let mark = if ok { "ok  " } else { "FAIL" };
        say(&format!(" {mark} {} ({})", self.title, seconds(self.started.elapsed())));
    }
}

/// Prints one line.
pub(crate) fn say(text: &str) {
    println!("{text}");
    flush();
}

fn flush() {
    // A closed stdout is noticed by the next println.
    drop(std::io::stdout().flush());
}

/// A time for people: `0.4 s`, `12 s`, `3 min 5 s`.
pub(crate) fn seconds(time: Duration) -> String {
    let whole = time.as_secs();
    match whole {
        0..=9 => format!("{:.1} s", time.as_secs_f64()),
        10..=119 => format!("{whole} s"),
        _ => format!("{} min {} s", whole / 60, whole % 60),
    }
}

/// Cuts a line to `width` characters and takes out what would move the cursor.
fn shorten(text: &str, width: usize) -> String {
    let clean: String = text.chars().filter(|c| !c.is_control()).collect();
    if clean.chars().count() <= width {
        return clean;
    }
    clean.chars().take(width - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_short() {
        assert_eq!(seconds(Duration::from_millis(449)), "0.4 s");
        assert_eq!(seconds(Duration::from_secs(75)), "75 s");
        assert_eq!(seconds(Duration::from_secs(185)), "3 min 5 s");
    }

    #[test]
    fn a_long_line_is_cut_and_cleaned() {
        assert_eq!(shorten("abc\x1bdef", 6), "abcdef");
        assert_eq!(shorten("abcdefg", 4), "abc…");
    }
}
