"""The operator's settings."""

import pytest
from memkv_sglang import options

pytestmark = pytest.mark.unit


def test_our_keys_are_sorted_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMKV_TAG", "from-env")
    parsed = options.parse(
        {
            "backend_name": "memkv",
            "interface_v1": 1,
            "memkv_servers": ["a:1", "b:2"],
            "memkv_revision": 7,
            "memkv_op_timeout": "2s",
            "memkv_config": "/etc/memkv.yaml",
        }
    )
    assert parsed.interface_v1
    assert (parsed.tag, parsed.revision, parsed.config) == ("from-env", "7", "/etc/memkv.yaml")
    assert parsed.client == {"servers": "a:1,b:2", "op_timeout": "2s"}


def test_the_extra_config_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMKV_TAG", "from-env")
    assert options.parse({"memkv_tag": "mine"}).tag == "mine"


def test_nothing_at_all_is_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEMKV_TAG", raising=False)
    assert options.parse(None) == options.Options()


def test_a_value_of_a_wrong_type_is_named() -> None:
    with pytest.raises(ValueError, match="memkv_op_timeout"):
        options.parse({"memkv_op_timeout": {"seconds": 2}})
