"""The recipe of the shipped bases: plain language modelling on the built-in worlds' language.

A base sees `World.document` text only: posts with retellings, questions and answers, drawn without regard to what any
rater values. It never sees a utility, a rater, a writer or a preference. Judge a base by its language-model loss and
by the held-out accuracy of preference models that start from it, never by the outcome of an arm.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch.nn import functional
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from aligngap.errors import UserError, nearest
from aligngap.models.build import SHIPPED, parameter_count, random_model
from aligngap.models.tokenizer import word_tokenizer
from aligngap.seeds import numpy_stream, torch_seed
from aligngap.store.disk import disk_errors, read_json, write_json
from aligngap.store.identity import identity
from aligngap.tasks.worlds import WORLDS, World
from aligngap.train.checkpoint import Checkpointer
from aligngap.train.step import moments, set_moments


class Cycle(BaseModel):
    """One warm-up and cosine decay, with a fresh optimiser (SGDR: Loshchilov and Hutter, 1608.03983), on the language
    of some worlds. Worlds may be added from cycle to cycle; the vocabulary grows with them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    worlds: tuple[str, ...] = tuple(WORLDS)
    steps: int = Field(gt=0)
    lr: float = Field(gt=0)


class PretrainSpec(BaseModel):
    """Everything that decides a base's weights."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    size: str
    cycles: tuple[Cycle, ...]
    rows: int = Field(24, gt=0)
    warmup: int = 200
    weight_decay: float = 0.01
    seed: int = 0


def pretrain(
    spec: PretrainSpec,
    out: Path,
    progress: Callable[[int, int, dict[str, float]], None],
    start: tuple[int, LlamaForCausalLM] | None = None,
    partial: Path | None = None,
    every: float = 120.0,
) -> dict[str, object]:
    """Train a base and save it to `out` as a Hugging Face folder with its tokenizer. Returns its record (loss,
    accuracies, seconds).

    `start` is a number of finished cycles and the model that they made: the recipe then goes on from there. partial:
    a folder for step checkpoints, one every so many seconds, from which the next call goes on bit for bit.
    """
    torch.set_num_threads(1)  # more would add the same sums in another order
    done, model = start or (0, None)
    if partial:
        done = max([done, *(int(path.parent.name) for path in partial.glob("*/checkpoint.json"))])
    began, total = time.perf_counter(), sum(cycle.steps for cycle in spec.cycles)
    step = sum(cycle.steps for cycle in spec.cycles[:done])
    for number, cycle in enumerate(spec.cycles[done:], done):
        worlds = [WORLDS[name]() for name in cycle.worlds]
        tokenizer = word_tokenizer([word for world in worlds for word in world.words()])
        if model is None:
            model = random_model(SHIPPED[spec.size], len(tokenizer), spec.seed)
        extend_vocabulary(model, len(tokenizer), spec.seed)
        decay, betas = spec.weight_decay, (0.9, 0.95)
        optimiser = torch.optim.AdamW(model.parameters(), lr=cycle.lr, weight_decay=decay, betas=betas)
        place = _Place(optimiser, list(model.parameters()))
        checkpointer = None
        if partial:
            checkpointer = Checkpointer(partial / str(number), every)
            if not checkpointer.restore(model=model, place=place) and number:
                if number == done and not start:  # its checkpoint is damaged, and the cycles before it are gone
                    shutil.rmtree(partial / str(number))
                    return pretrain(spec, out, progress, None, partial, every)
                checkpointer.save(model=model, place=place)
                shutil.rmtree(partial / str(number - 1), ignore_errors=True)
        step += place.at
        for at in range(place.at, cycle.steps):
            rate = min(1.0, (at + 1) / spec.warmup) * 0.5 * (1 + math.cos(math.pi * at / cycle.steps))
            optimiser.param_groups[0]["lr"] = cycle.lr * max(rate, 0.01)
            rows = Rows.of(worlds, tokenizer, numpy_stream("pretrain", "documents", spec.seed, step), spec.rows)
            loss = rows.loss(rows.logits(model))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            step, place.at = step + 1, at + 1
            if checkpointer:
                checkpointer.maybe_save(model=model, place=place)
            if step % 500 == 0 or step == total:
                progress(step, total, evaluate_base(model, tokenizer, worlds, 8))
    assert model is not None  # a recipe has cycles
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return {
        "spec": spec.model_dump(mode="json"),
        "parameters": parameter_count(model),
        "tokens": total * spec.rows * 96,
        "held_out": {name: evaluate_base(model, tokenizer, [WORLDS[name]()], 32) for name in spec.cycles[-1].worlds},
        "seconds": round(time.perf_counter() - began, 1),
    }


class _Place:
    """Where a cycle stands: steps done, and the optimiser's moments."""

    def __init__(self, optimiser: torch.optim.AdamW, parameters: list[torch.nn.Parameter]) -> None:
        self._optimiser, self._parameters, self.at = optimiser, parameters, 0

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"at": torch.tensor(self.at), **moments(self._optimiser, self._parameters)}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        set_moments(self._optimiser, self._parameters, state)
        self.at = int(state["at"])


