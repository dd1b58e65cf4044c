//! Where clients learn who the members are: every change reaches each of them after a while of its own, and the source does
//! not answer at times.

use crate::cluster::Shared;
use crate::net::PORT;
use crate::rng::Rng;
use crate::sealed;
use memkv_discovery::{Member, MemberList, NextList, Source, SourceError};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::sleep;

/// The source as one client has it.
pub(crate) struct Simulated {
    shared: Arc<Shared>,
    rng: Rng,
    /// The epoch that was told last.
    told: Option<u64>,
}

impl Simulated {
    pub(crate) fn new(shared: Arc<Shared>, me: usize) -> Self {
        let rng = Rng::new(shared.seed, 500 + me as u64);
        Self { shared, rng, told: None }
    }

    fn is_away(&self) -> bool {
        let now = self.shared.trace.now_ms();
        self.shared.plan.source_away_ms.is_some_and(|(from, to)| (from..to).contains(&now))
    }

    fn list(&self) -> MemberList {
        let (epoch, members) = self.shared.members.lock().clone();
        let member = |(address, since): (memkv_client::ServerAddress, u64)| {
            let mut member = Member::new(address.id, address.host, PORT, address.weight);
            member.since_unix_ms = if since == 0 { 0 } else { sealed::unix_ms(since) };
            member
        };
        MemberList::new(epoch, members.into_iter().map(member).collect())
    }
}

impl Source for Simulated {
    fn next(&mut self) -> NextList<'_> {
        Box::pin(async {
            loop {
                sleep(Duration::from_millis(self.rng.range(5, 200))).await;
                if self.is_away() {
                    let text = "it does not answer".to_owned();
                    return Err(SourceError::Dns { name: "simulated".to_owned(), text });
                }
                let list = self.list();
                if self.told != Some(list.epoch) {
                    self.told = Some(list.epoch);
                    self.shared.trace.note(&format!("hears of member list {}", list.epoch));
                    return Ok(list);
                }
            }
        })
    }

    fn refresh(&mut self) {
        self.told = None;
    }
}
