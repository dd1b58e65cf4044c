"""The backend's own settings out of SGLang's ``--hicache-storage-backend-extra-config``.

Every key that starts with ``memkv_`` belongs to us. Three of them steer the plugin; all others are settings of the
client (``memkv_servers``, ``memkv_auth_key_file``, ``memkv_transport`` …) and win over the environment, which wins
over the YAML file. The client refuses names that it does not know.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

PREFIX = "memkv_"


@dataclass(frozen=True)
class Options:
    """What an operator may say about one backend."""

    interface_v1: bool = False
    """Whether SGLang hands over addresses (zero copy) instead of tensors for the main KV."""
    tag: str = ""
    """Operator's tag: engines with different tags never share pages."""
    revision: str = ""
    """Model revision, for models that change under one served name."""
    config: str | None = None
    """Path of a client configuration file."""
    client: dict[str, str] = field(default_factory=dict)
    """Settings for the client, by the client's names."""


def parse(extra_config: Mapping[str, Any] | None) -> Options:
    """Reads the options; raises ``ValueError`` on a value that is neither text, number, flag nor list of them."""
    extra = dict(extra_config or {})
    ours = {key[len(PREFIX) :]: value for key, value in extra.items() if key.startswith(PREFIX)}
    tag = _text("tag", ours.pop("tag", os.environ.get("MEMKV_TAG", "")))
    revision = _text("revision", ours.pop("revision", ""))
    config = ours.pop("config", None)
    return Options(
        interface_v1=bool(extra.get("interface_v1", 0)),
        tag=tag,
        revision=revision,
        config=None if config is None else _text("config", config),
        client={name: _text(name, value) for name, value in ours.items()},
    )


def _text(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (str, int, float)):
        return str(value)
    if isinstance(value, (list, tuple)):
        return ",".join(_text(name, item) for item in value)
    raise ValueError(f"{PREFIX}{name} in the storage backend's extra config must be text or a number, not {value!r}")
