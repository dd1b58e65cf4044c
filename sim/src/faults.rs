//! What faults do to the cluster, and how they end.

use crate::book::{PAGES, Page, SPACES};
use crate::cluster::{Driver, Order, Place, member};
use crate::disk;
use crate::plan::{Fault, Memory, Way, Window};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// Errors of drives.
const EIO: i32 = 5;
const ENOSPC: i32 = 28;

/// A drain, from its begin.
pub(crate) struct Draining {
    begun: u64,
    /// Each server's number of lives, and a number that changes when it forgets pages.
    others: Vec<(u64, u64)>,
}

impl Driver {
    pub(crate) fn apply(&mut self, begins: bool, window: &Window) {
        let word = if begins { "begins" } else { "ends" };
        self.shared.trace.note(&format!("s{}: {:?} {word}", window.server, window.fault));
        let server = window.server;
        let name = format!("s{server}");
        match window.fault {
            Fault::Frozen => self.hold(&name, None, begins),
            Fault::Loss { client } => self.hold(&name, Some(client), begins),
            Fault::Cut { client, way } => self.cut(&name, client, way, begins),
            Fault::Slow { client, ms } => {
                let ms = if begins { ms } else { self.shared.plan.latency_ms };
                for client in self.clients(client) {
                    self.sim.set_link_max_message_latency(
                        name.as_str(),
                        client.as_str(),
                        Duration::from_millis(ms),
                    );
                }
            }
            Fault::Resets => self.shared.net.reset_some(self.sim.lookup(name.as_str())),
            Fault::Flips { permille } => {
                let permille = if begins { permille } else { 0 };
                self.shared.net.flip(self.sim.lookup(name.as_str()), permille);
            }
            Fault::Crash { memory, power } if begins => self.crash(server, memory, power),
            Fault::Crash { .. } => self.sim.bounce(name.as_str()),
            Fault::Restart if begins => self.order(server, Order::Stop),
            Fault::Restart => {
                let memory = if self.shared.plan.durable { Memory::Kept } else { Memory::Lost };
                self.crash(server, memory, false);
                self.sim.bounce(name.as_str());
            }
            Fault::Drive { full } if begins => {
                let errno = if full { ENOSPC } else { EIO };
                self.shared.servers[server].faults.fail(None, memkv_server::sim::Kind::Write, errno);
            }
            Fault::Drive { .. } => self.shared.servers[server].faults.heal(),
            Fault::Drain if begins => self.drain(server),
            Fault::Drain => self.end_drain(server),
            Fault::Left => self.set_weight(server, (!begins).then_some(100)),
            Fault::Weight(weight) => self.set_weight(server, Some(if begins { weight } else { 100 })),
            Fault::ClockJump { ms } => {
                let own = self.shared.plan.skews_ms[server];
                self.shared.trace.set_skew_ms(server, own + if begins { ms } else { 0 });
            }
        }
    }

    /// One client's name, or all.
    fn clients(&self, client: Option<usize>) -> Vec<String> {
        let all = 0..self.shared.plan.clients;
        all.filter(|number| client.is_none_or(|one| one == *number))
            .map(|number| format!("c{number}"))
            .collect()
    }

    fn hold(&self, server: &str, client: Option<usize>, begins: bool) {
        for client in self.clients(client) {
            if begins {
                self.sim.hold(server, client.as_str());
            } else {
                self.sim.release(server, client.as_str());
            }
        }
    }

    fn cut(&self, server: &str, client: Option<usize>, way: Way, begins: bool) {
        let to = self.sim.lookup(server);
        for client in self.clients(client) {
            let from = self.sim.lookup(client.as_str());
            if !begins {
                self.sim.repair(server, client.as_str());
                self.shared.net.heal(from, to);
                continue;
            }
            if way != Way::FromServer {
                self.sim.partition_oneway(client.as_str(), server);
                self.shared.net.cut(from, to);
            }
            if way != Way::ToServer {
                self.sim.partition_oneway(server, client.as_str());
                self.shared.net.cut(to, from);
            }
        }
    }

    fn order(&self, server: usize, order: Order) {
        let place = &self.shared.servers[server];
        *place.order.lock() = Some(order);
        place.ordered.notify_one();
    }

    fn crash(&mut self, server: usize, memory: Memory, power: bool) {
        self.sim.crash(format!("s{server}"));
        let shared = self.shared.clone();
        let place = &shared.servers[server];
        place.order.lock().take();
        let running = place.running.lock().take();
        if let Some(running) = running {
            shared.count_forgotten(&running);
            running.let_go();
        }
        if let Err(error) = self.damage(place, memory, power) {
            shared.trace.wrong(format!("cannot work on {}: {error}", place.folder.display()));
        }
    }

