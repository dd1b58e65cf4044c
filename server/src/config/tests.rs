use super::storage::DrivePath;
use super::*;
use std::io::Write as _;

/// A valid key.
const KEY: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

fn load(yaml: Option<&str>, env: &[(&str, &str)], flags: &[&str]) -> Result<Loaded, ConfigError> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().display().to_string();
    let mut line = vec!["memkv-server"];
    if let Some(yaml) = yaml {
        file.write_all(yaml.as_bytes()).unwrap();
        line.extend(["--config", &path]);
    }
    line.extend(flags);
    let args = command().try_get_matches_from(line).unwrap();
    Config::load(&args, env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())))
}

fn error(yaml: Option<&str>, env: &[(&str, &str)], flags: &[&str]) -> String {
    load(yaml, env, flags).unwrap_err().to_string()
}

#[test]
fn the_defaults_are_valid_and_on_loopback() {
    let loaded = load(None, &[], &[]).unwrap();
    assert_eq!(loaded.warnings, [] as [String; 0]);
    assert_eq!(loaded.config.listen.to_string(), "127.0.0.1:9900");
    assert_eq!(loaded.config.admin_address(loaded.config.listen).to_string(), "127.0.0.1:9901");
}

#[test]
fn flags_win_over_environment_over_file_over_defaults() {
    let yaml = "dram: 1GiB\npage_max: 1MiB\ndata_threads: 3\nlimits:\n  sessions_max: 5\n";
    let env =
        [("MEMKV_SERVER_DRAM", "2GiB"), ("MEMKV_SERVER_PAGE_MAX", "2MiB"), ("MEMKV_SERVER_LOG_FORMAT", "")];
    let config = load(Some(yaml), &env, &["--dram", "3GiB", "--prefault"]).unwrap().config;
    assert_eq!(config.dram_bytes, 3 << 30);
    assert_eq!(config.limits.page_bytes_max, 2 << 20);
    assert_eq!((config.data_threads, config.limits.sessions_max), (3, 5));
    assert_eq!((config.log_format, config.prefault), (LogFormat::Text, true));
    assert_eq!(config.limits.spaces_max, Limits::default().spaces_max);
}

#[test]
fn bad_values_name_their_source_and_say_what_is_right() {
    let cases = [
        (error(Some("dram: 64GB"), &[], &[]), ["dram in ", "\"64GB\" is not a size", "\"64GiB\""]),
        (error(None, &[("MEMKV_SERVER_DRAM", "lots")], &[]), ["MEMKV_SERVER_DRAM: ", "\"lots\"", "GiB"]),
        (
            error(None, &[], &["--shutdown-timeout", "5"]),
            ["--shutdown-timeout: ", "\"5\" is not a duration", "\"5s\""],
        ),
        (error(None, &[], &["--listen", "localhost"]), ["--listen: ", "IP:PORT", "127.0.0.1:9900"]),
        (error(None, &[], &["--data-threads=-1"]), ["--data-threads: ", "\"-1\"", "whole number"]),
        (error(None, &[], &["--prefault=maybe"]), ["--prefault: ", "maybe", "true or false"]),
        (error(None, &[], &["--log-format", "xml"]), ["--log-format: ", "xml", "text, json"]),
        (error(None, &[], &["--log-filter", "a=b=c"]), ["--log-filter: ", "a=b=c", "log filter"]),
        (
            error(Some("limits: {page: 1}\nlisten: [1]"), &[], &[]),
            ["is not a valid configuration", "line 2", ""],
        ),
    ];
    for (text, parts) in cases {
        assert!(parts.iter().all(|part| text.contains(part)), "{text}");
    }
    assert!(error(None, &[], &["--config", "/does/not/exist"]).contains("cannot read /does/not/exist"));
}

