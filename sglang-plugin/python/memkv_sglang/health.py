"""What happened, told to people and to SGLang without getting in the way.

A failure is one warning when it starts, one more every :data:`REMINDER_SECONDS` while it lasts, and one line when
there was none for :data:`QUIET_SECONDS`. With one of several servers away, calls fail and succeed in turn; that is
still one incident. Bandwidth samples wait in bounded queues until the scheduler thread collects them, each one once.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

REMINDER_SECONDS = 30.0
QUIET_SECONDS = 10.0
SAMPLES_MAX = 1024


@dataclass
class Incident:
    """One operation that fails now and then."""

    told: float
    """When it was last logged."""
    failed: float
    """When it last failed."""
    silent: int = 0
    """Keys that failed since it was last logged."""


class Incidents:
    """Counts failures by operation and logs each incident once."""

    def __init__(self, logger: logging.Logger, clock: Callable[[], float] = time.monotonic) -> None:
        self._logger = logger
        self._clock = clock
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._open: dict[str, Incident] = {}

    def failed(self, operation: str, keys: int, reason: str) -> None:
        """Notes that ``keys`` keys of ``operation`` failed for ``reason``."""
        now = self._clock()
        also = ""
        with self._lock:
            self._counts[operation] += keys
            incident = self._open.get(operation)
            if incident is not None and now - incident.told < REMINDER_SECONDS:
                incident.failed = now
                incident.silent += keys
                return
            if incident is not None and incident.silent:
                also = f" ({incident.silent} more since the last message)"
            self._open[operation] = Incident(told=now, failed=now)
        self._logger.warning(
            "memkv: %s failed for %d key(s): %s%s; the engine goes on with misses", operation, keys, reason, also
        )

    def succeeded(self, operation: str) -> None:
        """Notes that ``operation`` worked; ends its incident if the last failure is some time ago."""
        if operation not in self._open:  # the usual case, without the lock
            return
        with self._lock:
            incident = self._open.get(operation)
            if incident is None or self._clock() - incident.failed < QUIET_SECONDS:
                return
            del self._open[operation]
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
