//! Pages whose bytes were altered in the server's memory: a miss or an error, never a page.

use crate::ops::{assert_all, assert_hits, get, put};
use crate::rig::{Rig, tests};
use memkv_client::PageOutcome;
use memkv_tests::pages::{keys, page, pages};
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

tests![altered_pages_are_never_delivered];

/// Finds the page in the file of the server's memory, and turns one bit of it, `at` bytes from its beginning.
fn alter(memory: &File, page: &[u8], at: usize) {
    let len = memory.metadata().unwrap().len();
    let mut window = vec![0; 4 << 20];
    for begin in (0..len).step_by(window.len()) {
        let part = window.len().min((len - begin) as usize);
        memory.read_exact_at(&mut window[..part], begin).unwrap();
        // Slots begin at whole blocks.
        let found = (0..part).step_by(4096).find(|place| window[*place..part].starts_with(&page[..64]));
        if let Some(place) = found {
            let place = begin + (place + at) as u64;
            return memory.write_all_at(&[page[at] ^ 1], place).unwrap();
        }
    }
    panic!("the page is not in the server's memory");
}

fn altered_pages_are_never_delivered(rig: &Rig) {
    let folder = tempfile::tempdir_in(Path::new("/dev/shm")).unwrap();
    let backing = folder.path().join("pages");
    let daemon = rig.daemon_with("64MiB", &["--memory-backing", backing.to_str().unwrap()]);
    for text in ["checksum", "corrupt", "took out", "not match"] {
        daemon.allow(text);
    }
    let (client, space) = rig.space(&[&daemon], "altered");
    let len = 70_000;
    let all = keys("altered", 12);
    assert_all(&put(&space, &all, &pages(&all, len)), PageOutcome::Stored);
    let memory = File::options().read(true).write(true).open(backing.join("memkv.arena")).unwrap();
    let places = [0, 1, len / 2, len - 1];
    for (key, at) in all.iter().zip(places) {
        alter(&memory, &page(key, len), at);
    }
    for _ in 0..3 {
        for (i, (outcome, bytes)) in get(&space, &all, len).iter().enumerate() {
            if i < places.len() {
                assert!(matches!(outcome, PageOutcome::Corrupt | PageOutcome::Miss), "{i}: {outcome:?}");
            } else {
                assert!(*outcome == PageOutcome::Hit && *bytes == page(&all[i], len), "{i}: {outcome:?}");
            }
        }
        assert_eq!(space.get(&all[1]).unwrap(), None);
    }
    // A page that was put anew is a page again.
    let mut removed = [false; 12];
    space.delete(&all, &mut removed).unwrap();
    assert_all(&put(&space, &all, &pages(&all, len)), PageOutcome::Stored);
    assert_hits(&space, &all, len);
    client.close();
}
