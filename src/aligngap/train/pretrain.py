"""The recipe of the shipped bases: plain language modelling on the built-in worlds' language.

A base sees `World.document` text only: posts with retellings, questions and answers, drawn without regard to what any
rater values. It never sees a utility, a rater, a writer or a preference. Judge a base by its language-model loss and
by the held-out accuracy of preference models that start from it, never by the outcome of an arm.
"""

from __future__ import annotations

import copy
import math
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch.nn import functional
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from aligngap.errors import UserError, nearest
from aligngap.models.build import SHAPES, parameter_count, random_model
from aligngap.models.tokenizer import word_tokenizer
from aligngap.seeds import numpy_stream, torch_seed
from aligngap.store.disk import disk_errors, read_json, write_json
from aligngap.store.identity import identity
from aligngap.tasks.worlds import WORLDS, World
from aligngap.train.checkpoint import Checkpointer
from aligngap.train.step import moments, set_moments

WIDTH = 96
"""Tokens of a row of documents."""


class Cycle(BaseModel):
    """One warm-up and cosine decay, with fresh optimisers (SGDR: Loshchilov and Hutter, 1608.03983), on the language
    of some worlds. Worlds may be added from cycle to cycle; the vocabulary grows with them. The layers' matrices are
    trained by Muon (Jordan et al., 2024), all else by AdamW.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    worlds: tuple[str, ...] = tuple(WORLDS)
    steps: int = Field(gt=0)
    lr: float = Field(gt=0)


class PretrainSpec(BaseModel):
    """Everything that decides a base's weights. size: one of `SHAPES`."""

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
    partial: Path | None = None,
    every: float = 120.0,
) -> dict[str, Any]:
    """Train a base and save it to `out` as a Hugging Face folder with its tokenizer, and its record to the file beside
    it (tokens, seconds, and held-out loss and accuracies of every world, a cycle each). Returns the record.

    A cycle ends with the weights rounded to half precision and saved, so a recipe goes on from a folder bit for bit,
    on another machine too: from the cycles that its record says are done, where these are the recipe's. partial: a
    folder for step checkpoints within a cycle, one every so many seconds, from which the next call goes on.
    """
    torch.set_num_threads(1)  # more would add the same sums in another order
    done = finished_cycles(spec, out)
    model = LlamaForCausalLM.from_pretrained(out, dtype=torch.float32) if done else None
    step, total = sum(cycle.steps for cycle in spec.cycles[: len(done)]), sum(cycle.steps for cycle in spec.cycles)
    for cycle in spec.cycles[len(done) :]:
        worlds = [WORLDS[name]() for name in cycle.worlds]
        tokenizer = word_tokenizer([word for world in worlds for word in world.vocabulary()])
        if model is None:
            model = random_model(SHAPES[spec.size], len(tokenizer), spec.seed)
        extend_vocabulary(model, len(tokenizer), spec.seed)
        training = _Training(model, spec, cycle)
        checkpointer = Checkpointer(partial / str(len(done)), every) if partial else None
        if checkpointer:
            checkpointer.restore(model=model, place=training)
        step += training.at
        while training.at < cycle.steps:
            training.step(Rows.of(worlds, tokenizer, numpy_stream("pretrain", "documents", spec.seed, step), spec.rows))
            step += 1
            if checkpointer:
                checkpointer.maybe_save(model=model, place=training)
            if step % 500 == 0 or step == total:
                progress(step, total, evaluate_base(model, tokenizer, worlds, 8))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(parameter.half())
        done.append(
            {
                **cycle.model_dump(mode="json"),
                "tokens": cycle.steps * spec.rows * WIDTH,
                "seconds": round(training.seconds, 1),
                "held_out": {name: evaluate_base(model, tokenizer, [WORLDS[name]()], 32) for name in cycle.worlds},
            }
        )
        copy.deepcopy(model).half().save_pretrained(out)
        tokenizer.save_pretrained(out)
        write_json(record_path(out), _record(spec, model, done))
        if partial:
            shutil.rmtree(partial / str(len(done) - 1), ignore_errors=True)
    return cast("dict[str, Any]", read_json(record_path(out)))


