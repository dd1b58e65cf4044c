"""Types of the native module."""

from collections.abc import Mapping, Sequence
from os import PathLike
from types import TracebackType
from typing import Any, Protocol

__version__: str

class _Array(Protocol):
    """A NumPy array or CPU tensor of 64-bit integers."""

    def tobytes(self) -> bytes: ...

Key = str | bytes
Integers = Sequence[int] | bytes | _Array | Any

class MemKVError(Exception): ...
class ConfigError(MemKVError): ...
class BadInputError(MemKVError): ...
class UnauthenticatedError(MemKVError): ...
class VersionMismatchError(MemKVError): ...
class UnavailableError(MemKVError): ...
class DeadlineError(MemKVError): ...
class UnknownSpaceError(MemKVError): ...
class ProtocolError(MemKVError): ...
class NotSupportedError(MemKVError): ...
class ClosedError(MemKVError): ...
class ForkedError(MemKVError): ...

class BatchResult:
    """What became of a batch."""

    @property
    def flags(self) -> list[bool]:
        """One flag per key: read, stored (now or before), found or removed."""
    @property
    def moved_pages(self) -> int:
        """Pages whose bytes moved."""
    @property
    def moved_bytes(self) -> int:
        """Bytes that moved."""
    @property
    def failed(self) -> int:
        """Keys that failed for another reason than a plain miss."""
    @property
    def reason(self) -> str:
        """The most frequent reason of a failure; empty if nothing failed."""

class PageMap:
    """Where the pages of a host pool lie: fixed pieces, each with a constant stride from page to page."""

    def __init__(
        self, bases: Sequence[int], strides: Sequence[int], sizes: Sequence[int], *, page_tokens: int, pages: int
    ) -> None: ...
    @property
    def page_bytes(self) -> int: ...

class Space:
    """One space of the store, over the connections of the client that opened it."""

    @property
    def id(self) -> str:
        """The space's identity, 32 hex digits."""
    @property
    def description(self) -> dict[str, str]: ...
    def exists(self, keys: Sequence[Key]) -> BatchResult: ...
    def exists_prefix(self, keys: Sequence[Key]) -> int: ...
    def get_pages(self, keys: Sequence[Key], pages: PageMap, first_slots: bytes, seconds: float) -> BatchResult:
        """Reads one page per key into a pool; ``first_slots`` holds each page's first token slot as native int64."""
    def put_pages(
        self, keys: Sequence[Key], pages: PageMap, first_slots: bytes, seconds: float, position: int = 0
    ) -> BatchResult:
        """Writes one page per key from a pool; ``position`` is the first key's place in its chain, from 1, or 0."""
    def get_into(
        self, keys: Sequence[Key], ptrs: Integers, sizes: Integers, seconds: float | None = None
    ) -> BatchResult:
        """Reads one page per key to ``len(ptrs) / len(keys)`` pieces of memory each."""
    def put_from(
        self, keys: Sequence[Key], ptrs: Integers, sizes: Integers, seconds: float | None = None, position: int = 0
    ) -> BatchResult:
        """Writes one page per key from ``len(ptrs) / len(keys)`` pieces of memory each."""
    def remove(self, keys: Sequence[Key]) -> BatchResult: ...
    def clear(self) -> tuple[int, int]:
        """Removes every page of the space from every server; returns pages and bytes."""

class Client:
    """A client of a MemKV cluster.

    ``servers`` is text (``"host:port,host:port"``) or a list of it; without it the environment decides. ``space`` names
    the space of the methods below, by a name or by its fields; ``None`` opens none. ``config`` is the path of a YAML
    file. ``overrides`` are settings by name, for example ``op_timeout="2s"``; they win over file and environment.

    Bad arguments raise. Servers that fail are misses and ``False``.
    """

    def __init__(
        self,
        servers: str | Sequence[str] | None = None,
        *,
        space: str | Mapping[str, str] | None = "default",
        config: str | PathLike[str] | None = None,
        **overrides: Any,
    ) -> None: ...
    def __enter__(self) -> Client: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...
    @property
    def op_seconds(self) -> float:
        """The deadline of one operation."""
    def register_buffer(self, ptr: int, size: int) -> bool:
        """Announces memory that pages will be read into and written from. It must stay allocated until it is taken back
        or the client is closed. True if its pages move by RDMA without a copy; they move in any case."""
    def unregister_buffer(self, ptr: int) -> None:
        """Takes an announcement back. When it returns, no server reaches the memory any more."""
    def batch_set_from(self, keys: Sequence[Key], ptrs: Integers, sizes: Integers) -> list[bool]:
        """Stores ``sizes[i]`` bytes at ``ptrs[i]`` under ``keys[i]``. A page that is there already counts as stored."""
    def batch_get_into(self, keys: Sequence[Key], ptrs: Integers, sizes: Integers) -> list[bool]:
        """Reads pages to memory. A page of another size is a miss."""
    def batch_exists(self, keys: Sequence[Key]) -> list[bool]: ...
    def exists_prefix(self, keys: Sequence[Key]) -> int:
        """How many keys from the first on exist without a gap."""
    def batch_remove(self, keys: Sequence[Key]) -> list[bool]: ...
    def get(self, key: Key) -> bytes | None: ...
    def set(self, key: Key, value: bytes) -> bool: ...
    def space(self, fields: Mapping[str, str]) -> Space:
        """Opens a further space over the same connections."""
    def servers(self) -> list[dict[str, Any]]:
        """Every server with ``id``, ``address``, ``state``, ``transport`` and ``last_error``."""
    def stats(self) -> dict[str, Any]:
        """Counters since the client was made; takes no lock and asks no server."""
    def close(self) -> None: ...
