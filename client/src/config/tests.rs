use super::*;
use std::io;

const KEY: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

fn files(path: &Path) -> io::Result<String> {
    match path.to_str().unwrap() {
        "all.yaml" => Ok(format!(
            "# a comment\nservers:\n  - a=h1:1\n  - h2:2*5\nauth_key: {KEY}\nmember_grace: 20s\nmember_ramp: off\ntransport: tcp\nrdma_devices: [mlx5_0, mlx5_1]\nconnect_timeout: 1s\nop_timeout: 250ms\nconnections_per_server: 4\nstore_backlog: 2MiB\nreplicas: 2\nhedge: 20ms\nhot_copies: 4\nmove_grace: off\nclient_name: engine\n"
        )),
        "found.yaml" => Ok("discovery: srv://_memkv._tcp.kv\n".to_owned()),
        "typo.yaml" => Ok("servres: a:1\n".to_owned()),
        "map.yaml" => Ok("servers: {a: 1}\n".to_owned()),
        "empty.yaml" => Ok("# nothing\n\n".to_owned()),
        "digits.yaml" => Ok(format!("auth_key: {}\n", "12".repeat(32))),
        "key" => Ok(format!("{KEY}\n")),
        other => Err(io::Error::new(io::ErrorKind::NotFound, other.to_owned())),
    }
}

fn read(env: &[(&str, &str)], overrides: &[(&str, &str)]) -> Result<Config, Error> {
    let env = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let overrides: Vec<_> = overrides.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    resolve(&env, &overrides, &files)
}

fn complaint(env: &[(&str, &str)], overrides: &[(&str, &str)]) -> String {
    let error = read(env, overrides).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    error.to_string()
}

#[test]
fn with_no_source_the_defaults_hold() {
    let config = read(&[], &[]).unwrap();
    assert!(config.servers.is_empty() && config.auth_key.is_none());
    assert_eq!(config.op_timeout, Duration::from_secs(3));
    assert!(read(&[(CONFIG_ENV, "empty.yaml")], &[]).unwrap().servers.is_empty());
}

#[test]
fn the_table_tells_the_truth_about_defaults() {
    let given: Vec<_> = OPTIONS
        .iter()
        .filter(|option| !option.default.is_empty())
        .map(|option| (option.name, option.default))
        .collect();
    let (config, default) = (read(&[], &given).unwrap(), Config::default());
    assert_eq!(config.transport, default.transport);
    assert_eq!(config.connect_timeout, default.connect_timeout);
    assert_eq!(config.op_timeout, default.op_timeout);
    assert_eq!(config.discovery, default.discovery);
    assert_eq!((config.member_grace, config.member_ramp), (default.member_grace, default.member_ramp));
    assert_eq!(config.connections_per_server, default.connections_per_server);
    assert_eq!((config.replicas, config.hot_copies), (default.replicas, default.hot_copies));
    assert_eq!((config.hedge, config.move_grace), (default.hedge, default.move_grace));
    assert_eq!(config.client_name, default.client_name);
    assert_eq!(config.store_backlog_bytes, default.store_backlog_bytes);
}

#[test]
fn the_higher_of_list_and_place_counts() {
    let found = read(&[(CONFIG_ENV, "found.yaml")], &[]).unwrap();
    assert_eq!(found.discovery.unwrap().to_string(), "srv://_memkv._tcp.kv");
    let listed = read(&[(CONFIG_ENV, "found.yaml"), ("MEMKV_SERVERS", "a:1")], &[]).unwrap();
    assert!(listed.discovery.is_none() && listed.servers.len() == 1);
    let found = read(&[(CONFIG_ENV, "all.yaml"), ("MEMKV_DISCOVERY", "etcd://e/p")], &[]).unwrap();
    assert!(found.discovery.is_some() && found.servers.is_empty());
    let both = complaint(&[("MEMKV_SERVERS", "a:1"), ("MEMKV_DISCOVERY", "dns://kv")], &[]);
    assert!(both.contains("MEMKV_SERVERS") && both.contains("keep one"), "{both}");
    let wrong = complaint(&[("MEMKV_DISCOVERY", "etcd:/e")], &[]);
    assert!(wrong.contains("MEMKV_DISCOVERY") && wrong.contains("etcd://HOST"), "{wrong}");
}