def record_path(out: Path) -> Path:
    """Where the record of the base in a folder lies."""
    return out.parent / f"{out.name}.json"


def finished_cycles(spec: PretrainSpec, out: Path) -> list[dict[str, Any]]:
    """What the record beside a folder says of the recipe's cycles that made its weights. Raises UserError where other
    ones did.
    """
    path = record_path(out)
    if not path.is_file():
        return []
    record = read_json(path)
    made = PretrainSpec.model_validate(record["spec"])
    count = len(record["cycles"])
    if made.model_copy(update={"cycles": spec.cycles}) != spec or made.cycles[:count] != spec.cycles[:count]:
        raise UserError("another recipe made this base", where=str(path), hint="Choose another folder, or remove it.")
    return list(record["cycles"])


def _record(spec: PretrainSpec, model: LlamaForCausalLM, done: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "spec": spec.model_dump(mode="json"),
        "parameters": parameter_count(model),
        "tokens": sum(cycle["tokens"] for cycle in done),
        "seconds": round(sum(cycle["seconds"] for cycle in done), 1),
        "held_out": done[-1]["held_out"],
        "cycles": done,
    }


class Muon(torch.optim.Muon):
    """torch's Muon with its Newton-Schulz iteration in fp32. In bf16, as torch has it, that is three quarters of a
    step on a processor without bf16 units, and its result depends on which units there are.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update, scaled to be as large as AdamW's would be (Liu et al., 2502.16982)."""
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(parameter)
                kept = state["momentum_buffer"].lerp_(parameter.grad, 1 - group["momentum"])
                update = orthogonal(parameter.grad.lerp(kept, group["momentum"]), *group["ns_coefficients"])
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update, alpha=-0.2 * math.sqrt(max(parameter.shape)) * group["lr"])


def orthogonal(matrix: torch.Tensor, a: float, b: float, c: float, iterations: int = 5) -> torch.Tensor:
    """A matrix with nearly equal singular values and the singular vectors of `matrix`, [m, n]: Newton-Schulz
    iterations x <- a x + (b x x^T + c (x x^T)^2) x, on the shorter side (Jordan et al., 2024).
    """
    x = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(iterations):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if matrix.shape[0] <= matrix.shape[1] else x.T


class _Training:
    """One cycle under way: the optimisers, the steps done and the seconds that they took."""

    def __init__(self, model: LlamaForCausalLM, spec: PretrainSpec, cycle: Cycle) -> None:
        self._model, self._spec, self._cycle = model, spec, cycle
        inner = dict.fromkeys(p for p in model.model.layers.parameters() if p.ndim == 2)
        outer = [p for p in model.parameters() if p not in inner]
        self._parameters = {"muon": list(inner), "adamw": outer}
        # Muon's updates are as large as AdamW's would be, so one learning rate serves both.
        muon = Muon(list(inner), lr=cycle.lr, weight_decay=spec.weight_decay)
        adamw = torch.optim.AdamW(outer, lr=cycle.lr, weight_decay=spec.weight_decay, betas=(0.9, 0.95))
        self._optimisers: dict[str, torch.optim.Optimizer] = {"muon": muon, "adamw": adamw}
        self.at, self.seconds = 0, 0.0

    def step(self, rows: Rows) -> None:
        """One update on these documents."""
        began = time.perf_counter()
        warm = min(1.0, (self.at + 1) / self._spec.warmup)
        rate = warm * 0.5 * (1 + math.cos(math.pi * self.at / self._cycle.steps))
        rows.loss(rows.logits(self._model)).backward()
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        for optimiser in self._optimisers.values():
            optimiser.param_groups[0]["lr"] = self._cycle.lr * max(rate, 0.01)
            optimiser.step()
        self._model.zero_grad(set_to_none=True)
        self.at += 1
        self.seconds += time.perf_counter() - began

    def state_dict(self) -> dict[str, torch.Tensor]:
        state = {"at": torch.tensor(self.at), "seconds": torch.tensor(self.seconds)}
        for name, optimiser in self._optimisers.items():
            state |= {f"{name}.{key}": value for key, value in moments(optimiser, self._parameters[name]).items()}
        return state

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        for name, optimiser in self._optimisers.items():
            mine = {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}
            set_moments(optimiser, self._parameters[name], mine)
        self.at, self.seconds = int(state["at"]), float(state["seconds"])


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
    offset |= {"asked": 2, "tool": 2, "about": 3, "helps": 3, "denies": 3, "means": 2}
    words = {word for world in worlds for word in world.vocabulary()}
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
        width: int = WIDTH,
    ) -> Rows:
        """`count` rows filled with fresh documents."""
        ids, positions = (np.zeros((count, width), dtype=np.int64) for _ in range(2))
        owner = np.arange(width)[None].repeat(count, 0) + width  # padding sees itself alone
        used = [0] * count
        number, full, known = 0, 0, tokenizer.get_vocab()  # a look-up: the tokenizer took half of a batch's time
        while full < 8:  # eight documents in a row that fit nowhere: full enough
            text = worlds[int(rng.integers(len(worlds)))].document(rng)
            document: list[int] = [tokenizer.bos_token_id, *(known[word] for word in text.split())]
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


