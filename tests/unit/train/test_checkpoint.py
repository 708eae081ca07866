"""Step checkpoints: whatever is killed or damaged, training ends with the very weights of an undisturbed one."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from aligngap.errors import UserError
from aligngap.models.policy import Policy
from aligngap.models.preference import PREFERENCE_MODELS
from aligngap.sources.base import Ingredients
from aligngap.sources.order import in_sequence, uniform
from aligngap.sources.recorded import Recorded
from aligngap.sources.recording import Recording
from aligngap.sources.sampled import SampledSpec
from aligngap.train.checkpoint import Checkpointer
from aligngap.train.loop import LossSpec, train
from aligngap.train.step import Diverged, OptimSpec
from aligngap.train.supervised import fit, preference_loss, sft_loss
from aligngap.types import PairBatch
from fakes import likes_token, prompts_of, random_pairs, same_weights, sharp_model, tiny_policy, weights_of
from faults.moments import moments

VOCABULARY, LIMIT = 8, 4
PAIRS = random_pairs(0, 21, VOCABULARY, LIMIT)
OPTIM = OptimSpec(lr=0.02, steps=5, batch=4, warmup_steps=2, schedule="cosine", weight_decay=0.01)


def arm(folder: Path | None, every: float = 0, stop_at: int | None = None, seed: int = 0) -> tuple[Policy, Recording]:
    """An online arm as its stage trains it: kept weights lie beside the checkpoint."""
    policy = tiny_policy(VOCABULARY, 0, LIMIT, layers=1)
    source = Recording(SampledSpec().build(Ingredients(seed, 4, prompts_of(PAIRS.prompts.rows()), likes_token(3))))
    kept = (folder / "steps") if folder else None
    if kept:
        kept.mkdir(parents=True, exist_ok=True)

    def progress(done: int, total: int, metrics: Mapping[str, float]) -> None:
        if done == stop_at:
            raise KeyboardInterrupt

    train(
        policy, policy.frozen_copy(), source, LossSpec(), OPTIM, keep=(0, 2, 3) if kept else (),
        save_policy=lambda step, p: p.save_weights(kept / f"{step}.safetensors") if kept else None,
        checkpointer=Checkpointer(folder, every) if folder else None, progress=progress,
    )  # fmt: skip
    return policy, source


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[torch.Tensor], list[list[int]], Path]:
    """Final weights, stream and kept files of an arm that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    policy, source = arm(folder)
    return weights_of(policy), source.stream().first.rows(), folder / "steps"


def as_undisturbed(folder: Path, whole: tuple[list[torch.Tensor], list[list[int]], Path]) -> bool:
    policy, source = arm(folder)
    kept = [path.name for path in sorted((folder / "steps").iterdir())]
    return (
        same_weights(weights_of(policy), whole[0])
        and source.stream().first.rows() == whole[1]
        and kept == ["0.safetensors", "2.safetensors", "3.safetensors"]
        and all((folder / "steps" / name).read_bytes() == (whole[2] / name).read_bytes() for name in kept)
    )


def interrupted(folder: Path, at: int) -> Path:
    with pytest.raises(KeyboardInterrupt):
        arm(folder, stop_at=at)
    return folder


def test_spaced_in_time_and_pruned(tmp_path: Path) -> None:
    arm(tmp_path / "rare", every=3600)
    assert [path.name for path in (tmp_path / "rare").iterdir()] == ["steps"]
    arm(tmp_path / "often")
    names = sorted(path.name for path in (tmp_path / "often").iterdir())
    assert names in ([["checkpoint.json", f"state-{k}.safetensors", "steps"] for k in (0, 1)])


def test_the_time_is_that_since_the_last_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    checkpointer, module, saves = Checkpointer(tmp_path, 120), torch.nn.Linear(1, 1), []
    for at in (100, 119, 121, 122, 200, 240, 242):
        now[0] = at
        before = set(tmp_path.glob("state-*"))
        checkpointer.maybe_save(module=module)
        if set(tmp_path.glob("state-*")) != before:
            saves.append(at)
    assert saves == [121, 242]


def test_a_kill_at_any_moment_of_any_save(
    tmp_path: Path, whole: tuple[list[torch.Tensor], list[list[int]], Path]
) -> None:
    """Before each write, flush, rename and removal of the second and third checkpoint."""
    start = interrupted(tmp_path / "start", 1)

    def again() -> None:
        shutil.rmtree(tmp_path / "work", ignore_errors=True)
        shutil.copytree(start, tmp_path / "work")

    def work() -> None:
        with pytest.raises(KeyboardInterrupt):
            arm(tmp_path / "work", stop_at=3)

    again()
    count = 0
    for _ in moments(work):
        assert as_undisturbed(tmp_path / "work", whole)
        again()
        count += 1
    assert count > 15


@pytest.mark.parametrize("file", ["checkpoint.json", "state-*", "steps/0.*", "steps/2.*"])
@pytest.mark.parametrize("how", ["flipped", "cut", "gone"])
def test_a_damaged_checkpoint_is_not_gone_on_from(
    tmp_path: Path,
    whole: tuple[list[torch.Tensor], list[list[int]], Path],
    capfd: pytest.CaptureFixture[str],
    file: str,
    how: str,
) -> None:
    interrupted(tmp_path, 2)
    (path,) = tmp_path.glob(file)
    data = path.read_bytes()
    middle = len(data) // 2
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes(
            data[:middle] if how == "cut" else data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :]
        )
    assert as_undisturbed(tmp_path, whole)
    if (file, how) != ("checkpoint.json", "gone"):  # which is as if there had been none
        assert "damaged" in capfd.readouterr().err
        assert any(path.name.startswith(".damaged-") for path in tmp_path.iterdir())


