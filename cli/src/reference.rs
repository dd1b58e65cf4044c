//! Documents that are made from code: `docs/cli.md` from what `--help` shows, and `docs/configuration-client.md`
//! from the client's table of options.

use crate::args::{Cli, Document};
use clap::{Command, CommandFactory as _};
use memkv_client::config::{OPTIONS, OptionInfo};

const INTRODUCTION: &str = "\
# memkv-cli

<!-- Made by `cargo xtask docs` from cli/src/args.rs; a test compares them. -->

Data goes to standard output, talk to standard error. An error is followed by a `hint:` line.
";

const SHAPES: &str = "\
## JSON

`--json` prints one JSON object. Sizes are in bytes, times in milliseconds, ratios from 0 to 1; `null` is what is
unknown; identities are in hex. Fields may be added, and none is renamed or removed within a major version.

| Command | Fields |
|---|---|
| `inspect` | `servers`: list of *server*; `total`: `servers`, `reachable`, `pages`, `used_bytes`, `capacity_bytes`, `hit_ratio`; `membership`: `source`, `epoch`, `error`, `members`: list of `id`, `address`, `state` (`serving`, `draining`, `drained`, `lost`), `weight`, `weight_now`, `since_unix_ms`, `version` |
| `inspect server` | *server*: `id`, `address`, `state` (`serving`, `degraded`, `draining`, `drained`, `stopping`, `unknown`, `unreachable`), `error`, `status` (`null` without an answer): `node_id`, `version`, `incarnation`, `uptime_ms`, `now_unix_ms`, `key_required`, `resident_bytes`, `session_count`, `hit_ratio`, `limits`, `dram`, `ops`, `drain` (*drain* or `null`), `sessions` with the fields of `GetStatusResponse` in `proto/` |
| `inspect spaces` | `spaces`: list of *space*; `unreachable`: list of `server`, `error` |
| `inspect space` | *space*: `space_id`, `fields`, `pages`, `page_bytes`, `get_keys`, `get_hits`, `hit_ratio`, `servers`: list of `server`, `pages`, `page_bytes`, `get_keys`, `get_hits` |
| `inspect key` | `space_id`, `key`, `key_hex`, `digest`, `route`: in order of preference `server`, `score` (`null` without a place in the order), `weight` (as it counts now), `weight_full` (when a new member has taken all of it), `state` (`ready`, `draining`, `connecting`, `suspect`), `home` (should have the page), `asked` (when a read asks it, from 1, or `null`), `why` (why the page is or should be there, or `null`), `found`, `verified`, `error`, `page` (*page* or `null`) |
| `ls` | `space_id`, `keys`: list of *page*: `key`, `key_hex`, `server`, `bytes`, `slot_bytes`, `checksum`, `codec`, `flags`, `age_ms`, `idle_ms`, `hits`, `pins`, `position`, `tier`; `truncated`; `unreachable` |
| `exists`, `rm` | `keys`: list of `key`, `key_hex`, `yes`; `failed` |
| `get --output FILE` | `space_id`, `key`, `bytes`, `output` |
| `put` | `space_id`, `key`, `bytes`, `outcome` (`stored`, `exists`, `too_large`, `busy`, `corrupt`, `unavailable`, `timed_out`, `denied`) |
| `clear` | `space_id`, `removed_pages`, `removed_bytes`, `unreachable` |
| `drain` | `server`, `state`, `done`, `error`, `total_pages`, `total_bytes`, `pages`, `bytes`, `moved_pages`, `moved_bytes`, `existing_pages`, `elsewhere_pages`, `short_pages`, `lost_pages`, `gone_pages`, `pinned_pages`, `unpinned_pages`, `bytes_per_second`, `left_ms`, `elapsed_ms`, `losses`: list of `reason`, `pages`; `targets`: list of `server`, `moved_pages`, `moved_bytes`, `existing_pages`, `refused_pages`, `last_error`. The numbers are those of `DrainProgress` in `proto/` |
| `tenant add`, `tenant rotate` | `tenant`, `key_id`, `key` |
| `tenant rm` | `tenant`, `key_id` (`null`: the whole tenant), `removed` |
| `tenant list` | `tenants`: list of `server` (`null` with `--file`), `name`, `rights`, `operator`, `key_ids`, `dram_bytes_max`, `nvme_bytes_max`, and from a server `spaces`, `pages`, `dram_bytes`, `nvme_bytes`, `requests`, `refused`, `delayed`, `sent_bytes`, `received_bytes`, `evicted_pages`, `puts_refused`; `unreachable` |
| `ping` | `servers`: list of `server`, `answered`, `lost`, `min_ms`, `median_ms`, `max_ms`, `error` |
| `doctor`, `doctor rdma`, `doctor tls`, `doctor credentials` | `findings`: list of `level` (`ok`, `note`, `problem`), `check`, `text`, `fix`; `problems` |
";