    /// What becomes of the files of a server that is dead.
    fn damage(&mut self, place: &Place, memory: Memory, power: bool) -> std::io::Result<()> {
        let rng = &mut self.rng;
        match memory {
            Memory::Kept => {}
            Memory::Lost => disk::lose(&place.folder)?,
            Memory::Torn => {
                disk::tear(&place.folder, rng)?;
                if place.drive.is_dir() {
                    disk::tear(&place.drive, rng)?;
                }
            }
        }
        if power {
            let lost = place.faults.lose_power(&mut || rng.next())?;
            self.shared.trace.note(&format!("{lost} writes may be lost"));
        }
        Ok(())
    }

    /// Changes the member list; `None` takes the server out of it. The last one stays.
    fn set_weight(&mut self, server: usize, weight: Option<u32>) {
        let mut members = self.shared.members.lock();
        let mut list: Vec<_> = std::mem::take(&mut members.1);
        let id = format!("s{server}");
        let known = list.iter().position(|(member, _)| member.id == id).map(|at| list.remove(at));
        if let Some(weight) = weight {
            let since = known.map_or(self.now_ms, |(_, since)| since);
            list.push((memkv_client::ServerAddress { weight, ..member(server) }, since));
        }
        if list.is_empty() {
            list.push((member(server), 0));
        }
        list.sort_by(|(a, _), (b, _)| a.id.cmp(&b.id));
        *members = (members.0 + 1, list);
        for running in self.shared.servers.iter().filter_map(|place| place.running.lock().clone()) {
            running.hear_epoch(members.0);
        }
    }

    fn others(&self) -> Vec<(u64, u64)> {
        let of = |place: &Place| {
            let running = place.running.lock().clone();
            let gone = running.map_or(0, |server| {
                let engine = server.census().engine;
                let drives = engine.nvme.iter().flat_map(|nvme| &nvme.log.drives);
                engine.counters.evicted_pages + drives.map(|drive| drive.reclaimed_segments).sum::<u64>()
            });
            (place.lives.load(Relaxed), gone)
        };
        self.shared.servers.iter().map(of).collect()
    }

    fn drain(&mut self, server: usize) {
        let members: Vec<_> = self.shared.members.lock().1.clone();
        let id = format!("s{server}");
        let others = members.into_iter().map(|(member, _)| member).filter(|member| member.id != id).collect();
        self.draining[server] = Some(Draining { begun: self.shared.moment(), others: self.others() });
        self.order(server, Order::Drain(others));
    }

    /// A server that has handed everything over is started anew, with nothing; another one serves again.
    fn end_drain(&mut self, server: usize) {
        let Some(draining) = self.draining[server].take() else { return };
        let place = &self.shared.servers[server];
        let drained = place.running.lock().as_ref().is_some_and(memkv_server::sim::SimServer::is_drained);
        if !drained {
            return self.order(server, Order::CancelDrain);
        }
        self.look_at_drained(server, &draining);
        let drive = place.drive.clone();
        self.crash(server, Memory::Lost, false);
        if let Err(error) = disk::lose(&drive) {
            self.shared.trace.wrong(format!("cannot remove {}: {error}", drive.display()));
        }
        self.sim.bounce(format!("s{server}"));
    }

    /// Every page of a server that says it has handed everything over must be with another one.
    fn look_at_drained(&self, server: usize, draining: &Draining) {
        let shared = &self.shared;
        self.shared.trace.note(&format!("s{server} has handed its pages over"));
        let steady = (self.others().into_iter().zip(&draining.others).enumerate())
            .all(|(number, (now, then))| number == server || now == *then);
        let running: Vec<_> = shared.servers.iter().map(|place| place.running.lock().clone()).collect();
        let all_run = running.iter().all(Option::is_some);
        if !steady || !all_run || shared.plan.tears() || shared.plan.fails_drives() {
            // Another server may have lost them again.
            return;
        }
        shared.trace.note("all of them are looked for");
        let has = |number: usize, page: Page| {
            let (space, key) = (format!("space-{}", page.space), page.key());
            running[number].as_ref().is_some_and(|server| server.has(&space, key.as_bytes()))
        };
        for space in 0..SPACES {
            for number in 0..PAGES {
                let page = Page { space, number };
                let elsewhere = (0..running.len()).any(|other| other != server && has(other, page));
                let removed = shared.book.lock().removed_since(page, draining.begun);
                if has(server, page) && !elsewhere && !removed {
                    shared.trace.wrong(format!("s{server} is drained, and {page:?} is nowhere else"));
                }
            }
        }
    }
}