def _recipe(size: str, seed: int = 0) -> PretrainSpec:
    first = ("summarisation",)
    cycles = (
        Cycle(worlds=first, steps=2000, lr=3e-3),
        Cycle(worlds=first, steps=2500, lr=3e-3),
        *[Cycle(steps=3000, lr=3e-3)] * 3,
    )
    return PretrainSpec(size=size, cycles=cycles, seed=seed)


RECIPES: dict[str, PretrainSpec] = {
    "91k": _recipe("small"),
    "x1": _recipe("medium"),
    "x1-second": _recipe("medium", seed=1),
    "x4": _recipe("x4"),
}
"""How the shipped bases were made. The first world's language alone comes first: from a third of the documents,
copying and looking up (on which everything rests) took far longer to be learned (docs/lab-log.md).
"""


def pretrain_bases(names: Sequence[str] | None, out: Path, steps: int | None, say: Callable[[str], None]) -> None:
    """Train bases by their recipes (None: all), each to `out/BASE` with its record in `out/BASE.json`; what is there
    already stays, and what was begun is gone on with. steps: of each cycle, in place of the recipe's. say: is given a
    line now and then.

    Raises UserError, before any training, for an unknown base and for a folder that holds something else.
    """
    chosen: dict[str, tuple[PretrainSpec, Path]] = {}
    for name in names or list(RECIPES):
        if name not in RECIPES:
            raise UserError(f"unknown base '{name}'", where="BASE", hint=nearest(name, RECIPES))
        spec = RECIPES[name]
        if steps is not None:
            cycles = tuple(cycle.model_copy(update={"steps": steps}) for cycle in spec.cycles)
            spec = spec.model_copy(update={"cycles": cycles})
        done = len(finished_cycles(spec, out / name))
        if done == len(spec.cycles):
            say(f"{name}: it is there already")
            continue
        partial = out / f".{identity('base', 2, spec.model_dump(mode='json'), {})}"
        if not done and not partial.is_dir():
            _take_folder(out / name)
        chosen[name] = (spec, partial)

    def progress(done: int, total: int, metrics: dict[str, float]) -> None:
        values = ", ".join(f"{question} {value:g}" for question, value in metrics.items())
        say(f"{name}  {done}/{total}  {values}")

    for name, (spec, partial) in chosen.items():
        pretrain(spec, out / name, progress, partial)
        shutil.rmtree(partial, ignore_errors=True)
        say(f"{name}: {out / name}")


def _take_folder(path: Path) -> None:
    hint = "Give --out another folder."
    with disk_errors(path, strict=True):
        path.mkdir(parents=True, exist_ok=True)
        occupied = any(path.iterdir())
    if occupied:
        raise UserError("the folder is not empty", where=str(path), hint=hint)
