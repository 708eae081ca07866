"""What `aligngap diagnose` says of data whose regime is known, because we made them.

    python -m benchmarks.diagnose [--task NAME] [--store PATH] [--prompts N] [--repeats N] [--json FILE]

The study `paper` on one built-in world gives the SFT policy, golden and the online arm. Pairs are sampled from SFT,
from the online policy a fifth of the way (early) and from its end (final), as in section 6 of the original, and from
each of its checkpoints on both sides. Each set is diagnosed with the golden judge, on other prompts in each repeat.
Beside it stands what a user cannot know: the exact KL from the policy of those who wrote the answers, and the win rate
of the answers against the policy's own by the true utility. Stages are made unless the store has them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import typer

from aligngap.diagnosis.report import Diagnosis, diagnose
from aligngap.diagnosis.subject import Subject
from aligngap.experiments.bench import Bench
from aligngap.experiments.spec import fifth
from aligngap.experiments.study import load_study
from aligngap.judges.base import Judge
from aligngap.judges.true_utility import TrueUtilityJudge
from aligngap.measure.kl import sequence_kl
from aligngap.measure.typicality import typicality
from aligngap.models.build import load_language_model
from aligngap.models.policy import Policy
from aligngap.pipeline.executors.local import LocalExecutor
from aligngap.pipeline.executors.run import run_stages
from aligngap.pipeline.graph import Context, Stage
from aligngap.pipeline.stages import load_judge, load_policy
from aligngap.seeds import numpy_stream, uniforms
from aligngap.store import Store
from aligngap.store.disk import write_json
from aligngap.tasks.pairs import read_pairs
from aligngap.types import PairBatch, Tokens
from benchmarks.markdown import heading, row, table

NO_SFT = "D_golden, no SFT"
EXPECTED = {
    "SFT vs SFT": "on_policy",
    "D_golden": "on_policy",
    "SFT vs early": "one_side_near",
    "early vs final": "far_better",
    "final vs final": "far_better",
    "online stream": "between",
    "likeliest of 8": "not on_policy",
    NO_SFT: "far_better or far_not_better",
}
"""What the original, or the way they were made, would have each set be. Written down before the first run."""
COLUMNS = ("set", "expected", "result", "KL", "nearer", "farther", "excess", "covered", "golden wins", "true win rate")


@dataclass(frozen=True)
class Made:
    """The policies by name (`SFT`, `base`, `step N` of the online arm), the judges, the sets, and who wrote them."""

    policies: dict[str, Policy]
    golden: Judge
    truth: TrueUtilityJudge
    sets: dict[str, PairBatch]
    writers: dict[str, tuple[str, str]]

    def diagnosed(self, name: str) -> Policy:
        """The policy that a set is held against."""
        return self.policies["base" if name == NO_SFT else "SFT"]


def prepare(bench: Bench, store: Store, prompts: int) -> Made:
    """Make what is missing in the store, and read it. prompts: how many each sampled set has."""
    online = bench.online(0).stage
    early, final = fifth(online.optim.steps), online.optim.steps
    sides: dict[str, tuple[int | None, int | None]] = {
        "SFT vs SFT": (None, None),
        "SFT vs early": (None, early),
        "early vs final": (early, final),
        "final vs final": (final, final),
        **{f"step {step}": (step, step) for step in online.keep},
    }
    stages: dict[str, Stage] = {"D_golden": bench.golden_pairs, "online stream": online}
    for name, steps in sides.items():
        first, second = (None if step is None else online for step in steps)
        chosen = {"first": first, "first_step": steps[0], "second": second, "second_step": steps[1]}
        stages[name] = bench.sampled_pairs(0, None, None).model_copy(update={"prompts": prompts, **chosen})
    wanted = [*stages.values(), bench.sft, bench.golden, bench.pairs]
    with LocalExecutor(store, jobs=1, device="cpu") as executor:
        outcome = run_stages(wanted, executor, lambda event: None)
    if missing := [stage.label for stage in wanted if not store.has(stage.identity)]:
        raise SystemExit(f"not made: {missing}: {outcome.reasons}")

    context = Context({stage.identity: store.get(stage.identity).path for stage in wanted}, Path(), Path(), print)
    sft, truth = load_policy(context, bench.sft, bench.pairs), bench.pairs.truth()
    assert truth is not None
    at = dict.fromkeys(step for steps in sides.values() for step in steps if step is not None)
    arms = {f"step {step}": load_policy(context, bench.sft, bench.pairs, online.weights(context, step)) for step in at}
    base = Policy(load_language_model(bench.study.models.policy.location), sft.ends, sft.max_new_tokens)
    files = {"online stream": "stream.parquet"}
    sets = {
        name: read_pairs(context.folder(stage) / files.get(name, "train.parquet")) for name, stage in stages.items()
    }
    golden = load_judge(bench.golden, context)
    sets["online stream"] = _one_a_prompt(sets["online stream"])
    sets["likeliest of 8"] = _likeliest(sft, sets["SFT vs SFT"], golden)
    sets[NO_SFT] = sets["D_golden"]
    names = {name: tuple("SFT" if step is None else f"step {step}" for step in steps) for name, steps in sides.items()}
    ordered = {name: sets[name] for name in dict.fromkeys((*EXPECTED, *sets))}
    return Made({"SFT": sft, "base": base, **arms}, golden, truth, ordered, names)


def _one_a_prompt(stream: PairBatch) -> PairBatch:
    """The pairs in a random order, the first of each prompt."""
    order = numpy_stream("benchmark", "diagnose", "stream").permutation(len(stream)).tolist()
    first = {int(stream.prompt_numbers[index]): index for index in reversed(order)}
    return stream.take(torch.tensor(list(first.values())))


def _likeliest(policy: Policy, pairs: PairBatch, judge: Judge) -> PairBatch:
    """The likeliest of eight own responses on either side: a sharpened policy, whose likelihood alone looks near."""
    sides = []
    for side in range(2):
        rows: list[list[int]] = []
        noise = uniforms(pairs.prompt_numbers, 8, policy.max_new_tokens, "benchmark", "diagnose", side)
        for index in torch.arange(len(pairs)).split(16):
            prompts = pairs.prompts.take(index)
            responses = policy.sample(prompts, 8, noise[8 * int(index[0]) : 8 * (int(index[-1]) + 1)])
            repeated = prompts.take(torch.arange(len(index)).repeat_interleave(8))
            best = typicality(policy, repeated, responses).log_prob.reshape(-1, 8).argmax(1)
            rows += [responses.rows()[8 * at + int(column)] for at, column in enumerate(best)]
        sides.append(Tokens.collate(rows))
    return replace(pairs, first=sides[0], second=sides[1], preference=judge.prefer(pairs.prompts, sides[0], sides[1]))


def examine(made: Made, name: str, prompts: int, repeats: int) -> Iterator[Diagnosis]:
    """A set, on other prompts in each repeat."""
    pairs = made.sets[name]
    order = torch.from_numpy(numpy_stream("benchmark", "diagnose", name).permutation(len(pairs)))
    for repeat, index in enumerate(order.split(prompts)[:repeats]):
        about = {"policy": "SFT", "data": name, "format": "made", "pairs": len(pairs), "prompts": len(pairs)}
        subject = Subject(made.diagnosed(name), made.truth.tokenizer, pairs.take(index), about | {"repeated_pairs": 0})
        yield diagnose(subject, made.golden, judge_name="golden", seed=repeat)


def exact(made: Made, name: str, prompts: int) -> list[float]:
    """KL of the writers of either side from SFT, nats a response; none for a set that no policy here wrote."""
    pairs = made.sets[name].take(torch.arange(prompts))
    sides = zip(made.writers.get(name, ()), (pairs.first, pairs.second), strict=False)
    sft = made.policies["SFT"]
    return [float(sequence_kl(made.policies[who], sft, pairs.prompts, side).mean()) for who, side in sides]


def true_wins(made: Made, name: str, prompts: int) -> float:
    """Win rate of either answer against a response of the policy's own, by the true utility."""
    pairs, policy = made.sets[name].take(torch.arange(prompts)), made.diagnosed(name)
    noise = uniforms(pairs.prompt_numbers, 1, policy.max_new_tokens, "benchmark", "diagnose", "wins")
    own = policy.sample(pairs.prompts, 1, noise)
    wins = [made.truth.prefer(pairs.prompts, side, own).mean() for side in (pairs.first, pairs.second)]
    return float(sum(wins) / 2)


