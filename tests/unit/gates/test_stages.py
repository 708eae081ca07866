"""Gates as stages, on settings so small that nothing passes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from aligngap.errors import UserError
from aligngap.experiments.gating import gates_in, run_gates
from aligngap.experiments.study import load_study
from aligngap.gates import DataGate, GoldenGate, Record, SftGate
from aligngap.gates import golden as golden_gate
from aligngap.gates import plan as gates_plan
from aligngap.gates.plan import gates_of, probes
from aligngap.pipeline.stages import SPLITS, Pairs
from aligngap.results import GateResult, Score
from aligngap.store.disk import read_json
from aligngap.tasks.pairs import read_pairs
from tiny import Tiny


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gates_plan, "GATE_PROMPTS", 40)
    monkeypatch.setattr(gates_plan, "PROBE_STEPS", 8)
    monkeypatch.setattr(golden_gate, "_DRAWN", 80)
    monkeypatch.setattr(golden_gate, "_WANTED", 4)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return Tiny(tmp_path_factory.mktemp("tiny"))


def test_every_gate_says_what_it_found(tiny: Tiny) -> None:
    bench = tiny.bench
    gates = gates_of(bench.pairs, bench.sft, bench.golden, bench.study.baseline.optim)
    assert [type(gate) for gate in gates] == [DataGate, SftGate, GoldenGate], "this base is none of the shipped"
    results = [GateResult.model_validate(read_json(tiny.made(gate) / "gate.json")) for gate in gates]
    data, sft, golden = results
    assert data.passed, "no response of a world's data is one that no policy can say"
    assert not sft.passed, "an untrained policy is not as good as the data"
    assert not golden.passed
    names = [score.name for score in golden.scores]
    assert len(names) == len(set(names))
    assert {"SFT-SFT", "style edits that change the judge's mind"} <= set(names)
    assert [result.identity for result in results] == [gate.identity for gate in gates]


def test_the_probes_are_labelled_by_the_truth_and_keep_their_passages(tiny: Tiny) -> None:
    bench = tiny.bench
    offline, live = probes(bench.pairs, bench.sft, bench.study.baseline.optim, 0.03)
    truth = bench.pairs.truth()
    assert truth is not None
    for probe in (offline, live):
        folder = tiny.made(probe)
        path = read_json(folder / "passages.json")["path"]
        assert [step for step, _ in path] == [4, 8], "a look every four steps"
        assert all(kl > 0 for _, kl in path)
    stream = read_pairs(tiny.made(live) / "stream.parquet")
    assert stream.preference.tolist() == truth.prefer(stream.prompts, stream.first, stream.second).tolist()
    assert offline.recorded is not None
    labelled = read_pairs(tiny.made(offline.recorded) / "train.parquet")
    assert labelled.preference.tolist() == truth.prefer(labelled.prompts, labelled.first, labelled.second).tolist()


def test_the_gates_ask_prompts_that_nobody_has_learned(tiny: Tiny) -> None:
    bench = tiny.bench
    gate = gates_of(bench.pairs, bench.sft, bench.golden, bench.study.baseline.optim)[-1]
    assert isinstance(gate, GoldenGate)

    def prompts(pairs: Pairs, split: str) -> set[tuple[int, ...]]:
        return {tuple(ids) for ids in read_pairs(tiny.made(pairs) / f"{split}.parquet").prompts.rows()}

    asked = prompts(gate.prompts, "train")
    assert len(asked) == 40
    assert not asked & {row for split in SPLITS for row in prompts(bench.pairs, split)}


def test_what_is_on_record_is_not_made_again(tmp_path: Path) -> None:
    """A study reads the record; only what its settings change is examined anew."""
    study = load_study("paper", ["tasks=[summarisation]"])
    gates = gates_in(study, "summarisation")
    results = [
        GateResult(gate=gate.kind, subject=gate.subject, identity=gate.identity, scores=(Score(name="a", value=1.0),))
        for gate in gates
    ]
    record = Record()
    for result in results:
        record = record.with_result(result)
    record.write(tmp_path / "record.json")
    known = Record.read(tmp_path / "record.json")
    found = run_gates(study, ["summarisation"], tmp_path, known=known, console=Console(), say=print)
    assert found == results
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"], "nothing ran"
    other = gates_in(load_study("paper", ["tasks=[summarisation]", "sft.steps=700"]), "summarisation")
    assert [known.of(gate) is not None for gate in other] == [True, True, True, False, False]


def test_an_unknown_task_is_the_users_to_mend(tmp_path: Path) -> None:
    study = load_study("paper", ["tasks=[summarisation]"])
    with pytest.raises(UserError, match="no task 'sumarisation'") as error:
        run_gates(study, ["sumarisation"], tmp_path, known=Record(), console=Console(), say=print)
    assert "summarisation" in str(error.value.hint)


def test_a_bound_decides_and_what_could_not_be_had_fails() -> None:
    scores = {
        "reported": (Score(name="a", value=0.1), True),
        "at the bound": (Score(name="a", value=0.85, at_least=0.85), True),
        "below": (Score(name="a", value=0.84, at_least=0.85), False),
        "above": (Score(name="a", value=0.11, at_most=0.1), False),
        "between": (Score(name="a", value=-0.05, at_least=-0.1, at_most=0.1), True),
        "missing": (Score(name="a", value=None, at_most=0.1), False),
    }
    assert {name: score.passed for name, (score, _) in scores.items()} == {name: ok for name, (_, ok) in scores.items()}


def test_the_shipped_record_is_read() -> None:
    record = Record.shipped()
    assert json.loads(record.model_dump_json())["gates"] is not None
