//! Where results and talk go: data on standard output, everything else on standard error.

use crate::failure::Failure;
use crate::table::Style;
use crate::view::Unreachable;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

/// The narrowest terminal that tables are drawn for.
const WIDTH_MIN: usize = 60;

/// How this run speaks.
pub(crate) struct Output {
    json: bool,
}

impl Output {
    /// Speaks JSON or to people.
    pub(crate) fn new(json: bool) -> Self {
        Self { json }
    }

    /// Whether standard output carries JSON.
    pub(crate) fn is_json(&self) -> bool {
        self.json
    }

    /// How to draw on standard output.
    pub(crate) fn style(&self) -> Style {
        let stdout = std::io::stdout();
        let terminal = stdout.is_terminal();
        let width = rustix::termios::tcgetwinsize(&stdout).ok().map(|size| usize::from(size.ws_col));
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Style {
            width: width.filter(|&columns| terminal && columns > 0).map(|columns| columns.max(WIDTH_MIN)),
            colour: terminal && !plain,
        }
    }

    /// Prints a result: as JSON, or drawn.
    pub(crate) fn show<T: Serialize>(
        &self,
        view: &T,
        draw: impl FnOnce(&T, Style) -> String,
    ) -> Result<(), Failure> {
        let text = if self.json {
            serde_json::to_string_pretty(view).map(|text| text + "\n").map_err(std::io::Error::from)?
        } else {
            draw(view, self.style())
        };
        self.write(text.as_bytes())
    }

    /// Writes bytes to standard output. A reader that went away (`| head`) is not an error.
    pub(crate) fn write(&self, bytes: &[u8]) -> Result<(), Failure> {
        let mut stdout = std::io::stdout().lock();
        match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Says something to the person.
    pub(crate) fn say(&self, text: &str) {
        eprintln!("{}", crate::table::printable(text));
    }

    /// Says which servers' part is missing from a result.
    pub(crate) fn say_unreachable(&self, servers: &[Unreachable]) {
        for server in servers {
            self.say(&format!("warning: {} did not answer: {}", server.server, server.error));
        }
    }

    /// A running counter on standard error while something long goes on; invisible off a terminal.
    pub(crate) fn spinner(&self, what: &str) -> ProgressBar {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        let style = ProgressStyle::with_template("{spinner} {msg} {human_pos} ({elapsed})");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
        bar.set_message(what.to_owned());
        bar.enable_steady_tick(Duration::from_millis(100));
        bar
    }

    /// A bar on standard error for bytes whose number is not known yet; invisible off a terminal.
    pub(crate) fn bytes_bar(&self, what: &str) -> ProgressBar {
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
        let template = "{msg} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}";
        bar.set_style(
            ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()),
        );
        bar.set_message(what.to_owned());
        bar.enable_steady_tick(Duration::from_millis(250));
        bar
    }

    /// A bar on standard error for `total` steps; invisible off a terminal.
    pub(crate) fn bar(&self, what: &str, total: u64) -> ProgressBar {
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
        let style = ProgressStyle::with_template("{msg} {wide_bar} {human_pos}/{human_len} {eta}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_message(what.to_owned());
        bar
    }
}
