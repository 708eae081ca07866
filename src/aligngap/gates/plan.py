"""Which gates a world's stages must pass, and the probes that golden is examined with."""

from __future__ import annotations

from aligngap.gates.bases import BaseGate
from aligngap.gates.data import DataGate
from aligngap.gates.golden import LEVELS, GoldenGate
from aligngap.gates.own import JudgeGate
from aligngap.gates.record import Gate
from aligngap.gates.sft import SftGate
from aligngap.judges.registry import GivenJudge
from aligngap.judges.true_utility import TrueUtilityJudgeSpec
from aligngap.models.build import SHIPPED
from aligngap.pipeline.stages import Arm, Base, Given, JudgeStage, Pairs, Preference, Relabel, Sft
from aligngap.sources.recorded import RecordedSpec
from aligngap.sources.sampled import SampledSpec
from aligngap.tasks.spec import GATE_PROMPTS, TaskSpec
from aligngap.tasks.worlds import WORLDS
from aligngap.train.loop import LossSpec
from aligngap.train.step import OptimSpec

PROBE_BETAS = (0.03, 0.01)
"""Of probes: the second where the first does not pass KL 2."""
PROBE_STEPS = 250
"""A probe sees each of its pairs once: 250 batches of 32."""


def gates_of(pairs: Pairs, sft: Sft, golden: JudgeStage, optim: OptimSpec, beta: float = PROBE_BETAS[0]) -> list[Gate]:
    """The gates of a world: its data, the bases that it stands on, its SFT policy, its golden (last). optim: of the
    study's arms, which the probes share but for their number of steps; beta: of the probes.
    """
    assert isinstance(pairs.task, TaskSpec), "only worlds have a truth to hold their parts against"
    prompts = gate_prompts(pairs)
    # What SFT has learned from: at an advantage the task's pairs are other writers'.
    learned = next((own for own in sft.pairs if own.name == pairs.name), pairs)
    raters = golden.pairs if isinstance(golden, Preference) and isinstance(golden.pairs, Pairs) else learned
    bases = {sft.base.digest: sft.base, **({golden.base.digest: golden.base} if isinstance(golden, Preference) else {})}
    return [
        *(DataGate(pairs=read) for read in {stage.identity: stage for stage in (pairs, learned, raters)}.values()),
        *(_base_gate(base) for base in bases.values() if base.checkpoint.path in SHIPPED),
        SftGate(sft=sft, pairs=learned, prompts=prompts),
        GoldenGate(golden=golden, sft=sft, prompts=prompts, probes=probes(pairs, sft, optim, beta)),
    ]


def gate_prompts(pairs: Pairs) -> Pairs:
    """The pairs that judges of a world are examined on, of which no golden learns: the same for all seeds."""
    task = pairs.task.model_copy(
        update={"part": "gates", "train_pairs": GATE_PROMPTS, "seed": 0, "draw": 0, "advantage": 0.0}
    )
    return Pairs(task=task, base=pairs.base)


def own_gates(pairs: Pairs, sft: Sft, golden: JudgeStage, style_words: tuple[str, ...]) -> list[Gate]:
    """The gates of a data set of one's own, which need no truth."""
    return [DataGate(pairs=pairs), JudgeGate(golden=golden, sft=sft, pairs=pairs, style_words=style_words)]


def _base_gate(base: Base) -> BaseGate:
    return BaseGate(base=base, worlds=tuple(WORLDS))


def probes(pairs: Pairs, sft: Sft, optim: OptimSpec, beta: float) -> tuple[Arm, Arm]:
    """An offline and an on-policy arm, both labelled by the truth. No gate compares them with each other."""
    assert isinstance(pairs.task, TaskSpec), "only worlds have a truth to label by"
    truth = Given(
        role="truth",
        seed=0,
        given=GivenJudge.of(TrueUtilityJudgeSpec()),
        base=pairs.base,
        world=pairs.task.world,
        dials=pairs.task.dials,
    )

    def probe(seed: int, source: RecordedSpec | SampledSpec, recorded: Relabel | None) -> Arm:
        return Arm(
            sft=sft,
            task=pairs,
            source=source,
            judge=None if recorded else truth,
            recorded=recorded,
            loss=LossSpec(beta=beta),
            optim=optim.model_copy(update={"steps": PROBE_STEPS}),
            seed=seed,
            keep=(),
            passages=LEVELS,
        )

    return (
        probe(0, RecordedSpec(order="schedule"), Relabel(pairs=pairs, judge=truth)),
        probe(1, SampledSpec(), None),
    )
