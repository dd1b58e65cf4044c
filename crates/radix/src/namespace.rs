//! Who may share with whom: namespaces and owners.
//!
//! Two requests share pages only within one namespace, that is, with equal extra key (adapter, modality …) and
//! equal salt (tenant). Both go into the seed of the digest chain, so pages of two namespaces never have one name,
//! here or in a store. The salt is the isolation that this crate recommends.

use crate::hash::Digest;
use sha2::{Digest as _, Sha256};
use thiserror::Error;

/// Salts with this beginning belong to owners of private pages.
const OWNER_SALT: &str = "memkv-owner-v1/";

/// The engine's stable number of an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UserId(pub u64);

/// The salt is one that this crate gives to owners of private pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a salt must not begin with \"memkv-owner-v1/\": such salts name the private pages of an owner")]
pub struct ReservedSalt;

/// Extra key and salt of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Namespace {
    extra_key: Option<Box<str>>,
    cache_salt: Option<Box<str>>,
    seed: Option<Digest>,
}

impl Namespace {
    /// A namespace. An absent part differs from an empty one. An adapter's id belongs at the end of `extra_key`.
    ///
    /// # Errors
    ///
    /// If the salt is one that could name the private pages of an owner.
    pub fn new(extra_key: Option<&str>, cache_salt: Option<&str>) -> Result<Self, ReservedSalt> {
        if cache_salt.is_some_and(|salt| salt.starts_with(OWNER_SALT)) {
            return Err(ReservedSalt);
        }
        let seed = seed(extra_key, cache_salt);
        Ok(Self { extra_key: extra_key.map(Into::into), cache_salt: cache_salt.map(Into::into), seed })
    }

    /// The extra key.
    pub fn extra_key(&self) -> Option<&str> {
        self.extra_key.as_deref()
    }

    /// The salt.
    pub fn cache_salt(&self) -> Option<&str> {
        self.cache_salt.as_deref()
    }

    /// What the digest chain of public pages starts from: nothing if neither part is set.
    pub fn seed(&self) -> Option<Digest> {
        self.seed
    }

    /// The salt under which SGLang would find the private pages of `owner`.
    pub fn owner_salt(&self, owner: UserId) -> String {
        match self.cache_salt() {
            None => format!("{OWNER_SALT}-/{:016x}", owner.0),
            Some(salt) => format!("{OWNER_SALT}{}/{salt}/{:016x}", salt.len(), owner.0),
        }
    }

    /// What the digest chain of `owner`'s private pages starts from.
    pub fn owner_seed(&self, owner: UserId) -> Digest {
        hash_parts(self.extra_key(), Some(&self.owner_salt(owner)))
    }
}

/// The seed of the digest chain, if there is anything to tell apart.
fn seed(extra_key: Option<&str>, cache_salt: Option<&str>) -> Option<Digest> {
    (extra_key.is_some() || cache_salt.is_some()).then(|| hash_parts(extra_key, cache_salt))
}

fn hash_parts(extra_key: Option<&str>, cache_salt: Option<&str>) -> Digest {
    let mut hash = Sha256::new();
    hash.update(b"sglang-cache-namespace-v1");
    for part in [extra_key, cache_salt] {
        match part {
            None => hash.update([0]),
            Some(text) => {
                hash.update([1]);
                hash.update((text.len() as u64).to_le_bytes());
                hash.update(text.as_bytes());
            }
        }
    }
    Digest(hash.finalize().into())
}

/// Who asks: the namespace, and the account if pages are private to accounts.
#[derive(Clone, Copy, Debug)]
pub struct Access<'a> {
    /// What the request may share in.
    pub namespace: &'a Namespace,
    /// Whose private pages it sees and adds to. Not looked at with [`Sharing::Namespace`](crate::Sharing).
    pub user: Option<UserId>,
}

impl<'a> Access<'a> {
    /// A request that names no account.
    pub fn of(namespace: &'a Namespace) -> Self {
        Self { namespace, user: None }
    }

    /// A request of an account.
    pub fn by(namespace: &'a Namespace, user: UserId) -> Self {
        Self { namespace, user: Some(user) }
    }
}

/// The namespaces that have nodes, by small numbers. A number is free again when its last node is gone.
#[derive(Default)]
pub(crate) struct Namespaces {
    entries: Vec<Option<(Namespace, u32)>>,
    by_seed: hashbrown::HashTable<u32>,
    free: Vec<u32>,
}

fn seed_bits(seed: Option<Digest>) -> u64 {
    seed.map_or(0, |digest| digest.bits())
}

impl Namespaces {
    pub(crate) fn find(&self, namespace: &Namespace) -> Option<u32> {
        let same = |id: &u32| self.get(*id).is_some_and(|known| known.seed == namespace.seed);
        self.by_seed.find(seed_bits(namespace.seed), same).copied()
    }

    pub(crate) fn get(&self, id: u32) -> Option<&Namespace> {
        self.entries.get(id as usize)?.as_ref().map(|(namespace, _)| namespace)
    }

    /// The number of a namespace, counted as used by one more node.
    pub(crate) fn acquire(&mut self, namespace: &Namespace) -> u32 {
        if let Some(id) = self.find(namespace) {
            self.retain(id);
            return id;
        }
        let id = self.free.pop().unwrap_or(self.entries.len() as u32);
        if id as usize == self.entries.len() {
            self.entries.push(None);
        }
        self.entries[id as usize] = Some((namespace.clone(), 1));
        let entries = &self.entries;
        self.by_seed.insert_unique(seed_bits(namespace.seed), id, |id| {
            seed_bits(entries[*id as usize].as_ref().and_then(|(namespace, _)| namespace.seed))
        });
        id
    }

    pub(crate) fn retain(&mut self, id: u32) {
        if let Some((_, uses)) = &mut self.entries[id as usize] {
            *uses += 1;
        }
    }

    pub(crate) fn release(&mut self, id: u32) {
        let Some((namespace, uses)) = &mut self.entries[id as usize] else { return };
        *uses -= 1;
        if *uses == 0 {
            let bits = seed_bits(namespace.seed);
            self.entries[id as usize] = None;
            if let Ok(entry) = self.by_seed.find_entry(bits, |other| *other == id) {
                entry.remove();
            }
            self.free.push(id);
        }
    }

    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn uses(&self) -> Vec<(u32, u32)> {
        let used = |(id, entry): (usize, &Option<(Namespace, u32)>)| Some((id as u32, entry.as_ref()?.1));
        self.entries.iter().enumerate().filter_map(used).collect()
    }
}
