//! Who may use this server: the cluster's key, and the tenants of the credentials file.
//!
//! - [`tenant`]: one of them: rights, spaces, numbers;
//! - [`rate`]: how much of it;
//! - [`attempts`]: addresses that keep failing to prove who they are.
//!
//! A space says whose it is (its field `tenant`), and that is part of its identity; so two tenants' pages never have
//! one name, at rest or on the wire. Each tenant has a table of the spaces it may see. Requests look in the tenant's own
//! table only: what is not in it is nowhere, whether or not somebody else has it, and there is nothing to time.
//!
//! Without a credentials file there is one tenant, the operator, who has the cluster's key (or on loopback none); it
//! asks the engine directly.
//!
//! Invariants:
//! - a session or call has exactly one tenant, for its whole life;
//! - a tenant that is not known costs as much as a wrong key;
//! - a file that is broken changes nothing.

pub(crate) mod attempts;
mod rate;
mod reload;
mod show;
pub(crate) mod tenant;

use crate::config::Config;
use crate::control::status::Fault;
use crate::random;
use crate::tls::TlsPeer;
use memkv_core::SpaceDescription;
use memkv_credentials::{Credentials, Public, Rights};
use memkv_storage::{Engine, Space};
use memkv_transport::auth::{AuthKey, Credential, CredentialError};
use memkv_transport::tenant::{ServerSecret, TenantCredential, Verifier};
use parking_lot::RwLock;
pub(crate) use reload::watch;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use tenant::Shares;
pub(crate) use tenant::{Found, Tenant};

/// Spaces of one tenant, where its quota does not say.
const SPACES_DEFAULT: u64 = 1024;

/// The time in a call's credential, Unix milliseconds, and its nonce.
type CallNonce = (u64, [u8; 16]);

/// All tenants.
pub(crate) struct Tenants {
    /// Who has the cluster's key.
    operator: Arc<Tenant>,
    cluster_key: Option<AuthKey>,
    /// What decoys are made of.
    secret: AuthKey,
    file: Option<PathBuf>,
    /// What a tenant may have where the file does not say.
    shares: Shares,
    table: RwLock<Table>,
    /// Held while spaces are opened or the table changes, so that no table misses a space.
    change: parking_lot::Mutex<()>,
}

#[derive(Default)]
struct Table {
    by_name: HashMap<String, Arc<Tenant>>,
    by_certificate: HashMap<String, Arc<Tenant>>,
    public: Vec<Public>,
}

impl Tenants {
    /// The operator and, if there is a file, the tenants of `credentials`.
    pub(crate) fn new(
        cluster_key: Option<AuthKey>,
        file: Option<PathBuf>,
        shares: Shares,
        credentials: &Credentials,
        engine: &Engine,
    ) -> Self {
        let tenants = Self {
            operator: Arc::new(Tenant::cluster(file.is_some(), shares)),
            cluster_key,
            secret: AuthKey::from_bytes(random::bytes()),
            file,
            shares,
            table: RwLock::default(),
            change: parking_lot::Mutex::default(),
        };
        tenants.adopt(credentials, engine);
        tenants
    }

    /// As the configuration says. A file that was read when the configuration was checked and cannot be read now leaves
    /// the operator alone until it can.
    pub(crate) fn of_config(config: &Config, engine: &Engine) -> Self {
        let read = config.credentials.as_deref().map(Credentials::load);
        let credentials = read.unwrap_or_else(|| Ok(Credentials::default())).unwrap_or_else(|error| {
            tracing::error!(%error, "no tenants");
            Credentials::default()
        });
        // Half for one tenant, so that there are places for others whatever it does.
        let shares = Shares {
            connections: u64::from(config.limits.connections_max / 2).max(1),
            sessions: u64::from(config.limits.sessions_max / 2).max(1),
            request_bytes: config.request_bytes.tenant,
        };
        Self::new(config.auth_key.clone(), config.credentials.clone(), shares, &credentials, engine)
    }

    /// Whether clients have to prove anything.
    pub(crate) fn key_required(&self) -> bool {
        self.cluster_key.is_some() || self.file.is_some()
    }

    /// Whether there may be others beside the operator.
    pub(crate) fn are_several(&self) -> bool {
        self.file.is_some()
    }

    /// All tenants but the one of the cluster's key, by name.
    pub(crate) fn all(&self) -> Vec<Arc<Tenant>> {
        let mut all: Vec<_> = self.table.read().by_name.values().cloned().collect();
        all.sort_by(|a, b| a.name().cmp(b.name()));
        all
    }

    /// The tenant of the cluster's key.
    #[cfg(test)]
    pub(crate) fn operator(&self) -> &Arc<Tenant> {
        &self.operator
    }

    /// What a session of this identity is checked against, and whose it is. Names that are not known, and a missing
    /// cluster key, get something that nobody matches.
    pub(crate) fn secret(&self, tenant: &str, key_id: &str) -> (ServerSecret, Option<Arc<Tenant>>) {
        if tenant.is_empty() && key_id.is_empty() {
            return match &self.cluster_key {
                Some(key) => (ServerSecret::Cluster(key.clone()), Some(Arc::clone(&self.operator))),
                None if !self.key_required() => {
                    (ServerSecret::Cluster(AuthKey::open()), Some(Arc::clone(&self.operator)))
                }
                None => (ServerSecret::Cluster(self.secret.clone()), None),
            };
        }
        let (verifier, tenant) = self.verifier(tenant, key_id);
        (ServerSecret::Tenant(verifier), tenant)
    }

