//! `get` and `put`: one page.

use crate::failure::{Code, Failure};
use crate::fleet::Fleet;
use crate::output::Output;
use crate::selector::{Selector, parse_key};
use crate::view::{Fetched, Stored, key_text};
use memkv_client::PageOutcome;
use std::io::{IsTerminal as _, Read as _};
use std::path::Path;

/// The largest page any server takes, in bytes; no more is read from a pipe.
const INPUT_MAX: u64 = 1 << 30;

pub(crate) async fn get(
    fleet: &Fleet,
    output: &Output,
    space: &str,
    key: &str,
    file: &Path,
) -> Result<(), Failure> {
    let key = parse_key(key)?;
    let to_stdout = file == Path::new("-");
    if to_stdout && output.is_json() {
        return Err(Failure::new(Code::Usage, "a page and JSON cannot both go to standard output")
            .hint("write the page to a file: --output page.bin"));
    }
    let space = fleet.open_space(&Selector::parse(space)?).await?;
    let Some(page) = space.get(&key).await? else {
        return Err(Failure::new(Code::Negative, "the key is not stored")
            .hint("`memkv-cli inspect key SPACE KEY` shows where it would be"));
    };
    if to_stdout {
        if std::io::stdout().is_terminal() && std::str::from_utf8(&page).is_err() {
            return Err(Failure::new(Code::Usage, "the page is not text, and this is a terminal")
                .hint("write it to a file: --output page.bin"));
        }
        return output.write(&page);
    }
    std::fs::write(file, &page)
        .map_err(|error| Failure::new(Code::Other, format!("cannot write {}: {error}", file.display())))?;
    let fetched = Fetched {
        space_id: space.id().to_string(),
        key: key_text(&key),
        bytes: page.len(),
        output: file.display().to_string(),
    };
    if output.is_json() {
        return output.show(&fetched, |_, _| String::new());
    }
    output.say(&format!("{} bytes written to {}", fetched.bytes, fetched.output));
    Ok(())
}

pub(crate) async fn put(
    fleet: &Fleet,
    output: &Output,
    space: &str,
    key: &str,
    file: &Path,
) -> Result<(), Failure> {
    let key = parse_key(key)?;
    let selector = Selector::parse(space)?;
    let page = read_input(file)?;
    let space = fleet.create_space(&selector).await?;
    let outcome = space.put(&key, &page).await?;
    let stored = Stored {
        space_id: space.id().to_string(),
        key: key_text(&key),
        bytes: page.len(),
        outcome: outcome_word(outcome),
    };
    if output.is_json() {
        output.show(&stored, |_, _| String::new())?;
    }
    match outcome {
        PageOutcome::Stored | PageOutcome::Hit => {
            if !output.is_json() {
                output.say(&format!("stored {} bytes", stored.bytes));
            }
            Ok(())
        }
        PageOutcome::Exists => {
            output.say("the key is taken; its page stays as it was (pages never change)");
            Ok(())
        }
        refused => Err(refusal(refused)),
    }
}

fn read_input(file: &Path) -> Result<Vec<u8>, Failure> {
    let mut page = Vec::new();
    let read = if file == Path::new("-") {
        std::io::stdin().lock().take(INPUT_MAX).read_to_end(&mut page)
    } else {
        std::fs::File::open(file).and_then(|file| file.take(INPUT_MAX).read_to_end(&mut page))
    };
    match read {
        Ok(0) => Err(Failure::new(Code::Usage, "the page is empty").hint("a page has at least one byte")),
        Ok(_) => Ok(page),
        Err(error) => Err(Failure::new(Code::Usage, format!("cannot read {}: {error}", file.display()))
            .hint("name a file, or - for standard input")),
    }
}

fn outcome_word(outcome: PageOutcome) -> &'static str {
    match outcome {
        PageOutcome::Hit => "hit",
        PageOutcome::Stored => "stored",
        PageOutcome::Exists => "exists",
        PageOutcome::Miss => "miss",
        PageOutcome::SizeMismatch => "size_mismatch",
        PageOutcome::TooLarge => "too_large",
        PageOutcome::Busy => "busy",
        PageOutcome::Corrupt => "corrupt",
        PageOutcome::Unavailable => "unavailable",
        PageOutcome::TimedOut => "timed_out",
        PageOutcome::Denied => "denied",
    }
}

fn refusal(outcome: PageOutcome) -> Failure {
    let (code, hint) = match outcome {
        PageOutcome::TooLarge => (Code::Negative, "`memkv-cli inspect server ID` shows the largest page"),
        PageOutcome::Busy => (Code::Negative, "the store is full; give it more memory, or try again"),
        PageOutcome::Corrupt => {
            (Code::Negative, "the bytes changed on their way; try again and check the network")
        }
        PageOutcome::Unavailable | PageOutcome::TimedOut => {
            (Code::Unreachable, "`memkv-cli doctor` looks at each server")
        }
        PageOutcome::Denied => (Code::Unauthenticated, "give the servers' key with --auth-key-file"),
        PageOutcome::Hit
        | PageOutcome::Stored
        | PageOutcome::Exists
        | PageOutcome::Miss
        | PageOutcome::SizeMismatch => {
            (Code::Other, "this is not an answer to a put; use the servers' release")
        }
    };
    Failure::new(code, format!("the page was not stored: {}", outcome_word(outcome))).hint(hint)
}
