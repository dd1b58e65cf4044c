"""The demonstration: SGLang's cache stack on MemKV, in two processes that share nothing else.

``engine.py write`` computes pages, lets SGLang back them up and exits. ``engine.py read`` starts with an empty cache,
lets SGLang prefetch the same prompt and compares every byte. ``engine.py read --after-kill`` does so while servers are
missing: it must end with misses, not with an exception.

Servers and key come from ``MEMKV_*``. Talk goes to stderr; stdout gets one line of JSON. Exit code 0: as expected;
1: wrong bytes, or pages are missing that should be there.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
import warnings
from typing import Any

warnings.filterwarnings("ignore")


def main() -> int:
    options = _arguments()
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="  %(name)s: %(message)s")
    logging.getLogger("memkv_sglang").setLevel(logging.INFO if options.verbose else logging.WARNING)
    # What SGLang says about the missing GPU is of no interest here.
    for noisy in ("server_args", "arg_groups", "mem_cache.l2_transfer", "utils.cpp_extension_loader"):
        logging.getLogger(f"sglang.srt.{noisy}").setLevel(logging.ERROR)
    _say("starting SGLang's cache stack (device pool, host pool, controller, radix cache) on the CPU")
    from cpu_engine import CpuEngine, Shape

    shape = Shape(
        layers=options.layers,
        heads=options.heads,
        head_dim=128,
        page_tokens=options.page_tokens,
        layout=options.layout,
    )
    engine = CpuEngine(
        shape,
        pages=options.pages + 8,
        extra_config={"interface_v1": 0 if options.v0 else 1},
        model_name=options.model,
    )
    try:
        run = _write if options.command == "write" else _read
        report = run(engine, shape, options)
    finally:
        engine.close()
    report = {"command": options.command, "page_bytes": shape.page_bytes, **report}
    print(json.dumps(report), flush=True)
    return 0 if report["ok"] else 1


def _write(engine: Any, shape: Any, options: argparse.Namespace) -> dict[str, Any]:
    prompts = _prompts(shape, options)
    _say(f"computing {len(prompts)} prompts, {options.pages} pages of {shape.page_bytes / 2**20:.2f} MiB")
    watch = Stopwatch(engine.backend)
    for tokens in prompts:
        engine.compute(tokens)
    engine.wait_for_backups(options.timeout)
    stored = sum(engine.backend.batch_exists(_hashes(tokens, shape)) for tokens in prompts)
    size = stored * shape.page_bytes
    _say(f"backed up {stored} of {options.pages} pages at {_rate(size, watch.seconds):.2f} GB/s")
    return {
        "prompts": len(prompts),
        "pages": options.pages,
        "pages_stored": stored,
        "bytes": size,
        "seconds": round(watch.seconds, 6),
        "gb_per_s": round(_rate(size, watch.seconds), 3),
        "failures": engine.backend.stats()["failures"],
        "ok": stored == options.pages,
    }


def _read(engine: Any, shape: Any, options: argparse.Namespace) -> dict[str, Any]:
    prompts = _prompts(shape, options)
    exceptions = ExceptionCount()
    logging.getLogger().addHandler(exceptions)
    _say(f"prefetching {len(prompts)} prompts, {options.pages} pages, into an empty cache")
    watch = Stopwatch(engine.backend)
    hits = [engine.prefetch(tokens, options.timeout) // shape.page_tokens for tokens in prompts]
    seconds, hit = watch.seconds, sum(hits)
    size = hit * shape.page_bytes
    _say(f"{hit} of {options.pages} pages came back at {_rate(size, seconds):.2f} GB/s; comparing every byte")
    wrong = sum(engine.wrong_bytes(tokens, engine.load(tokens)) for tokens in prompts)
    alive = hit
    if options.after_kill:
        names = [name for tokens in prompts for name in _hashes(tokens, shape)]
        alive = sum(engine.backend.exists(name) for name in names)
        _say(f"a server is gone: {alive} pages live on the others, but a prefix is usable up to its first gap only")
        _say("SGLang computes what is missing and goes on")
        for tokens in prompts:
            engine.compute(tokens)
        engine.wait_for_backups(options.timeout)
        wrong += sum(engine.wrong_bytes(tokens, engine.load(tokens)) for tokens in prompts)
    _say(f"{wrong} bytes wrong, {exceptions.count} exceptions")
    return {
        "prompts": len(prompts),
        "pages": options.pages,
        "pages_hit": hit,
        "pages_alive": alive,
        "hit_ratio": round(hit / options.pages, 4),
        "bytes": size,
        "bytes_wrong": wrong,
        "seconds": round(seconds, 6),
        "gb_per_s": round(_rate(size, seconds), 3),
        "exceptions": exceptions.count,
        "failures": engine.backend.stats()["failures"],
        "ok": wrong == 0 and exceptions.count == 0 and (hit == options.pages or options.after_kill),
    }


def _prompts(shape: Any, options: argparse.Namespace) -> list[list[int]]:
    """The prompts, the last one with what is left over; equal options give equal prompts in every process."""
    from cpu_engine import prompt

    count = max(1, min(options.prompts, options.pages))
    each = options.pages // count
    sizes = [each] * (count - 1) + [options.pages - each * (count - 1)]
    return [prompt(size * shape.page_tokens, options.seed * 1_000 + index) for index, size in enumerate(sizes)]


class Stopwatch:
    """Adds up the seconds that the backend spends moving pages; SGLang calls it from its own threads."""

    METHODS = ("batch_get_v1", "batch_set_v1", "batch_get", "batch_set")

    def __init__(self, backend: Any) -> None:
        self.seconds = 0.0
        for name in self.METHODS:
            setattr(backend, name, self._timed(getattr(backend, name)))

    def _timed(self, method: Any) -> Any:
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - start

        return timed


class ExceptionCount(logging.Handler):
    """Counts exceptions that SGLang caught and logged."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += record.exc_info is not None


def _hashes(tokens: list[int], shape: Any) -> list[str]:
    from array import array

    from sglang.srt.mem_cache.utils import get_hash_str

    return get_hash_str(array("q", tokens), None, page_size=shape.page_tokens)


def _rate(size: int, seconds: float) -> float:
    return size / seconds / 1e9 if seconds else 0.0


def _say(text: str) -> None:
    print(f"  {text}", file=sys.stderr, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("write", "read"))
    parser.add_argument("--pages", type=int, default=256, help="pages of all prompts together (default: 256)")
    parser.add_argument("--prompts", type=int, default=8, help="prompts they are divided over (default: 8)")
    parser.add_argument("--page-tokens", type=int, default=64, help="tokens per page (default: 64)")
    parser.add_argument("--layers", type=int, default=8, help="layers of the model (default: 8)")
    parser.add_argument("--heads", type=int, default=4, help="KV heads of the model (default: 4)")
    parser.add_argument("--layout", default="page_first", help="SGLang's --hicache-mem-layout (default: page_first)")
    parser.add_argument("--model", default="memkv/demo", help="served model name")
    parser.add_argument("--seed", type=int, default=1, help="which prompts")
    parser.add_argument("--v0", action="store_true", help="SGLang's copying interface instead of addresses")
    parser.add_argument("--after-kill", action="store_true", help="servers are missing: misses are fine")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds for the backup or prefetch")
    parser.add_argument("--verbose", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
