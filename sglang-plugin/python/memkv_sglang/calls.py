"""What every call of the backend has in common: it ends in time and it does not raise."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any, TypeVar

CALL_SECONDS_MAX = 9.0
"""The longest that one call may take, over all its pools and batches."""

Result = TypeVar("Result")


class Budget:
    """The time that is left of one call."""

    def __init__(self, op_seconds: float) -> None:
        self._deadline = time.monotonic() + CALL_SECONDS_MAX
        self._op_seconds = op_seconds

    def left(self) -> float:
        """Seconds until the call must be over."""
        return max(0.0, self._deadline - time.monotonic())

    def allows_another(self) -> bool:
        """Whether one more operation can run to its own deadline."""
        return self.left() >= self._op_seconds


def never_raises(fallback: Callable[..., Result]) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
    """Turns any exception of a batch method into ``fallback(*args)``, counted and logged."""

    def decorate(method: Callable[..., Result]) -> Callable[..., Result]:
        name = method.__name__

        @functools.wraps(method)
        def guarded(self: Any, *args: Any, **kwargs: Any) -> Result:
            try:
                return method(self, *args, **kwargs)
            except Exception as error:  # the contract: failures are misses
                self._incidents.failed(name, 1, f"{type(error).__name__}: {error}")
                return fallback(*args, **kwargs)

        return guarded

    return decorate
