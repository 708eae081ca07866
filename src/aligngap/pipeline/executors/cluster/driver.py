"""The process that speaks with Ray, beside the run's own. Ray ends the process of a driver whose cluster is lost, takes
its signals and prints where it likes: here it may, and the run goes on to say what happened.

From the run come ("start", identity, job), ("stop",); to it go ("room", stages side by side), first of all and whenever
it changes, ("stage", identity, message), and at the end, if need be, ("broken", UserError).
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from aligngap.errors import UserError
from aligngap.pipeline.executors.local import default_jobs
from aligngap.pipeline.executors.run import describe
from aligngap.pipeline.processes import Message, die_with_parent, redirect

OWN = "local"
"""For an address: a cluster of one node, started here and ended with the run."""
_ANSWER = 10.0  # seconds in which somebody must answer at an address
_HEAD = 30.0  # seconds after which a head that does not answer is lost; Ray itself ends this process after 60
_NO_ROOM = 60.0  # seconds for which there may be no node at all
_BETWEEN_LOOKS = 2.0
_PROBE = 300.0  # seconds that nodes get to say whether they fit; a cold one imports from a network disk
_PAUSE = 0.1
_OBJECTS = 100 << 20  # bytes for Ray's object store, which holds our few messages
_AGAIN = "Then give the same command again: what is finished is kept."


@dataclass(frozen=True)
class Terms:
    """What is asked of the cluster. jobs: stages side by side at most, None: as many as there is room for; cpus, gpus:
    what each of them needs; fit: the arguments of `node.unfit`.
    """

    address: str
    jobs: int | None
    cpus: int
    gpus: int
    fit: tuple[Mapping[str, Any], str, str]


def drive(run: Connection, terms: Terms, log: Path) -> None:
    """The process. log: what Ray and this code print."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    redirect(log)
    folder = tempfile.mkdtemp(prefix="ag-", dir=None if len(tempfile.gettempdir()) < 20 else "/tmp")
    try:
        ray = _connect(terms, Path(folder) / "r")
        # After Ray, which sets its own.
        signal.signal(signal.SIGTERM, _exit)
        die_with_parent()
        try:
            _Driver(terms, run, ray).work()
        finally:
            ray.shutdown()
    except UserError as error:
        _send(run, ("broken", error))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _exit(number: int, frame: object) -> None:
    signal.signal(number, signal.SIG_IGN)
    raise SystemExit(0)


def _send(run: Connection, message: Message) -> None:
    with suppress(OSError):  # the run is gone, and this process goes with it
        run.send(message)


