"""Real daemons and real backends for the tests."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

warnings.filterwarnings("ignore")
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "demo"))

AUTH_KEY = "5e" * 32


TRANSPORT = os.environ.get("MEMKV_TEST_TRANSPORT")
"""How pages must move in every test that does not say it itself: ``tcp``, ``shm``, ``rdma`` or ``grpc``."""

SMALL = bool(os.environ.get("MEMKV_TEST_SMALL"))
"""Whether this machine is slow: then daemons and clients have little memory, because every page of it is touched."""


def pytest_configure(config: pytest.Config) -> None:
    # Settings of the machine must not steer the tests.
    for name in [name for name in os.environ if name.startswith("MEMKV_") and name != "MEMKV_SERVER_BIN"]:
        del os.environ[name]
    if TRANSPORT:
        os.environ["MEMKV_TRANSPORT"] = TRANSPORT
    if SMALL:
        os.environ["MEMKV_RDMA_BOUNCE"] = "1MiB"
        os.environ["MEMKV_CONNECT_TIMEOUT"] = os.environ["MEMKV_OP_TIMEOUT"] = "30s"


def pytest_report_header(config: pytest.Config) -> str:
    return f"transport: {TRANSPORT or 'as configured by default'}"


def server_binary() -> str:
    """The daemon under test."""
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    path = os.environ.get("MEMKV_SERVER_BIN") or str(target / "debug" / "memkv-server")
    if not shutil.which(path):
        pytest.fail(f"no daemon at {path}: run `cargo build -p memkv-server` or set MEMKV_SERVER_BIN", pytrace=False)
    return path


class Daemon:
    """One ``memkv-server`` on loopback."""

    def __init__(
        self,
        directory: Path,
        *,
        auth_key: str | None = AUTH_KEY,
        dram: str = "128MiB" if SMALL else "512MiB",
        more: tuple[str, ...] = (),
    ) -> None:
        self.port = _free_port_pair()
        self.address = f"127.0.0.1:{self.port}"
        self._log = directory / f"memkv-server-{self.port}.log"
        self._auth_key = auth_key
        self._arguments = ("--dram", dram, *more)
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Starts the daemon, or starts it again on the same port, and waits until it is ready."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MEMKV_")}
        if self._auth_key is not None:
            environment["MEMKV_SERVER_AUTH_KEY"] = self._auth_key
        command = [server_binary(), "--listen", self.address, *self._arguments]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        self._wait_until_ready()

    def kill(self) -> None:
        """Kills the daemon without warning."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def freeze(self) -> None:
        """Stops the daemon's threads, and returns when they have stopped; its sockets stay open."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        tasks = Path(f"/proc/{self._process.pid}/task")
        wait_for(lambda: all(_state(task) == "T" for task in tasks.iterdir()), "the daemon's stop")

    def thaw(self) -> None:
        """Lets a frozen daemon go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """Ends the daemon in whatever state it is."""
        if self._process is not None and self._process.poll() is None:
            self.thaw()
            self.kill()

    def _wait_until_ready(self, seconds: float = 20.0) -> None:
        assert self._process is not None
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port + 1}/readyz", timeout=1) as answer:
                    if answer.status == 200:
                        return
            except (urllib.error.URLError, OSError):
                pass
            time.sleep(0.02)
        text = self._log.read_text(errors="replace")
        self.close()
        pytest.fail(f"memkv-server on {self.address} did not become ready:\n{text}", pytrace=False)


def _state(task: Path) -> str:
    """The scheduler's state of a thread, one letter."""
    return (task / "stat").read_text().rpartition(")")[2].split()[0]


def _free_port_pair() -> int:
    """A port that is free together with the next one."""
    for _ in range(100):
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1]
            try:
                second.bind(("127.0.0.1", port + 1))
            except (OSError, OverflowError):
                continue
            return port
    raise AssertionError("no two free ports in a row")


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 30.0) -> None:
    """Waits for something that another process or thread will make true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds} s"
        time.sleep(0.01)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Daemon]]:
    """Three daemons for tests that leave them running. Tests keep apart by their model names."""
    daemons = [Daemon(tmp_path_factory.mktemp("cluster")) for _ in range(3)]
    check_transport(daemons)
    yield daemons
    for daemon in daemons:
        daemon.close()


def check_transport(servers: list[Daemon]) -> None:
    """Fails unless pages really move as chosen: tests over another transport would prove nothing."""
    if not TRANSPORT:
        return
    from memkv_sglang import Client

    with Client(addresses(servers), space="transport", auth_key=AUTH_KEY) as client:
        wait_for(lambda: all(server["state"] == "ready" for server in client.servers()), "a session with every server")
        found = {server["transport"] for server in client.servers()}
    assert found == {TRANSPORT}, f"pages move by {found}, not by {TRANSPORT}"


@pytest.fixture
def daemons(tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    """Starts daemons that a test may kill."""
    started: list[Daemon] = []

    def start(**options: Any) -> Daemon:
        started.append(Daemon(tmp_path, **options))
        return started[-1]

    yield start
    for daemon in started:
        daemon.close()


def addresses(servers: list[Daemon]) -> str:
    """The servers as a client's setting."""
    return ",".join(f"s{index}={server.address}" for index, server in enumerate(servers))


@pytest.fixture
def unique(request: pytest.FixtureRequest) -> str:
    """A model name that no other test uses. Always the same, so that keys always fall to the same servers."""
    return f"test/{request.module.__name__}/{request.node.name}"
