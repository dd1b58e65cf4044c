//! The servers, asked through `memkv-client`, and their answers as views.

use crate::args::Global;
use crate::failure::{Code, Failure};
use crate::selector::Selector;
use crate::view::members::Members;
use crate::view::route::explain;
use crate::view::storage::{Pin, PinShare, Pinned, Pins, Quarantined, Segment, Unpinned, VerifiedServer};
use crate::view::{Cleared, Listing, Page, RouteStep, Server, Space, Spaces, Status, Unreachable};
use indicatif::ProgressBar;
use memkv_client::config::{CONFIG_ENV, OPTIONS, resolve};
use memkv_client::{
    Client, Config, Error, ErrorKind, ServerAddress, ServerState, ServerView, SpaceDescription, SpaceId, v1,
};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// The effective configuration: YAML file, then `MEMKV_*`, then the command line.
pub(crate) fn configuration(global: &Global) -> Result<Config, Failure> {
    let mut env = BTreeMap::new();
    for name in OPTIONS.iter().map(|option| option.env).chain([CONFIG_ENV]) {
        if let Ok(value) = std::env::var(name) {
            env.insert(name.to_owned(), value);
        }
    }
    if let Some(path) = &global.config {
        env.insert(CONFIG_ENV.to_owned(), path.display().to_string());
    }
    let timeout = format!("{}ms", Duration::from_secs_f64(global.timeout).as_millis());
    let mut overrides = vec![
        ("client_name".to_owned(), "memkv-cli".to_owned()),
        ("connect_timeout".to_owned(), timeout.clone()),
        ("op_timeout".to_owned(), timeout),
    ];
    if let Some(servers) = &global.servers {
        overrides.push(("servers".to_owned(), servers.clone()));
    }
    if let Some(location) = &global.discovery {
        overrides.push(("discovery".to_owned(), location.clone()));
    }
    if let Some(path) = &global.auth_key_file {
        overrides.push(("auth_key_file".to_owned(), path.display().to_string()));
    }
    let files = [("tls_ca", &global.tls_ca), ("tls_cert", &global.tls_cert), ("tls_key", &global.tls_key)];
    for (name, path) in files {
        overrides.extend(path.as_ref().map(|path| (name.to_owned(), path.display().to_string())));
    }
    // Who names a CA wants TLS; whether pages may go beside it is said elsewhere.
    if global.tls_ca.is_some() && !env.contains_key("MEMKV_TLS") {
        overrides.push(("tls".to_owned(), "on".to_owned()));
    }
    let config = resolve(&env, &overrides, &|path| std::fs::read_to_string(path))?;
    if config.servers.is_empty() && config.discovery.is_none() {
        return Err(Failure::new(Code::Usage, "no servers are configured")
            .hint("give --servers host:port,… or set MEMKV_SERVERS or MEMKV_DISCOVERY"));
    }
    Ok(config)
}

/// A connected client.
pub(crate) struct Fleet {
    client: Client,
    config: Config,
}

impl Fleet {
    /// Connects as the command line and the environment say.
    pub(crate) async fn connect(global: &Global) -> Result<Self, Failure> {
        Self::open(configuration(global)?).await
    }

    /// Connects with a configuration. Servers that do not answer are no error here.
    pub(crate) async fn open(config: Config) -> Result<Self, Failure> {
        let client = Client::connect(config.clone()).await?;
        if config.discovery.is_none() {
            return Ok(Self { client, config });
        }
        // What follows is about the servers that are members now.
        let servers: Vec<_> = client.servers().into_iter().map(|server| server.address).collect();
        if servers.is_empty() {
            let list = client.membership();
            let none = if list.epoch == 0 { "no answer in time" } else { "no server is registered there" };
            let why = list.error.unwrap_or_else(|| none.to_owned());
            return Err(Failure::new(Code::Unreachable, format!("{} names no servers: {why}", list.source))
                .hint("do the servers have the same discovery? or name them with --servers"));
        }
        Ok(Self { client, config: Config { servers, ..config } })
    }

