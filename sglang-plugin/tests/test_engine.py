"""SGLang's own controller and radix cache, end to end."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cpu_engine import CpuEngine, Shape, page_hashes, prompt

from conftest import AUTH_KEY, Daemon, addresses, wait_for
from rig import settings

pytestmark = pytest.mark.engine

PAGES = 24

SHAPES = [
    Shape(kind="mha", layout="page_first"),
    Shape(kind="mha", layout="layer_first", dtype=torch.float16),
    Shape(kind="mha", layout="page_first_direct", dtype=torch.float8_e4m3fn),
    Shape(kind="mha", layout="page_head"),
    Shape(kind="mla", layout="page_first"),
    Shape(kind="mla", layout="layer_first", dtype=torch.float8_e4m3fn),
    Shape(kind="mla", layout="page_first_direct"),
]


@pytest.fixture
def engine(unique: str) -> Iterator[Callable[..., CpuEngine]]:
    """Starts engines of one model and stops them."""
    started: list[CpuEngine] = []

    def start(shape: Shape, servers: list[Daemon], **extra: Any) -> CpuEngine:
        started.append(
            CpuEngine(shape, pages=2 * PAGES, extra_config=settings(servers, **extra), model_name=unique)
        )
        return started[-1]

    yield start
    for one in started:
        one.close()


@pytest.fixture(autouse=True)
def no_exception_in_sglang(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """SGLang catches and logs what a backend raises; here that is a failure."""
    yield
    raised = [record for record in caplog.records if record.exc_info]
    assert not raised, raised[0].getMessage()


@pytest.mark.parametrize("v1", [1, 0], ids=["v1", "v0"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s.kind}-{s.layout}-{str(s.dtype).removeprefix('torch.')}")
def test_pages_leave_one_engine_and_come_back_in_another(
    shape: Shape, v1: int, cluster: list[Daemon], engine: Callable[..., CpuEngine]
) -> None:
    tokens = prompt(PAGES * shape.page_tokens)
    writer = engine(shape, cluster, interface_v1=v1)
    writer.compute(tokens)
    writer.wait_for_backups()
    reader = engine(shape, cluster, interface_v1=v1)
    assert reader.prefetch(tokens) == len(tokens)
    slots = reader.load(tokens)
    assert len(slots) == len(tokens)
    assert reader.wrong_bytes(tokens, slots) == 0
    # A prompt that shares only its beginning gets only its beginning.
    fork = tokens[: 10 * shape.page_tokens] + prompt(6 * shape.page_tokens, seed=5)
    other = engine(shape, cluster, interface_v1=v1)
    assert other.prefetch(fork) == 10 * shape.page_tokens
    assert other.wrong_bytes(fork, other.load(fork)) == 0


def test_a_prompt_that_grows_is_stored_and_found_piece_by_piece(
    cluster: list[Daemon], engine: Callable[..., CpuEngine]
) -> None:
    shape = SHAPES[0]
    tokens = prompt(PAGES * shape.page_tokens, seed=3)
    writer = engine(shape, cluster)
    for pages in (5, 6, 17, PAGES):
        writer.compute(tokens[: pages * shape.page_tokens])
        writer.wait_for_backups()
    reader = engine(shape, cluster)
    assert reader.prefetch(tokens[: 9 * shape.page_tokens]) == 9 * shape.page_tokens
    assert reader.prefetch(tokens) == len(tokens)
    assert reader.wrong_bytes(tokens, reader.load(tokens)) == 0


def test_metrics_reach_sglang(cluster: list[Daemon], engine: Callable[..., CpuEngine]) -> None:
    shape = SHAPES[0]
    tokens = prompt(PAGES * shape.page_tokens, seed=8)
    one = engine(shape, cluster)
    one.backend._metrics_on = True
    one.compute(tokens)
    one.wait_for_backups()
    assert sum(one.backend.get_stats().backup_pgs) == PAGES


def test_sglangs_own_fault_injector(
    cluster: list[Daemon], engine: Callable[..., CpuEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With many calls failing, what does come back is right, and nothing hangs.

    A page needs three calls that work (set, exists, get): all of 40 pages come back, or none, once in 10^7 runs.
    """
    monkeypatch.setenv("SGLANG_TEST_HICACHE_BACKEND_RANDOM_FAILURE", "0.3")
    monkeypatch.setenv("SGLANG_TEST_HICACHE_BACKEND_RANDOM_DELAY", "0.004")
    shape = SHAPES[0]
    writer = engine(shape, cluster)
    assert type(writer.backend).__name__ == "HiCacheStorageFailureInjector"
    prompts = [prompt(shape.page_tokens, seed=100 + index) for index in range(40)]
    for tokens in prompts:
        writer.compute(tokens)
        writer.wait_for_backups()
    reader = engine(shape, cluster)
    hits = 0
    for tokens in prompts:
        hits += reader.prefetch(tokens)
        assert reader.wrong_bytes(tokens, reader.load(tokens)) == 0
    assert 0 < hits < sum(map(len, prompts))


