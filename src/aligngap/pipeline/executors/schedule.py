"""Which stage starts next, and how long all will take. Knows nothing of processes, so every executor can use it."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Mapping, Sequence

from aligngap.pipeline.graph import Stage


class Schedule:
    """Stages that are to be made, handed out when their inputs are there: what the study names first is finished first,
    so that who watches a run sees its results come in, as long as the longest remaining chain leaves room for that.

    With few cores the end of a study is set by its longest chain (policy, then proxy, then an arm) or by a core's share
    of all the work. While the share is the longer of the two, the order does not matter to the end, and the study's own
    is taken; else the stage that heads the longest chain.

    stages: inputs before what uses them, as `all_stages` gives them. done: identities that exist already. jobs: how
    many stages are made side by side.
    """

    def __init__(self, stages: Sequence[Stage], done: Collection[str], jobs: int) -> None:
        self._jobs = jobs
        self._stages = {stage.identity: stage for stage in stages}
        self._done = set(done)
        self._waiting = {name: stage for name, stage in self._stages.items() if name not in self._done}
        self._work = {name: stage.work for name, stage in self._stages.items()}
        self._left = sum(self._work[name] for name in self._waiting)
        self._needs = {name: self._missing(stage) for name, stage in self._waiting.items()}
        self._users: dict[str, list[str]] = {name: [] for name in self._stages}
        for name, stage in self._stages.items():
            for parent in stage.parents:
                self._users[parent.identity].append(name)
        self._chain: dict[str, float] = {}
        for name in reversed(self._stages):
            longest = max((self._chain[user] for user in self._users[name]), default=0.0)
            self._chain[name] = longest + (self._work[name] if name in self._waiting else 0.0)

    def _missing(self, stage: Stage) -> set[str]:
        return {parent.identity for parent in stage.parents if parent.identity not in self._done}

    @property
    def ready(self) -> list[str]:
        """What could start now, in the study's order."""
        return [name for name in self._waiting if not self._needs[name]]

    def take(self) -> Stage | None:
        """The next stage to start, or None while none is ready."""
        ready = self.ready
        if not ready:
            return None
        # Each is the first of its equals, so that two runs of a study start in the same order.
        urgent, first = max(ready, key=self._chain.__getitem__), ready[0]
        room = self._left / self._jobs - max(map(self._chain.__getitem__, self._waiting))
        return self._pop(first if self._work[first] <= room else urgent)

    def _pop(self, identity: str) -> Stage:
        self._left -= self._work[identity]
        return self._waiting.pop(identity)

    def finish(self, identity: str) -> None:
        """Free what waited for this stage."""
        self._done.add(identity)
        for user in self._users[identity]:
            if user in self._waiting:
                self._needs[user].discard(identity)

    def again(self, identity: str) -> None:
        """A stage that was handed out has not come to its end: it waits again, for all of its inputs."""
        self._left += self._work[identity]
        self._waiting[identity] = self._stages[identity]
        self._needs[identity] = self._missing(self._stages[identity])

    def lost(self, identity: str) -> bool:
        """What was done is so no longer: it is to be made again, and what needs it and has not started waits for it.
        False when it is being made again already.
        """
        if identity not in self._done:
            return False
        self._done.discard(identity)
        self.again(identity)
        for user in self._users[identity]:
            if user in self._waiting:
                self._needs[user].add(identity)
        return True

    def fail(self, identity: str) -> list[Stage]:
        """Take out and return all that can no longer be made, because this stage is among what it needs."""
        blocked: list[Stage] = []
        for user in self._users[identity]:
            if user in self._waiting:
                blocked += [self._pop(user), *self.fail(user)]
        return blocked


def estimate(
    stages: Sequence[Stage], done: Collection[str], jobs: int, work: Mapping[str, float] | None = None
) -> float:
    """Seconds from start to end with this many processes, if every stage takes what it estimates.

    work: seconds of stages that need less than their estimate, because they have begun.
    """
    schedule, work = Schedule(stages, done, jobs), work or {}
    now = 0.0
    running: list[tuple[float, str]] = []
    while True:
        while len(running) < jobs and (stage := schedule.take()):
            heapq.heappush(running, (now + work.get(stage.identity, stage.work), stage.identity))
        if not running:
            return now
        now, identity = heapq.heappop(running)
        schedule.finish(identity)