    /// The configuration with the servers that are members now.
    pub(crate) async fn located(config: Config) -> Result<Config, Failure> {
        if config.discovery.is_none() {
            return Ok(config);
        }
        let fleet = Self::open(config).await?;
        let config = fleet.config.clone();
        fleet.close().await;
        Ok(config)
    }

    /// Who the members are.
    pub(crate) fn members(&self) -> Members {
        self.client.membership().into()
    }

    /// A client of one server alone.
    pub(crate) async fn alone(config: &Config, server: &ServerAddress) -> Result<Self, Failure> {
        Self::open(Config { servers: vec![server.clone()], discovery: None, ..config.clone() }).await
    }

    pub(crate) async fn close(self) {
        self.client.close().await;
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    /// The failure of a command that no server answered.
    pub(crate) fn nobody_answers(&self) -> Failure {
        Failure::new(Code::Unreachable, "no server answered")
            .hint("are the servers running? `memkv-cli doctor` looks at each one")
    }

    /// The ids to ask: all, or the one that is named.
    pub(crate) fn server_ids(&self, only: Option<&str>) -> Result<Vec<String>, Failure> {
        let all = self.config.servers.iter().map(|server| server.id.clone());
        let Some(only) = only else { return Ok(all.collect()) };
        let known: Vec<String> = all.collect();
        if known.iter().any(|id| id == only) {
            return Ok(vec![only.to_owned()]);
        }
        Err(Failure::new(Code::Usage, format!("no server is called {only:?}"))
            .hint(format!("the configured servers are: {}", known.join(", "))))
    }

    /// The id of the server that is called this, or is at this host:port.
    pub(crate) fn find_server(&self, name: &str) -> Result<String, Failure> {
        let servers = self.client.servers();
        let found = servers.iter().find(|server| server.address.id == name);
        let found = found.or_else(|| servers.iter().find(|server| server.address.host_port() == name));
        found.map(|server| server.address.id.clone()).ok_or_else(|| {
            let known: Vec<_> = servers.iter().map(|server| server.address.id.as_str()).collect();
            Failure::new(Code::Usage, format!("no server is called {name:?}"))
                .hint(format!("the servers are: {}", known.join(", ")))
        })
    }

    /// Every server, and what it is doing.
    pub(crate) async fn states(&self) -> Vec<(ServerAddress, Result<v1::ServerState, String>)> {
        let answers = self.client.statuses().await.into_iter();
        answers
            .map(|(address, answer)| (address, answer.map(|status| status.state()).map_err(text)))
            .collect()
    }

    /// Drains a server, or cancels that; ends when the drain does.
    pub(crate) async fn drain(
        &self,
        server_id: &str,
        request: v1::DrainRequest,
        told: impl FnMut(&v1::DrainProgress),
    ) -> Result<v1::DrainProgress, Failure> {
        Ok(self.client.drain(server_id, request, told).await?)
    }

    /// How far a drain is now.
    pub(crate) async fn drain_now(
        &self,
        server_id: &str,
        request: v1::DrainRequest,
    ) -> Result<v1::DrainProgress, Failure> {
        let (tell, mut hear) = tokio::sync::mpsc::channel(1);
        let listening = self.client.drain(server_id, request, |step| drop(tell.try_send(step.clone())));
        tokio::select! {
            ended = listening => Ok(ended?),
            Some(step) = hear.recv() => Ok(step),
        }
    }

    /// Every server's status, in the order of the configuration.
    pub(crate) async fn statuses(&self) -> Vec<Server> {
        let answers = self.client.statuses().await;
        let server = |(address, answer): (ServerAddress, Result<_, Error>)| {
            let host_port = address.host_port();
            Server::new(address.id, host_port, answer.map_err(text))
        };
        answers.into_iter().map(server).collect()
    }

    /// The status of a fleet of one.
    pub(crate) async fn only_status(&self) -> Result<Status, String> {
        match self.client.statuses().await.pop() {
            Some((_, Ok(status))) => Ok(status.into()),
            Some((_, Err(error))) => Err(text(error)),
            None => Err("there is no server".to_owned()),
        }
    }

    /// All spaces that the servers know.
    ///
    /// # Errors
    ///
    /// If no server answers.
    pub(crate) async fn spaces(&self) -> Result<Spaces, Failure> {
        let answers = self.client.list_spaces().await;
        let nobody = answers.iter().all(|(_, answer)| answer.is_err());
        if nobody {
            let why = answers.into_iter().find_map(|(_, answer)| answer.err());
            return Err(why.map_or_else(|| self.nobody_answers(), Failure::from));
        }
        Ok(Spaces::new(
            answers.into_iter().map(|(server, answer)| (server.id, answer.map_err(text))).collect(),
        ))
    }

    /// The identity of a space; asks the servers only if the text does not say it all.
    pub(crate) async fn find_space_id(&self, selector: &Selector) -> Result<SpaceId, Failure> {
        if let Some(id) = selector.exact_id() {
            return Ok(id);
        }
        let spaces = self.spaces().await?;
        id_of(selector.find(&spaces.spaces)?)
    }

    /// A space that the servers know, for reading and removing.
    pub(crate) async fn open_space(&self, selector: &Selector) -> Result<memkv_client::Space, Failure> {
        let spaces = self.spaces().await?;
        let description = described(selector.find(&spaces.spaces)?)?;
        Ok(self.client.space(description).await?)
    }

    /// A space to store into: fields describe it exactly, digits name one that the servers know.
    pub(crate) async fn create_space(&self, selector: &Selector) -> Result<memkv_client::Space, Failure> {
        match selector {
            Selector::Fields(description) => Ok(self.client.space(description.clone()).await?),
            Selector::Hex(_) => self.open_space(selector).await,
        }
    }

    /// Where a key is routed and what each server knows of it.
    pub(crate) async fn inspect_key(&self, space: SpaceId, key: &[u8], verify: bool) -> Vec<RouteStep> {
        let answers = self.client.inspect_key(space, key, verify).await;
        let mut by_id: HashMap<String, _> =
            answers.into_iter().map(|(server, answer)| (server.id, answer)).collect();
        let views = self.client.servers();
        let state = |id: &str| views.iter().find(|view| view.address.id == id).map_or("left", state_name);
        let members = self.client.membership().members;
        let mut steps = Vec::new();
        for entry in self.client.route(space, key) {
            let answer = by_id.remove(&entry.server.id);
            let asked = (entry.asked > 0).then_some(entry.asked);
            let state = if entry.draining { "draining" } else { state(&entry.server.id) };
            let (score, weight, home) = (Some(entry.score), entry.weight, entry.home);
            let member = members.iter().find(|member| member.member.id == entry.server.id);
            let weight_full = member.map_or(weight, |member| member.member.weight.max(weight));
            let step = RouteStep {
                server: entry.server.id,
                score,
                weight,
                weight_full,
                state,
                home,
                asked,
                ..RouteStep::default()
            };
            steps.push(answered(step, answer, verify));
        }
        // Without weight they are in no key's order, but they may still have pages.
        let mut rest: Vec<_> = by_id.into_iter().collect();
        rest.sort_by(|a, b| a.0.cmp(&b.0));
        for (server, answer) in rest {
            let step = RouteStep { state: state(&server), server, ..RouteStep::default() };
            steps.push(answered(step, Some(answer), verify));
        }
        explain(&mut steps, self.config().replicas);
        steps
    }

    /// Adds the keys of one server to `listing`, up to `limit` of them in portions of `portion`.
    pub(crate) async fn list(
        &self,
        space: SpaceId,
        server: &str,
        prefix: &[u8],
        (limit, portion): (usize, u32),
        listing: &mut Listing,
        bar: &ProgressBar,
    ) {
        let mut cursor = Vec::new();
        let mut left = limit;
        loop {
            let wanted = u32::try_from(left).unwrap_or(u32::MAX).min(portion);
            let request = v1::ListKeysRequest {
                space_id: space.0.to_vec(),
                prefix: prefix.to_vec(),
                limit: wanted,
                cursor: std::mem::take(&mut cursor),
            };
            match self.client.list_keys(server, request).await {
                Ok(answer) => {
                    left = left.saturating_sub(answer.keys.len());
                    bar.inc(answer.keys.len() as u64);
                    listing.keys.extend(answer.keys.into_iter().map(|key| Page::new(server, key)));
                    cursor = answer.next_cursor;
                }
                // A server that does not know the space has none of its keys.
                Err(error) if error.kind() == ErrorKind::UnknownSpace => return,
                Err(error) => {
                    listing.unreachable.push(Unreachable { server: server.to_owned(), error: text(error) });
                    return;
                }
            }
            if cursor.is_empty() || left == 0 {
                listing.truncated |= !cursor.is_empty();
                return;
            }
        }
    }

    /// Pins keys on the servers that have them.
    pub(crate) async fn pin(&self, space: SpaceId, keys: &[Vec<u8>], ttl: Duration) -> Pinned {
        let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        let all = keys.len() as u64;
        let mut pinned = Pinned { space_id: space.to_string(), keys: all, ttl_ms, ..Pinned::default() };
        for (server, answer) in self.client.pin(space, keys, ttl).await {
            match answer {
                Ok(answer) => {
                    pinned.pinned += answer.pinned;
                    pinned.over_quota += answer.over_quota;
                }
                Err(error) => pinned.unreachable.push(Unreachable { server: server.id, error: text(error) }),
            }
        }
        // Every server is asked for every key and has only its own.
        pinned.missing = all.saturating_sub(pinned.pinned + pinned.over_quota);
        pinned
    }

    /// Unpins keys, or all of the space.
    pub(crate) async fn unpin(&self, space: SpaceId, keys: &[Vec<u8>]) -> Unpinned {
        let mut unpinned = Unpinned { space_id: space.to_string(), ..Unpinned::default() };
        for (server, answer) in self.client.unpin(space, keys).await {
            match answer {
                Ok(answer) => unpinned.unpinned += answer.unpinned,
                Err(error) => {
                    unpinned.unreachable.push(Unreachable { server: server.id, error: text(error) });
                }
            }
        }
        unpinned
    }

    /// All pins.
    pub(crate) async fn pins(&self) -> Pins {
        let mut pins = Pins::default();
        for (server, answer) in self.client.pins().await {
            match answer {
                Ok(answer) => {
                    pins.pins.extend(answer.pins.into_iter().map(|pin| Pin::new(&server.id, pin)));
                    let (pinned_bytes, pinned_bytes_max) = (answer.pinned_bytes, answer.pinned_bytes_max);
                    pins.servers.push(PinShare { server: server.id, pinned_bytes, pinned_bytes_max });
                }
                Err(error) => pins.unreachable.push(Unreachable { server: server.id, error: text(error) }),
            }
        }
        pins.pins.sort_by_key(|pin| pin.left_ms);
        pins
    }

    /// Lets all servers check their pages, side by side.
    pub(crate) async fn verify(&self, request: &v1::VerifyRequest, bar: &ProgressBar) -> Vec<VerifiedServer> {
        let servers = &self.config.servers;
        let steps = Arc::new(Mutex::new(vec![v1::VerifyResponse::default(); servers.len()]));
        let mut checks = Vec::new();
        for (index, server) in servers.iter().enumerate() {
            let (client, id, request) = (self.client.clone(), server.id.clone(), request.clone());
            let (steps, bar) = (Arc::clone(&steps), bar.clone());
            checks.push(tokio::spawn(async move {
                let told = |step: &v1::VerifyResponse| {
                    let mut steps = steps.lock().unwrap_or_else(PoisonError::into_inner);
                    steps[index] = *step;
                    bar.set_length(steps.iter().map(|step| step.total_bytes.max(step.bytes)).sum());
                    bar.set_position(steps.iter().map(|step| step.bytes).sum());
                };
                client.verify(&id, request, told).await
            }));
        }
        let mut verified = Vec::new();
        for (server, check) in servers.iter().zip(checks) {
            let ended = |error| Err(format!("the check ended early: {error}"));
            let answer = check.await.map_or_else(ended, |answer| answer.map_err(text));
            let error = answer.as_ref().err().cloned();
            let step = answer.unwrap_or_default();
            verified.push(VerifiedServer {
                server: server.id.clone(),
                dram_pages: step.dram_pages,
                nvme_pages: step.nvme_pages,
                bytes: step.bytes,
                quarantined: step.quarantined,
                error,
            });
        }
        verified
    }

    /// The tenants of every server that answers, and who does not.
    pub(crate) async fn tenants(&self) -> (Vec<(String, v1::TenantStatus)>, Vec<Unreachable>) {
        let (mut tenants, mut unreachable) = (Vec::new(), Vec::new());
        for (server, answer) in self.client.tenants().await {
            match answer {
                Ok(answer) => {
                    tenants.extend(answer.tenants.into_iter().map(|tenant| (server.id.clone(), tenant)))
                }
                Err(error) => {
                    unreachable.push(Unreachable { server: server.id.clone(), error: error.to_string() })
                }
            }
        }
        (tenants, unreachable)
    }

    /// What only the view of one server shows: its quarantined pages and its segments. Empty if it does not tell.
    pub(crate) async fn details(&self, server_id: &str) -> (Vec<Quarantined>, Vec<Segment>) {
        let quarantined = self.client.quarantined().await.into_iter();
        let quarantined = quarantined.filter(|(server, _)| server.id == server_id);
        let quarantined = quarantined.filter_map(|(_, answer)| answer.ok()).flat_map(|answer| answer.pages);
        let segments = self.client.segments().await.into_iter();
        let segments = segments.filter(|(server, _)| server.id == server_id);
        let segments = segments.filter_map(|(_, answer)| answer.ok()).flat_map(|answer| answer.segments);
        (quarantined.map(Quarantined::from).collect(), segments.map(Segment::from).collect())
    }

    /// Removes all pages of a space.
    pub(crate) async fn clear(&self, space: &Space) -> Result<Cleared, Failure> {
        let mut cleared = Cleared {
            space_id: space.space_id.clone(),
            removed_pages: 0,
            removed_bytes: 0,
            unreachable: Vec::new(),
        };
        for (server, answer) in self.client.clear_space(id_of(space)?).await {
            match answer {
                Ok(answer) => {
                    cleared.removed_pages += answer.removed_pages;
                    cleared.removed_bytes += answer.removed_bytes;
                }
                Err(error) if error.kind() == ErrorKind::UnknownSpace => {}
                Err(error) => cleared.unreachable.push(Unreachable { server: server.id, error: text(error) }),
            }
        }
        Ok(cleared)
    }
}

fn state_name(view: &ServerView) -> &'static str {
    match view.state {
        ServerState::Ready => "ready",
        ServerState::Connecting => "connecting",
        ServerState::Suspect { .. } => "suspect",
    }
}

/// A step of a route with what its server said.
fn answered(
    mut step: RouteStep,
    answer: Option<Result<v1::InspectKeyResponse, Error>>,
    verify: bool,
) -> RouteStep {
    match answer {
        Some(Ok(answer)) => {
            step.found = Some(answer.found);
            step.verified = (verify && answer.found).then_some(answer.verified);
            step.page = answer.status.filter(|_| answer.found).map(|key| Page::new(&step.server, key));
        }
        Some(Err(error)) => step.error = Some(text(error)),
        None => step.error = Some("it was not asked".to_owned()),
    }
    step
}

fn id_of(space: &Space) -> Result<SpaceId, Failure> {
    SpaceId::from_hex(&space.space_id).ok_or_else(|| {
        Failure::new(Code::Other, format!("a server sent a bad space identity {:?}", space.space_id))
    })
}

fn described(space: &Space) -> Result<SpaceDescription, Failure> {
    SpaceDescription::new(space.fields.clone())
        .map_err(|error| Failure::new(Code::Other, format!("a server sent a bad space description: {error}")))
}

#[allow(clippy::needless_pass_by_value, reason = "for map_err")]
fn text(error: Error) -> String {
    error.to_string()
}