#[test]
fn values_must_fit_together() {
    let cases: [(&[&str], &str); 8] = [
        (&["--limits-sessions-max", "0"], "limits.sessions_max is 0; it must be 1 to"),
        (
            &["--limits-unread-bytes-max", "0B"],
            "limits.unread_bytes_max is 0B; it must be at least 1MiB, or empty",
        ),
        (&["--limits-batch-keys-max", "65537"], "limits.batch_keys_max is 65537; it must be 1 to 65536"),
        (&["--page-max", "128MiB"], "page_max is 134217728; it must be 1 to 67108864"),
        (&["--low-watermark", "0.999"], "low_watermark (0.999) and high_watermark (0.997)"),
        (&["--high-watermark", "NaN"], "high_watermark (NaN)"),
        (&["--limits-stall-time-max", "0s"], "limits.stall_time_max must be between"),
        (&["--data-threads", "5000"], "data_threads is 5000"),
    ];
    for (flags, expected) in cases {
        let text = error(None, &[], flags);
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn drives_have_absolute_paths_and_sizes() {
    let drives = |text: &str| load(None, &[], &["--nvme-paths", text]).map(|l| l.config.storage.drives);
    let drive = |path: &str, quota_bytes| DrivePath { path: path.into(), quota_bytes };
    assert_eq!(drives("").unwrap(), []);
    assert_eq!(
        drives("/mnt/a/:2TiB, /mnt//b").unwrap(),
        [drive("/mnt/a", Some(2 << 40)), drive("/mnt/b", None)]
    );
    assert_eq!(drives("/mnt/a:b/c").unwrap(), [drive("/mnt/a:b/c", None)]);
    assert_eq!(drives("/mnt/disk=2").unwrap(), [drive("/mnt/disk=2", None)]);
    let cases = [
        ("mnt/a", "--nvme-paths: \"mnt/a\" is not an absolute path"),
        ("/mnt/../a", "is not an absolute path without \"..\""),
        ("/mnt/a:2TB", "\"2TB\" is not a size"),
        (
            "/mnt/a=2TiB",
            "\"/mnt/a=2TiB\" looks like a size behind \"=\"; write PATH:SIZE, as in \"/mnt/a:2TiB\"",
        ),
        ("/mnt/a:512MiB", "gives /mnt/a only 512MiB; that is less than 4 segments of 256MiB: give it 1GiB"),
        ("/mnt/a,/mnt/a/", "names /mnt/a and /mnt/a, one inside the other or twice the same"),
        ("/mnt/a,/mnt/a/b", "names /mnt/a and /mnt/a/b, one inside the other"),
    ];
    for (text, expected) in cases {
        let error = drives(text).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let many: Vec<_> = (0..17).map(|i| format!("/mnt/{i}")).collect();
    assert!(drives(&many.join(",")).unwrap_err().to_string().contains("names 17 drives; at most 16"));
}

#[test]
fn storage_options_must_fit_together() {
    let cases: [(&[&str], &str); 8] = [
        (&["--nvme-mode", "write-through"], "nvme.mode is write-through, but nvme.paths names no drive"),
        (&["--nvme-mode", "both"], "--nvme-mode: \"both\" is not one of: demote, write-through"),
        (&["--nvme-segment", "100KiB"], "nvme.segment is 100KiB; it must be whole MiB, 1MiB to 1GiB"),
        (&["--nvme-queue-depth", "0"], "nvme.queue_depth is 0; it must be 2 to 4096"),
        (&["--eviction-pin-share", "1"], "eviction.pin_share is 1; it must be 0 to 0.9"),
        (&["--eviction-policy", "fifo"], "--eviction-policy: there is no policy \"fifo\"; use one of"),
        (&["--memory-backing", "shm"], "--memory-backing: \"shm\" is not an absolute path"),
        (&["--memory-backing", "/a", "--nvme-paths", "/a"], "/a is in both memory.backing and nvme.paths"),
    ];
    for (flags, expected) in cases {
        let text = error(None, &[], flags);
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn without_a_key_only_loopback_is_allowed() {
    for address in ["0.0.0.0:9900", "10.0.0.1:9900", "[::]:9900"] {
        let text = error(None, &[], &["--listen", address]);
        assert!(text.contains(address) && text.contains("openssl rand -hex 32"), "{text}");
        assert!(load(None, &[("MEMKV_SERVER_AUTH_KEY", KEY)], &["--listen", address]).is_ok());
    }
    assert!(load(None, &[], &["--listen", "[::1]:9900"]).is_ok());
    assert!(load(None, &[], &["--listen", "127.8.9.1:0"]).is_ok());
}

#[test]
fn the_key_comes_from_one_place() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    writeln!(file, "{KEY}").unwrap();
    let path = file.path().display().to_string();
    for (yaml, env) in [
        (format!("auth_key: {KEY}"), vec![]),
        (format!("auth_key_file: {path}"), vec![]),
        (format!("auth_key_file: {path}"), vec![("MEMKV_AUTH_KEY", "ignored, the server has its own")]),
        (String::new(), vec![("MEMKV_AUTH_KEY", KEY)]),
    ] {
        assert!(load(Some(&yaml), &env, &[]).unwrap().config.auth_key.is_some(), "{yaml}");
    }
    let both = error(Some(&format!("auth_key: {KEY}\nauth_key_file: {path}")), &[], &[]);
    assert!(both.contains("both auth_key and auth_key_file"), "{both}");
    assert!(load(Some("auth_key: ''"), &[], &[]).unwrap().config.auth_key.is_none());
    for bad in ["abc123", &"zz".repeat(32)] {
        let text = error(None, &[("MEMKV_AUTH_KEY", bad)], &[]);
        assert!(
            text.contains("MEMKV_AUTH_KEY") && text.contains("64 hex digits") && !text.contains(bad),
            "{text}"
        );
    }
}

#[test]
fn unknown_names_are_warnings() {
    let env = [
        ("MEMKV_SERVER_DRAMM", "1GiB"),
        ("MEMKV_SERVER_PORT", "tcp://10.0.0.1:9900"),
        ("MEMKV_SERVERS", "x"),
    ];
    let warnings = load(Some("listn: x\n"), &env, &[]).unwrap().warnings.join("\n");
    assert!(warnings.contains("\"listn\" is not an option; did you mean \"listen\"?"), "{warnings}");
    assert!(
        warnings.contains("MEMKV_SERVER_DRAMM is not an option; did you mean MEMKV_SERVER_DRAM?"),
        "{warnings}"
    );
    assert_eq!(warnings.lines().count(), 2, "{warnings}");
}

#[test]
fn what_is_printed_is_read_back_and_has_no_secret() {
    let flags = [
        "--dram",
        "5GiB",
        "--node-id",
        "a \"node\"",
        "--huge-pages",
        "off",
        "--limits-spaces-max",
        "9",
        "--nvme-paths",
        "/mnt/a:2TiB,/mnt/b",
        "--nvme-mode",
        "write-through",
        "--eviction-policy",
        "s3-fifo",
    ];
    let config = load(None, &[], &flags).unwrap().config;
    let again = load(Some(&config.to_yaml()), &[], &[]).unwrap();
    assert_eq!(again.warnings, [] as [String; 0]);
    assert_eq!(again.config.to_yaml(), config.to_yaml());
    assert!(config.to_yaml().contains("dram: \"5GiB\"\n"));

    let secret = load(None, &[("MEMKV_SERVER_AUTH_KEY", KEY)], &[]).unwrap().config;
    assert!(secret.to_yaml().contains("auth_key: (set)\n"));
    for shown in [secret.to_yaml(), secret.to_line(), format!("{secret:?}")] {
        assert!(!shown.contains(&KEY[..8]), "{shown}");
    }
}

#[test]
fn the_admin_port_follows_the_main_port() {
    let config = |flags: &[&str]| load(None, &[("MEMKV_SERVER_AUTH_KEY", KEY)], flags).unwrap().config;
    let at = |flags: &[&str], main: &str| config(flags).admin_address(main.parse().unwrap()).to_string();
    assert_eq!(at(&["--listen", "0.0.0.0:7000"], "0.0.0.0:7000"), "127.0.0.1:7001");
    assert_eq!(at(&["--listen", "127.0.0.1:0"], "127.0.0.1:40000"), "127.0.0.1:0");
    assert_eq!(at(&["--admin-listen", "10.0.0.1:80"], "127.0.0.1:9900"), "10.0.0.1:80");
}

fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

#[test]
fn every_example_file_is_valid() {
    let mut seen = Vec::new();
    for entry in std::fs::read_dir(repository().join("configs")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if !name.starts_with("server") || path.extension().is_none_or(|ending| ending != "yaml") {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let mut env = vec![];
        let mut yaml = text.clone();
        if text.contains("auth_key_file:") {
            // The file with the key exists only on a real server.
            yaml = text
                .lines()
                .filter(|line| !line.starts_with("auth_key_file:"))
                .collect::<Vec<_>>()
                .join("\n");
            env.push(("MEMKV_SERVER_AUTH_KEY", KEY));
        }
        let loaded = load(Some(&yaml), &env, &[]).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(loaded.warnings, [] as [String; 0], "{name}");
        seen.push(name);
    }
    seen.sort();
    assert_eq!(seen, ["server-dev.yaml", "server-full.yaml", "server-production.yaml"]);
}

#[test]
fn the_full_example_has_every_option_with_its_default() {
    let text = std::fs::read_to_string(repository().join("configs/server-full.yaml")).unwrap();
    let read = FileValues::parse(&text).unwrap();
    let keys: Vec<_> = read.values.iter().map(|(key, _)| *key).collect();
    assert_eq!(keys, OPTIONS.iter().map(|option| option.key).collect::<Vec<_>>());
    assert_eq!(load(Some(&text), &[], &[]).unwrap().config.to_yaml(), Config::default().to_yaml());
}

#[test]
fn the_reference_follows_the_table() {
    let mut table = String::from(
        "| option | variable | flag | value | default | what it does |\n|---|---|---|---|---|---|\n",
    );
    for option in OPTIONS {
        let flag = option.flag.map_or("–".to_owned(), |flag| format!("`--{flag}`"));
        let value = option.value.replace('|', "\\|");
        let default = option.default_text().replace("\"", "");
        let default = if default.is_empty() { "–".to_owned() } else { format!("`{default}`") };
        table.push_str(&format!(
            "| `{}` | `{}` | {flag} | {value} | {default} | {} |\n",
            option.key, option.env, option.help
        ));
    }
    let path = repository().join("docs/configuration-server.md");
    let text = std::fs::read_to_string(path).unwrap();
    assert!(text.contains(&table), "docs/configuration-server.md must hold this table:\n{table}");
}
