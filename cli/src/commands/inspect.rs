//! `inspect`: what the cluster holds.

use crate::args::Subject;
use crate::failure::{Code, Failure};
use crate::fleet::Fleet;
use crate::output::Output;
use crate::render;
use crate::selector::{Selector, parse_key};
use crate::view::storage::ServerDetail;
use crate::view::{Cluster, KeyPlace, Server, key_text};
use memkv_core::Key;
use memkv_core::page::key_digest;
use std::time::{SystemTime, UNIX_EPOCH};

/// Shows the subject; the whole cluster without one.
pub(crate) async fn run(subject: Option<Subject>, fleet: &Fleet, output: &Output) -> Result<(), Failure> {
    match subject {
        None => cluster(fleet, output).await,
        Some(Subject::Server { id }) => server(fleet, output, &id).await,
        Some(Subject::Spaces) => {
            let spaces = fleet.spaces().await?;
            output.say_unreachable(&spaces.unreachable);
            output.show(&spaces, render::spaces)
        }
        Some(Subject::Space { space }) => {
            let selector = Selector::parse(&space)?;
            let spaces = fleet.spaces().await?;
            output.say_unreachable(&spaces.unreachable);
            output.show(selector.find(&spaces.spaces)?, render::space)
        }
        Some(Subject::Key { space, key, verify }) => inspect_key(fleet, output, &space, &key, verify).await,
    }
}

async fn cluster(fleet: &Fleet, output: &Output) -> Result<(), Failure> {
    let cluster = Cluster { membership: Some(fleet.members()), ..Cluster::new(fleet.statuses().await) };
    output.show(&cluster, |cluster, style| {
        let members = cluster.membership.as_ref();
        let members = members.map(|list| render::members::members(list, now_unix_ms(), style));
        render::cluster(cluster, style) + &members.unwrap_or_default()
    })?;
    for server in &cluster.servers {
        if let Some(error) = &server.error {
            let place =
                if server.id == server.address { String::new() } else { format!(" ({})", server.address) };
            output.say(&format!("warning: {}{place} did not answer: {error}", server.id));
        }
    }
    if cluster.total.reachable == 0 {
        return Err(fleet.nobody_answers());
    }
    Ok(())
}

fn now_unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

async fn server(fleet: &Fleet, output: &Output, id: &str) -> Result<(), Failure> {
    let servers = fleet.statuses().await;
    let known: Vec<String> = servers.iter().map(|server| server.id.clone()).collect();
    let Some(server) = servers.into_iter().find(|server| is_called(server, id)) else {
        return Err(Failure::new(Code::Negative, format!("no server is called {id:?}"))
            .hint(format!("the configured servers are: {}", known.join(", "))));
    };
    if server.status.is_some() {
        let (quarantined, segments) = fleet.details(&server.id).await;
        let detail = ServerDetail { server, quarantined, segments };
        return output.show(&detail, |detail, style| match &detail.server.status {
            Some(status) => render::server(detail, status, style),
            None => String::new(),
        });
    }
    let why = server.error.as_deref().unwrap_or("no answer");
    Err(Failure::new(Code::Unreachable, format!("{id} did not answer: {why}"))
        .hint("is the server running? `memkv-cli doctor` looks at each one"))
}

fn is_called(server: &Server, id: &str) -> bool {
    let own = server.status.as_ref().map(|status| status.node_id.as_str());
    server.id == id || server.address == id || own == Some(id)
}

async fn inspect_key(
    fleet: &Fleet,
    output: &Output,
    space: &str,
    key: &str,
    verify: bool,
) -> Result<(), Failure> {
    let key = parse_key(key)?;
    let space = fleet.find_space_id(&Selector::parse(space)?).await?;
    let route = fleet.inspect_key(space, &key, verify).await;
    let digest = Key::new(&key).map(|key| format!("{:016x}", key_digest(space, key))).unwrap_or_default();
    let (space_id, key, key_hex) = (space.to_string(), key_text(&key), hex::encode(&key));
    let place = KeyPlace { space_id, key, key_hex, digest, route };
    output.show(&place, render::key)?;
    for step in &place.route {
        if let Some(error) = &step.error {
            output.say(&format!("warning: {} did not answer: {error}", step.server));
        }
    }
    if place.route.iter().any(|step| step.verified == Some(false)) {
        return Err(Failure::new(Code::Negative, "the stored bytes do not match their checksum")
            .hint("remove the page with `memkv-cli rm`; readers already treat it as absent"));
    }
    if place.route.iter().any(|step| step.found == Some(true)) {
        return Ok(());
    }
    if place.route.iter().all(|step| step.found.is_none()) {
        return Err(fleet.nobody_answers());
    }
    Err(Failure::new(Code::Negative, "the key is not stored")
        .hint("`memkv-cli ls SPACE --prefix KEY` shows keys that begin alike"))
}
