"""MemKV for SGLang, and for anyone who stores pages from Python.

- :class:`Client`: the native client, on caller-owned memory;
- :class:`memkv_sglang.backend.MemKVHiCacheStorage`: SGLang's storage backend. It is not imported here, so that the
  client works without SGLang and torch.
"""

from memkv_sglang._native import (
    BadInputError,
    Client,
    ClosedError,
    ConfigError,
    DeadlineError,
    ForkedError,
    MemKVError,
    NotSupportedError,
    ProtocolError,
    Space,
    UnauthenticatedError,
    UnavailableError,
    UnknownSpaceError,
    VersionMismatchError,
    __version__,
)

__all__ = [
    "BadInputError",
    "Client",
    "ClosedError",
    "ConfigError",
    "DeadlineError",
    "ForkedError",
    "MemKVError",
    "NotSupportedError",
    "ProtocolError",
    "Space",
    "UnauthenticatedError",
    "UnavailableError",
    "UnknownSpaceError",
    "VersionMismatchError",
    "__version__",
]
