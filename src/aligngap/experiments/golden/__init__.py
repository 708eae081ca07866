"""Beyond the paper: where golden itself departs from the true utility, and whether further raters' pairs repair it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import polars as pl

from aligngap.experiments.base import Analysis, Experiment, Figure, FigurePoint, TaskData, each_seed, points
from aligngap.experiments.bench import ArmEntry, Bench, Measure
from aligngap.experiments.contrasts import Contrasts
from aligngap.experiments.golden.measure import GOLDENS, GoldenAudit
from aligngap.experiments.spec import fifth
from aligngap.pipeline.stages import Generate, Pairs
from aligngap.stats.verdict import sign_verdict

LOW_BETA = 0.01
FRESH_SEED = 1_000_000
"""Added to a seed: no study's own pairs, nor golden's, are drawn so."""
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


@each_seed
def arms(bench: Bench, seed: int) -> list[ArmEntry]:
    """Three arms a seed."""
    return [bench.online(seed), bench.offline(seed), over_optimised(bench, seed)]


def measures(bench: Bench) -> list[Measure]:
    """An audit of each arm."""
    return [Measure(audit_name(entry.family), entry.stage.seed, audit(bench, entry)) for entry in arms(bench)]


def audit_name(family: str) -> str:
    """Under which `TaskData.table` finds the audit of an arm."""
    return f"audit {family}"


def audit(bench: Bench, entry: ArmEntry) -> GoldenAudit:
    """An arm's responses judged by golden, by golden with more pairs, and by golden with on-policy pairs."""
    bench = bench.of(entry.stage.seed)
    fresh = fresh_pairs(bench)
    return GoldenAudit(
        evaluation=bench.evaluation(entry),
        more_pairs=bench.golden_with(fresh),
        on_policy=bench.golden_with(on_policy_pairs(bench, entry.stage.seed, fresh)),
    )


def fresh_pairs(bench: Bench) -> Pairs:
    """As many further raters' pairs as golden learns from, none of them on a held-out prompt."""
    count = bench.study.golden.train_pairs or bench.study.data.train_pairs
    task = bench.pairs.task.model_copy(
        update={"part": "golden", "train_pairs": count, "seed": FRESH_SEED + bench.pairs.task.seed}
    )
    return Pairs(task=task, base=bench.pairs.base)


def on_policy_pairs(bench: Bench, seed: int, fresh: Pairs) -> Generate:
    """Raters' pairs on the same fresh prompts, by the over-optimised arm: early against at its end. Whose responses
    they are is all that differs from `fresh`.
    """
    arm = over_optimised(bench, seed).stage
    steps = arm.optim.steps
    return Generate(
        sft=bench.sft, task=fresh, first=arm, first_step=fifth(steps), second=arm, second_step=steps, seed=seed
    )


WINS = ("win_true", *(f"win_{name}" for name in GOLDENS))
DEPARTURES: Mapping[str, pl.Expr] = {name: pl.col(f"win_{name}") - pl.col("win_true") for name in GOLDENS}