@torch.no_grad()
def extend_vocabulary(model: LlamaForCausalLM, size: int, seed: int) -> None:
    """Give the (tied) embedding rows for the words from its present size up to `size`, drawn as its first rows were."""
    embedding: Any = model.get_input_embeddings()
    known, hidden = embedding.weight.shape
    if known < size:
        generator = torch.Generator().manual_seed(torch_seed("pretrain", "vocabulary", seed, known))
        added = torch.randn(size - known, hidden, generator=generator) * model.config.initializer_range
        model.resize_token_embeddings(size, mean_resizing=False)
        embedding = model.get_input_embeddings()
        # A parameter of its own: resizing swaps the data of the old one, whose gradient keeps the old shape.
        embedding.weight = torch.nn.Parameter(torch.cat([embedding.weight[:known], added]))
        model.tie_weights()


@torch.no_grad()
def evaluate_base(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, worlds: list[World], batches: int
) -> dict[str, float]:
    """Held-out language-model loss (nats a token), and the share of questions answered rightly, by the question's
    first word; without the questions that no document of these worlds asks.
    """
    rng = numpy_stream("pretrain", "held-out")
    # The answer is the third or, after a whole claim, the fourth word of a question; `same` is followed by its answer.
    offset = {"who": 2, "what": 2, "how": 2, "did": 3, "which": 3, "same": 1}
    offset |= {"asked": 2, "tool": 2, "about": 3, "helps": 3, "denies": 3}
    words = {word for world in worlds for word in world.words()}
    asked: dict[str, Any] = {word: tokenizer.convert_tokens_to_ids(word) for word in offset if word in words}
    losses, hits = [], {word: np.zeros(2) for word in asked}
    for _ in range(batches):
        rows = Rows.of(worlds, tokenizer, rng, 24)
        logits = rows.logits(model)
        losses.append(float(rows.loss(logits)))
        right = logits[:, :-1].argmax(-1) == rows.ids[:, 1:]
        for word, token in asked.items():
            row, column = torch.nonzero(rows.ids[:, : -offset[word]] == token, as_tuple=True)
            hit = right[row, column + offset[word] - 1]
            hits[word] += [int(hit.sum()), len(hit)]
    return {
        "loss": round(float(np.mean(losses)), 4),
        **{word: round(float(a / b), 4) for word, (a, b) in hits.items() if b},
    }


