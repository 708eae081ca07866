"""The gate of judges: a yardstick must not be the thing that it measures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar, NamedTuple

import numpy as np
import torch

from aligngap.gates.agreement import agreement_score, balanced_agreement, first_of_each_sign
from aligngap.gates.record import Gate, Score
from aligngap.gates.restyling import restyled
from aligngap.judges.base import Judge, decision
from aligngap.judges.true_utility import TrueUtilityJudge
from aligngap.models.policy import Policy
from aligngap.pipeline.graph import Context
from aligngap.pipeline.stages import Arm, JudgeStage, Pairs, Sft, load_judge, load_policy, sample_in_chunks
from aligngap.seeds import numpy_stream, uniforms
from aligngap.tasks.spec import response_ids
from aligngap.tasks.worlds.base import World
from aligngap.types import PairBatch, Tokens

LEVELS = (1.0, 2.0, 4.0)
"""KL at which probes are looked at, nats."""
_LEAST_ATTAINED = 0.95
_MOST_EDITS = 0.10
_LEAST_AGREEMENT = 0.85
_WANTED = 400
"""Pairs of the rarer true sign in each stratum."""
_DRAWN = 20_000
"""Pairs drawn for them at most."""


class GoldenGate(Gate):
    """A judge knows nearly all that its raters know, does not go by style, and tells better from worse on what policies
    say as on what SFT says. Balanced, so a judge that always says "the trained one" fails.

    prompts: the gates' pairs, of which the judge has learned none; probes: arms labelled by the truth, one offline and
    one on-policy, looked at where they first pass each KL of `LEVELS`, and gated there; seed: of what is sampled for
    the examination.
    """

    kind: ClassVar[str] = "golden_gate"

    golden: JudgeStage
    sft: Sft
    prompts: Pairs
    probes: tuple[Arm, ...]
    seed: int = 0

    @property
    def subject(self) -> str:
        return f"{self.golden.label} in {self.prompts.name}"

    @property
    def work(self) -> float:
        strata = 1 + len(LEVELS) * (len(self.probes) + 1)
        judged = self.golden.seconds * (self.prompts.count + 2000 + 2 * _WANTED * strata)
        return judged + 2e-3 * self.sft.base.size * self.prompts.count * strata + 1

    def examine(self, context: Context) -> Sequence[Score]:
        judge, truth = load_judge(self.golden, context), self.prompts.truth()
        assert truth is not None, "a real data set's true utility is not known"
        pairs = self.prompts.read(context)
        scores = [*attained(judge, truth, pairs)]
        said = _Said(self, context, pairs)
        own = said.stratum("SFT-SFT", None, None)
        scores.append(style_edits(judge, truth, own.pairs(0, 1000), self.seed))
        paths = {name: said.path(arm) for name, arm in said.arms.items()}
        strata = [own]
        for name, passed in paths.items():
            strata += [said.stratum(f"{name}-SFT at KL {k:g}", (name, step), None) for k, step in passed.items()]
        for k in LEVELS:
            if len(paths) > 1 and all(k in passed for passed in paths.values()):
                one, other = ((name, passed[k]) for name, passed in paths.items())
                strata.append(said.stratum(f"{one[0]}-{other[0]} at KL {k:g}", one, other))
        for number, stratum in enumerate(strata, start=1):
            scores += examined(judge, truth, stratum)
            context.progress(number, len(strata), {})
        return [*scores, *said.reach(paths)]


class Stratum(NamedTuple):
    """Pairs of a kind, drawn round after round. rounds: each round's prompts, first and second responses."""

    name: str
    rounds: Iterator[tuple[Tokens, Tokens, Tokens]]
    kept: list[tuple[Tokens, Tokens, Tokens]]

    def more(self) -> bool:
        """Draw a round more; False if there is none."""
        drawn = next(self.rounds, None)
        if drawn is not None:
            self.kept.append(drawn)
        return drawn is not None

    def pairs(self, at: int, most: int) -> tuple[Tokens, Tokens, Tokens]:
        """The first pairs of a round."""
        while len(self.kept) <= at and self.more():
            pass
        prompts, first, second = self.kept[at]
        index = torch.arange(min(most, len(prompts.lengths)))
        return prompts.take(index), first.take(index), second.take(index)


