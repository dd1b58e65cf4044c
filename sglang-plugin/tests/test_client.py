"""The native client, for those who write their own backend."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import memkv_sglang
import pytest
from memkv_sglang import Client

from conftest import AUTH_KEY, Daemon, addresses

pytestmark = pytest.mark.server


@pytest.fixture
def client(cluster: list[Daemon], unique: str) -> Iterator[Client]:
    with Client(addresses(cluster), space=unique, auth_key=AUTH_KEY) as made:
        yield made


class Memory:
    """Memory that outlives a call."""

    def __init__(self, content: bytes) -> None:
        self.buffer = ctypes.create_string_buffer(content, len(content))
        self.ptr = ctypes.addressof(self.buffer)
        self.size = len(content)

    @property
    def content(self) -> bytes:
        return self.buffer.raw


def blocks(*contents: bytes) -> tuple[list[Memory], list[int], list[int]]:
    made = [Memory(content) for content in contents]
    return made, [block.ptr for block in made], [block.size for block in made]


def test_one_page(client: Client) -> None:
    assert client.get("a") is None
    assert client.set("a", b"hello") is True
    assert client.set("a", b"other") is True  # first writer wins
    assert client.get("a") == b"hello"
    assert client.get(b"a") == b"hello"
    assert client.batch_remove(["a", "b"]) == [True, False]
    assert client.get("a") is None


def test_batches_on_memory(client: Client) -> None:
    contents = [bytes([index]) * (4096 + index) for index in range(50)]
    names = [f"page-{index}" for index in range(50)]
    sources, ptrs, sizes = blocks(*contents)
    assert client.batch_set_from(names, ptrs, sizes) == [True] * 50
    assert client.batch_exists([*names, "absent"]) == [True] * 50 + [False]
    assert client.exists_prefix([*names[:3], "absent", names[4]]) == 3
    targets, ptrs, sizes = blocks(*(bytes(len(content)) for content in contents))
    assert client.batch_get_into(names, ptrs, sizes) == [True] * 50
    assert [target.content for target in targets] == contents
    assert [source.content for source in sources] == contents


def test_a_page_of_another_size_is_a_miss(client: Client) -> None:
    assert client.set("a", b"12345")
    for size in (4, 6):
        (target,), ptrs, sizes = blocks(b"x" * size)
        assert client.batch_get_into(["a"], ptrs, sizes) == [False]
        del target
    assert client.get("a") == b"12345"


def test_addresses_may_come_as_arrays(client: Client) -> None:
    np = pytest.importorskip("numpy")
    torch = pytest.importorskip("torch")
    made, ptrs, sizes = blocks(b"one", b"two")
    for index, wrap in enumerate((list, tuple, np.array, torch.tensor, lambda v: np.array(v).tobytes())):
        names = [f"{index}/0", f"{index}/1"]
        assert client.batch_set_from(names, wrap(ptrs), wrap(sizes)) == [True, True]
        assert client.get(names[1]) == b"two"
    with pytest.raises(memkv_sglang.BadInputError, match="64-bit"):
        client.batch_set_from(["x"], np.array([ptrs[0]], dtype=np.float64), [3])
    del made


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda c, m: c.batch_set_from(["a", "b"], [m.ptr], [m.size]), "for 2 keys"),
        (lambda c, m: c.batch_set_from(["a"], [m.ptr], []), "0 sizes"),
        (lambda c, m: c.batch_set_from([], [m.ptr], [m.size]), "for 0 keys"),
        (lambda c, m: c.batch_set_from(["a"], [0], [m.size]), "no memory"),
        (lambda c, m: c.batch_set_from(["a"], [m.ptr], [0]), "no memory"),
        (lambda c, m: c.batch_set_from(["a"], [-1], [m.size]), "non-negative"),
        (lambda c, m: c.batch_set_from(["a"], [2**64 - 1], [2]), "no memory"),
        (lambda c, m: c.batch_set_from(["a"], ["p"], [m.size]), "integers"),
        (lambda c, m: c.batch_set_from("a", [m.ptr], [m.size]), "list"),
        (lambda c, m: c.batch_set_from([7], [m.ptr], [m.size]), "str or bytes"),
        (lambda c, m: c.batch_set_from(["a"], b"1234567", b"12345678"), "multiple of 8"),
        (lambda c, m: c.batch_get_into([""], [m.ptr], [m.size]), "1 to 512"),
        (lambda c, m: c.batch_get_into(["k" * 513], [m.ptr], [m.size]), "1 to 512"),
        (lambda c, m: c.batch_exists([b""]), "1 to 512"),
        (lambda c, m: c.batch_remove(["k" * 513]), "1 to 512"),
        (lambda c, m: c.get(""), "1 to 512"),
        (lambda c, m: c.set("k" * 513, b"x"), "1 to 512"),
        (lambda c, m: c.register_buffer(0, 10), "not a buffer"),
        (lambda c, m: c.register_buffer(m.ptr, 0), "not a buffer"),
        (lambda c, m: c.unregister_buffer(m.ptr), "no buffer"),
        (lambda c, m: c.space({"Model": "x"}), "Model"),
        (lambda c, m: c.space({}), "at least one field"),
        (lambda c, m: c.space(7), "a name or a dict"),
    ],
)
def test_bad_arguments_raise_and_say_what_is_wrong(
    call: Callable[[Client, Memory], Any], text: str, client: Client
) -> None:
    with pytest.raises(memkv_sglang.BadInputError, match=text):
        call(client, Memory(b"memory"))
    assert client.set("still", b"works")


def test_keys_of_every_allowed_length(client: Client) -> None:
    names: list[str | bytes] = ["k", "k" * 512, bytes(range(256)) * 2, "schlüssel"]
    for name in names:
        assert client.set(name, b"x")
    assert client.batch_exists(names) == [True] * 4


def test_empty_batches(client: Client) -> None:
    assert client.batch_exists([]) == []
    assert client.exists_prefix([]) == 0
    assert client.batch_remove([]) == []
    assert client.batch_get_into([], [], []) == []
    assert client.batch_set_from([], [], []) == []


def test_buffers_are_announced_and_taken_back(client: Client) -> None:
    memory = Memory(bytes(4096))
    client.register_buffer(memory.ptr, memory.size)
    client.register_buffer(memory.ptr, memory.size)
    with pytest.raises(memkv_sglang.BadInputError, match="overlaps"):
        client.register_buffer(memory.ptr + 100, 10)
    client.unregister_buffer(memory.ptr)
    client.unregister_buffer(memory.ptr)
    with pytest.raises(memkv_sglang.BadInputError):
        client.unregister_buffer(memory.ptr)


def test_spaces_keep_apart_and_are_found_again(client: Client, unique: str) -> None:
    fields = {"engine": "mine", "model": unique}
    one, other = client.space(fields), client.space({**fields, "dtype": "fp8"})
    assert one.id != other.id
    assert one.id == client.space(fields).id
    assert one.description == fields
    (source,), ptrs, sizes = blocks(b"in one space only")
    result = one.put_from(["a"], ptrs, sizes)
    assert (result.flags, result.moved_pages, result.moved_bytes, result.failed) == ([True], 1, source.size, 0)
    assert one.put_from(["a"], ptrs, sizes).moved_pages == 0
    assert other.exists(["a"]).flags == [False]
    assert one.clear() == (1, source.size)
    assert one.exists(["a"]).flags == [False]


def test_pieces_are_one_page(client: Client, unique: str) -> None:
    space = client.space({"model": unique, "pool": "pieces"})
    made, ptrs, sizes = blocks(b"abc", b"de", b"fghi", b"123", b"45", b"6789")
    assert space.put_from(["a", "b"], ptrs, sizes).flags == [True, True]
    whole, ptrs, sizes = blocks(bytes(9), bytes(9))
    assert space.get_into(["a", "b"], ptrs, sizes).flags == [True, True]
    assert [block.content for block in whole] == [b"abcdefghi", b"123456789"]
    del made


def test_a_closed_client_raises(cluster: list[Daemon], unique: str) -> None:
    client = Client(addresses(cluster), space=unique, auth_key=AUTH_KEY)
    space = client.space({"model": unique})
    client.close()
    client.close()
    for call in (
        lambda: client.get("a"),
        lambda: client.batch_exists(["a"]),
        lambda: client.stats(),
        lambda: client.servers(),
        lambda: client.space({"model": unique}),
        lambda: space.exists(["a"]),
        lambda: space.clear(),
    ):
        with pytest.raises(memkv_sglang.ClosedError):
            call()


def test_a_client_without_a_space(cluster: list[Daemon], unique: str) -> None:
    with Client(addresses(cluster), space=None, auth_key=AUTH_KEY) as client:
        with pytest.raises(memkv_sglang.BadInputError, match="space=None"):
            client.get("a")
        assert client.space({"model": unique}).exists(["a"]).flags == [False]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"servers": "127.0.0.1:1:2"}, memkv_sglang.ConfigError),
        ({"servers": ""}, memkv_sglang.ConfigError),
        ({"no_such_setting": 1}, memkv_sglang.ConfigError),
        ({"op_timeout": "soon"}, memkv_sglang.ConfigError),
        ({"auth_key": "zz" * 32}, memkv_sglang.ConfigError),
        ({"config": "/nonexistent.yaml"}, memkv_sglang.ConfigError),
        ({"auth_key": "11" * 32}, memkv_sglang.UnauthenticatedError),
        ({"transport": "rdma"}, memkv_sglang.NotSupportedError),
        ({"space": "a\nb"}, memkv_sglang.BadInputError),
        ({"op_timeout": {"seconds": 1}}, memkv_sglang.BadInputError),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_client_that_cannot_be_made_says_why(
    arguments: dict[str, Any], error: type[Exception], cluster: list[Daemon]
) -> None:
    with pytest.raises(error) as caught:
        Client(**{"servers": addresses(cluster), "auth_key": AUTH_KEY, **arguments})
    assert isinstance(caught.value, memkv_sglang.MemKVError)
    assert AUTH_KEY not in str(caught.value)


def test_the_interpreter_lock_is_free_while_a_call_waits(daemons: Callable[..., Daemon]) -> None:
    server = daemons()
    with Client(server.address, auth_key=AUTH_KEY, op_timeout="2s") as client:
        assert client.set("a", b"x")
        server.freeze()
        waiting = threading.Thread(target=lambda: client.batch_exists(["a"]))
        waiting.start()
        ticks = 0
        while waiting.is_alive():
            ticks += 1
            time.sleep(0.001)
        server.thaw()
        waiting.join()
    assert ticks > 100


def test_two_clients_in_many_threads(cluster: list[Daemon], unique: str) -> None:
    wrong: list[str] = []

    def work(client: Client, number: int) -> None:
        for turn in range(20):
            name = f"{number}/{turn}"
            content = f"{name}-content".encode() * 100
            if not client.set(name, content) or client.get(name) != content:
                wrong.append(name)

    with Client(addresses(cluster), space=unique, auth_key=AUTH_KEY) as one:
        with Client(addresses(cluster), space=unique, auth_key=AUTH_KEY) as other:
            threads = [threading.Thread(target=work, args=((one, other)[n % 2], n)) for n in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    assert wrong == []


def test_stats_count_what_happened(client: Client) -> None:
    before = client.stats()
    assert client.set("a", b"12345")
    assert client.get("a") == b"12345"
    after = client.stats()
    assert before.keys() == after.keys()
    assert before != after
    assert all(isinstance(name, str) for name in after)


def test_servers_are_listed(client: Client, cluster: list[Daemon]) -> None:
    listed = client.servers()
    assert {server["address"] for server in listed} == {server.address for server in cluster}
    assert {server["state"] for server in listed} == {"ready"}