class Rows(NamedTuple):
    """Documents side by side in rows of one width, each seeing itself only: no padding but at the rows' ends."""

    ids: torch.Tensor
    positions: torch.Tensor
    mask: torch.Tensor

    @classmethod
    def of(
        cls,
        worlds: list[World],
        tokenizer: PreTrainedTokenizerBase,
        rng: np.random.Generator,
        count: int,
        width: int = 96,
    ) -> Rows:
        """`count` rows filled with fresh documents."""
        ids, positions = (np.zeros((count, width), dtype=np.int64) for _ in range(2))
        owner = np.arange(width)[None].repeat(count, 0) + width  # padding sees itself alone
        used = [0] * count
        number, full = 0, 0
        while full < 8:  # eight documents in a row that fit nowhere: full enough
            document: list[int] = tokenizer(worlds[int(rng.integers(len(worlds)))].document(rng))["input_ids"]
            size = len(document)
            row = next((r for r in range(count) if used[r] + size <= width), None)
            if row is None:
                full += 1
                continue
            part = slice(used[row], used[row] + size)
            ids[row, part], positions[row, part], owner[row, part] = document, np.arange(size), -number
            used[row] += size
            number += 1
        blocks = torch.from_numpy(owner)
        mask = (blocks[:, :, None] == blocks[:, None, :]).tril()
        return cls(torch.from_numpy(ids), torch.from_numpy(positions), mask[:, None])

    def logits(self, model: LlamaForCausalLM) -> torch.Tensor:
        """Next-token logits, [rows, width, vocabulary]."""
        output = model(input_ids=self.ids, attention_mask=self.mask, position_ids=self.positions, use_cache=False)
        return output.logits  # type: ignore[no-any-return]

    def loss(self, logits: torch.Tensor) -> torch.Tensor:
        """Mean next-token loss; the first token of a document is not predicted from the one before it."""
        target = self.ids[:, 1:].masked_fill(self.positions[:, 1:] == 0, -100)
        return functional.cross_entropy(logits[:, :-1].flatten(0, 1), target.flatten())


_FIRST = ("summarisation",)

RECIPES: dict[str, PretrainSpec] = {
    "small": PretrainSpec(
        size="small", cycles=(Cycle(worlds=_FIRST, steps=10000, lr=3e-3), Cycle(steps=10000, lr=3e-3))
    ),
    "medium": PretrainSpec(
        size="medium",
        cycles=(
            Cycle(worlds=_FIRST, steps=6000, lr=2e-3),
            Cycle(worlds=_FIRST, steps=6000, lr=3e-3),
            Cycle(steps=8000, lr=3e-3),
        ),
    ),
    "large": PretrainSpec(
        size="large", cycles=(Cycle(worlds=_FIRST, steps=3000, lr=1.5e-3), Cycle(steps=4000, lr=1.5e-3))
    ),
}
"""How the shipped bases were made. The first world's language alone comes first: from a third of the documents,
copying and looking up (on which everything rests) took far longer to be learned (docs/lab-log.md).
"""


def pretrain_sizes(sizes: Sequence[str] | None, out: Path, steps: int | None, say: Callable[[str], None]) -> None:
    """Train bases by their recipes (None: all), each to `out/SIZE` with its record in `out/SIZE.json`; what is there
    already stays, and what was begun is gone on with. steps: of each cycle, in place of the recipe's. say: is given a
    line now and then.

    Raises UserError, before any training, for an unknown size and for a folder that holds something else.
    """
    chosen: dict[str, tuple[PretrainSpec, Path]] = {}
    for size in sizes or list(RECIPES):
        if size not in RECIPES:
            raise UserError(f"unknown size '{size}'", where="SIZE", hint=nearest(size, RECIPES))
        spec = RECIPES[size]
        if steps is not None:
            cycles = tuple(cycle.model_copy(update={"steps": steps}) for cycle in spec.cycles)
            spec = spec.model_copy(update={"cycles": cycles})
        plain, record = spec.model_dump(mode="json"), out / f"{size}.json"
        if record.is_file() and read_json(record).get("spec") == plain:
            say(f"{size}: it is there already")
            continue
        partial = out / f".{identity('base', 1, plain, {})}"
        if not partial.is_dir():
            _take_folder(out / size)
        chosen[size] = (spec, partial)

    def progress(done: int, total: int, metrics: dict[str, float]) -> None:
        values = ", ".join(f"{name} {value:g}" for name, value in metrics.items())
        say(f"{size}  {done}/{total}  {values}")

    for size, (spec, partial) in chosen.items():
        write_json(out / f"{size}.json", pretrain(spec, out / size, progress, partial=partial))
        shutil.rmtree(partial, ignore_errors=True)
        say(f"{size}: {out / size}")


def _take_folder(path: Path) -> None:
    hint = "Give --out another folder."
    with disk_errors(path, strict=True):
        path.mkdir(parents=True, exist_ok=True)
        occupied = any(path.iterdir())
    if occupied:
        raise UserError("the folder is not empty", where=str(path), hint=hint)
