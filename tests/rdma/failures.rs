//! Queue pairs that fail, devices that go away, servers that die: misses, then recovery.

use crate::rig::{
    Memory, PATIENCE, Pieces, client, config, connect, metric, server, server_config, server_with, space,
};
use memkv_client::{PageOutcome, Transport};
use memkv_rdma::WorkError;
use memkv_rdma::fake::{Fabric, Hold};
use memkv_server::config::rdma::RdmaConfig;
use memkv_tests::pages::{keys, page, pages};
use memkv_tests::wait_for;

const LEN: usize = 64 << 10;

#[test]
fn work_that_fails_costs_its_pages_and_nothing_else() {
    let fabric = Fabric::new(1);
    let server = server(&fabric);
    let client = client(&fabric, &[&server]);
    let space = space(&client);
    let names = keys("fail", 4);
    let memory = Memory::registered(&client, 4 * LEN);
    let bytes = pages(&names, LEN).concat();
    memory.fill(0, &bytes);
    let pieces = Pieces::pages(&memory, 4, LEN);
    assert_eq!(pieces.put(&space, &names), [PageOutcome::Stored; 4]);
    let errors = [
        WorkError::Flushed,
        WorkError::RemoteAccess,
        WorkError::RetryExceeded,
        WorkError::RnrRetry,
        WorkError::Local,
        WorkError::Other(99),
    ];
    for (round, error) in errors.into_iter().enumerate() {
        let before = metric(&server, "memkv_rdma_errors_total");
        // An exchange whose connection ends before a reply is tried once more on another one, so both have to fail.
        fabric.fail_work(2, error);
        fabric.fail_work(2, error);
        fabric.fail_work(4, error);
        let got = pieces.get(&space, &names);
        assert!(
            got.iter().all(|outcome| outcome.is_success() || *outcome == PageOutcome::Unavailable),
            "{got:?}"
        );
        assert!(metric(&server, "memkv_rdma_errors_total") > before, "{error}");
        wait_for("pages come again", PATIENCE, || {
            memory.fill(0, &vec![0; bytes.len()]);
            (pieces.get(&space, &names) == [PageOutcome::Hit; 4]).then_some(())
        })
        .unwrap_or_else(|late| panic!("{error}: {late}"));
        assert!(memory.read(0, bytes.len()) == bytes, "{error}");
        let more = keys(&format!("more{round}"), 4);
        fabric.fail_work(1, error);
        let put = pieces.put(&space, &more);
        assert!(
            put.iter().all(|outcome| outcome.is_success() || *outcome == PageOutcome::Unavailable),
            "{put:?}"
        );
        wait_for("pages go again", PATIENCE, || {
            pieces.put(&space, &more).iter().all(|o| o.is_success()).then_some(())
        })
        .unwrap_or_else(|late| panic!("{error}: {late}"));
    }
    assert_eq!(metric(&server, "memkv_corrupt_pages_total"), 0);
}

#[test]
fn auto_falls_back_and_climbs_back() {
    let fabric = Fabric::new(2);
    let own = RdmaConfig { devices: vec!["fake1".into()], ..RdmaConfig::default() };
    let server = server_with(&fabric, memkv_server::Config { rdma: own, ..server_config() });
    let auto = config(&[&server]).transport(Transport::Auto).set("rdma_devices", "fake0");
    let client = connect(&fabric, auto);
    let way = |client: &memkv_client::blocking::Client| client.servers()[0].transport;
    assert_eq!(way(&client), Transport::Rdma);
    let space = space(&client);
    let name = keys("auto", 1);
    let memory = Memory::registered(&client, LEN);
    memory.fill(0, &page(&name[0], LEN));
    let pieces = Pieces::pages(&memory, 1, LEN);
    assert_eq!(pieces.put(&space, &name), [PageOutcome::Stored]);
    fabric.remove("fake0");
    wait_for("pages come by another way", PATIENCE, || {
        (pieces.get(&space, &name) == [PageOutcome::Hit] && way(&client) != Transport::Rdma).then_some(())
    })
    .unwrap();
    wait_for("the client knows why", PATIENCE, || (client.stats().rdma.nics == 0).then_some(())).unwrap();
    fabric.restore("fake0");
    wait_for("pages come by rdma again", PATIENCE, || {
        let direct = client.stats().rdma.direct_pages;
        (pieces.get(&space, &name) == [PageOutcome::Hit] && client.stats().rdma.direct_pages > direct)
            .then_some(())
    })
    .unwrap();
    assert_eq!(way(&client), Transport::Rdma);
    assert!(memory.read(0, LEN) == page(&name[0], LEN));
}