def test_what_a_dead_attempt_kept_later_is_not_taken_for_this_ones(
    tmp_path: Path, whole: tuple[list[torch.Tensor], list[list[int]], Path]
) -> None:
    interrupted(tmp_path, 2)
    (tmp_path / "steps" / "3.safetensors").write_bytes(b"half")  # killed while it kept step 3
    (tmp_path / "steps" / "stranger").write_bytes(b"")
    assert as_undisturbed(tmp_path, whole)


def test_a_checkpoint_of_another_version_is_set_aside_with_a_word(
    tmp_path: Path, whole: tuple[list[torch.Tensor], list[list[int]], Path]
) -> None:
    interrupted(tmp_path, 2)
    other = tiny_policy(VOCABULARY + 1, 0, LIMIT, layers=2)
    Checkpointer(tmp_path, 0).save(policy=other.model)
    with pytest.raises(UserError, match="does not fit"):
        arm(tmp_path)
    assert as_undisturbed(tmp_path, whole)


def supervised(kind: str, folder: Path | None, stop_at: int | None = None) -> torch.nn.Module:
    """SFT or a preference model, trained as its stage does."""

    def progress(done: int, total: int, metrics: Mapping[str, float]) -> None:
        if done == stop_at:
            raise KeyboardInterrupt

    module, loss = _supervised(kind)
    source = Recorded(PAIRS, uniform("order", 3))
    fit(module, loss, source, OPTIM, progress, Checkpointer(folder, 0) if folder else None)
    return module


def _supervised(kind: str) -> tuple[torch.nn.Module, Callable[[PairBatch, int], torch.Tensor]]:
    if kind == "sft":
        policy = tiny_policy(VOCABULARY, 0, LIMIT)
        return policy.model, lambda batch, step: sft_loss(policy, batch)
    base = sharp_model(VOCABULARY, 0)
    model = PREFERENCE_MODELS[kind](base.model, 3)
    return model, lambda batch, step: preference_loss(model, batch, step, 0)


@pytest.mark.parametrize("kind", ["sft", "pairwise", "pointwise"])
@pytest.mark.parametrize("killed_at", [1, 4])
def test_supervised_training_resumes_bit_for_bit(kind: str, killed_at: int, tmp_path: Path) -> None:
    undisturbed = supervised(kind, None)
    with pytest.raises(KeyboardInterrupt):
        supervised(kind, tmp_path, stop_at=killed_at)
    seen: list[int] = []
    module, loss = _supervised(kind)
    source = Recorded(PAIRS, uniform("order", 3))
    fit(module, loss, source, OPTIM, lambda done, total, metrics: seen.append(done), Checkpointer(tmp_path, 0))
    assert seen == list(range(killed_at + 1, OPTIM.steps + 1))
    pairs = zip(undisturbed.state_dict().values(), module.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


class Poisoned(Recorded):
    """Its third batch has a preference that is not a number."""

    def next_batch(self, n: int) -> PairBatch:
        batch = super().next_batch(n)
        if self._walk.position == 3 * n:
            batch.preference.mul_(torch.nan)
        return batch


def test_divergence_names_step_and_batch_and_keeps_the_weights_before_it(tmp_path: Path) -> None:
    policy = tiny_policy(VOCABULARY, 0, LIMIT, layers=1)
    folder = tmp_path / "store" / ".partial" / "arm-0"
    good: dict[int, list[torch.Tensor]] = {}
    with pytest.raises(Diverged) as caught:
        train(
            policy, policy.frozen_copy(), Poisoned(PAIRS, in_sequence), LossSpec(), OPTIM,
            keep=(2,), save_policy=lambda step, p: good.update({step: weights_of(p)}),
            checkpointer=Checkpointer(folder, 3600),
        )  # fmt: skip
    bad = PAIRS.take(torch.arange(8, 12))
    bad.preference.mul_(torch.nan)
    said = str(caught.value)
    assert said.startswith(f"the loss is nan at step 3 of 5, on the batch {bad.digest()} (prompts 8, 9, 10, 11); ")
    assert said.endswith("kept in the store: .partial/arm-0/diverged/000002.safetensors")
    kept = tiny_policy(VOCABULARY, 7, LIMIT, layers=1)
    kept.load_weights(folder / "diverged" / "000002.safetensors")
    assert same_weights(weights_of(kept), good[2])


def test_a_batchs_digest_is_of_what_the_trainer_sees() -> None:
    batch = PAIRS.take(torch.arange(4))
    other = PairBatch(
        batch.prompt_numbers, batch.prompts, batch.first, batch.second, batch.preference, ("elsewhere",) * 4
    )
    assert batch.digest() == other.digest() == PAIRS.take(torch.arange(4)).digest()
    assert len({batch.digest(), PAIRS.take(torch.arange(1, 5)).digest(), PAIRS.digest()}) == 3
    assert batch.digest() != PAIRS.take(torch.tensor([0, 1, 3, 2])).digest()


def test_tied_weights_and_parts_of_a_larger_storage_are_saved(tmp_path: Path) -> None:
    class Views:
        def __init__(self) -> None:
            whole = torch.arange(12.0).reshape(3, 4)
            self.values = {"a": whole, "b": whole, "row": whole[1], "column": whole[:, 1]}

        def state_dict(self) -> dict[str, torch.Tensor]:
            return self.values

        def load_state_dict(self, state: dict[str, torch.Tensor], /) -> None:
            self.values = state

    saved, restored = Views(), Views()
    restored.values = {}
    Checkpointer(tmp_path, 0).save(views=saved)
    assert Checkpointer(tmp_path, 0).restore(views=restored)
    assert all(torch.equal(restored.values[name], value) for name, value in saved.values.items())
    assert len(load_file(next(tmp_path.glob("state-*")))) == 4
