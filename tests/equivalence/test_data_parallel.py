"""A stage made by two processes, or by three, gives what one process gives, within the tolerances stated here.

2 x 16 prompts are the batch of 32 in another order of summation, so weights after training differ by rounding, which
Adam enlarges where a gradient is nearly 0. What is computed at given weights in whole chunks (samples, KL and log-
probabilities of an evaluation) is the same to the last bit, unless the model is divided: one that is whole is read by
our own forward pass, a divided one by its own, so all that is computed differs by rounding. On-policy training may come
upon a token or a label that the last bit decides; none does here.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
import torch
from safetensors.torch import load_file

import ranked
from aligngap.pipeline.graph import Stage
from aligngap.store.disk import read_json
from aligngap.store.store import Store

WEIGHTS = {"max": 2e-5, "mean": 1e-7}
"""Of a weight after training; the learning rate is 3e-4, so a step moves most weights by 15 to 3000 times as much."""
READ_OTHERWISE = {"max": 3e-5, "mean": 5e-6}
"""Of KL and of log-probabilities, nats, at equal weights, when a divided model's own forward pass reads them: eight
steps of float32 at 32 to 64 nats, which a response's log-probability comes to.
"""
MARGIN = {"max": 1e-6, "mean": 1e-7}
"""Of a trained judge's margin, in [-1, 1]."""
NLL = 1e-5
"""Of a policy's negative log-likelihood a token, nats; of an untrained and of a trained one."""


@pytest.fixture(scope="module")
def stages() -> dict[str, Stage]:
    return ranked.stages()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("accelerate")
    folder = tmp_path_factory.mktemp("ranked")
    ranked.with_one(folder)
    return folder


CASES = [pytest.param(case, marks=[] if case == "two" else [pytest.mark.slow]) for case in ranked.CASES]


@pytest.fixture(params=CASES, scope="module")
def case(request: pytest.FixtureRequest, folder: Path) -> str:
    """Its stages have been made."""
    with_several(folder, request.param)
    return str(request.param)


def with_several(folder: Path, case: str) -> None:
    # Ranks are copies of a process that has computed nothing, which this one is no longer.
    variables = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, ranked.__file__, str(folder), case]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr


def files(folder: Path, case: str, stages: dict[str, Stage], name: str, file: str) -> tuple[Path, Path]:
    """A file of a stage's artefact, as one process and as several made it."""
    return Store(folder / "store").get(stages[name].identity).path / file, folder / case / "0" / name / file


def assert_near(one: torch.Tensor, several: torch.Tensor, bounds: dict[str, float]) -> None:
    drift = (one.double() - several.double()).abs()
    assert float(drift.max()) <= bounds["max"]
    assert float(drift.mean()) <= bounds["mean"]


def weights(path: Path) -> torch.Tensor:
    """All of a file's weights; of tied ones, which may go by either name, the one."""
    named = {name.replace("lm_head.weight", "model.embed_tokens.weight"): w for name, w in load_file(path).items()}
    return torch.cat([named[name].flatten() for name in sorted(named)])


@pytest.mark.parametrize("name", ["offline", "uneven", "single", "online", "stale", "resumed", "adapters"])
def test_arms_end_where_one_process_does(folder: Path, case: str, stages: dict[str, Stage], name: str) -> None:
    """uneven: 33 prompts; single: one prompt, fewer than there are ranks; stale: sampled from weights of before;
    resumed: by as many from one process's step checkpoint.
    """
    if (case, name) == ("sharded", "adapters"):
        pytest.skip("adapters are not divided")
    one, several = files(folder, case, stages, name, "steps")
    found = sorted(path.name for path in several.iterdir())
    assert found == sorted(path.name for path in one.iterdir())
    start, end = (weights(one / step) for step in (found[0], found[-1]))
    assert float((end - start).abs().mean()) > 100 * WEIGHTS["mean"]  # it was trained
    for step in found:
        assert_near(weights(one / step), weights(several / step), WEIGHTS)


def test_a_step_checkpoint_is_gone_on_with_by_any_number(folder: Path, case: str) -> None:
    first = read_json(folder / case / "steps.json")
    assert (first["offline"], first["resumed"]) == (1, 4)


