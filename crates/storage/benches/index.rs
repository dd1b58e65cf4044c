//! Lookups and inserts without a network: `cargo bench -p memkv-storage`.

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use memkv_core::{Key, PageHasher, PageMeta, SpaceDescription};
use memkv_storage::{Engine, EngineConfig, HashedKey, Published, Space};
use std::hint::black_box;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

const PAGES: u32 = 100_000;

fn name(n: u32) -> Vec<u8> {
    format!("{n:0>100}").into_bytes()
}

fn put(engine: &Engine, space: &Arc<Space>, key: HashedKey<'_>) -> Published {
    let mut filling = engine.reserve(space, key, 8, 0).expect("the store is large enough");
    let bytes = filling.bytes_mut();
    bytes.copy_from_slice(&key.digest.to_le_bytes());
    let meta = PageMeta { len: 8, checksum: PageHasher::oneshot(key.digest, bytes), ..PageMeta::default() };
    filling.verify(meta).expect("the checksum was computed from the bytes").publish(0)
}

fn at_once<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("memory does not wait"),
    }
}

fn bench(c: &mut Criterion) {
    let config = EngineConfig { page_bytes_max: 1 << 20, ..EngineConfig::with_dram(1 << 30) };
    let engine = Engine::new(config).expect("a gigabyte of address space");
    let space = engine.open_space(SpaceDescription::named("bench").expect("valid")).expect("the first space");
    let names: Vec<_> = (0..PAGES).map(name).collect();
    let keys: Vec<_> = names
        .iter()
        .map(|name| HashedKey::new(space.id(), Key::new(name).expect("100 bytes are a key")))
        .collect();
    for key in &keys {
        put(&engine, &space, *key);
    }
    for count in [1, 128, 1024] {
        let mut group = c.benchmark_group(format!("{count} keys"));
        group.throughput(Throughput::Elements(count as u64));
        let mut batches = keys.chunks_exact(count).cycle();
        let mut found = vec![false; count];
        group.bench_function("exists", |b| {
            b.iter(|| engine.exists_batch(&space, black_box(batches.next().expect("endless")), &mut found));
        });
        let mut pins = Vec::new();
        group.bench_function("pin and unpin", |b| {
            b.iter(|| {
                at_once(engine.pin_batch(&space, batches.next().expect("endless"), 1, &mut pins));
                pins.clear();
            });
        });
        group.finish();
    }
    let mut next = keys.iter().cycle();
    let mut removed = [false];
    c.bench_function("put of an 8-byte page", |b| {
        b.iter_batched(
            || {
                let key = *next.next().expect("endless");
                engine.delete_batch(&space, &[key], &mut removed);
                key
            },
            |key| put(&engine, &space, key),
            BatchSize::SmallInput,
        );
    });
}

criterion_group!(benches, bench);
criterion_main!(benches);
