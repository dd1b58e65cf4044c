"""An engine written in Rust and SGLang share their pages, both ways, byte for byte."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cpu_engine import CpuEngine, Shape, page_content, prompt

from conftest import AUTH_KEY, ROOT, Daemon, addresses, server_binary
from rig import settings

PAGES = 20

SHAPES = [
    Shape(kind="mha", layout="page_first"),
    Shape(kind="mha", layout="layer_first", dtype=torch.float16),
    Shape(kind="mha", layout="page_first_direct", dtype=torch.float8_e4m3fn),
    Shape(kind="mha", layout="page_head"),
    Shape(kind="mla", layout="page_first"),
    Shape(kind="mla", layout="layer_first", dtype=torch.float8_e4m3fn),
    Shape(kind="mla", layout="page_first_direct"),
]
by_shape = pytest.mark.parametrize(
    "shape", SHAPES, ids=lambda s: f"{s.kind}-{s.layout}-{str(s.dtype).removeprefix('torch.')}"
)


@pytest.fixture
def engine(unique: str) -> Iterator[Callable[..., CpuEngine]]:
    """Starts SGLang engines of one model and stops them."""
    started: list[CpuEngine] = []

    def start(shape: Shape, servers: list[Daemon], **extra: Any) -> CpuEngine:
        started.append(
            CpuEngine(shape, pages=2 * PAGES, extra_config=settings(servers, **extra), model_name=unique)
        )
        return started[-1]

    yield start
    for one in started:
        one.close()


def rust_engine(
    mode: str, shape: Shape, model: str, servers: list[Daemon], tokens: list[int], content: Path, **more: Any
) -> dict[str, Any]:
    """Runs the engine in Rust; what it says."""
    program = Path(server_binary()).parent / "examples" / "interop"
    if not program.exists():
        pytest.fail(f"no engine at {program}: run `cargo build -p memkv-offload --example interop`", pytrace=False)
    sizes = {"kv_heads": shape.heads, "head_dim": shape.head_dim}
    if shape.kind == "mla":
        rope = shape.head_dim // 4
        sizes = {"kv_lora_rank": shape.heads * shape.head_dim - rope, "qk_rope_head_dim": rope}
    task = {
        "mode": mode,
        "model": model,
        "kind": shape.kind,
        "layout": shape.layout,
        "dtype": str(shape.dtype).removeprefix("torch."),
        "layers": shape.layers,
        "page_tokens": shape.page_tokens,
        **sizes,
        "tokens": tokens,
        "content": str(content),
        **more,
    }
    environment = {**os.environ, "MEMKV_SERVERS": addresses(servers), "MEMKV_AUTH_KEY": AUTH_KEY}
    done = subprocess.run(
        [str(program)], input=json.dumps(task), env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def meaning(shape: Shape, tokens: list[int], pages: int) -> bytes:
    """The first pages of a prompt, in the order layer, half, token, number."""
    return b"".join(page_content(shape, tokens, page).numpy().tobytes() for page in range(pages))


def kv_dtype(engine: CpuEngine) -> dict[str, str]:
    """What SGLang was started with, where the tensors do not tell."""
    description = engine.backend._stores["kv"][0].space.description
    return {"kv_dtype": description["kv_dtype"]} if "kv_dtype" in description else {}


@by_shape
def test_rust_reads_what_sglang_wrote(
    shape: Shape, cluster: list[Daemon], engine: Callable[..., CpuEngine], unique: str, tmp_path: Path
) -> None:
    tokens = prompt(PAGES * shape.page_tokens)
    writer = engine(shape, cluster)
    writer.compute(tokens)
    writer.wait_for_backups()
    content = tmp_path / "content"
    found = rust_engine("read", shape, unique, cluster, tokens, content, **kv_dtype(writer))
    space = writer.backend._stores["kv"][0].space
    assert (found["space"], found["description"]) == (space.id, space.description)
    assert found["found_pages"] == PAGES
    assert content.read_bytes() == meaning(shape, tokens, PAGES)
    # A prompt that shares only its beginning gets only its beginning.
    fork = tokens[: 7 * shape.page_tokens] + prompt(5 * shape.page_tokens, seed=5)
    found = rust_engine("read", shape, unique, cluster, fork, content, **kv_dtype(writer))
    assert found["found_pages"] == 7
    assert content.read_bytes() == meaning(shape, tokens, 7)


@by_shape
@pytest.mark.parametrize("v1", [1, 0], ids=["v1", "v0"])
def test_sglang_reads_what_rust_wrote(
    shape: Shape, v1: int, cluster: list[Daemon], engine: Callable[..., CpuEngine], unique: str, tmp_path: Path
) -> None:
    tokens = prompt(PAGES * shape.page_tokens)
    reader = engine(shape, cluster, interface_v1=v1)
    content = tmp_path / "content"
    content.write_bytes(meaning(shape, tokens, PAGES))
    written = rust_engine("write", shape, unique, cluster, tokens, content, **kv_dtype(reader))
    assert written["stored_pages"] == PAGES
    assert reader.prefetch(tokens) == len(tokens)
    slots = reader.load(tokens)
    assert len(slots) == len(tokens)
    assert reader.wrong_bytes(tokens, slots) == 0


def test_each_continues_the_others_prompt(
    cluster: list[Daemon], engine: Callable[..., CpuEngine], unique: str, tmp_path: Path
) -> None:
    shape = SHAPES[0]
    tokens = prompt(PAGES * shape.page_tokens, seed=2)
    half = tokens[: PAGES // 2 * shape.page_tokens]
    first = engine(shape, cluster)
    first.compute(half)
    first.wait_for_backups()
    content = tmp_path / "content"
    content.write_bytes(meaning(shape, tokens, PAGES))
    # What SGLang has written is not computed again, and not written again.
    written = rust_engine("write", shape, unique, cluster, tokens, content)
    assert (written["found_pages"], written["prefetched_pages"]) == (PAGES // 2, PAGES // 2)
    assert written["stored_pages"] == PAGES // 2
    second = engine(shape, cluster)
    assert second.prefetch(tokens) == len(tokens)
    assert second.wrong_bytes(tokens, second.load(tokens)) == 0


def test_other_models_and_other_tenants_share_nothing(
    cluster: list[Daemon], unique: str, tmp_path: Path
) -> None:
    shape = SHAPES[0]
    tokens = prompt(PAGES * shape.page_tokens, seed=3)
    content = tmp_path / "content"
    content.write_bytes(meaning(shape, tokens, PAGES))
    assert rust_engine("write", shape, unique, cluster, tokens, content)["stored_pages"] == PAGES

    def read(model: str, **more: Any) -> int:
        return rust_engine("read", shape, model, cluster, tokens, content, **more)["found_pages"]

    assert read(unique) == PAGES
    assert read(unique + "/other") == 0
    assert read(unique, cache_salt="tenant") == 0


def test_the_vectors_are_what_the_plugin_says() -> None:
    vectors = ROOT / "crates" / "offload" / "tests" / "vectors"
    spec = importlib.util.spec_from_file_location("gen_spaces", vectors / "gen_spaces.py")
    assert spec is not None and spec.loader is not None
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    assert json.loads((vectors / "spaces.json").read_text()) == json.loads(json.dumps(generator.cases()))