def test_attach_and_detach_while_the_engine_lives(cluster: list[Daemon], engine: Callable[..., CpuEngine]) -> None:
    shape = SHAPES[0]
    one = engine(shape, cluster)
    extra = json.dumps({"prefetch_threshold": shape.page_tokens, **settings(cluster)})
    for round_number in range(3):
        tokens = prompt(4 * shape.page_tokens, seed=200 + round_number)
        one.compute(tokens)
        one.wait_for_backups()
        done, text = one.cache.detach_storage_backend()
        assert done, text
        assert one.backend is None
        done, text = one.cache.attach_storage_backend(
            storage_backend="dynamic",
            storage_backend_extra_config_json=extra,
            served_model_name=one.model_name,
        )
        assert done, text
    for round_number in range(3):
        tokens = prompt(4 * shape.page_tokens, seed=200 + round_number)
        reader = engine(shape, cluster)
        assert reader.prefetch(tokens) == len(tokens)
        assert reader.wrong_bytes(tokens, reader.load(tokens)) == 0


def test_a_failed_attach_says_why_and_leaves_the_engine_alone(
    cluster: list[Daemon], engine: Callable[..., CpuEngine], caplog: pytest.LogCaptureFixture
) -> None:
    shape = SHAPES[0]
    one = engine(shape, cluster)
    assert one.cache.detach_storage_backend()[0]
    done, text = one.cache.attach_storage_backend(
        storage_backend="dynamic",
        storage_backend_extra_config_json=json.dumps(settings(cluster, memkv_auth_key="11" * 32)),
        served_model_name=one.model_name,
    )
    assert not done
    assert "key" in text
    caplog.clear()  # SGLang logs the refusal with its traceback
    assert one.cache.attach_storage_backend(
        storage_backend="dynamic",
        storage_backend_extra_config_json=json.dumps(settings(cluster)),
        served_model_name=one.model_name,
    )[0]


def test_clear_through_sglang(cluster: list[Daemon], engine: Callable[..., CpuEngine]) -> None:
    shape = SHAPES[0]
    tokens = prompt(4 * shape.page_tokens, seed=9)
    one = engine(shape, cluster)
    one.compute(tokens)
    one.wait_for_backups()
    assert one.cache.clear_storage_backend()
    assert engine(shape, cluster).prefetch(tokens) == 0


def test_the_engine_outlives_its_servers(
    daemons: Callable[..., Daemon], engine: Callable[..., CpuEngine], caplog: pytest.LogCaptureFixture
) -> None:
    servers = [daemons() for _ in range(3)]
    shape = SHAPES[0]
    prompts = [prompt(4 * shape.page_tokens, seed=300 + index) for index in range(6)]
    writer = engine(shape, servers)
    for tokens in prompts:
        writer.compute(tokens)
        writer.wait_for_backups()
    servers[2].kill()
    reader = engine(shape, servers)
    hits = 0
    for tokens in prompts:
        hits += reader.prefetch(tokens)
        assert reader.wrong_bytes(tokens, reader.load(tokens)) == 0
        reader.compute(tokens)  # what is missing is computed again
        reader.wait_for_backups()
        slots = reader.load(tokens)
        assert len(slots) == len(tokens)
        assert reader.wrong_bytes(tokens, slots) == 0
    assert hits < sum(map(len, prompts))
    for tokens in prompts:
        assert reader.wrong_bytes(tokens, reader.load(tokens)) == 0
    servers[2].start()
    again = prompt(4 * shape.page_tokens, seed=400)

    def stored() -> bool:
        names = page_hashes(again, None, shape.page_tokens)
        reader.backend.batch_set_v1(names, reader.controller.storage_host_pool.free_slots[: len(again)])
        return reader.backend.batch_exists(names) == 4

    wait_for(stored, "the server's return")


def test_the_hash_of_the_demonstration_is_sglangs(caplog: pytest.LogCaptureFixture) -> None:
    """Only where SGLang's own can be compiled is there something to compare."""
    from array import array

    from sglang.srt.mem_cache.cpp_utils import native_hash

    tokens = array("q", prompt(40, seed=1))
    try:
        expected = native_hash.get_native_hash(tokens, None, 8)
    except RuntimeError:
        pytest.skip("SGLang's page hash cannot be compiled here")
    assert page_hashes(tokens, None, 8) == expected
    prior = bytes.fromhex(expected[1])
    assert page_hashes(tokens[16:], prior, 8) == expected[2:]
    logging.getLogger(__name__).debug("compared %d hashes", len(expected))


def test_the_demonstration(daemons: Callable[..., Daemon], tmp_path: Path) -> None:
    """Two processes that share nothing but the servers; then one server less."""
    servers = [daemons() for _ in range(3)]
    program = Path(__file__).resolve().parents[1] / "demo" / "engine.py"
    environment = {**os.environ, "MEMKV_SERVERS": addresses(servers), "MEMKV_AUTH_KEY": AUTH_KEY}
    size = ["--pages", "24", "--prompts", "6", "--layers", "2", "--heads", "1", "--page-tokens", "16"]

    def run(*arguments: str) -> dict[str, Any]:
        command = [sys.executable, str(program), *arguments, *size]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, cwd=tmp_path)
        assert done.stdout.count("\n") == 1, done.stderr
        report = json.loads(done.stdout)
        assert done.returncode == (0 if report["ok"] else 1), done.stderr
        return report

    written = run("write")
    assert (written["ok"], written["pages_stored"]) == (True, 24)
    read = run("read")
    assert (read["ok"], read["pages_hit"], read["bytes_wrong"], read["exceptions"]) == (True, 24, 0, 0)
    servers[0].kill()
    after = run("read", "--after-kill")
    assert (after["ok"], after["bytes_wrong"], after["exceptions"]) == (True, 0, 0)
    assert after["pages_hit"] < 24
