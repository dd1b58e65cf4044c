//! Engines that share prefixes through daemons.

use crate::engine::{Engine, Setup, keys, prompt};
use memkv_client::Transport;
use memkv_tests::daemon::Daemon;

#[test]
fn what_one_engine_computed_another_one_finds_over_every_transport() {
    let daemons = [Daemon::start().unwrap(), Daemon::start().unwrap(), Daemon::start().unwrap()];
    let addrs = daemons.each_ref().map(Daemon::addr);
    for (name, transport) in [("auto", Transport::Auto), ("tcp", Transport::Tcp), ("grpc", Transport::Grpc)] {
        let setup = || Setup { transport, ..Setup::default() };
        let text = prompt(1, 60);
        let mut writer = Engine::new(&addrs, name, setup());
        assert_eq!(writer.serve(&text), 0, "{name}");
        writer.settle();
        assert_eq!(writer.stats().stored_pages, 60, "{name}");
        // The other engine knows a longer prompt.
        let longer = prompt(1, 75);
        let mut reader = Engine::new(&addrs, name, setup());
        assert_eq!(reader.serve(&longer), 60, "{name}");
        assert_eq!(reader.stats().prefetched_pages, 60, "{name}");
        reader.settle();
        // The pages that came from the store are there already; the new ones are not.
        let stats = reader.stats();
        assert_eq!((stats.stored_pages, stats.known_pages), (15, 0), "{name}");
        assert_eq!(writer.serve(&longer), 75, "{name}: and back");
        writer.end();
        reader.end();
    }
}

#[test]
fn servers_know_how_deep_in_its_chain_a_page_is() {
    let daemons = [Daemon::start().unwrap(), Daemon::start().unwrap()];
    let mut engine = Engine::new(&daemons.each_ref().map(Daemon::addr), "positions", Setup::default());
    engine.serve(&prompt(1, 20));
    engine.settle();
    engine.serve(&prompt(1, 30));
    engine.settle();
    let space = engine.tiers.store().space.clone();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for (index, key) in keys(&prompt(1, 30)).iter().enumerate() {
        let ask = space.client().inspect_key(space.id(), key.as_ref(), false);
        let answers = runtime.block_on(ask).into_iter();
        let position = answers.filter_map(|(_, answer)| answer.unwrap().status).next().unwrap().position;
        assert_eq!(position as usize, index + 1);
    }
    engine.end();
}
