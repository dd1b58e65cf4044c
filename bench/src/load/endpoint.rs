//! One client process's connection to what it loads.

use super::orders::Endpoint;
use crate::raw;
use crate::subject::ours;
use crate::workload;
use anyhow::{Context as _, ensure};
use memkv_client::PageOutcome;
use memkv_client::blocking::{Client, Space};
use memkv_core::SpaceDescription;

/// Whether keys were there, and pages stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Told {
    pub existing: u64,
    pub refused: u64,
}

/// An open endpoint.
pub(super) enum Open {
    Memkv {
        client: Client,
        space: Space,
        outcomes: Vec<PageOutcome>,
    },
    /// Slots are numbered like pages; puts go to slots of their own behind them.
    Raw {
        conn: raw::Conn,
    },
}

impl Open {
    /// Connects; `slots_bytes` is what the raw baseline reserves.
    ///
    /// # Errors
    ///
    /// If it cannot.
    pub(super) fn new(endpoint: &Endpoint, slots_bytes: usize) -> anyhow::Result<Self> {
        Ok(match endpoint {
            Endpoint::Raw { address } => {
                Self::Raw { conn: raw::Conn::new(address.parse().context("read an address")?, slots_bytes)? }
            }
            Endpoint::Memkv { servers, key, transport } => {
                let transport = transport.parse().map_err(|why: String| anyhow::anyhow!(why))?;
                let client = ours::connect(servers, key.as_deref(), transport)?;
                let space = client.space(SpaceDescription::named("load")?)?;
                ours::probe(&client, &space)?;
                Self::Memkv { client, space, outcomes: Vec::new() }
            }
        })
    }

    /// Gets pages; `there` is set for each.
    ///
    /// # Errors
    ///
    /// If the op itself fails; pages that are not there are no failure.
    pub(super) fn get(
        &mut self,
        named: &Named,
        pages: &mut [&mut [u8]],
        there: &mut [bool],
    ) -> anyhow::Result<()> {
        match self {
            Self::Raw { conn } => {
                there.fill(true);
                conn.get(named.slot()?, pages)
            }
            Self::Memkv { space, outcomes, .. } => {
                outcomes.clear();
                outcomes.resize(named.ids.len(), PageOutcome::Miss);
                space.get_into(&named.keys, pages, outcomes)?;
                for (there, outcome) in there.iter_mut().zip(outcomes) {
                    *there = match outcome {
                        PageOutcome::Hit => true,
                        PageOutcome::Miss => false,
                        other => anyhow::bail!("a get ended with {other:?}"),
                    };
                }
                Ok(())
            }
        }
    }

    /// Puts pages; `kept` is set for those that are there now.
    ///
    /// # Errors
    ///
    /// If the op fails, or a page for another reason than a full store.
    pub(super) fn put(&mut self, named: &Named, pages: &[&[u8]], kept: &mut [bool]) -> anyhow::Result<Told> {
        let mut told = Told::default();
        match self {
            Self::Raw { conn } => {
                kept.fill(true);
                conn.put(named.slot()?, pages)?;
            }
            Self::Memkv { space, outcomes, .. } => {
                outcomes.clear();
                outcomes.resize(named.ids.len(), PageOutcome::Miss);
                space.put_from(&named.keys, pages, outcomes)?;
                for (kept, outcome) in kept.iter_mut().zip(outcomes) {
                    *kept = outcome.is_success();
                    match outcome {
                        PageOutcome::Stored => {}
                        PageOutcome::Exists => told.existing += 1,
                        PageOutcome::Busy => told.refused += 1,
                        other => anyhow::bail!("a put ended with {other:?}"),
                    }
                }
            }
        }
        Ok(told)
    }

    /// Asks for pages; `there` is set for each.
    ///
    /// # Errors
    ///
    /// If the op fails.
    pub(super) fn exists(&mut self, named: &Named, there: &mut [bool]) -> anyhow::Result<()> {
        match self {
            Self::Raw { conn } => {
                conn.prepare_exists(&named.keys);
                there.fill(true);
                conn.exists(named.ids.len())
            }
            Self::Memkv { space, .. } => {
                space.exists(&named.keys, there)?;
                Ok(())
            }
        }
    }

    /// Removes pages.
    ///
    /// # Errors
    ///
    /// If the op fails.
    pub(super) fn delete(&mut self, named: &Named) -> anyhow::Result<()> {
        if let Self::Memkv { space, .. } = self {
            space.delete(&named.keys, &mut vec![false; named.ids.len()])?;
        }
        Ok(())
    }

    /// Says goodbye.
    pub(super) fn close(self) {
        if let Self::Memkv { client, .. } = self {
            client.close();
        }
    }
}

/// Pages of one batch, with their keys made ready.
#[derive(Clone, Debug)]
pub(super) struct Named {
    pub ids: Vec<u64>,
    keys: Vec<Vec<u8>>,
}

impl Named {
    pub(super) fn new(ids: Vec<u64>) -> Self {
        let seed = workload::seed("load");
        let keys = ids.iter().map(|&id| workload::key(seed, id)).collect();
        Self { ids, keys }
    }

    /// The raw baseline has slots one behind the other, and no names.
    fn slot(&self) -> anyhow::Result<usize> {
        let in_row = self.ids.windows(2).all(|two| two[0] + 1 == two[1]);
        ensure!(in_row, "the raw baseline takes neighbouring pages only");
        Ok(usize::try_from(self.ids.first().copied().unwrap_or(0))?)
    }
}
