//! A drain as an operator does it where everything is guarded: TLS is required, pages belong to tenants, and they have
//! two copies.

use crate::common::{assert_all, assert_hits, cli, named_servers, put, space_of};
use memkv_client::blocking::Client;
use memkv_client::{Config, PageOutcome, Transport};
use memkv_tests::certs::{Authority, Folder};
use memkv_tests::daemon::{Daemon, Setup, clean_command};
use memkv_tests::pages::{keys, pages};
use memkv_tests::program;
use serde_json::Value;
use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

const LEN: usize = 16 << 10;
/// The name in all servers' certificates; nobody has it as a host.
const NAME: &str = "kv.example";

/// Who somebody is: `MEMKV_TENANT` and `MEMKV_AUTH_KEY`, as the tool printed them.
type Identity = BTreeMap<String, String>;

/// Certificates, and the file of tenants with their identities.
struct Estate {
    folder: Folder,
    engine: Identity,
    operator: Identity,
}

impl Estate {
    fn new() -> Self {
        let folder = Folder::new().unwrap();
        let authority = Authority::new("the authority").unwrap();
        folder.write("ca.pem", &authority.pem()).unwrap();
        folder.write_pair("server", &authority.sign(&[NAME]).unwrap()).unwrap();
        let add = |more: &[&str]| {
            let mut command = clean_command(&program::cli().unwrap());
            command.args(["tenant", "add", "--file", &folder.text("credentials.yaml")]).args(more);
            let output = command.output().unwrap();
            let (text, talk) =
                (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            assert!(output.status.success(), "{talk}");
            let exports =
                text.lines().chain(talk.lines()).filter_map(|line| line.trim().strip_prefix("export "));
            let pairs = exports.filter_map(|line| line.split_once('='));
            let identity: Identity = pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
            assert!(
                identity.contains_key("MEMKV_TENANT") && identity.contains_key("MEMKV_AUTH_KEY"),
                "{text}"
            );
            identity
        };
        let engine = add(&["search"]);
        let operator = add(&["ops", "--rights", "read,admin", "--operator"]);
        Self { folder, engine, operator }
    }

    /// A server that takes nothing in plain text. `more` says whom it believes when it sends pages to others.
    fn server(&self, more: &[&str]) -> Daemon {
        let text = |name| self.folder.text(name);
        let (cert, key, credentials) = (text("server.pem"), text("server.key"), text("credentials.yaml"));
        let own = ["--tls-cert", &cert, "--tls-key", &key, "--require-tls", "true", "--tls-admin", "both"];
        let file = ["--credentials", &credentials];
        let args = own.iter().chain(&file).chain(more);
        let args = args.map(|arg| (*arg).to_owned()).collect();
        Daemon::start_with(Setup { args, ..Setup::default() }).unwrap()
    }

    fn client(&self, servers: &str, replicas: &str) -> Client {
        let config = Config::builder()
            .without_environment()
            .servers(servers)
            .auth_key_hex(&self.engine["MEMKV_AUTH_KEY"])
            .transport(Transport::Tcp)
            .op_timeout(Duration::from_secs(5))
            .set("tenant", &self.engine["MEMKV_TENANT"])
            .set("replicas", replicas)
            .set("tls", "on")
            .set("tls_ca", self.folder.text("ca.pem"))
            .set("tls_server_name", NAME);
        Client::connect(config.build().unwrap()).unwrap()
    }

    /// The tool as the operator uses it.
    fn tool(&self, servers: &str) -> Command {
        let mut command = cli(servers);
        command.envs(&self.operator).env("MEMKV_REPLICAS", "2");
        command.env("MEMKV_TLS", "on").env("MEMKV_TLS_CA", self.folder.text("ca.pem"));
        command.env("MEMKV_TLS_SERVER_NAME", NAME);
        command
    }

    fn drain(&self, servers: &str, id: &str) -> (bool, Value, String) {
        let output = self.tool(servers).args(["drain", id, "--json"]).output().unwrap();
        let talk = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.success(), serde_json::from_slice(&output.stdout).unwrap_or_default(), talk)
    }
}

#[test]
fn pages_of_tenants_with_two_copies_are_drained_inside_tls() {
    let estate = Estate::new();
    let ca = estate.folder.text("ca.pem");
    let believes = ["--tls-ca", &ca, "--tls-server-name", NAME];
    let mut daemons = vec![estate.server(&believes)];
    daemons.extend((0..3).map(|_| estate.server(&[])));
    let servers = named_servers(&daemons, &[]);
    let client = estate.client(&servers, "2");
    let space = space_of(&client, "guarded");
    let all = keys("guarded", 200);
    assert_all(&put(&space, &all, &pages(&all, LEN)), PageOutcome::Stored);
    let (ok, done, talk) = estate.drain(&servers, "kv-0");
    assert!(ok && done["state"] == "drained", "{done} {talk}");
    assert_eq!((&done["lost_pages"], &done["short_pages"]), (&0.into(), &0.into()), "{done}");
    let number = |name: &str| done[name].as_u64().unwrap();
    // Half of all copies on four servers: about a hundred. The other copy of each was where it belongs; this one has
    // gone to the third server of the order.
    assert!(
        number("moved_pages") > 60 && number("moved_pages") + number("existing_pages") == number("pages"),
        "{done}"
    );
    assert_hits(&space, &all, LEN);
    // Any other server may go now, and each page is still there: two copies are among those that stay.
    daemons[0].stop().unwrap();
    daemons[2].kill().unwrap();
    let later = estate.client(&named_servers(&daemons, &[0]), "2");
    assert_hits(&space_of(&later, "guarded"), &all, LEN);
    later.close();
    client.close();
}

#[test]
fn a_drain_that_cannot_believe_the_others_says_what_to_set() {
    let estate = Estate::new();
    let daemons = [estate.server(&[]), estate.server(&[])];
    let servers = named_servers(&daemons, &[]);
    let (ok, _, talk) = estate.drain(&servers, "kv-0");
    assert!(!ok && talk.contains("no member answers") && talk.contains("tls.ca"), "{talk}");
    let metrics = daemons[0].metrics().unwrap();
    assert_eq!(metrics.sum("memkv_draining", &[]), 0.0, "it goes on as it was");
}
