//! `tenant`: who may use the servers.

use crate::args::{TenantAction, TenantAdd};
use crate::failure::{Code, Failure};
use crate::fleet::Fleet;
use crate::output::Output;
use crate::table::{Align, Style, Table};
use crate::units::bytes;
use crate::view::Unreachable;
use memkv_client::v1::TenantStatus;
use memkv_credentials::{Credentials, KEYS_MAX, Key, Pattern, Quotas, Rights, Tenant};
use memkv_transport::auth::AuthKey;
use memkv_transport::tenant::{TenantKey, is_tenant_name};
use serde::Serialize;
use std::path::Path;

/// Whether an action is about servers and not about a file.
pub(crate) fn asks_servers(action: &TenantAction) -> bool {
    matches!(action, TenantAction::List { file: None })
}

/// A key that was just made. It is shown once.
#[derive(Serialize)]
struct NewKey {
    tenant: String,
    key_id: String,
    key: String,
}

#[derive(Serialize)]
struct Removed<'a> {
    tenant: &'a str,
    key_id: Option<&'a str>,
    removed: bool,
}

#[derive(Serialize)]
struct Listed {
    tenants: Vec<Row>,
    unreachable: Vec<Unreachable>,
}

/// One tenant, of a file or of a server.
#[derive(Serialize)]
struct Row {
    server: Option<String>,
    name: String,
    rights: Vec<String>,
    operator: bool,
    key_ids: Vec<String>,
    dram_bytes_max: Option<u64>,
    nvme_bytes_max: Option<u64>,
    #[serde(flatten)]
    counted: Option<Counted>,
}

/// What a server has counted.
#[derive(Serialize)]
struct Counted {
    spaces: u64,
    pages: u64,
    dram_bytes: u64,
    nvme_bytes: u64,
    requests: u64,
    refused: u64,
    delayed: u64,
    sent_bytes: u64,
    received_bytes: u64,
    evicted_pages: u64,
    puts_refused: u64,
}

/// Does what is about a file.
pub(crate) fn change(action: &TenantAction, output: &Output) -> Result<(), Failure> {
    match action {
        TenantAction::Add(wanted) => add(wanted, output),
        TenantAction::Rotate { name, file } => rotate(name, file, output),
        TenantAction::Rm { name, key, file } => remove(name, key.as_deref(), file, output),
        TenantAction::List { file } => match file {
            Some(file) => show(&of_file(&read(file)?), output),
            None => Ok(()),
        },
    }
}

/// Shows what servers have counted.
pub(crate) async fn list(fleet: &Fleet, output: &Output) -> Result<(), Failure> {
    let (tenants, unreachable) = fleet.tenants().await;
    let listed = Listed { tenants: tenants.into_iter().map(of_server).collect(), unreachable };
    show(&listed, output)?;
    output.say_unreachable(&listed.unreachable);
    if listed.tenants.is_empty() { Err(fleet.nobody_answers()) } else { Ok(()) }
}

fn failed(error: impl std::fmt::Display) -> Failure {
    Failure::new(Code::Usage, error.to_string()).hint("docs/security.md describes the credentials file")
}

fn read(path: &Path) -> Result<Credentials, Failure> {
    Credentials::load(path).map_err(failed)
}

fn known<'a>(credentials: &'a mut Credentials, name: &str) -> Result<&'a mut Tenant, Failure> {
    let absent = || {
        Failure::new(Code::Negative, format!("there is no tenant {name}"))
            .hint("`memkv-cli tenant list --file FILE` shows them")
    };
    credentials.tenant_mut(name).ok_or_else(absent)
}

/// Makes a key, and what the file keeps of it.
fn new_key(tenant: &str) -> Result<(NewKey, Key), Failure> {
    let mut secret = [0; 32];
    getrandom::fill(&mut secret)
        .map_err(|error| Failure::new(Code::Other, format!("the system has no random numbers: {error}")))?;
    let derived = TenantKey::new(&AuthKey::from_bytes(secret), tenant);
    let id = derived.key_id().to_owned();
    let shown = NewKey { tenant: tenant.to_owned(), key_id: id.clone(), key: hex::encode(secret) };
    Ok((shown, Key { id, verifier: derived.verifier().clone() }))
}

/// Prints a key so that a shell can take it over.
fn hand_over(key: &NewKey, output: &Output) -> Result<(), Failure> {
    output.show(key, |key, _| {
        format!("export MEMKV_TENANT={}\nexport MEMKV_AUTH_KEY={}\n", key.tenant, key.key)
    })?;
    output
        .say(&format!("key {} of tenant {}; it is shown nowhere else, keep it now", key.key_id, key.tenant));
    Ok(())
}

fn add(wanted: &TenantAdd, output: &Output) -> Result<(), Failure> {
    let name = &wanted.name;
    if !is_tenant_name(name) {
        return Err(failed(format!("{name:?} is not a tenant's name; use 1 to 64 of a-z, 0-9, '_', '-'")));
    }
    let mut credentials = if wanted.file.exists() { read(&wanted.file)? } else { Credentials::default() };
    if credentials.tenant(name).is_some() {
        return Err(Failure::new(Code::Negative, format!("there is a tenant {name} already"))
            .hint("`memkv-cli tenant rotate` gives it another key"));
    }
    let rights = wanted.rights.iter().filter(|text| !text.is_empty());
    let rights = rights.map(|text| {
        Rights::named(text)
            .ok_or_else(|| failed(format!("{text:?} is not a right; write read, write or admin")))
    });
    let rights = rights.collect::<Result<Vec<_>, _>>()?.into_iter().fold(Rights::default(), Rights::with);
    let (shown, key) = new_key(name)?;
    credentials.tenants.push(Tenant {
        name: name.clone(),
        rights,
        keys: vec![key],
        certificates: wanted.certificate.clone(),
        spaces: wanted.space.iter().map(|text| Pattern::new(text)).collect(),
        operator: wanted.operator,
        quotas: Quotas {
            connections: wanted.connections,
            dram_bytes: wanted.dram,
            nvme_bytes: wanted.nvme,
            requests_per_s: wanted.requests_per_second,
            bytes_per_s: wanted.bytes_per_second,
            spaces: None,
        },
    });
    credentials.save(&wanted.file).map_err(failed)?;
    hand_over(&shown, output)
}