class _Said:
    """What SFT and the probes say to the gates' prompts, a sample a round; each policy's is sampled once."""

    def __init__(self, gate: GoldenGate, context: Context, pairs: PairBatch) -> None:
        self._gate, self._context, self._pairs = gate, context, pairs
        self.arms = {"on-policy" if arm.source.needs_judge else "offline": arm for arm in gate.probes}
        self._memory: dict[tuple[object, int], Tokens] = {}
        self._loaded: tuple[object, Policy] | None = None

    def path(self, arm: Arm) -> dict[float, int]:
        """The step at which a probe first passes each level that it passes."""
        path = arm.probed(self._context)
        firsts = ((k, next((step for step, kl in path if kl >= k), None)) for k in LEVELS)
        return {k: step for k, step in firsts if step is not None}

    def reach(self, paths: dict[str, dict[float, int]]) -> list[Score]:
        """How many levels each probe passes, which must be two; and by how much ln KL falls for each unit it rises."""
        scores = []
        for name, passed in paths.items():
            path = self._gate_path(name)
            scores.append(
                Score(name=f"levels of KL that the {name} probe passes", value=len(passed), n=len(LEVELS), at_least=2)
            )
            steps = np.diff(np.log([kl for step, kl in path if kl > 0 and step > self.arms[name].optim.warmup_steps]))
            rises, falls = float(steps[steps > 0].sum()), float(-steps[steps < 0].sum())
            scores.append(
                Score(
                    name=f"falls of ln KL to its rises, {name} probe", value=round(falls / rises, 3) if rises else None
                )
            )
        return scores

    def _gate_path(self, name: str) -> list[tuple[int, float]]:
        return self.arms[name].probed(self._context)

    def stratum(self, name: str, first: tuple[str, int] | None, second: tuple[str, int] | None) -> Stratum:
        """Pairs of two policies' responses, None for SFT, by name and step. Two of a kind change sides at random; of a
        probe and SFT the probe is first.
        """
        mixed = first is not None and second is None

        def rounds() -> Iterator[tuple[Tokens, Tokens, Tokens]]:
            for number in range(max(1, _DRAWN // len(self._pairs))):
                one = self._responses(first, "first" if first is None else "", number)
                other = self._responses(second, "second" if second is None else "", number)
                if not mixed:
                    coin = numpy_stream("gate", "sides", name, self._gate.seed, number).random(len(self._pairs)) < 0.5
                    one, other = _swapped(one, other, torch.from_numpy(coin))
                yield self._pairs.prompts, one, other

        return Stratum(name, rounds(), [])

    def _responses(self, who: tuple[str, int] | None, which: str, number: int) -> Tokens:
        key = (who or which, number)
        if key not in self._memory:
            policy = self._policy(who)
            noise = uniforms(
                self._pairs.prompt_numbers, 1, policy.max_new_tokens, "gate", str(who), which, self._gate.seed, number
            )
            self._memory[key] = sample_in_chunks(policy, self._pairs.prompts, noise)
        return self._memory[key]

    def _policy(self, who: tuple[str, int] | None) -> Policy:
        if self._loaded is None or self._loaded[0] != who:
            weights = self.arms[who[0]].weights(self._context, who[1]) if who else None
            self._loaded = (who, load_policy(self._context, self._gate.sft, self._gate.prompts, weights))
        return self._loaded[1]


def _swapped(one: Tokens, other: Tokens, coin: torch.Tensor) -> tuple[Tokens, Tokens]:
    rows = [(b, a) if turn else (a, b) for a, b, turn in zip(one.rows(), other.rows(), coin.tolist(), strict=True)]
    first, second = zip(*rows, strict=True)
    return Tokens.collate(list(first)), Tokens.collate(list(second))


def attained(judge: Judge, truth: TrueUtilityJudge, pairs: PairBatch) -> list[Score]:
    """Of what raters' labels say of the truth, the share that the judge says of held-out raters' labels: (its accuracy
    on them less 1/2) over (their agreement with the true sign less 1/2).
    """
    sign = decision(truth.margin(pairs.prompts, pairs.first, pairs.second))
    clear = torch.nonzero(sign != 0.5).squeeze(1)
    part = pairs.take(clear)
    says = judge.prefer(part.prompts, part.first, part.second)
    right = (1 - (says - part.preference).abs()).double()
    raters = float((part.preference == sign[clear]).double().mean())
    accuracy, n = float(right.mean()), len(clear)
    known = raters - 0.5
    return [
        Score(
            name="what the judge attains of its raters' knowledge",
            value=round((accuracy - 0.5) / known, 4),
            se=round(float(right.std()) / n**0.5 / known, 4),
            n=n,
            at_least=_LEAST_ATTAINED,
            note=f"its accuracy on held-out raters' labels is {accuracy:.3f}",
        ),
        Score(name="raters' agreement with the true sign", value=round(raters, 4), n=n),
        Score(
            name="agreement with the true sign on writers' pairs",
            value=balanced_agreement(says, sign[clear] - 0.5)[0],
            n=n,
        ),
    ]


def style_edits(judge: Judge, truth: TrueUtilityJudge, pairs: tuple[Tokens, Tokens, Tokens], seed: int) -> Score:
    """The share of edits of style alone, of one response of a pair, that change the judge's mind about the pair."""
    place: World = truth.world
    prompts, first, second = pairs
    kept, edited = [], []
    for row, (prompt, a, b) in enumerate(zip(prompts.rows(), first.rows(), second.rows(), strict=True)):
        rng = numpy_stream("gate", "style", seed, row)
        sides = [a, b]
        side = int(rng.integers(2))
        other = restyled(place, rng, truth.text(prompt), truth.read(sides[side]))
        if other is not None:
            sides[side] = response_ids(other, truth.tokenizer)
            kept.append(row)
            edited.append(sides)
    if not kept:
        return Score(name="style edits that change the judge's mind", value=None, note="no response has another style")
    index = torch.tensor(kept)
    asked = prompts.take(index)
    before = judge.prefer(asked, first.take(index), second.take(index))
    after = judge.prefer(asked, *(Tokens.collate(list(side)) for side in zip(*edited, strict=True)))
    changed = (before != after).double()
    return Score(
        name="style edits that change the judge's mind",
        value=round(float(changed.mean()), 4),
        se=round(float(changed.std()) / len(kept) ** 0.5, 4),
        n=len(kept),
        at_most=_MOST_EDITS if place.dials.style == 0 else None,
    )


def examined(judge: Judge, truth: TrueUtilityJudge, stratum: Stratum) -> list[Score]:
    """The balanced agreement on a stratum's pairs that differ by more than the raters' temperature, drawn until the
    rarer true sign has enough of them; and what share the others are.
    """
    least = truth.world.rater_temperature
    differences = [truth.margin(*drawn) for drawn in stratum.kept]
    while True:
        difference = torch.cat(differences) if differences else torch.zeros(0)
        rarer = min(int((difference > least).sum()), int((difference < -least).sum()))
        if rarer >= _WANTED or not stratum.more():
            break
        differences.append(truth.margin(*stratum.kept[-1]))
    index = first_of_each_sign(difference, least, _WANTED)
    rows = [[row for drawn in stratum.kept for row in drawn[part].rows()] for part in range(3)]
    prompts, first, second = (Tokens.collate([part[at] for at in index.tolist()]) for part in rows)
    says = judge.prefer(prompts, first, second)
    close = float((difference.abs() <= least).double().mean())
    note = f"{close:.0%} of {len(difference)} drawn differ by less than the temperature and are left out"
    return [agreement_score(stratum.name, says, difference[index], _LEAST_AGREEMENT, _WANTED, note)]
