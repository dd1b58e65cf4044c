"""What happened, told to people and to SGLang without getting in the way.

A failure is one warning when it starts, one more every :data:`REMINDER_SECONDS` while it lasts and one line when it
is over. Bandwidth samples wait in bounded queues until the scheduler thread collects them, each one once.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

REMINDER_SECONDS = 30.0
SAMPLES_MAX = 1024


class Incidents:
    """Counts failures by operation and logs each incident once."""

    def __init__(self, logger: logging.Logger, clock: Callable[[], float] = time.monotonic) -> None:
        self._logger = logger
        self._clock = clock
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._open: dict[str, tuple[float, int]] = {}

    def failed(self, operation: str, keys: int, reason: str) -> None:
        """Notes that ``keys`` keys of ``operation`` failed for ``reason``."""
        now = self._clock()
        with self._lock:
            self._counts[operation] += keys
            last, silent = self._open.get(operation, (None, 0))
            due = last is None or now - last >= REMINDER_SECONDS
            self._open[operation] = (now, 0) if due else (last, silent + keys)
        if due:
            also = f" ({silent} more since the last message)" if silent else ""
            self._logger.warning(
                "memkv: %s failed for %d key(s): %s%s; the engine goes on with misses", operation, keys, reason, also
            )

    def succeeded(self, operation: str) -> None:
        """Notes that ``operation`` works; ends its incident, if there is one."""
        if operation not in self._open:  # the usual case, without the lock
            return
        with self._lock:
            over = self._open.pop(operation, None)
        if over is not None:
            self._logger.info("memkv: %s works again", operation)

    def counts(self) -> dict[str, int]:
        """Failed keys by operation since the backend started."""
        with self._lock:
            return dict(self._counts)


class Meter:
    """Bandwidth samples on their way to SGLang's metrics. Appending and collecting take no lock."""

    def __init__(self) -> None:
        self._reads: deque[tuple[int, float]] = deque(maxlen=SAMPLES_MAX)
        self._writes: deque[tuple[int, float]] = deque(maxlen=SAMPLES_MAX)

    def read(self, pages: int, moved_bytes: int, seconds: float) -> None:
        """Adds one batch that was read."""
        _add(self._reads, pages, moved_bytes, seconds)

    def wrote(self, pages: int, moved_bytes: int, seconds: float) -> None:
        """Adds one batch that was written; pages the store had already do not count."""
        _add(self._writes, pages, moved_bytes, seconds)

    def collect(self, metrics: Any) -> Any:
        """Moves all samples into SGLang's ``StorageMetrics``."""
        for samples, pages, bandwidth in (
            (self._reads, metrics.prefetch_pgs, metrics.prefetch_bandwidth),
            (self._writes, metrics.backup_pgs, metrics.backup_bandwidth),
        ):
            while samples:
                count, gigabytes_per_second = samples.popleft()
                pages.append(count)
                bandwidth.append(gigabytes_per_second)
        return metrics


def _add(samples: deque[tuple[int, float]], pages: int, moved_bytes: int, seconds: float) -> None:
    if pages > 0 and seconds > 0:
        samples.append((pages, moved_bytes / seconds / 1e9))