def numbers(one: Diagnosis) -> list[float]:
    """Shares of pairs nearer and farther than they should be, excess in nats, shares covered and won."""
    signs, excess = one.findings.signs(), one.findings.number("on_policy", "excess", "either")
    return [part.value for part in (signs.nearer, signs.farther, excess, signs.covered, signs.quality)]


def cells(of_set: dict[str, Any]) -> tuple[str, ...]:
    """A set as a row of the table: numbers are the range over the repeats."""
    results = [one["regime"]["name"] for one in of_set["diagnoses"]]
    shown = [
        " to ".join(dict.fromkeys(format(value, form) for value in (min(values), max(values))))
        for values, form in zip(zip(*of_set["numbers"], strict=True), (".0%", ".0%", "+.1f", ".0%", ".0%"), strict=True)
    ]
    kl = ", ".join(f"{value:.2f}" for value in of_set["kl"])
    regimes = ", ".join(f"`{name}`" for name in dict.fromkeys(results))
    return of_set["set"], EXPECTED.get(of_set["set"], ""), regimes, kl, *shown, f"{of_set['true_win_rate']:.0%}"


def main(
    task: str = "summarisation",
    store: Path = Path("runs/store"),
    prompts: int = 512,
    repeats: int = 3,
    json: Path | None = None,
) -> None:
    """What `aligngap diagnose` says of data whose regime is known, because we made them."""
    torch.set_num_threads(1)
    made = prepare(Bench(load_study("paper", [f"tasks=[{task}]"]), task), Store(store), prompts * repeats)
    print(f"{heading()} {task}, {prompts} prompts, {repeats} repeats.\n\n{table(COLUMNS, [])}", flush=True)
    rows: list[dict[str, Any]] = []
    for name in made.sets:
        diagnoses = list(examine(made, name, prompts, repeats))
        rows.append(
            {
                "set": name,
                "kl": exact(made, name, prompts),
                "true_win_rate": true_wins(made, name, prompts),
                "diagnoses": [one.as_json() for one in diagnoses],
                "numbers": [numbers(one) for one in diagnoses],
            }
        )
        print(row(cells(rows[-1])), flush=True)
    if json:
        write_json(json, {"task": task, "expected": EXPECTED, "rows": rows})


if __name__ == "__main__":
    typer.run(main)