#[test]
fn yaml_sets_every_option() {
    let config = read(&[(CONFIG_ENV, "all.yaml")], &[]).unwrap();
    assert_eq!(config.servers.len(), 2);
    assert_eq!((config.servers[0].id.as_str(), config.servers[1].weight), ("a", 5));
    assert!(config.auth_key.is_some());
    assert_eq!(config.transport, Transport::Tcp);
    assert_eq!(config.rdma_devices, ["mlx5_0", "mlx5_1"]);
    assert_eq!(config.connect_timeout, Duration::from_secs(1));
    assert_eq!(config.op_timeout, Duration::from_millis(250));
    assert_eq!((config.member_grace, config.member_ramp), (Duration::from_secs(20), Duration::ZERO));
    assert_eq!((config.connections_per_server, config.client_name.as_str()), (4, "engine"));
    assert_eq!(config.store_backlog_bytes, 2 << 20);
    assert_eq!((config.replicas, config.hot_copies, config.move_grace), (2, 4, None));
    assert_eq!(config.hedge, crate::Hedge::After(Duration::from_millis(20)));
}

#[test]
fn environment_beats_yaml_and_explicit_values_beat_both() {
    let env = [(CONFIG_ENV, "all.yaml"), ("MEMKV_SERVERS", "b:7"), ("MEMKV_OP_TIMEOUT", "2s")];
    let config = read(&env, &[("op-timeout", "9ms")]).unwrap();
    assert_eq!(config.servers[0].id, "b:7");
    assert_eq!(config.op_timeout, Duration::from_millis(9));
    assert_eq!(config.connections_per_server, 4);
    let unset = read(&[(CONFIG_ENV, "all.yaml"), ("MEMKV_SERVERS", "")], &[]).unwrap();
    assert_eq!(unset.servers.len(), 2, "an empty variable counts as unset");
}

#[test]
fn mistakes_name_source_and_option_and_remedy() {
    let typo = complaint(&[(CONFIG_ENV, "typo.yaml")], &[]);
    assert!(typo.contains("typo.yaml") && typo.contains("servres") && typo.contains("servers"), "{typo}");
    assert!(complaint(&[(CONFIG_ENV, "map.yaml")], &[]).contains("map.yaml"));
    assert!(complaint(&[(CONFIG_ENV, "gone.yaml")], &[]).contains("MEMKV_CONFIG=gone.yaml"));
    let timeout = complaint(&[("MEMKV_OP_TIMEOUT", "3")], &[]);
    assert!(timeout.contains("MEMKV_OP_TIMEOUT") && timeout.contains("5s"), "{timeout}");
    assert!(complaint(&[], &[("op_timeout", "0s")]).contains("out of range"));
    assert!(complaint(&[], &[("nope", "1")]).contains("there is no option \"nope\""));
    assert!(complaint(&[("MEMKV_TRANSPORT", "udp")], &[]).contains("auto, tcp, shm, rdma or grpc"));
    assert!(complaint(&[("MEMKV_REPLICAS", "9")], &[]).contains("1 to 8"));
    assert!(complaint(&[("MEMKV_HEDGE", "soon")], &[]).contains("auto or off"));
    assert!(complaint(&[("MEMKV_CONNECTIONS_PER_SERVER", "0")], &[]).contains("1 to 64"));
    let servers = complaint(&[("MEMKV_SERVERS", "a:b")], &[]);
    assert!(servers.contains("MEMKV_SERVERS") && servers.contains("host:port"), "{servers}");
}

#[test]
fn the_key_comes_from_the_higher_source_and_is_never_repeated() {
    assert!(read(&[(CONFIG_ENV, "digits.yaml")], &[]).unwrap().auth_key.is_some());
    assert!(read(&[("MEMKV_AUTH_KEY_FILE", "key")], &[]).unwrap().auth_key.is_some());
    // The YAML file has a key; the file of the environment beats it, which shows in the error of a missing file.
    let env = [(CONFIG_ENV, "all.yaml"), ("MEMKV_AUTH_KEY_FILE", "gone")];
    assert!(complaint(&env, &[]).contains("gone"));
    assert!(read(&env, &[("auth_key", KEY)]).unwrap().auth_key.is_some());
    let both = complaint(&[("MEMKV_AUTH_KEY", KEY), ("MEMKV_AUTH_KEY_FILE", "key")], &[]);
    assert!(both.contains("keep one"), "{both}");
    let short = complaint(&[("MEMKV_AUTH_KEY", "abc123")], &[]);
    assert!(short.contains("64 hex digits") && !short.contains("abc123"), "{short}");
    assert!(!format!("{:?}", Config::builder().auth_key_hex(KEY)).contains(KEY));
}