@pytest.mark.parametrize("name", ["online", "stale"])
def test_streams_are_the_same(folder: Path, case: str, stages: dict[str, Stage], name: str) -> None:
    """Sampled, judged and recorded in the schedule's order, token by token, whoever drew them."""
    one, several = (pl.read_parquet(path) for path in files(folder, case, stages, name, "stream.parquet"))
    assert len(one) == ranked.STEPS * ranked.BATCH
    assert several.equals(one)
    costs = [read_json(path) for path in files(folder, case, stages, name, "cost.json")]
    assert costs[0] == costs[1]


def test_judges_are_the_same(folder: Path, case: str, stages: dict[str, Stage]) -> None:
    for file in ("backbone/model.safetensors", "readout.safetensors"):
        one, several = (weights(path) for path in files(folder, case, stages, "golden", file))
        assert_near(one, several, WEIGHTS)
    one, several = (read_json(path) for path in files(folder, case, stages, "golden", "metrics.json"))
    assert one == several
    labels = files(folder, case, stages, "golden_pairs", "train.parquet")
    assert pl.read_parquet(labels[0]).equals(pl.read_parquet(labels[1]))


def test_sft_is_the_same(folder: Path, case: str, stages: dict[str, Stage]) -> None:
    one, several = (weights(path) for path in files(folder, case, stages, "sft", "model/model.safetensors"))
    assert_near(one, several, WEIGHTS)
    one_says, several_say = (read_json(path) for path in files(folder, case, stages, "sft", "metrics.json"))
    assert one_says.keys() == several_say.keys()
    for name, value in one_says.items():
        assert several_say[name] == pytest.approx(value, abs=NLL), name
    configurations = [read_json(path) for path in files(folder, case, stages, "sft", "model/config.json")]
    assert configurations[0] == configurations[1]


def test_the_curve_is_the_same(folder: Path, case: str, stages: dict[str, Stage]) -> None:
    """At the same weights: samples, win rates and classification to the last bit, margins to rounding; KL and drift to
    the last bit where both read the model alike.
    """
    read = ["kl", "drift"] if case == "sharded" else []
    for file in ("per_prompt.parquet", "per_pair.parquet"):
        one, several = (pl.read_parquet(path) for path in files(folder, case, stages, "evaluation", file))
        near = {name: MARGIN for name in one.columns if name.startswith("margin_")}
        near |= {name: READ_OTHERWISE for name in one.columns if name in read}
        assert several.drop(near).equals(one.drop(near))
        for name, bounds in near.items():
            assert_near(one[name].to_torch(), several[name].to_torch(), bounds)
    kl = pl.read_parquet(files(folder, case, stages, "evaluation", "per_prompt.parquet")[1])["kl"]
    assert float(kl.max() or 0) > 0.01  # the policies have moved


@pytest.mark.parametrize("name", ["responses", "generated"])
def test_samples_are_token_identical_at_equal_weights(
    folder: Path, case: str, stages: dict[str, Stage], name: str
) -> None:
    for split in ("train", "held_out"):
        one, several = (pl.read_parquet(path) for path in files(folder, case, stages, name, f"{split}.parquet"))
        assert several.equals(one)


def test_the_first_rank_alone_writes_what_is_large(folder: Path, case: str) -> None:
    assert not list((folder / case / "1").rglob("*.safetensors"))


@pytest.mark.slow
def test_what_cannot_be_packed_is_divided_too(tmp_path: Path) -> None:
    """Rows that end at different times, in `generate` and without a cache: all ranks run as many passes."""
    pytest.importorskip("accelerate")
    ranked.save_alibi(tmp_path)
    with_several(tmp_path, "alibi")
    one, several = ranked.alibi(tmp_path), load_file(tmp_path / "alibi.safetensors")
    ends = one["lengths True"].reshape(5, 2)
    assert ends[:3].max() != ends[3:].max()  # the first rank's longest, the second's
    for name in ("ids True", "lengths True", "ids False", "lengths False"):
        assert torch.equal(one[name], several[name]), name
    assert_near(one["log_probs"], several["log_probs"], {"max": 1e-4, "mean": 1e-5})
    assert "an encoder-decoder cannot be divided among processes" in (tmp_path / "refusal.txt").read_text()