fn rotate(name: &str, file: &Path, output: &Output) -> Result<(), Failure> {
    let mut credentials = read(file)?;
    let tenant = known(&mut credentials, name)?;
    if tenant.keys.len() >= KEYS_MAX {
        let oldest = &tenant.keys[0].id;
        return Err(Failure::new(Code::Negative, format!("{name} has {KEYS_MAX} keys already"))
            .hint(format!("`memkv-cli tenant rm {name} --key {oldest}` removes the older one")));
    }
    let (shown, key) = new_key(name)?;
    tenant.keys.push(key);
    credentials.save(file).map_err(failed)?;
    hand_over(&shown, output)
}

fn remove(name: &str, key: Option<&str>, file: &Path, output: &Output) -> Result<(), Failure> {
    let mut credentials = read(file)?;
    let tenant = known(&mut credentials, name)?;
    match key {
        Some(id) => {
            let before = tenant.keys.len();
            tenant.keys.retain(|key| key.id != id);
            if tenant.keys.len() == before {
                return Err(Failure::new(Code::Negative, format!("{name} has no key {id}"))
                    .hint("`memkv-cli tenant list --file FILE` shows the ids"));
            }
        }
        None => {
            credentials.tenants.retain(|tenant| tenant.name != name);
            credentials.public.retain(|public| public.owner != name);
            for readers in credentials.public.iter_mut().filter_map(|public| public.readers.as_mut()) {
                readers.retain(|reader| reader != name);
            }
        }
    }
    credentials.save(file).map_err(failed)?;
    let removed = Removed { tenant: name, key_id: key, removed: true };
    output.show(&removed, |removed, _| match removed.key_id {
        Some(id) => format!("removed key {id} of {name}\n"),
        None => format!("removed {name}\n"),
    })
}

fn of_file(credentials: &Credentials) -> Listed {
    let tenants = credentials.tenants.iter().map(|tenant| Row {
        server: None,
        name: tenant.name.clone(),
        rights: tenant.rights.names().map(str::to_owned).collect(),
        operator: tenant.operator,
        key_ids: tenant.keys.iter().map(|key| key.id.clone()).collect(),
        dram_bytes_max: tenant.quotas.dram_bytes,
        nvme_bytes_max: tenant.quotas.nvme_bytes,
        counted: None,
    });
    Listed { tenants: tenants.collect(), unreachable: Vec::new() }
}

fn of_server((server, status): (String, TenantStatus)) -> Row {
    let bound = |bytes: u64| Some(bytes).filter(|bytes| *bytes > 0);
    Row {
        server: Some(server),
        name: status.name,
        rights: status.rights,
        operator: status.operator,
        key_ids: status.key_ids,
        dram_bytes_max: bound(status.dram_bytes_max),
        nvme_bytes_max: bound(status.nvme_bytes_max),
        counted: Some(Counted {
            spaces: status.spaces,
            pages: status.pages,
            dram_bytes: status.dram_bytes,
            nvme_bytes: status.nvme_bytes,
            requests: status.requests,
            refused: status.refused,
            delayed: status.delayed,
            sent_bytes: status.sent_bytes,
            received_bytes: status.received_bytes,
            evicted_pages: status.evicted_pages,
            puts_refused: status.puts_refused,
        }),
    }
}

fn show(listed: &Listed, output: &Output) -> Result<(), Failure> {
    output.show(listed, draw)
}

fn draw(listed: &Listed, style: Style) -> String {
    let mut table = Table::new(&[
        ("TENANT", Align::Left),
        ("SERVER", Align::Cut),
        ("RIGHTS", Align::Left),
        ("KEYS", Align::Left),
        ("PAGES", Align::Right),
        ("DRAM", Align::Right),
        ("NVME", Align::Right),
        ("REQUESTS", Align::Right),
        ("REFUSED", Align::Right),
    ]);
    let most = |max: Option<u64>| max.map_or_else(|| "-".to_owned(), bytes);
    let fill = |now: Option<u64>, max: Option<u64>| match now {
        None => most(max),
        Some(now) => format!("{} of {}", bytes(now), most(max)),
    };
    for row in &listed.tenants {
        let number = |number: fn(&Counted) -> u64| {
            row.counted.as_ref().map_or_else(|| "-".to_owned(), |counted| number(counted).to_string())
        };
        let rights = if row.operator { "all (operator)".to_owned() } else { row.rights.join(",") };
        let counted = row.counted.as_ref();
        table.row([
            row.name.clone(),
            row.server.clone().unwrap_or_else(|| "-".to_owned()),
            rights,
            row.key_ids.join(","),
            number(|counted| counted.pages),
            fill(counted.map(|counted| counted.dram_bytes), row.dram_bytes_max),
            fill(counted.map(|counted| counted.nvme_bytes), row.nvme_bytes_max),
            number(|counted| counted.requests),
            number(|counted| counted.refused + counted.puts_refused),
        ]);
    }
    table.draw(style)
}