const CLIENT: &str = "\
# Configuration of clients

<!-- Made by `cargo xtask docs` from client/src/config/options.rs; a test compares them. -->

For `memkv-client`, the `memkv-sglang` wheel and `memkv-cli`. Of several sources the last one counts:

1. defaults;
2. the YAML file that `MEMKV_CONFIG` names;
3. `MEMKV_*` variables; an empty one counts as absent;
4. explicit values: `Config::builder()` in Rust, keyword arguments of `memkv_sglang.Client`, `memkv_<option>` in
   `--hicache-storage-backend-extra-config` of SGLang, flags of `memkv-cli`.

```yaml
servers:
  - kv-1=10.0.0.5:9900
  - kv-2=10.0.0.6:9900
auth_key_file: /etc/memkv/key
op_timeout: 2s
```

An unknown option or a value that makes no sense is an error that names the source and says what to write. All clients of
a cluster need the same server ids and weights, because these alone decide which server has which key.

| option | variable | default | what it does |
|---|---|---|---|
";

/// The text of a generated document.
pub(crate) fn document(which: Document) -> String {
    match which {
        Document::Cli => cli(),
        Document::ConfigurationClient => {
            CLIENT.to_owned() + &OPTIONS.iter().map(option_row).collect::<String>()
        }
    }
}

fn option_row(option: &OptionInfo) -> String {
    let default = if option.default.is_empty() { "–".to_owned() } else { format!("`{}`", option.default) };
    let doc = option.doc.replace("[id=]host:port[*weight]", "`[id=]host:port[*weight]`");
    format!("| `{}` | `{}` | {default} | {doc} |\n", option.name, option.env)
}

fn cli() -> String {
    let mut root = Cli::command();
    root.build();
    let mut text = String::from(INTRODUCTION);
    chapter(&root, "memkv-cli", &mut text);
    text.push('\n');
    text.push_str(SHAPES);
    text
}

fn chapter(command: &Command, path: &str, text: &mut String) {
    // Every command accepts the global options; they are told once.
    let once = |arg: clap::Arg| if arg.is_global_set() && path.contains(' ') { arg.hide(true) } else { arg };
    let mut shown = command.clone().mut_args(once).bin_name(path).term_width(80);
    let help = shown.render_long_help().to_string();
    let lines: Vec<&str> = help.lines().map(str::trim_end).collect();
    text.push_str(&format!("\n## {path}\n\n```text\n{}\n```\n", lines.join("\n").trim_end()));
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        chapter(sub, &format!("{path} {}", sub.get_name()), text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_is_up_to_date() {
        let docs = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs"));
        let documents =
            [(Document::Cli, "cli.md"), (Document::ConfigurationClient, "configuration-client.md")];
        for (which, name) in documents {
            let written = std::fs::read_to_string(docs.join(name)).unwrap_or_default();
            assert!(written == document(which), "docs/{name} is out of date; run `cargo xtask docs`");
        }
    }

    #[test]
    fn every_command_is_sound_and_has_an_example() {
        fn look(command: &Command) {
            let name = command.get_name();
            let leaf = command.get_subcommands().next().is_none();
            if leaf && !command.is_hide_set() {
                let example = command.get_after_help().map(ToString::to_string).unwrap_or_default();
                assert!(
                    example.starts_with("Example:\n  ") && example.contains("memkv-cli "),
                    "{name} has no example"
                );
                assert!(command.get_about().is_some(), "{name} does not say what it does");
            }
            command.get_subcommands().for_each(look);
        }
        Cli::command().debug_assert();
        look(&Cli::command());
    }

    #[test]
    fn every_example_is_accepted() {
        let text = cli();
        let examples = text.lines().filter_map(|line| {
            line.trim_start()
                .split_once("memkv-cli ")
                .filter(|_| line.starts_with("  memkv-cli ") || line.starts_with("  echo "))
        });
        let mut count = 0;
        for (_, example) in examples {
            let words = std::iter::once("memkv-cli").chain(example.split_whitespace());
            assert!(Cli::command().try_get_matches_from(words).is_ok(), "{example}");
            count += 1;
        }
        assert!(count >= 14, "only {count} examples were found");
    }
}
