//! Client certificates that stand for tenants.

use crate::estate::{Estate, of, tenant};
use memkv_client::blocking::{Client, Space};
use memkv_client::{Config, ErrorKind, PageOutcome, SpaceDescription};
use memkv_credentials::Tenant;
use memkv_tests::certs::{Authority, Folder};
use memkv_tests::daemon::Setup;
use memkv_tests::pages::page;

const URI: &str = "spiffe://cluster/search";

fn connect(estate: &Estate, folder: &Folder, name: &str) -> Result<(Client, Space), memkv_client::Error> {
    let [cert, key] = ["pem", "key"].map(|end| folder.text(&format!("{name}.{end}")));
    let config = Config::builder()
        .without_environment()
        .servers(estate.daemon.addr().to_string())
        .tenant("search")
        .set("transport", "tcp")
        .set("tls", "on")
        .set("tls_ca", folder.text("ca.pem"))
        .set("tls_cert", cert)
        .set("tls_key", key)
        .build()?;
    let client = Client::connect(config)?;
    let space = client.space(SpaceDescription::named("space").unwrap())?;
    Ok((client, space))
}

#[test]
fn a_certificate_stands_for_a_tenant() {
    let (authority, folder) = (Authority::new("the authority").unwrap(), Folder::new().unwrap());
    folder.write("ca.pem", &authority.pem()).unwrap();
    folder.write_pair("server", &authority.sign(&["127.0.0.1"]).unwrap()).unwrap();
    folder.write_pair("search", &authority.sign_client("engine", URI).unwrap()).unwrap();
    folder.write_pair("other", &authority.sign_client("engine", "spiffe://cluster/other").unwrap()).unwrap();
    let flags = [("--tls-cert", "server.pem"), ("--tls-key", "server.key"), ("--tls-client-ca", "ca.pem")];
    let mut args: Vec<_> =
        flags.iter().flat_map(|(flag, file)| [(*flag).to_owned(), folder.text(file)]).collect();
    args.extend(["--tls-client-auth", "optional", "--tls-admin", "both"].map(str::to_owned));
    let search = Tenant { certificates: vec![URI.to_owned()], keys: Vec::new(), ..tenant("search", 1) };
    let estate = Estate::with_setup(&of([search, tenant("b", 2)]), Setup { args, ..Setup::default() });
    estate.daemon.allow("authentication failed");
    let (client, space) = connect(&estate, &folder, "search").unwrap();
    assert_eq!(space.put(b"k", &page(b"k", 5000)).unwrap(), PageOutcome::Stored);
    assert_eq!(space.get(b"k").unwrap(), Some(page(b"k", 5000)));
    assert_eq!(space.description().tenant(), Some("search"));
    // A certificate that nobody lists lets nobody in without a key, whatever it calls itself.
    let refused = connect(&estate, &folder, "other").unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unauthenticated, "{refused}");
    // And one that is listed no more ends its sessions.
    estate.change(&of([tenant("search", 1), tenant("b", 2)]));
    assert!(estate.daemon.log().contains("sessions_ended=1"));
    assert!(connect(&estate, &folder, "search").is_err());
    client.close();
}
