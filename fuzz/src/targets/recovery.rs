//! Starts over damaged files. Damage is a miss: the engine starts (or says that a file is of a later version), and a page that it serves
//! has the bytes that were put under its key. Pages of a memory file that was closed are served without a look at them, so there
//! the checksum that goes with a page has to give damage away to the reader.

use crate::bytes::Bytes;
use memkv_core::{Key, PageHasher, PageMeta, SpaceDescription};
use memkv_nvme::fuzzing::repair;
use memkv_storage::{
    DriveConfig, Engine, EngineConfig, EngineError, HashedKey, IoChoice, NvmeConfig, NvmeMode, Space,
};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};

const PAGE_BYTES_MAX: u32 = 64 << 10;
const PAGES: usize = 12;
const BLOCK: usize = 4096;

/// A file's blocks that are not zero.
struct Image {
    name: String,
    len: u64,
    blocks: Vec<(u64, Vec<u8>)>,
}

fn directory() -> TempDir {
    let memory = Path::new("/dev/shm");
    let made = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    made.expect("the system has room for a directory")
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("the system has a poller")
}

fn on_drives(path: PathBuf) -> EngineConfig {
    let drives = vec![DriveConfig { path, quota_bytes: 8 << 20 }];
    let nvme = NvmeConfig {
        drives,
        segment_bytes: 1 << 20,
        mode: NvmeMode::WriteThrough,
        io: IoChoice::Threads,
        queue_depth: 4,
        sync: false,
        admit_unread: true,
    };
    EngineConfig { page_bytes_max: PAGE_BYTES_MAX, nvme: Some(nvme), ..EngineConfig::with_dram(8 << 20) }
}

fn in_file(path: PathBuf) -> EngineConfig {
    EngineConfig { page_bytes_max: PAGE_BYTES_MAX, backing: Some(path), ..EngineConfig::with_dram(8 << 20) }
}

fn description() -> SpaceDescription {
    SpaceDescription::named("fuzz").expect("the name is short")
}

fn key(page: usize) -> String {
    format!("page/{page}")
}

fn content(page: usize) -> Vec<u8> {
    let len = [4096, 20_000, 4000, 19_999][page % 4];
    (0..len).map(|at| u8::try_from((at * 7 + page * 31) % 251).unwrap_or(0)).collect()
}

/// Puts all pages, and deletes one of them again.
fn fill(engine: &Engine, space: &Arc<Space>) {
    let keys: Vec<String> = (0..PAGES).map(key).collect();
    let hashed = |page: usize| {
        HashedKey::new(space.id(), Key::new(keys[page].as_bytes()).expect("a short text is a key"))
    };
    for page in 0..PAGES {
        let bytes = content(page);
        let len = u32::try_from(bytes.len()).expect("pages are short");
        let mut filling = engine.reserve(space, hashed(page), len, 0).expect("there is room for all pages");
        filling.bytes_mut().copy_from_slice(&bytes);
        let mut meta = PageMeta { len, codec: 0, flags: 0, checksum: 0 };
        meta.checksum = meta.checksum_of(PageHasher::oneshot(filling.digest(), &bytes));
        filling.verify(meta).expect("the checksum was just computed").publish(1000);
    }
    let all: Vec<HashedKey<'_>> = (0..PAGES).map(hashed).collect();
    runtime().block_on(async {
        engine.persist(space, &all).await;
        engine.delete_batch(space, &all[..1], &mut [false]);
        engine.settle_removals().await;
    });
}

/// The files of an engine that was filled and closed.
fn images(config: fn(PathBuf) -> EngineConfig) -> Vec<Image> {
    let directory = directory();
    let (engine, _) = Engine::open(config(directory.path().to_owned())).expect("an empty directory is fine");
    let space = engine.open_space(description()).expect("it is the first space");
    fill(&engine, &space);
    engine.close();
    drop((engine, space));
    let mut images = Vec::new();
    for entry in std::fs::read_dir(directory.path()).expect("the directory is there").flatten() {
        let bytes = std::fs::read(entry.path()).expect("the engine's files can be read");
        let blocks = bytes.chunks(BLOCK).zip((0..).step_by(BLOCK));
        let blocks = blocks.filter(|(block, _)| block.iter().any(|byte| *byte != 0));
        images.push(Image {
            name: entry.file_name().to_string_lossy().into_owned(),
            len: bytes.len() as u64,
            blocks: blocks.map(|(block, at)| (at, block.to_vec())).collect(),
        });
    }
    images.sort_by(|a, b| a.name.cmp(&b.name));
    images
}

