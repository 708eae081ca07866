"""Pairs sampled from policies and labelled by a judge: the online source, and every stop between online and offline."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from aligngap.judges.base import Judge
from aligngap.models.policy import Policy
from aligngap.seeds import uniforms
from aligngap.sources.base import Ingredients, SourceCost, SourceSpec, State, require
from aligngap.sources.order import Walk, prompt_schedule
from aligngap.types import PairBatch, Prompt, Tokens


class Sampled:
    """Two responses a prompt from the policy in training as it was at the last synchronisation.

    sync_period: 1 is online (on-policy); s > 1 samples from weights at most s - 1 steps old; None never synchronises:
    offline on pairs sampled from the starting policy (after 2506.21495). With `frozen`, a pair of other checkpoints,
    the first response comes from one and the second from the other, and the policy in training plays no part. `soft`
    labels with the judge's probability in place of its decision.
    `purpose` names the noise, which the arms of a seed share.
    """

    def __init__(
        self,
        prompts: list[Prompt],
        judge: Judge,
        seed: int,
        *,
        sync_period: int | None = 1,
        frozen: tuple[Policy, Policy] | None = None,
        soft: bool = False,
        purpose: str = "sampling",
    ) -> None:
        if sync_period is not None and sync_period < 1:
            raise ValueError(f"the sync period is at least one step, not {sync_period}")
        self.cost = SourceCost()
        self._prompts = Tokens.collate([prompt.ids for prompt in prompts])
        self._numbers = torch.tensor([prompt.number for prompt in prompts])
        self._judge, self._seed, self._period, self._frozen = judge, seed, sync_period, frozen
        self._soft, self._purpose = soft, purpose
        self._walk = Walk(len(prompts), prompt_schedule(seed))
        self._behaviour: Policy | None = None
        self._synced_at = 0

    def next_batch(self, n: int) -> PairBatch:
        at = self._walk.position
        index = self._walk.take(n)
        numbers, prompts = self._numbers[index], self._prompts.take(index)
        behaviours = self._frozen or (self._live(),)
        each = 2 // len(behaviours)
        # Named by epoch and prompt, not by batch: however the batch is cut, a prompt's responses stay the same.
        epochs = torch.arange(at, at + n) // len(self._numbers)
        names = torch.stack([epochs, numbers], 1)
        noise = uniforms(names, 2, behaviours[0].max_new_tokens, self._purpose, self._seed)
        device = behaviours[0].device
        drawn = [
            policy.sample(
                prompts.to(device), each, noise.unflatten(0, (n, 2))[:, k * each : (k + 1) * each].flatten(0, 1)
            ).to("cpu")
            for k, policy in enumerate(behaviours)
        ]
        rows = torch.arange(n)
        first, second = (drawn[0].take(2 * rows), drawn[0].take(2 * rows + 1)) if each == 2 else (drawn[0], drawn[1])
        label = self._judge.probability if self._soft else self._judge.prefer
        preference = label(prompts, first, second)
        self.cost.tokens_sampled += int(first.lengths.sum() + second.lengths.sum())
        self.cost.judge_calls += n
        self.cost.judge_spent = dict(self._judge.spent)
        origin = "frozen checkpoints" if self._frozen else f"policy at step {self._synced_at}"
        return PairBatch(numbers, prompts, first, second, preference, (origin,) * n)

    def observe(self, step: int, policy: Policy) -> None:
        if self._frozen or not (self._behaviour is None or (self._period is not None and step % self._period == 0)):
            return
        self._synced_at = step
        if self._period == 1:
            self._behaviour = policy
        elif self._behaviour is None:
            self._behaviour = policy.frozen_copy()
        else:
            self._behaviour.load_from(policy)

    def _live(self) -> Policy:
        if self._behaviour is None:
            raise RuntimeError("a sampled source must observe the policy before its first batch")
        return self._behaviour

    def state_dict(self) -> State:
        state: State = {
            "position": torch.tensor(self._walk.position),
            "synced_at": torch.tensor(self._synced_at),
            "cost": torch.tensor([self.cost.tokens_sampled, self.cost.judge_calls]),
        }
        state |= {f"spent.{name}": torch.tensor(amount) for name, amount in self._judge.spent.items()}
        if self._period != 1 and self._behaviour is not None:
            state |= {f"behaviour.{name}": weight.clone() for name, weight in self._behaviour.state_dict().items()}
        return state

    def load_state_dict(self, state: State) -> None:
        """After `observe` has been called once, so that there is a policy to load the weights into."""
        self._walk.position, self._synced_at = int(state["position"]), int(state["synced_at"])
        self.cost.tokens_sampled, self.cost.judge_calls = (int(value) for value in state["cost"])
        for name, amount in state.items():
            if name.startswith("spent."):
                self._judge.spent[name.removeprefix("spent.")] = float(amount)
        weights = {
            name.removeprefix("behaviour."): value for name, value in state.items() if name.startswith("behaviour.")
        }
        if weights:
            self._live().load_state_dict(weights)


class SampledSpec(SourceSpec):
    """Sampled from the policy in training; `sync_period` 1 is online, null never synchronises. labels: the judge's
    decision (the protocol), or its probability.
    """

    needs_judge = True

    kind: Literal["sampled"] = "sampled"
    sync_period: int | None = Field(1, ge=1)
    labels: Literal["decision", "probability"] = "decision"

    def build(self, given: Ingredients) -> Sampled:
        return Sampled(
            given.prompts,
            require(given.judge, "a judge", self.kind),
            given.seed,
            sync_period=self.sync_period,
            soft=self.labels == "probability",
        )
