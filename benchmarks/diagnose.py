"""What `aligngap diagnose` says of data whose regime is known, because we made them.

    python -m benchmarks.diagnose [--task NAME] [--store PATH] [--prompts N] [--repeats N] [--json FILE]

The study `paper` on one built-in world gives the SFT policy, golden and the online arm (its stages are made unless the
store has them); pairs are sampled from SFT, from the online policy a fifth of the way (early) and from its end (final),
as in section 6 of the original. Each set is diagnosed with the golden judge, on other prompts in each repeat. Beside it
stands what a user cannot know: the exact KL of whoever wrote the answers from the policy, and the win rate by the true
utility.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from aligngap.diagnosis.report import Diagnosis, diagnose
from aligngap.diagnosis.subject import Subject
from aligngap.experiments.bench import Bench
from aligngap.experiments.spec import fifth
from aligngap.experiments.study import load_study
from aligngap.judges.base import Judge
from aligngap.judges.model import ModelJudge, separator_of
from aligngap.judges.true_utility import TrueUtilityJudge
from aligngap.measure.kl import sequence_kl
from aligngap.measure.typicality import typicality
from aligngap.models.build import load_language_model
from aligngap.models.policy import Policy
from aligngap.models.preference import load_preference_model
from aligngap.models.tokenizer import load_tokenizer
from aligngap.pipeline.executors.local import LocalExecutor
from aligngap.pipeline.executors.run import run_stages
from aligngap.pipeline.graph import Event, Stage
from aligngap.seeds import numpy_stream, uniforms
from aligngap.store import Store
from aligngap.tasks.pairs import read_pairs
from aligngap.tasks.worlds import world
from aligngap.types import PairBatch, Tokens

EXPECTED = {
    "SFT vs SFT": "on_policy",
    "D_golden": "on_policy",
    "SFT vs early": "one_side_near",
    "early vs final": "far_better",
    "final vs final": "far_better",
    "online stream": "between",
    "likeliest of 8": "not on_policy",
    "D_golden, no SFT": "far_better or far_not_better",
}
"""What the original, or the way they were made, would have each set be. Written down before the first run."""


class Made(NamedTuple):
    """The policies of a task (writers of the sets; all checkpoints of the online arm), its judges, the sets by name."""

    sft: Policy
    base: Policy
    writers: dict[str, Policy]
    checkpoints: dict[str, Policy]
    golden: Judge
    truth: TrueUtilityJudge
    sets: dict[str, PairBatch]


def prepare(bench: Bench, store: Store, prompts: int) -> Made:
    """Make what is missing in the store, and read it. prompts: how many each sampled set has."""
    task = bench.task
    online = bench.online(0).stage
    sides: dict[str, tuple[str | None, str | None]] = {
        "SFT vs SFT": (None, None),
        "SFT vs early": (None, "early"),
        "early vs final": ("early", "final"),
        "final vs final": ("final", "final"),
    }
    stages: dict[str, Stage] = {
        name: bench.sampled_pairs(0, *who).model_copy(update={"prompts": prompts}) for name, who in sides.items()
    }
    stages |= {"D_golden": bench.golden_pairs, "online stream": online}
    wanted = [*stages.values(), bench.sft, bench.golden]

    def say(event: Event) -> None:
        if event.kind in ("started", "finished", "failed"):
            print(f"{time.strftime('%H:%M:%S')}  {event.kind}  {event.stage.label}", flush=True)

    with LocalExecutor(store, jobs=1, device="cpu") as executor:
        outcome = run_stages(wanted, executor, say)
    if missing := [stage.label for stage in wanted if not store.has(stage.identity)]:
        raise SystemExit(f"not made: {missing}: {outcome.reasons}")

    def folder(stage: Stage) -> Path:
        return store.get(stage.identity).path

    tokenizer = load_tokenizer(str(folder(bench.sft) / "model"))
    limit = world(task).max_response_tokens

    def policy(path: str, weights: Path | None = None) -> Policy:
        found = Policy(load_language_model(path), int(tokenizer.eos_token_id), limit)
        if weights is not None:
            found.load_weights(weights)
        return found

    sft_path = str(folder(bench.sft) / "model")

    def weights_at(step: int) -> Path:
        return folder(online) / f"steps/{step:06d}.safetensors"

    steps = {"early": fifth(online.optim.steps), "final": online.optim.steps}
    writers = {"SFT": policy(sft_path)} | {name: policy(sft_path, weights_at(step)) for name, step in steps.items()}
    golden_path = folder(bench.golden)
    golden_tokens = load_tokenizer(bench.study.models.golden)
    golden = ModelJudge(load_preference_model(bench.study.golden.model, golden_path, separator_of(golden_tokens)))
    truth = TrueUtilityJudge(world(task), tokenizer)
    sets = {
        name: read_pairs(folder(stage) / ("stream.parquet" if name == "online stream" else "train.parquet"))
        for name, stage in stages.items()
    }
    sets["online stream"] = _one_a_prompt(sets["online stream"])
    sets["likeliest of 8"] = _likeliest(writers["SFT"], sets["SFT vs SFT"], golden)
    base = policy(bench.study.models.policy.location)
    checkpoints = {f"step {step}": policy(sft_path, weights_at(step)) for step in online.keep}
    return Made(
        writers["SFT"],
        base,
        writers,
        checkpoints,
        golden,
        truth,
        {name: sets[name] for name in EXPECTED if name in sets},
    )


def _one_a_prompt(stream: PairBatch) -> PairBatch:
    """The pairs in a random order, the first of each prompt."""
    order = numpy_stream("benchmark", "diagnose", "stream").permutation(len(stream))
    seen: dict[int, int] = {}
    for index in order.tolist():
        seen.setdefault(int(stream.prompt_numbers[index]), index)
    return stream.take(torch.tensor(list(seen.values())))


def _likeliest(policy: Policy, pairs: PairBatch, judge: Judge) -> PairBatch:
    """The likeliest of eight own responses on either side: a sharpened policy, whose likelihood alone looks near."""
    sides = []
    for side in range(2):
        rows: list[list[int]] = []
        noise = uniforms(pairs.prompt_numbers, 8, policy.max_new_tokens, "benchmark", "diagnose", side)
        for index in torch.arange(len(pairs)).split(16):
            prompts = pairs.prompts.take(index)
            found = policy.sample(prompts, 8, noise[8 * int(index[0]) : 8 * (int(index[-1]) + 1)])
            repeated = prompts.take(torch.arange(len(index)).repeat_interleave(8))
            best = typicality(policy, repeated, found).log_prob.reshape(-1, 8).argmax(1)
            rows += [found.rows()[8 * row + int(column)] for row, column in enumerate(best)]
        sides.append(Tokens.collate(rows))
    return replace(pairs, first=sides[0], second=sides[1], preference=judge.prefer(pairs.prompts, sides[0], sides[1]))


def examine(made: Made, prompts: int, repeats: int) -> Iterator[tuple[str, int, Diagnosis, float]]:
    """Each set, on other prompts in each repeat: name, repeat, what was said, seconds."""
    for name in EXPECTED:
        pairs = made.sets[name.removesuffix(", no SFT")]
        policy = made.base if name.endswith(", no SFT") else made.sft
        order = torch.from_numpy(numpy_stream("benchmark", "diagnose", name).permutation(len(pairs)))
        for repeat, index in enumerate(order.split(prompts)[:repeats]):
            about = {"policy": "SFT", "data": name, "format": "made", "pairs": len(pairs), "prompts": len(pairs)}
            subject = Subject(policy, made.truth.tokenizer, pairs.take(index), about | {"repeated_pairs": 0})
            start = time.perf_counter()
            found = diagnose(subject, made.golden, judge_name="golden", seed=repeat)
            yield name, repeat, found, time.perf_counter() - start


def exact(made: Made, prompts: int) -> dict[str, float]:
    """KL of each writer from SFT, nats a response."""
    pairs = made.sets["SFT vs SFT"].take(torch.arange(prompts))
    found = {}
    for name, writer in made.writers.items():
        noise = uniforms(pairs.prompt_numbers, 1, writer.max_new_tokens, "benchmark", "diagnose", "kl")
        responses = writer.sample(pairs.prompts, 1, noise)
        found[name] = float(sequence_kl(writer, made.sft, pairs.prompts, responses).mean())
    return found


def sensitivity(made: Made, prompts: int) -> Iterator[tuple[str, float, Diagnosis]]:
    """Pairs whose answers both come from one checkpoint of the online arm: its step, exact KL, what was said."""
    pairs = made.sets["SFT vs SFT"].take(torch.arange(prompts))
    for name, writer in made.checkpoints.items():
        sides = []
        for side in range(2):
            noise = uniforms(pairs.prompt_numbers, 1, writer.max_new_tokens, "benchmark", "diagnose", "step", side)
            sides.append(writer.sample(pairs.prompts, 1, noise))
        kl = float(sequence_kl(writer, made.sft, pairs.prompts, sides[0]).mean())
        own = replace(pairs, first=sides[0], second=sides[1])
        about = {"policy": "SFT", "data": name, "format": "made", "pairs": prompts, "prompts": prompts}
        yield name, kl, diagnose(Subject(made.sft, made.truth.tokenizer, own, about | {"repeated_pairs": 0}))


def true_wins(made: Made, name: str, prompts: int) -> float:
    """Win rate of either answer against a response of the policy's own, by the true utility."""
    pairs = made.sets[name.removesuffix(", no SFT")].take(torch.arange(prompts))
    policy = made.base if name.endswith(", no SFT") else made.sft
    noise = uniforms(pairs.prompt_numbers, 1, policy.max_new_tokens, "benchmark", "diagnose", "wins")
    own = policy.sample(pairs.prompts, 1, noise)
    wins = [made.truth.prefer(pairs.prompts, side, own).mean() for side in (pairs.first, pairs.second)]
    return float(sum(wins) / 2)


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.diagnose", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--task", default="summarisation")
    parser.add_argument("--store", type=Path, default=Path("runs/store"))
    parser.add_argument("--prompts", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there")
    given = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(load_study("paper", [f"tasks=[{given.task}]"]), given.task)
    made = prepare(bench, Store(given.store), given.prompts * given.repeats)
    kl = exact(made, given.prompts)
    print(f"{given.task}: exact KL from SFT, nats a response: " + ", ".join(f"{k} {v:.2f}" for k, v in kl.items()))
    steps = []
    for name, distance, found in sensitivity(made, given.prompts):
        signs = found.findings.signs()
        excess = found.findings.number("on_policy", "excess", "either")
        steps.append({"set": name, "kl": distance, **found.as_json()})
        print(
            f"both answers of {name:<9} KL {distance:5.2f}  {found.regime.name:<13} nearer {_short(signs.nearer)} "
            f"farther {_short(signs.farther)} excess {excess.value:+6.2f} covered {signs.covered.value:4.0%}",
            flush=True,
        )
    rows: list[dict[str, Any]] = []
    for name, repeat, found, seconds in examine(made, given.prompts, given.repeats):
        signs = found.findings.signs()
        excess = found.findings.number("on_policy", "excess", "either")
        rows.append({"set": name, "repeat": repeat, "seconds": seconds, **found.as_json()})
        print(
            f"{name:<17} {found.regime.name:<15} nearer {_short(signs.nearer)} farther {_short(signs.farther)} "
            f"excess {excess.value:+6.2f} unlikely {signs.unlikely.value:4.0%} likely {signs.likely.value:4.0%} "
            f"covered {signs.covered.value:4.0%} golden {signs.quality.value:4.0%}  {seconds:5.1f} s",
            flush=True,
        )
    truth = {name: true_wins(made, name, given.prompts) for name in EXPECTED}
    for name, expected in EXPECTED.items():
        said = [row["regime"]["name"] for row in rows if row["set"] == name]
        counts = ", ".join(f"{word} {said.count(word)}" for word in dict.fromkeys(said))
        print(f"{name:<17} expected {expected:<29} said {counts:<40} true win rate {truth[name]:.0%}")
    print(f"median {statistics.median(row['seconds'] for row in rows):.1f} s a diagnosis")
    if given.json:
        result = {
            "task": given.task,
            "kl": kl,
            "true_win_rate": truth,
            "expected": EXPECTED,
            "rows": rows,
            "steps": steps,
        }
        given.json.write_text(json.dumps(result, indent=1) + "\n")


def _short(number: Any) -> str:
    return f"{number.value:4.0%} [{number.low:4.0%}, {number.high:4.0%}]"


if __name__ == "__main__":
    main()
