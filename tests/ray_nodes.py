"""Nodes of a real Ray cluster on this machine, each a tree of processes that can be killed as a machine is lost."""

from __future__ import annotations

import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import aligngap

_PATIENCE = 180.0
"""Seconds after which a node that does not come up never will."""
_START = """
import sys
from ray.scripts.scripts import cli
cli(sys.argv[1:])
"""


class Node:
    """`ray start --block`, and all that it has started."""

    def __init__(self, words: list[str], variables: Mapping[str, str], said: Path) -> None:
        self._said = said
        with said.open("wb") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _START, "start", "--block", *words],
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **variables},
                start_new_session=True,
            )
        end = time.monotonic() + _PATIENCE
        while "block forever" not in said.read_text():
            assert self._process.poll() is None, said.read_text()
            assert time.monotonic() < end, f"the node does not come up: {said.read_text()}"
            time.sleep(0.2)

    @property
    def processes(self) -> list[int]:
        """All of the node's, its stages' among them."""
        return tree(self._process.pid)

    def kill(self) -> None:
        """As when the machine loses its power: everything at once."""
        found: list[int] = []
        while more := [pid for pid in self.processes if pid not in found]:
            for pid in more:  # none may start another while they are killed
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)
            found += more
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()


class Nodes:
    """A cluster on the loopback, with a token of its own."""

    def __init__(self, folder: Path, temporary: str) -> None:
        self.folder, self._temporary = folder, temporary
        # Outside the range from which systems give ports to whoever asks, and which Ray's workers use.
        # Drawn, because two test runs on one machine may look at the same moment.
        ports = random.sample(range(23000, 32000, 2), 100)
        self.port = next(port for port in ports if _is_free(port) and _is_free(port + 1))
        self.address = f"127.0.0.1:{self.port}"
        source = str(Path(aligngap.__file__).parents[1])
        path = os.pathsep.join([source, str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
        self.variables = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            "PYTHONPATH": path,
            # A lost machine is noticed after some seconds, not after half a minute.
            "RAY_health_check_initial_delay_ms": "2000",
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_timeout_ms": "5000",
        }
        self.first: Node | None = None
        self.others: list[Node] = []
        self._started = 0

    def head(self, cpus: int = 1, variables: Mapping[str, str] | None = None) -> Node:
        """The node that all others know; again on the same port when it has been lost."""
        words = ["--head", "--port", str(self.port), "--ray-client-server-port", str(self.port + 1)]
        words += ["--include-dashboard", "false", "--temp-dir", self._temporary]
        self.first = self._start(words, cpus, variables)
        return self.first

    def node(self, cpus: int = 1, gpus: int = 0, variables: Mapping[str, str] | None = None) -> Node:
        """Another node. variables: what is different in its environment."""
        self.others.append(self._start(["--address", self.address, "--num-gpus", str(gpus)], cpus, variables))
        return self.others[-1]

    def _start(self, words: list[str], cpus: int, variables: Mapping[str, str] | None = None) -> Node:
        words += ["--num-cpus", str(cpus), "--object-store-memory", "80000000", "--disable-usage-stats"]
        words += ["--min-worker-port", "0", "--max-worker-port", "0", "--dashboard-agent-listen-port", "0"]
        self._started += 1
        said = self.folder / f"node-{self._started}.txt"
        return Node(words, {**self.variables, **(variables or {})}, said)

    def lose(self, *lost: Node) -> None:
        """Kill nodes; the others stay."""
        for node in lost:
            node.kill()
        self.first = None if self.first in lost else self.first
        self.others = [node for node in self.others if node not in lost]


@contextmanager
def nodes(folder: Path) -> Iterator[Nodes]:
    """A cluster without a node yet, and its end. folder: for what its nodes print."""
    # Short, because sockets in it have names of at most 107 characters.
    with tempfile.TemporaryDirectory(prefix="rn-", dir="/tmp", ignore_cleanup_errors=True) as temporary:
        found = Nodes(folder, temporary)
        try:
            yield found
        finally:
            found.lose(*([found.first] if found.first else []), *found.others)


def tree(root: int) -> list[int]:
    """A process and all below it, as far as they live."""
    below: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
                if state != "Z":
                    below.setdefault(int(parent), []).append(int(entry.name))
    found = [root]
    for pid in found:
        found += below.get(pid, [])
    return found


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
