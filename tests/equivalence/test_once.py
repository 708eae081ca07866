"""What is computed once for several stages, or once a response, is what each would compute for itself."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal
from safetensors.torch import load_file

from aligngap.experiments.bench import Bench
from aligngap.measure.classify import pair_log_probs
from aligngap.models.opponents import KeptPairwise
from aligngap.pipeline.stages import SPLITS, Arm, Evaluate, Reference, load_arm
from aligngap.pipeline.stages.evaluation import Evaluator
from aligngap.sources.recorded import RecordedSpec
from aligngap.tasks.pairs import read_pairs
from aligngap.train.loop import batch_loss
from aligngap.types import Tokens, concatenate
from tiny import STEPS, TRAIN, Tiny

MARGIN = 1e-6
"""Of a judge's margin, in [-1, 1], on a response that is read in another batch."""
WEIGHTS = 1e-4
"""Of a weight after six steps at a learning rate of 0.01, when the reference was read in other batches."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """16 steps of 4 pairs: once round the 64 of the task."""
    tiny = Tiny(tmp_path_factory.mktemp("once"))
    optim = tiny.bench.study.baseline.optim.model_copy(update={"steps": TRAIN // 4})
    baseline = tiny.bench.study.baseline.model_copy(update={"optim": optim})
    tiny.bench = Bench(tiny.bench.study.model_copy(update={"baseline": baseline}), tiny.bench.task)
    return tiny


def reference_of(arm: Arm) -> Reference:
    assert arm.reference is not None
    return arm.reference


def alone(arm: Arm) -> Arm:
    """The same arm, which asks the reference itself."""
    return arm.model_copy(update={"reference": None})


def end(folder: Path) -> torch.Tensor:
    return torch.cat([weight.flatten() for _, weight in sorted(load_file(folder / "final.safetensors").items())])


def test_an_arm_ends_where_it_would_if_it_asked_the_reference_itself(tiny: Tiny) -> None:
    arm = tiny.bench.offline(0).stage
    assert len(pl.read_parquet(tiny.made(reference_of(arm)) / "reference.parquet")) == TRAIN
    own, start = end(tiny.made(alone(arm))), end_of_start(tiny, arm)
    assert float((own - start).abs().mean()) > 0.01
    torch.testing.assert_close(end(tiny.made(arm)), own, atol=WEIGHTS, rtol=0)


def end_of_start(tiny: Tiny, arm: Arm) -> torch.Tensor:
    first = load_file(tiny.made(arm) / "steps" / "000000.safetensors")
    return torch.cat([weight.flatten() for _, weight in sorted(first.items())])


def test_the_values_are_the_references_own(tiny: Tiny, tmp_path: Path) -> None:
    arm = tiny.bench.offline(0).stage
    folder = tiny.made(reference_of(arm))
    pairs = Reference.of(read_pairs(tiny.made(tiny.bench.golden_pairs) / "train.parquet"), folder)
    assert pairs.reference is not None
    _, reference = load_arm(tiny.context(arm, tmp_path), arm.sft, arm.task)
    expected = pair_log_probs(reference, pairs).T.float()
    torch.testing.assert_close(pairs.reference, expected, atol=1e-5, rtol=0)
    assert float(expected.std()) > 0.1


def test_a_loss_with_known_values_needs_no_reference(tiny: Tiny, tmp_path: Path) -> None:
    arm = tiny.bench.offline(0).stage
    known = Reference.of(read_pairs(tiny.made(tiny.bench.golden_pairs) / "train.parquet"), tiny.made(reference_of(arm)))
    batch = known.take(torch.tensor([5, 3, 60, 1]))
    policy, reference = load_arm(tiny.context(arm, tmp_path), arm.sft, arm.task)
    expected = batch_loss(policy, reference, replace(batch, reference=None), arm.loss)
    torch.testing.assert_close(batch_loss(policy, None, batch, arm.loss), expected)
    with pytest.raises(ValueError, match="no reference to ask"):
        batch_loss(policy, None, replace(batch, reference=None), arm.loss)
    wrong = replace(batch, reference=known.take(torch.tensor([3, 5, 1, 60])).reference)
    assert float((batch_loss(policy, None, wrong, arm.loss) - expected).detach().abs()) > 1e-3


def test_a_stream_gets_the_bits_that_its_own_arm_found(tiny: Tiny) -> None:
    """So tandem replay ends bit by bit where the online arm did, with or without."""
    replay = tiny.bench.on_stream(0, "tandem", RecordedSpec(order="sequence")).stage
    online = tiny.made(tiny.bench.online(0).stage)
    assert len(pl.read_parquet(tiny.made(reference_of(replay)) / "reference.parquet")) == TRAIN
    assert torch.equal(end(tiny.made(replay)), end(online))
    assert torch.equal(end(tiny.made(alone(replay))), end(online))


def test_pairs_that_are_not_gone_round_once_are_not_all_read(tiny: Tiny) -> None:
    arm = tiny.bench.arm(
        seed=0, source=RecordedSpec(), recorded=tiny.bench.golden_pairs, step_factor=(STEPS / (TRAIN // 4))
    )
    assert arm.optim.steps * arm.optim.batch < TRAIN
    assert len(pl.read_parquet(tiny.made(reference_of(arm)) / "reference.parquet")) == 0
    assert end(tiny.made(arm)).equal(end(tiny.made(alone(arm))))


def test_responses_that_are_changed_have_no_known_values(tiny: Tiny) -> None:
    """Without their ends they are others; and a mixture does not know those of its fresh part."""
    dropped = tiny.bench.arm(seed=0, source=RecordedSpec(ends="dropped"), recorded=tiny.bench.golden_pairs)
    assert dropped.reference is None

    class Mine(RecordedSpec):
        """A user's own: nobody knows what it does to responses."""

    assert tiny.bench.arm(seed=0, source=Mine(), recorded=tiny.bench.golden_pairs).reference is None
    pairs = Reference.of(
        read_pairs(tiny.made(tiny.bench.golden_pairs) / "train.parquet"),
        tiny.made(reference_of(tiny.bench.offline(0).stage)),
    )
    assert concatenate([pairs, replace(pairs, reference=None)]).reference is None
    both = concatenate([pairs, pairs]).reference
    assert both is not None
    assert both.shape == (2 * TRAIN, 2)