    /// The decoy is made in any case, so that it takes no time of its own.
    fn verifier(&self, tenant: &str, key_id: &str) -> (Verifier, Option<Arc<Tenant>>) {
        let decoy = Verifier::decoy(&self.secret, tenant, key_id);
        let known = self.table.read().by_name.get(tenant).cloned();
        let verifier = known.as_ref().and_then(|tenant| tenant.verifier(key_id));
        match verifier {
            Some(verifier) => (verifier, known),
            None => (decoy, None),
        }
    }

    /// Whose client it is by its certificate, and the name in it that says so.
    pub(crate) fn certified(&self, tls: Option<&TlsPeer>) -> Option<(Arc<Tenant>, String)> {
        let identity = tls?.identity.as_ref()?;
        let table = self.table.read();
        let mut names = identity.names();
        names.find_map(|name| Some((Arc::clone(table.by_certificate.get(name)?), name.to_owned())))
    }

    /// Whose call it is, and the nonce of its credential, which must not have been seen before. A call without one is
    /// that of the connection's certificate.
    pub(crate) fn caller(
        &self,
        text: Option<&str>,
        tls: Option<&TlsPeer>,
        method: &str,
        now_unix_ms: u64,
    ) -> Result<(Arc<Tenant>, Option<CallNonce>), Fault> {
        if !self.key_required() {
            return Ok((Arc::clone(&self.operator), None));
        }
        let certified = if text.is_none() { self.certified(tls) } else { None };
        if let Some((tenant, _)) = certified {
            return Ok((tenant, None));
        }
        let text = text.ok_or(CredentialError::Malformed)?;
        if TenantCredential::is_one(text) {
            let read = TenantCredential::parse(text)?;
            let (verifier, tenant) = self.verifier(read.tenant, read.key_id);
            read.verify(&verifier, method, now_unix_ms)?;
            let tenant = tenant.ok_or(CredentialError::WrongKey)?;
            return Ok((tenant, Some((read.unix_ms, read.nonce))));
        }
        let key = self.cluster_key.as_ref().unwrap_or(&self.secret);
        let read = Credential::verify(text, key, method, now_unix_ms)?;
        Ok((Arc::clone(&self.operator), Some((read.unix_ms, read.nonce))))
    }

    /// Opens a space for a tenant; its identity says whose it is. A space that a tenant may only read is not made.
    pub(crate) fn open_space(
        &self,
        tenant: &Tenant,
        description: SpaceDescription,
        engine: &Engine,
    ) -> Result<memkv_core::SpaceId, Fault> {
        if tenant.is_operator() {
            let _change = self.are_several().then(|| self.change.lock());
            let space = engine.open_space(description)?;
            self.show(&space);
            return Ok(space.id());
        }
        let description = description
            .of_tenant(tenant.name())
            .map_err(|error| Fault::Invalid(memkv_proto::Invalid::Space(error)))?;
        if description.tenant() != Some(tenant.name()) {
            let public = self.table.read().is_public(&description, tenant.name());
            return if public && tenant.may(Rights::READ) {
                Ok(description.id())
            } else {
                Err(Fault::Foreign)
            };
        }
        if !tenant.may_open(&description) {
            return Err(Fault::Foreign);
        }
        let _change = self.change.lock();
        let id = description.id();
        if !tenant.has_own(id) && tenant.own_spaces() >= tenant.spaces_max() {
            return Err(Fault::TooManySpaces(tenant.spaces_max()));
        }
        let space = engine.open_space(description)?;
        self.show(&space);
        Ok(id)
    }

    /// Enters a space into the tables of those who may see it.
    fn show(&self, space: &Arc<Space>) {
        let table = self.table.read();
        for tenant in table.by_name.values() {
            if let Some(own) = table.sees(tenant, space.description()) {
                tenant.add(space, own);
            }
        }
    }

    /// Takes over what a file says: new tenants come, present ones change, and those that are gone lose everything.
    pub(crate) fn adopt(&self, credentials: &Credentials, engine: &Engine) {
        let _change = self.change.lock();
        let mut next = Table { public: credentials.public.clone(), ..Table::default() };
        let present = std::mem::take(&mut self.table.write().by_name);
        for entry in &credentials.tenants {
            let tenant = present.get(&entry.name).cloned();
            let tenant = tenant.unwrap_or_else(|| Arc::new(Tenant::new(&entry.name, self.shares)));
            tenant.change(entry);
            engine.set_quota(&entry.name, entry.quotas.dram_bytes, entry.quotas.nvme_bytes);
            for name in &entry.certificates {
                next.by_certificate.insert(name.clone(), Arc::clone(&tenant));
            }
            next.by_name.insert(entry.name.clone(), tenant);
        }
        for (name, tenant) in present.iter().filter(|(name, _)| !next.by_name.contains_key(*name)) {
            tenant.remove();
            engine.set_quota(name, None, None);
        }
        let spaces = engine.spaces();
        for tenant in next.by_name.values() {
            let seen = spaces
                .iter()
                .filter_map(|space| Some((Arc::clone(space), next.sees(tenant, space.description())?)));
            tenant.replace_spaces(seen.collect());
        }
        *self.table.write() = next;
    }
}

impl Table {
    /// Whether a tenant sees a space, and whether it is its own.
    fn sees(&self, tenant: &Tenant, space: &SpaceDescription) -> Option<bool> {
        if space.tenant() == Some(tenant.name()) {
            return tenant.may_open(space).then_some(true);
        }
        self.is_public(space, tenant.name()).then_some(false)
    }

    /// Whether somebody else's space may be read by the tenant of this name.
    fn is_public(&self, space: &SpaceDescription, reader: &str) -> bool {
        self.public.iter().any(|public| {
            space.tenant() == Some(public.owner.as_str())
                && public.spaces.iter().any(|pattern| pattern.fits(space))
                && public.readers.as_ref().is_none_or(|readers| readers.iter().any(|name| name == reader))
        })
    }
}

#[cfg(test)]
mod tests;