def _connect(terms: Terms, folder: Path) -> Any:
    """Ray, connected. Raises UserError."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    if terms.address == OWN:
        # Everything on the loopback, for nobody who has not this secret. Left to itself, Ray would write one into the
        # user's home, and every later cluster of theirs would ask for it.
        os.environ |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token"}
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    elif terms.address != "auto":
        _knock(terms.address)
    try:
        import ray
    except ImportError as error:
        hint = "Install it: pip install 'aligngap[ray]'."
        raise UserError(f"Ray cannot be imported: {error}", where="--executor ray", hint=hint) from error
    more: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
    cores = terms.jobs * terms.cpus if terms.jobs else max(default_jobs("cpu"), terms.cpus)
    own: dict[str, Any] = {"num_cpus": cores, "object_store_memory": _OBJECTS}
    own |= {"include_dashboard": False, "_temp_dir": str(folder)}
    try:
        ray.init(address=terms.address, **more | (own if terms.address == OWN else {}))
    except Exception as error:
        raise UserError(
            f"no Ray cluster can be used: {describe(error)}",
            where=_where(terms),
            hint="Run aligngap on a machine of the cluster (`ray status` must answer there), with the same Ray and "
            "Python; where the cluster asks for a token, export its RAY_AUTH_MODE and RAY_AUTH_TOKEN.",
        ) from error
    return ray


def _knock(address: str) -> None:
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdigit():
        hint = "Give HOST:PORT of its head, as `ray start --head` prints it, or auto for the one on this machine."
        raise UserError(f"'{address}' is no address of a Ray cluster", where="--address", hint=hint)
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"nothing answers there: {error}",
            where=f"--address {address}",
            hint="Start the cluster (`ray start --head`), or give the address that it printed.",
        ) from error


def _where(terms: Terms) -> str:
    return "--executor ray" if terms.address == OWN else f"--address {terms.address}"


class _Driver:
    def __init__(self, terms: Terms, run: Connection, ray: Any) -> None:
        self.terms, self.run, self.ray = terms, run, ray
        needs = {"num_cpus": terms.cpus, "num_gpus": terms.gpus, "max_retries": 0}
        # A worker that has had a device would keep it as it was for its first stage.
        once = {"max_calls": 1} if terms.gpus else {}
        self.task = ray.remote(num_returns="streaming", **needs, **once)(_keeper())
        self.running: dict[Any, str] = {}  # what Ray gave for a task -> identity
        self.addresses: dict[str, str] = {}  # of the nodes that run them, where they are known
        self.room = 0
        self.seen = time.monotonic()

    def work(self) -> None:
        """Until the run is gone. Raises UserError when no stage can be run, or none any longer."""
        self.room = self._look()
        self._check_nodes()
        threading.Thread(target=self._keep_looking, daemon=True).start()
        roomy = time.monotonic()
        sent = None
        while True:
            if self.room != sent:
                sent = self.room
                _send(self.run, ("room", sent))
            for identity, message in self._messages():
                _send(self.run, ("stage", identity, message))
            now = time.monotonic()
            roomy = now if self.room else roomy
            if now - self.seen > _HEAD:
                what = f"the head of the Ray cluster has not answered for {_HEAD:.0f} seconds"
                raise UserError(what, where=_where(self.terms), hint=f"See that it runs. {_AGAIN}")
            if now - roomy > _NO_ROOM:
                raise self._no_room()
            pause = 0.0 if self.running else _PAUSE
            while self.run.poll(pause):
                pause = 0.0
                try:
                    word, *rest = self.run.recv()
                except (EOFError, OSError):
                    return
                if word == "start":
                    self._start(*rest)
                else:
                    for task in self.running:
                        self.ray.cancel(task, force=False, recursive=False)

    def _start(self, identity: str, job: bytes) -> None:
        self.running[self.task.remote(job, *self.terms.fit)] = identity

    def _messages(self) -> Iterator[tuple[str, Message]]:
        """The messages of running tasks; waits for a moment when there are none."""
        if not self.running:
            return
        tasks = list(self.running)
        ready, _ = self.ray.wait(tasks, num_returns=len(tasks), timeout=0)
        for task in ready or self.ray.wait(tasks, timeout=_PAUSE)[0]:
            identity = self.running[task]
            message = self._next(task, identity)
            if message[0] == "node":
                self.addresses[identity] = message[1]
            elif message[0] == "unfit":
                raise _unfit(self._node(identity), message[1])
            else:
                if message[0] not in ("progress", "log"):
                    del self.running[task]
                    self.addresses.pop(identity, None)
                yield identity, message

    def _next(self, task: Any, identity: str) -> Message:
        errors = self.ray.exceptions
        try:
            message: Message = self.ray.get(next(task))
            return message
        except StopIteration:
            return ("vanished", "its keeper ended without a word")
        except errors.OutOfMemoryError:
            return ("memory", f"the memory of {self._node(identity)} ran out")
        except errors.TaskCancelledError:
            return ("vanished", "it was cancelled")
        except errors.RayTaskError as error:
            return ("failed", f"its keeper failed: {describe(error.cause or error)}")
        except errors.RayError as error:
            # Its worker or its node died, or its message was lost with the node.
            print(f"{identity}: {error}", flush=True)
            return ("lost", f"{self._node(identity)} was lost")

    def _node(self, identity: str) -> str:
        return f"the node {self.addresses[identity]}" if identity in self.addresses else "the node it ran on"

    def _look(self) -> int:
        """How many stages there is room for on all nodes together."""
        terms, room = self.terms, 0
        for node in self._alive():
            has = node["Resources"]
            fits = int(has.get("CPU", 0) // terms.cpus)
            room += min(fits, int(has.get("GPU", 0) // terms.gpus)) if terms.gpus else fits
        return room if terms.jobs is None else min(room, terms.jobs)

    def _alive(self) -> list[dict[str, Any]]:
        return [node for node in self.ray.nodes() if node["Alive"]]

    def _keep_looking(self) -> None:
        while True:
            time.sleep(_BETWEEN_LOOKS)
            # Waits for as long as the head is away.
            with suppress(Exception):
                self.room = self._look()
                self.seen = time.monotonic()

    def _no_room(self) -> UserError:
        terms = self.terms
        what = f"{terms.gpus} GPU and {terms.cpus} CPU" if terms.gpus else f"{terms.cpus} CPU"
        hint = "Start a node that has (`ray start --address=...`)"
        hint += ", or run the study on the CPU: --set device=cpu." if terms.gpus else ". " + _AGAIN
        return UserError(f"no node of the Ray cluster has {what} for a stage", where=_where(terms), hint=hint)

    def _check_nodes(self) -> None:
        """Raises UserError for the first node that cannot make the run's stages, and when there is no room."""
        if not self.room:
            raise self._no_room()
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        ask = self.ray.remote(num_cpus=0, max_retries=3)(_asked())
        answers = {}
        for node in self._alive():
            if node["Resources"].get("CPU", 0) >= self.terms.cpus:
                place = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                answer = ask.options(scheduling_strategy=place).remote(*self.terms.fit)
                answers[node["NodeManagerAddress"], node["NodeID"]] = answer
        deadline = time.monotonic() + _PROBE
        for (address, _), answer in answers.items():
            try:
                problem = self.ray.get(answer, timeout=max(0.0, deadline - time.monotonic()))
            except self.ray.exceptions.GetTimeoutError:
                problem = f"it has not answered for {_PROBE:.0f} seconds"
            except self.ray.exceptions.RayTaskError as error:
                problem = f"it cannot be asked: {describe(error.cause or error)}"
            except self.ray.exceptions.RayError:
                continue  # it has gone meanwhile
            if problem:
                raise _unfit(f"the node {address}", problem)