def evaluation(tiny: Tiny) -> Evaluate:
    return tiny.bench.evaluation(tiny.bench.offline(0))


def test_what_is_judged_once_is_what_it_would_be_judged_again(tiny: Tiny, tmp_path: Path) -> None:
    """Each checkpoint measured afresh, by judges that have seen nothing; step 0 as every other."""
    stage = evaluation(tiny)
    found = pl.read_parquet(tiny.made(stage) / "per_prompt.parquet")
    context = tiny.context(stage, tmp_path)
    policy, reference = load_arm(context, stage.arm.sft, stage.arm.task)
    margins = [name for name in found.columns if name.startswith("margin_")]
    assert margins
    for step in stage.arm.keep:
        policy.load_weights(stage.arm.weights(context, step))
        evaluator = Evaluator(stage.start, context)
        for split in SPLITS:
            expected = evaluator.evaluate(policy, reference, split, stage.arm.seed)
            rows = found.filter(step=step, split=split)
            assert_frame_equal(rows.select(expected.columns).drop(margins), expected.drop(margins), check_exact=True)
            assert_frame_equal(rows.select(margins), expected.select(margins), abs_tol=MARGIN, rel_tol=0)


def test_no_judge_is_asked_twice_about_a_response(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = evaluation(tiny)
    context = tiny.context(stage, tmp_path)
    started = pl.read_parquet(context.folder(stage.start) / "prompts.parquet")
    asked: list[tuple[int, ...]] = []
    compare = KeptPairwise.both_orders

    def counted(self: KeptPairwise, index: torch.Tensor, responses: Tokens) -> tuple[torch.Tensor, torch.Tensor]:
        for opponent in range(self.count):
            rows = zip(index.tolist(), responses.rows(), strict=True)
            asked.extend((id(self), opponent, place, *row) for place, row in rows)
        return compare(self, index, responses)

    monkeypatch.setattr(KeptPairwise, "both_orders", counted)
    shutil.rmtree(context.partial, ignore_errors=True)
    context.partial.mkdir(parents=True)
    stage.run(context)
    assert asked
    assert len(set(asked)) == len(asked)
    found = pl.read_parquet(tmp_path / "per_prompt.parquet")
    key = ["split", "prompt_number", "response_ids"]
    new = found.select(key).unique().join(started.select(key), on=key, how="anti")
    assert len(asked) == 3 * len(new)  # golden against two opponents, proxy against one
    assert len(new) < len(found)


def test_a_checkpoint_that_is_measured_again_gets_the_same_bits(tiny: Tiny, tmp_path: Path) -> None:
    """Whichever of an interrupted evaluation's files are there."""
    stage = evaluation(tiny)
    expected = contents(tiny.made(stage))
    context = tiny.context(stage, tmp_path / "out")
    for lost in stage.arm.keep:
        for folder in (tmp_path / "out", context.partial):
            folder.mkdir(parents=True, exist_ok=True)
        stage.run(context)
        Evaluate.file(context.partial, "pairs", lost).unlink()
        Evaluate.file(context.partial, "prompts", lost).unlink()
        stage.run(context)
        assert contents(tmp_path / "out") == expected
        shutil.rmtree(context.partial)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("per_*.parquet")}


def test_arms_of_a_seed_share_their_start_and_pairs_their_reference(tiny: Tiny) -> None:
    bench = tiny.bench
    entries = [bench.online(0), bench.offline(0), bench.offline(0, beta=0.5), bench.offline_proxy(0)]
    starts = {bench.evaluation(entry).start.identity for entry in entries}
    assert len(starts) == 1
    assert bench.evaluation(bench.online(1)).start.identity not in starts
    references = [entry.stage.reference for entry in entries]
    assert references[0] is None
    assert len({reference.identity for reference in references if reference}) == 1
    replay = reference_of(bench.on_stream(0, "tandem", RecordedSpec(order="sequence")).stage)
    assert replay.identity not in {reference.identity for reference in references if reference}