def analyse(data: TaskData) -> Analysis:
    """Departure of golden along each arm, and by each golden on the over-optimised one."""
    split, other, contrasts = data.settings.split, data.other_split, Contrasts(data, "golden")
    audits = {family: data.table(audit_name(family)) for family in LABELS}
    name, far = LABELS[OVER_OPTIMISED], _risen(audits[OVER_OPTIMISED], split)
    departure = DEPARTURES["golden"]
    golden, more, on_policy = (pl.col(f"win_{who}") for who in GOLDENS)
    asked = {
        "departure": (f"{name}: golden minus true, rise from step 0 to the end", far, departure),
        "mended_more_pairs": (f"{name}: by how much more pairs shrink it", far, golden - more),
        "mended_on_policy": (f"{name}: by how much on-policy pairs shrink it", far, golden - on_policy),
        "on_policy_over_more_pairs": (
            f"{name}: by how much more on-policy pairs shrink it than more pairs do",
            far,
            more - on_policy,
        ),
        "departure_more_pairs": (f"{name}: what is left of it with more pairs", far, DEPARTURES["more_pairs"]),
        "departure_on_policy": (f"{name}: what is left of it with on-policy pairs", far, DEPARTURES["on_policy"]),
    }
    for family in ("online", "offline"):
        label = f"{LABELS[family]}: golden minus true, rise"
        asked[f"departure_{family}"] = (label, _risen(audits[family], split), departure)
    label = f"{name}: golden minus true, rise, {other.replace('_', '-')} prompts"
    asked[f"departure_{other}"] = (label, _risen(audits[OVER_OPTIMISED], other), departure)
    result = data.prompt_means({key: (table, value) for key, (_, table, value) in asked.items()}, "golden")
    for key, (label, _, _) in asked.items():
        contrasts.put(key, label, result[key])
    by_arm = (_path(data, audits[family], label, departure) for family, label in LABELS.items())
    by_golden = (_path(data, audits[OVER_OPTIMISED], label, DEPARTURES[golden]) for golden, label in GOLDENS.items())
    figures = [
        _figure("departure", "Golden's win rate minus the true one, along each arm", "golden minus true", by_arm),
        _figure("remedies", f"The same by three goldens, {name}", "judge minus true", by_golden),
    ]
    main = result["departure"]
    sentence = (
        f"From SFT to the end of {name}, golden's win rate rises {main:+.1%} more than the true one ({main.across()}); "
        f"further raters' pairs shrink that by {result['mended_more_pairs']:+.1%}, as many on-policy ones by "
        f"{result['mended_on_policy']:+.1%}."
    )
    return Analysis(sign_verdict(main, 1, data.settings.margin), sentence, contrasts.estimates, figures)


def _figure(name: str, title: str, what: str, lines: Iterable[list[FigurePoint]]) -> Figure:
    shown = [point for line in lines for point in line]
    y = f"win rate over SFT, {what}"
    return Figure(name, title, x="KL(policy || SFT), nats", y=y, points=shown, x_log=True)


def _risen(audit: pl.DataFrame, split: str) -> pl.DataFrame:
    """A row a seed and prompt: outcomes at the last checkpoint minus those at the first, step 0."""
    if not len(audit):
        return audit
    change = [pl.col(win).sort_by("step").last() - pl.col(win).sort_by("step").first() for win in WINS]
    return audit.filter(pl.col("split") == split).group_by("seed", "prompt_number").agg(change)


def _path(data: TaskData, audit: pl.DataFrame, series: str, value: pl.Expr) -> list[FigurePoint]:
    """A departure at each checkpoint, over the KL reached there; step 0 has no place on a log axis."""
    if not len(audit):
        return []
    later = audit.filter((pl.col("split") == data.settings.split) & (pl.col("step") > 0)).sort("step")
    steps = {str(rows["step"][0]): rows for rows in later.partition_by("step", maintain_order=True)}
    result = data.prompt_means({step: (rows, value) for step, rows in steps.items()}, "golden", "path")
    kl = {step: float(rows["kl"].to_numpy().mean()) for step, rows in steps.items()}
    return points((series, kl[step], here) for step, here in result.items())


EXPERIMENT = Experiment(
    name="golden",
    title="Golden against the true utility",
    question="Golden stands for the human. Does a policy far from SFT win by golden what it does not win by the "
    "utility that the raters feel; and do more raters' pairs, or as many on-policy ones, repair that?",
    finding="Not in the paper, whose true utility nobody knows. Hypothesis: at high KL golden overrates the policy.",
    rule="Departure = win rate over SFT's responses by golden minus that by true utility, on the same responses of the "
    f"study's primary split. It is taken at the last checkpoint of {LABELS[OVER_OPTIMISED]} minus at its step 0 (the "
    "SFT policy, against whose responses both are one half but for chance), paired by prompt. Supported (golden "
    "overrates the policy far from SFT) if the 95% interval lies wholly above 0; contradicted if it lies wholly below "
    "0 or wholly within the margin of no difference; else inconclusive. Further estimates: by how much the departure "
    "shrinks when golden is trained on further raters' pairs, and on as many on-policy ones.",
    arms=arms,
    analyse=analyse,
    measures=measures,
    obstacle=obstacle,
)
