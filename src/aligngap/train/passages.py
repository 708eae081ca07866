"""Checkpoints by KL: the first steps at which a policy's KL from the SFT policy passes given values.

Steps say little about how far a policy has gone: between neighbouring checkpoints on a grid of steps KL has jumped from
2 to 8. So a cheap probe looks at KL along training and asks for the checkpoints that a comparison at equal KL needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from aligngap.models.policy import Policy

EVERY = 4
"""Steps between two looks."""


class Passages:
    """Asks for a checkpoint at the first step seen at or above each level of KL, and at the highest one seen below it:
    w(k) is read between the two. levels: nats. probe: the KL of a policy, nats; asked every `EVERY` steps until all
    levels are passed.

    path: what was seen, (step, KL). That a step is the highest below a level is known only once the level is passed, so
    `asks` is true at each look that is higher than all before; `needed` are those of them that turned out to matter.
    """

    def __init__(self, levels: Sequence[float], probe: Callable[[Policy], float]) -> None:
        self.levels, self._probe = sorted(levels), probe
        self.path: list[tuple[int, float]] = []

    @property
    def highest(self) -> float:
        """The highest KL seen."""
        return max((kl for _, kl in self.path), default=0.0)

    def asks(self, step: int, policy: Policy) -> bool:
        """Whether the policy after this step may be needed."""
        if step % EVERY or not self.levels or self.highest >= self.levels[-1]:
            return False
        before = self.highest
        self.path.append((step, self._probe(policy)))
        return self.path[-1][1] > before

    @property
    def needed(self) -> list[int]:
        """The steps at the first passage of each level, and at the highest KL before it; but for step 0."""
        steps: set[int] = set()
        seen: list[tuple[int, float]] = [(0, 0.0)]
        for step, kl in self.path:
            if any(seen[-1][1] < level <= kl for level in self.levels):
                steps |= {seen[-1][0], step}
            if kl > seen[-1][1]:
                seen.append((step, kl))
        return sorted(steps - {0})

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"path": torch.tensor(self.path, dtype=torch.float64).reshape(-1, 2)}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self.path = [(int(step), float(kl)) for step, kl in state["path"].tolist()]
