//! The forms of a call: asynchronous beside blocking, and arguments that make no sense.

use crate::ops::{assert_all, assert_hits};
use crate::rig::{Rig, tests};
use memkv_client::{ErrorKind, PageOutcome};
use memkv_tests::daemon::Daemon;
use memkv_tests::pages::{keys, page, pages};
use tokio::runtime::{Builder, Runtime};

tests![
    every_call_has_an_asynchronous_form,
    asynchronous_calls_run_beside_each_other,
    keys_of_0_and_513_bytes_are_refused_before_they_are_sent,
    lists_of_different_lengths_are_refused,
    empty_batches_are_fine,
    a_closed_client_says_so,
];

/// A runtime as a caller would have it; ours needs none.
pub(crate) fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

fn every_call_has_an_asynchronous_form(rig: &Rig) {
    let daemon = rig.daemon();
    let (client, blocking) = rig.space(&[&daemon], "async");
    let space = blocking.asynchronous();
    let (all, len) = (keys("async", 30), 40_000);
    let bytes = pages(&all, len);
    runtime().block_on(async {
        let sources: Vec<&[u8]> = bytes.iter().map(Vec::as_slice).collect();
        let mut out = vec![PageOutcome::Busy; 30];
        let report = space.put_from(&all, &sources, &mut out).await.unwrap();
        assert_eq!((report.ok, report.bytes), (30, 30 * len as u64));
        assert_all(&out, PageOutcome::Stored);
        let mut room = vec![vec![0; len]; 30];
        let mut targets: Vec<&mut [u8]> = room.iter_mut().map(Vec::as_mut_slice).collect();
        let report = space.get_into(&all, &mut targets, &mut out).await.unwrap();
        assert_eq!((report.ok, report.bytes), (30, 30 * len as u64));
        assert_all(&out, PageOutcome::Hit);
        assert!(room == bytes);
        let mut flags = [false; 30];
        space.exists(&all, &mut flags).await.unwrap();
        assert_eq!(flags, [true; 30]);
        space.touch(&all, &mut flags).await.unwrap();
        assert_eq!(flags, [true; 30]);
        assert_eq!(space.exists_prefix(&all).await.unwrap(), 30);
        space.delete(&all[15..], &mut flags[..15]).await.unwrap();
        assert_eq!(space.exists_prefix(&all).await.unwrap(), 15);
        assert_eq!(space.put(b"one", &page(b"one", 77)).await.unwrap(), PageOutcome::Stored);
        assert!(space.get(b"one").await.unwrap() == Some(page(b"one", 77)));
        assert_eq!(space.get(b"none").await.unwrap(), None);
    });
    assert_hits(&blocking, &all[..15], len);
    client.close();
}

fn asynchronous_calls_run_beside_each_other(rig: &Rig) {
    let daemon = rig.daemon();
    let (client, blocking) = rig.space(&[&daemon], "beside");
    let space = blocking.asynchronous();
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let tasks: Vec<_> = (0..12)
        .map(|task| {
            let space = space.clone();
            runtime.spawn(async move {
                for lap in 0..4 {
                    let all = keys(&format!("{task}-{lap}"), 6);
                    let bytes = pages(&all, 30_000 + task * 1001);
                    let sources: Vec<&[u8]> = bytes.iter().map(Vec::as_slice).collect();
                    let mut out = [PageOutcome::Busy; 6];
                    space.put_from(&all, &sources, &mut out).await.unwrap();
                    assert_all(&out, PageOutcome::Stored);
                    let mut room: Vec<_> = bytes.iter().map(|page| vec![0; page.len()]).collect();
                    let mut targets: Vec<&mut [u8]> = room.iter_mut().map(Vec::as_mut_slice).collect();
                    space.get_into(&all, &mut targets, &mut out).await.unwrap();
                    assert_all(&out, PageOutcome::Hit);
                    assert!(room == bytes, "a call got another's bytes");
                }
            })
        })
        .collect();
    for task in tasks {
        runtime.block_on(task).unwrap();
    }
    client.close();
}

fn keys_of_0_and_513_bytes_are_refused_before_they_are_sent(rig: &Rig) {
    let daemon = rig.daemon();
    let (client, space) = rig.space(&[&daemon], "keys");
    for bad in [vec![], vec![b'x'; 513]] {
        let keys = [b"good".to_vec(), bad];
        let page = [7_u8; 100];
        let errors = [
            space.exists(&keys, &mut [false; 2]).unwrap_err(),
            space.put_from(&keys, &[&page, &page], &mut [PageOutcome::Miss; 2]).unwrap_err(),
            space
                .get_into(&keys, &mut [&mut [0; 100], &mut [0; 100]], &mut [PageOutcome::Miss; 2])
                .unwrap_err(),
            space.delete(&keys, &mut [false; 2]).unwrap_err(),
            space.touch(&keys, &mut [false; 2]).unwrap_err(),
        ];
        for error in errors {
            assert_eq!(error.kind(), ErrorKind::BadInput);
            assert!(error.to_string().contains("1 to 512 bytes"), "{error}");
        }
    }
    assert_eq!(space.get(b"good").unwrap(), None, "half a batch was stored");
    client.close();
}

fn lists_of_different_lengths_are_refused(rig: &Rig) {
    let daemon = rig.daemon();
    let (client, space) = rig.space(&[&daemon], "lengths");
    let keys = keys("lengths", 2);
    let kinds = [
        space.exists(&keys, &mut [false; 3]).unwrap_err().kind(),
        space.put_from(&keys, &[&[1_u8][..]], &mut [PageOutcome::Miss; 2]).unwrap_err().kind(),
        space.put_from(&keys, &[&[1_u8][..]; 2], &mut [PageOutcome::Miss; 1]).unwrap_err().kind(),
        space.delete(&keys, &mut [false; 1]).unwrap_err().kind(),
        space.put_from(&keys, &[&[1_u8][..], &[]], &mut [PageOutcome::Miss; 2]).unwrap_err().kind(),
    ];
    assert_eq!(kinds, [ErrorKind::BadInput; 5]);
    assert_eq!(space.exists_prefix(&keys).unwrap(), 0, "half a batch was stored");
    client.close();
}

fn empty_batches_are_fine(rig: &Rig) {
    let daemon = rig.daemon();
    let (client, space) = rig.space(&[&daemon], "empty");
    let none: [Vec<u8>; 0] = [];
    assert_eq!(space.exists_prefix(&none).unwrap(), 0);
    assert_eq!(space.put_from(&none, &[], &mut []).unwrap().ok, 0);
    assert_eq!(space.get_into(&none, &mut [], &mut []).unwrap().ok, 0);
    client.close();
}

fn a_closed_client_says_so(rig: &Rig) {
    let daemon: Daemon = rig.daemon();
    let (client, space) = rig.space(&[&daemon], "closed");
    let key = keys("closed", 1);
    assert_eq!(space.put(&key[0], &[1; 5000]).unwrap(), PageOutcome::Stored);
    client.close();
    assert_eq!(space.get(&key[0]).unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(space.exists(&key, &mut [false]).unwrap_err().kind(), ErrorKind::Closed);
    memkv_tests::wait_for("its session is gone", crate::ops::PATIENCE, || {
        (daemon.control().unwrap().status().unwrap().session_count == 0).then_some(())
    })
    .unwrap();
}
