"""Appendix H on prompts whose responses are enumerated: the closed-form optimum, a trained table, the trained policy.

Of each prompt only a set Y of K responses is looked at, and a policy is taken for its restriction, pi(y | Y) = softmax
over Y of log pi(y). IPO sees a policy through log-ratio margins only. The normaliser of the restriction cancels in
them, so training the language model on pairs from Y x Y *is* IPO on its restriction; where its mass outside Y goes,
neither loss nor theory says, and the column `mass` shows.

Pairs y1, y2 ~ mu independently, labelled by golden. IPO's loss E[(beta h(y_w) - beta h(y_l) - 1/2)^2] with
h = log pi/pi_sft is, but for a constant, 2 Var_mu(beta h) - 4 Cov_mu(beta h, p), with p(y) = p(y > mu) = E_{y' ~ mu}
P(y, y'). Where mu has full support its one minimiser is beta h = p + constant:

    pi*(y)  ~  pi_sft(y) exp(p(y > mu) / beta).

Where mu has not, nothing in the loss fixes pi on what mu never says, though the formula goes on to predict it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import polars as pl
import torch
from torch.nn.functional import one_hot

from aligngap.judges.base import Judge
from aligngap.models.policy import Policy
from aligngap.pipeline.graph import Context, Stage
from aligngap.pipeline.stages import Arm, JudgeStage, load_arm, load_judge, load_policy, sample_in_chunks
from aligngap.seeds import numpy_stream, uniforms
from aligngap.sources.order import Walk, in_sequence, prompt_schedule
from aligngap.sources.recorded import Recorded
from aligngap.train.loop import LossSpec, train
from aligngap.train.step import OptimSpec
from aligngap.types import PairBatch, Tokens


def closed_form(log_sft: torch.Tensor, win: torch.Tensor, beta: float) -> torch.Tensor:
    """log pi* of the full-support optimum, [K]. log_sft: log pi_sft, [K]; win: p(y > mu), [K]."""
    return (log_sft + win / beta).log_softmax(-1)


def tabular(
    log_sft: torch.Tensor, first: torch.Tensor, second: torch.Tensor, preference: torch.Tensor, beta: float
) -> torch.Tensor:
    """log pi [K] of a table of logits trained by IPO on N pairs until nothing moves any more.

    IPO is least squares in h = log pi/pi_sft, so gradient descent from the SFT policy (h = 0) ends at its solution of
    least norm, which is computed here at once: what the pairs do not compare stays as it was.

    log_sft: [K]; first, second: indices into Y, int64 [N]; preference: probability that `first` is preferred, [N].
    """
    compared = (one_hot(first, len(log_sft)) - one_hot(second, len(log_sft))).to(log_sft.dtype)
    scaled = torch.linalg.pinv(compared) @ (preference.to(log_sft.dtype) - 0.5)
    # beta h of the fit stands where p, its value at the optimum (up to a constant), stands in the closed form.
    return closed_form(log_sft, scaled, beta)


def wide_and_narrow(log_online: torch.Tensor, support: int) -> dict[str, torch.Tensor]:
    """The two mu, [K] each. wide: uniform over Y. narrow: the final online policy on its `support` likeliest responses
    of Y, zero elsewhere; its own probabilities, renormalised.
    """
    likeliest = log_online.topk(min(support, len(log_online))).indices
    kept = torch.full_like(log_online, -torch.inf).scatter(0, likeliest, log_online[likeliest])
    return {"wide": torch.full_like(log_online, 1 / len(log_online)), "narrow": kept.softmax(-1)}


def measured(log_policy: torch.Tensor, log_sft: torch.Tensor, wins: torch.Tensor, mu: torch.Tensor) -> dict[str, float]:
    """Of a restricted policy: its win rate against mu and against SFT minus one half, and its KL from SFT (nats).

    log_policy, log_sft, mu: [K]; wins: P(y, y'), [K, K].
    """
    policy, sft = log_policy.exp(), log_sft.exp()
    return {
        "over_mu": float(policy @ wins @ mu) - 0.5,
        "over_sft": float(policy @ wins @ sft) - 0.5,
        "kl": float(policy @ (log_policy - log_sft)),
    }


@dataclass(frozen=True)
class Enumerated:
    """Prompts with all the responses that are looked at. owner: whose each response is, index into the prompts, [R];
    the responses of a prompt stand together. sizes: K of each prompt.
    """

    numbers: torch.Tensor
    prompts: Tokens
    responses: Tokens
    owner: torch.Tensor
    sizes: list[int]

    @classmethod
    def of(cls, numbers: torch.Tensor, prompts: Tokens, responses: Sequence[Sequence[Sequence[int]]]) -> Enumerated:
        """From the responses of each prompt, which must differ."""
        sizes = [len(rows) for rows in responses]
        owner = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
        return cls(numbers, prompts, Tokens.collate([row for rows in responses for row in rows]), owner, sizes)

    @torch.no_grad()
    def log_probs(self, policy: Policy, chunk: int = 64) -> list[torch.Tensor]:
        """log pi(y | x), not restricted, float64 [K] a prompt."""
        parts = []
        for index in torch.arange(len(self.owner)).split(chunk):
            prompts = self.prompts.take(self.owner[index]).to(policy.device)
            parts.append(policy.log_probs(prompts, [self.responses.take(index).to(policy.device)])[0].cpu().double())
        return list(torch.cat(parts).split(self.sizes))

    def wins(self, judge: Judge) -> list[torch.Tensor]:
        """P(y, y') by the judge's decision: 1, 0, or 0.5 for a tie; float64 [K, K] a prompt. Each pair is judged once,
        for the decision does not depend on the order.
        """
        places = [torch.triu_indices(size, size, 1) for size in self.sizes]
        starts = np.cumsum([0, *self.sizes[:-1]]).tolist()
        first, second = torch.cat([place + start for place, start in zip(places, starts, strict=True)], 1)
        asked = self.prompts.take(self.owner[first])
        decisions = judge.prefer(asked, self.responses.take(first), self.responses.take(second)).double()
        tables = []
        for size, place, answers in zip(self.sizes, places, decisions.split([p.shape[1] for p in places]), strict=True):
            table = torch.full((size, size), 0.5, dtype=torch.float64)
            table[place[0], place[1]], table[place[1], place[0]] = answers, 1 - answers
            tables.append(table)
        return tables

    def drawn(
        self, mus: Sequence[torch.Tensor], wins: Sequence[torch.Tensor], owner: torch.Tensor, rng: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Pairs y1, y2 ~ mu independently, as indices into their prompt's Y, int64 [2, N]; and P(y1, y2), [N].

        mus, wins: of each prompt; owner: the pairs' prompts, as indices, int64 [N].
        """
        pairs = torch.empty((2, len(owner)), dtype=torch.int64)
        preference = torch.empty(len(owner), dtype=torch.float64)
        for number, (mu, table) in enumerate(zip(mus, wins, strict=True)):
            here = owner == number
            pairs[:, here] = torch.from_numpy(rng.choice(len(mu), size=(2, int(here.sum())), p=mu.numpy()))
            preference[here] = table[pairs[0, here], pairs[1, here]]
        return pairs, preference

    def batch(self, owner: torch.Tensor, pairs: torch.Tensor, preference: torch.Tensor, origin: str) -> PairBatch:
        """Pairs as a trainer takes them."""
        starts = torch.tensor([0, *self.sizes[:-1]]).cumsum(0)[owner]
        first, second = (self.responses.take(starts + side) for side in pairs)
        return PairBatch(
            self.numbers[owner], self.prompts.take(owner), first, second, preference.float(), (origin,) * len(owner)
        )


class ClosedForm(Stage):
    """Theory's optimum, a table trained on N sampled pairs, and the SFT policy trained by IPO on the same N pairs, for
    a wide and a narrow mu (Tang et al. 2024, appendix H). N = steps times batch.

    Y: `responses` different ones a prompt, half of them sampled from SFT and half from the final online policy (more
    from either where the other has not enough). support: responses that narrow mu keeps.

    table.parquet: prompt_number, mu (wide, narrow), method (sft: before any training; closed_form, tabular, trained),
    over_mu, over_sft (win rate minus one half), kl (nats, of the restriction), mass (probability of Y, null for what is
    defined on Y only).
    """

    kind: ClassVar[str] = "closed_form"
    together: ClassVar[bool] = True

    online: Arm
    golden: JudgeStage
    loss: LossSpec
    optim: OptimSpec
    prompts: int = 48
    responses: int = 16
    support: int = 3
    seed: int

    @property
    def reads(self) -> Sequence[Stage]:
        return (self.online.sft, self.online.task)

    @property
    def label(self) -> str:
        return f"{self.online.task.name}: closed form and training on enumerated responses (seed {self.seed})"

    @property
    def work(self) -> float:
        # Under 60 s at the default sizes: two trainings of 500 steps on the small base are most of it.
        sampled = 4 * self.responses * 8e-4 * self.online.sft.base.size
        judged = self.responses * (self.responses - 1) / 2 * self.golden.seconds
        trained = 2 * 0.035 * self.online.sft.base.size * self.optim.steps * self.optim.batch / 32
        return self.prompts * (sampled + judged) + trained + 5

    def run(self, context: Context) -> None:
        reference, online = (
            load_policy(context, self.online.sft, self.online.task, weights)
            for weights in (None, self.online.weights(context))
        )
        reference.model.requires_grad_(False)
        place = self._enumerated(context, reference, online)
        wins = place.wins(load_judge(self.golden, context))
        before = place.log_probs(reference)
        both = [wide_and_narrow(row.log_softmax(-1), self.support) for row in place.log_probs(online)]
        owner = Walk(len(place.sizes), prompt_schedule(self.seed)).take(self.optim.steps * self.optim.batch)
        rows: list[dict[str, Any]] = []
        for done, name in enumerate(("wide", "narrow")):
            mus = [mu[name] for mu in both]
            pairs, preference = place.drawn(mus, wins, owner, numpy_stream("theory", name, self.seed))
            batch = place.batch(owner, pairs, preference, f"{name} mu")
            after = place.log_probs(self._trained(context, batch, done))
            for number, (mu, table) in enumerate(zip(mus, wins, strict=True)):
                log_sft, here = before[number].log_softmax(-1), owner == number
                result = {
                    "sft": log_sft,
                    "closed_form": closed_form(log_sft, table @ mu, self.loss.beta),
                    "tabular": tabular(log_sft, pairs[0, here], pairs[1, here], preference[here], self.loss.beta),
                    "trained": after[number].log_softmax(-1),
                }
                whole = {"sft": before[number], "trained": after[number]}
                rows += [
                    {
                        "prompt_number": int(place.numbers[number]),
                        "mu": name,
                        "method": method,
                        **measured(log_policy, log_sft, table, mu),
                        "mass": float(whole[method].exp().sum()) if method in whole else None,
                    }
                    for method, log_policy in result.items()
                ]
        pl.DataFrame(rows).write_parquet(context.out / "table.parquet")

    def _trained(self, context: Context, batch: PairBatch, done: int) -> Policy:
        """The SFT policy after training on these pairs, in order. done: trainings before this one, for the progress."""

        def progress(step: int, steps: int, metrics: Mapping[str, float]) -> None:
            context.progress(done * steps + step, 2 * steps, metrics)

        (policy, reference), source = (
            load_arm(context, self.online.sft, self.online.task, self.seed),
            Recorded(batch, in_sequence),
        )
        train(
            policy,
            reference,
            source,
            self.loss,
            self.optim,
            keep=(),
            save_policy=lambda step, policy: None,
            progress=progress,
        )
        return policy

    def _enumerated(self, context: Context, sft: Policy, online: Policy) -> Enumerated:
        """The first prompts of the seed's schedule, with responses of both policies."""
        given = self.online.task.read(context)
        given = given.take(prompt_schedule(self.seed)(len(given), 0)[: self.prompts])
        tries = 2 * self.responses
        drawn = []
        for who, policy in (("sft", sft), ("online", online)):
            noise = uniforms(given.prompt_numbers, tries, policy.max_new_tokens, "theory", who, self.seed)
            each = given.prompts.take(torch.arange(len(given)).repeat_interleave(tries))
            drawn.append([tuple(row) for row in sample_in_chunks(policy, each, noise).rows()])
        responses = []
        for start in range(0, len(drawn[0]), tries):
            ours, theirs = (list(dict.fromkeys(rows[start : start + tries])) for rows in drawn)
            kept = dict.fromkeys([*ours[: self.responses // 2], *theirs, *ours])
            responses.append(list(kept)[: self.responses])
        return Enumerated.of(given.prompt_numbers, given.prompts, responses)