#[test]
fn a_server_that_dies_in_the_middle_costs_misses() {
    let fabric = Fabric::new(1);
    let first = server(&fabric);
    let address = first.address();
    let client = client(&fabric, &[&first]);
    let space = space(&client);
    let names = keys("die", 4);
    let memory = Memory::registered(&client, 4 * LEN);
    memory.fill(0, &pages(&names, LEN).concat());
    let pieces = Pieces::pages(&memory, 4, LEN);
    assert_eq!(pieces.put(&space, &names), [PageOutcome::Stored; 4]);
    let own = vec![3; 4 * LEN];
    memory.fill(0, &own);
    fabric.hold(Hold::Transfers);
    std::thread::scope(|scope| {
        let get = scope.spawn(|| Pieces::pages(&memory, 4, LEN).get(&space, &names));
        wait_for("work is under way", PATIENCE, || (fabric.counts().held > 0).then_some(())).unwrap();
        drop(first);
        assert_eq!(get.join().unwrap(), [PageOutcome::Unavailable; 4]);
    });
    fabric.hold(Hold::Nothing);
    assert!(memory.read(0, 4 * LEN) == own);
    let second = server_with(&fabric, memkv_server::Config { listen: address, ..server_config() });
    wait_for("the new server is used", PATIENCE, || {
        pieces.put(&space, &names).iter().all(|outcome| outcome.is_success()).then_some(())
    })
    .unwrap();
    assert_eq!(pieces.get(&space, &names), [PageOutcome::Hit; 4]);
    assert!(
        metric(&second, "memkv_rdma_write_bytes_total") >= 4 * LEN as u64,
        "the region is known to it too"
    );
}

#[test]
fn without_rdma_a_forced_client_says_why_and_auto_goes_on() {
    let fabric = Fabric::new(1);
    let without = RdmaConfig { mode: memkv_server::config::rdma::RdmaMode::Off, ..RdmaConfig::default() };
    let server = server_with(&fabric, memkv_server::Config { rdma: without, ..server_config() });
    let forced = config(&[&server]).build().unwrap();
    let verbs: std::sync::Arc<dyn memkv_rdma::Verbs> = std::sync::Arc::new(fabric.clone());
    let error = memkv_client::blocking::Client::connect_with(forced, Some(verbs)).unwrap_err();
    assert_eq!(error.kind(), memkv_client::ErrorKind::NotSupported);
    assert!(error.to_string().contains("rdma.mode"), "{error}");
    let none: std::sync::Arc<dyn memkv_rdma::Verbs> = std::sync::Arc::new(Fabric::new(0));
    let forced = config(&[&server]).build().unwrap();
    let error = memkv_client::blocking::Client::connect_with(forced, Some(none)).unwrap_err();
    assert_eq!(error.kind(), memkv_client::ErrorKind::NotSupported);
    assert!(
        error.to_string().contains("no RDMA device") && error.to_string().contains("/sys/class"),
        "{error}"
    );
    let client = connect(&fabric, config(&[&server]).transport(Transport::Auto));
    let space = space(&client);
    assert!(space.put(b"k", b"page").unwrap().is_success());
    assert_eq!(space.get(b"k").unwrap().as_deref(), Some(&b"page"[..]));
    // Memory may be registered all the same, for servers that come later.
    let _memory = Memory::registered(&client, LEN);
}

#[test]
fn a_server_that_requires_rdma_does_not_start_without() {
    let required =
        RdmaConfig { mode: memkv_server::config::rdma::RdmaMode::Require, ..RdmaConfig::default() };
    let config = memkv_server::Config { rdma: required, ..server_config() };
    let start = memkv_server::Server::start_with(config, Some(std::sync::Arc::new(Fabric::new(0))));
    let Err(error) = start else { panic!("it started") };
    assert!(
        error.to_string().contains("rdma.mode") && error.to_string().contains("no RDMA device"),
        "{error}"
    );
}

#[test]
fn memory_that_cannot_be_registered_moves_with_a_copy() {
    let fabric = Fabric::new(1);
    let server = server(&fabric);
    let client = client(&fabric, &[&server]);
    let space = space(&client);
    let memory = Memory::new(LEN);
    fabric.refuse_registrations(1);
    // SAFETY: nothing is registered.
    let error = unsafe { client.register_region(memory.at(0), LEN) }.unwrap_err();
    assert!(error.to_string().contains("memlock"), "{error}");
    let name = keys("copied", 1);
    memory.fill(0, &page(&name[0], LEN));
    let pieces = Pieces::pages(&memory, 1, LEN);
    assert_eq!(pieces.put(&space, &name), [PageOutcome::Stored]);
    memory.fill(0, &[0; LEN]);
    assert_eq!(pieces.get(&space, &name), [PageOutcome::Hit]);
    assert!(memory.read(0, LEN) == page(&name[0], LEN));
    let stats = client.stats().rdma;
    assert_eq!((stats.bounced_pages, stats.direct_pages), (2, 0));
}
