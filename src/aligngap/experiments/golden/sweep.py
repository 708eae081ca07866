"""Three arms whose responses are judged anew, and the goldens that judge them."""

from __future__ import annotations

from aligngap.experiments.bench import ArmEntry, Bench, Measure
from aligngap.experiments.golden.measure import FreshPairs, GoldenAudit
from aligngap.experiments.spec import fifth
from aligngap.pipeline.stages import Generate

LOW_BETA = 0.01
FRESH_SEED = 1
OVER_OPTIMISED = "online_low_beta"
LABELS = {"online": "online", "offline": "offline", OVER_OPTIMISED: f"online, beta {LOW_BETA:g}"}
"""The arms audited, and what they are called."""


def over_optimised(bench: Bench, seed: int) -> ArmEntry:
    """Online with so weak a pull towards SFT that it goes far from it; all else is the baseline."""
    return bench.online(seed, OVER_OPTIMISED, loss=bench.loss(beta=LOW_BETA))


def obstacle(bench: Bench) -> str:
    """The true utility is what golden is held against, and raters label further pairs."""
    if bench.study.golden.judge is not None:
        return "Golden is given, so it is not trained on further pairs."
    return (
        "" if bench.has_truth else "Nobody knows a real data set's true utility, and its raters cannot be asked again."
    )


def arms(bench: Bench) -> list[ArmEntry]:
    """Three arms a seed."""
    return [
        entry
        for seed in bench.study.seeds
        for entry in (bench.online(seed), bench.offline(seed), over_optimised(bench, seed))
    ]


def measures(bench: Bench) -> list[Measure]:
    """An audit of each arm."""
    return [Measure(audit_name(entry.family), entry.stage.seed, audit(bench, entry)) for entry in arms(bench)]


def audit_name(family: str) -> str:
    """Under which `TaskData.table` finds the audit of an arm."""
    return f"audit {family}"


def audit(bench: Bench, entry: ArmEntry) -> GoldenAudit:
    """An arm's responses judged by golden, by golden with more pairs, and by golden with on-policy pairs."""
    fresh = fresh_pairs(bench)
    return GoldenAudit(
        evaluation=bench.evaluation(entry),
        more_pairs=bench.golden_with(fresh),
        on_policy=bench.golden_with(on_policy_pairs(bench, entry.stage.seed, fresh)),
    )


def fresh_pairs(bench: Bench) -> FreshPairs:
    """As many further raters' pairs as golden learns from, on prompts that the study does not have."""
    count = bench.study.golden.train_pairs or bench.study.data.train_pairs
    task = bench.pairs.task.model_copy(update={"train_pairs": count, "seed": FRESH_SEED})
    return FreshPairs(task=task, base=bench.pairs.base, apart=bench.pairs)


def on_policy_pairs(bench: Bench, seed: int, fresh: FreshPairs) -> Generate:
    """Raters' pairs on the same fresh prompts, by the over-optimised arm: early against at its end. Whose responses
    they are is all that differs from `fresh`.
    """
    arm = over_optimised(bench, seed).stage
    steps = arm.optim.steps
    return Generate(
        sft=bench.sft, task=fresh, first=arm, first_step=fifth(steps), second=arm, second_step=steps, seed=seed
    )