def _unfit(node: str, problem: str) -> UserError:
    return UserError(
        f"{node} cannot make stages of this run: {problem}",
        where="--executor ray",
        hint="All nodes need the same aligngap, Python and packages, and the store on a disk that all of them have "
        "under the same path, with locks that work between them, or at an address (docs/cluster.md).",
    )


# What is sent to nodes by value, because it must say so where there is no such package.
def _asked() -> Callable[[dict[str, Any], str, str], str]:
    def ask(wanted: dict[str, Any], place: str, token: str) -> str:
        try:
            from aligngap.pipeline.executors.cluster.node import unfit
        except ImportError as error:
            return f"it has no such aligngap: {error}"
        return unfit(wanted, place, token)

    return ask


def _keeper() -> Callable[[bytes, dict[str, Any], str, str], Iterator[Message]]:
    ask = _asked()

    def keeper(job: bytes, wanted: dict[str, Any], place: str, token: str) -> Iterator[Message]:
        import ray

        # A node may have come after the run had asked all others.
        yield ("node", ray.util.get_node_ip_address())
        if problem := ask(wanted, place, token):
            yield ("unfit", problem)
            return
        from aligngap.pipeline.executors.cluster.node import keep

        yield from keep(job, ray.get_runtime_context().get_node_id())

    return keeper