/// Writes the files into a directory, with the changes that the fuzzer's bytes choose.
fn damage(images: &[Image], mut bytes: Bytes<'_>, into: &Path) {
    let mut files: Vec<Vec<u8>> = images.iter().map(assemble).collect();
    let repaired = bytes.flip();
    while !bytes.is_empty() {
        let which = bytes.below(images.len());
        let (image, file) = (&images[which], &mut files[which]);
        let place = usize::from(u16::from_le_bytes(bytes.array()));
        let Some((start, block)) = image.blocks.get(place % image.blocks.len().max(1)) else { continue };
        let at = usize::try_from(*start).unwrap_or(0)
            + usize::from(u16::from_le_bytes(bytes.array())) % block.len();
        match bytes.byte() {
            0 => file.truncate(at),
            1 => {
                // A torn write: a block that never came.
                let end = file.len().min(at / BLOCK * BLOCK + BLOCK);
                file.get_mut(at / BLOCK * BLOCK..end).unwrap_or_default().fill(0);
            }
            with => file.get_mut(at..at + 1).unwrap_or_default().iter_mut().for_each(|byte| *byte ^= with),
        }
    }
    for (image, mut file) in images.iter().zip(files) {
        if repaired && image.name.ends_with(".segment") {
            repair(&mut file);
        }
        std::fs::write(into.join(&image.name), file).expect("the system has room for a small file");
    }
}

fn assemble(image: &Image) -> Vec<u8> {
    let mut file = vec![0; usize::try_from(image.len).expect("a small file fits memory")];
    for (at, block) in &image.blocks {
        let at = usize::try_from(*at).expect("a small file fits memory");
        file[at..at + block.len()].copy_from_slice(block);
    }
    file
}

fn run(images: &[Image], input: &[u8], config: fn(PathBuf) -> EngineConfig) {
    let directory = directory();
    let is_trusted = config(PathBuf::new()).backing.is_some();
    damage(images, Bytes::new(input), directory.path());
    let (engine, _report) = match Engine::open(config(directory.path().to_owned())) {
        Ok(opened) => opened,
        Err(EngineError::Watermarks { low, high }) => {
            unreachable!("the marks {low} and {high} are the defaults")
        }
        Err(error) => {
            let text = error.to_string();
            assert!(text.contains("version"), "only a later version keeps the engine from starting: {text}");
            return;
        }
    };
    let space = engine.open_space(description()).expect("a space can be opened again");
    let keys: Vec<String> = (0..PAGES).map(key).collect();
    let checked = keys.iter().map(|key| Key::new(key.as_bytes()).expect("a short text is a key"));
    let hashed: Vec<HashedKey<'_>> = checked.map(|key| HashedKey::new(space.id(), key)).collect();
    let mut pins = Vec::new();
    runtime().block_on(engine.pin_batch(&space, &hashed, 2000, &mut pins));
    for (page, pin) in pins.iter().enumerate() {
        let Some(pin) = pin else { continue };
        let computed = pin.meta().checksum_of(PageHasher::oneshot(hashed[page].digest, pin));
        assert!(computed == pin.meta().checksum || is_trusted, "page {page} comes from a drive unverified");
        if computed == pin.meta().checksum {
            assert_eq!(**pin, *content(page), "page {page} has other bytes than were put");
        }
    }
    if input.len() <= 1 {
        assert_eq!(pins.iter().flatten().count(), PAGES - 1, "undamaged files give all pages");
    }
    drop(pins);
    engine.close();
}

/// The bytes choose changes to the files of a drive.
pub(super) fn drives(input: &[u8]) {
    static IMAGES: OnceLock<Vec<Image>> = OnceLock::new();
    run(IMAGES.get_or_init(|| images(on_drives)), input, on_drives);
}

/// The bytes choose changes to a memory file.
pub(super) fn arena(input: &[u8]) {
    static IMAGES: OnceLock<Vec<Image>> = OnceLock::new();
    run(IMAGES.get_or_init(|| images(in_file)), input, in_file);
}

pub(super) fn drive_seeds() -> Vec<Vec<u8>> {
    vec![
        vec![],
        vec![0, 0, 0, 0, 12, 0, 9, 2, 1, 0, 100, 0, 1],
        vec![1, 2, 2, 0, 70, 0, 4, 2, 3, 0, 28, 0, 255],
        vec![1, 2, 1, 0, 60, 0, 3, 2, 1, 0, 104, 0, 1],
        vec![0, 2, 5, 0, 0, 0, 0],
    ]
}

pub(super) fn arena_seeds() -> Vec<Vec<u8>> {
    vec![
        vec![],
        vec![0, 0, 0, 0, 16, 0, 7],
        vec![0, 0, 2, 0, 40, 0, 255, 0, 3, 0, 9, 0, 1],
        vec![0, 0, 1, 0, 0, 0, 4],
    ]
}
