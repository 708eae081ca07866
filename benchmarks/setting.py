"""What every entry is measured on: weights, tokenizer, pairs and lengths, the same for us and for the peer."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from aligngap.models.build import Architecture, base_path, load_language_model, random_model
from aligngap.models.policy import Policy
from aligngap.models.preference import PREFERENCE_MODELS, PreferenceModel
from aligngap.models.tokenizer import load_tokenizer, word_tokenizer
from aligngap.seeds import numpy_stream, torch_seed
from aligngap.tasks.spec import TaskSpec, make_pairs
from aligngap.types import PairBatch, Prompt, Tokens

BATCH = 32
LEARNING_RATE = 1e-6
"""So small that the weights, and with them the lengths sampled, stay what they are."""
PAIRS = 512
"""As many pairs as no round uses up: a trainer that begins a new epoch pays for it."""

MEDIUM = Architecture(hidden=128, layers=4, heads=4, intermediate=256)
MEDIUM_VOCABULARY, MEDIUM_PROMPT, MEDIUM_NEW = 128, 40, 20


@dataclass(frozen=True)
class Setting:
    """One shape of the work. `make_model` gives a fresh model with the same weights at each call. ends: whether a
    response may end before the length limit; where it may not, all responses have as many tokens.
    """

    name: str
    tokenizer: PreTrainedTokenizerBase
    pairs: PairBatch
    limit: int
    steps: int
    make_model: Callable[[], PreTrainedModel]
    ends: bool = True

    @property
    def end_token(self) -> int:
        return int(self.tokenizer.eos_token_id)

    def policy(self) -> Policy:
        """A policy on fresh weights."""
        return Policy(self.make_model(), self.end_token if self.ends else -1, self.limit)

    def reference(self) -> Policy:
        """The frozen policy of a step."""
        policy = self.policy()
        policy.model.requires_grad_(False)
        return policy

    def preference_model(self, kind: str = "pairwise") -> PreferenceModel:
        """A preference model of the policy's size with an arbitrary read-out (a trained one costs the same)."""
        backbone: Any = self.make_model()
        model = PREFERENCE_MODELS[kind](backbone.model, int(self.tokenizer.sep_token_id))
        generator = torch.Generator().manual_seed(torch_seed("benchmark", "readout"))
        for weight in model.readout.parameters():
            weight.data.normal_(std=0.02, generator=generator)
        return model.eval().requires_grad_(False)

    def prompts(self) -> list[Prompt]:
        """The prompts of the pairs."""
        numbers, rows = self.pairs.prompt_numbers.tolist(), self.pairs.prompts.rows()
        return [Prompt(number, tuple(ids)) for number, ids in zip(numbers, rows, strict=True)]

    def batch(self, size: int = BATCH) -> PairBatch:
        """The first pairs."""
        return self.pairs.take(torch.arange(size))


def small(pairs: int = PAIRS) -> Setting:
    """The shipped small base on the summarisation world: prompts of 11, 14 or 17 tokens, responses of up to 14."""
    path = base_path("small")
    tokenizer = load_tokenizer(path)
    # Twice as many, because some are left out below.
    data = make_pairs(TaskSpec(world="summarisation", train_pairs=2 * pairs, held_out_pairs=1), tokenizer)
    # The peer ends every response with the end token; pairs whose writers did not are left out for both, and so are
    # pairs of equal responses, which our reader drops.
    end, sides = int(tokenizer.eos_token_id), zip(data.train.first.rows(), data.train.second.rows(), strict=True)
    index = torch.tensor([row for row, (a, b) in enumerate(sides) if a[-1] == b[-1] == end and a != b])
    return Setting(
        "small", tokenizer, data.train.take(index[:pairs]), data.max_new_tokens, 14, lambda: load_language_model(path)
    )


def medium(pairs: int = PAIRS) -> Setting:
    """Random weights, hidden 128, 4 layers: prompts of 40 tokens, responses of 20."""
    tokenizer = word_tokenizer([f"w{number}" for number in range(MEDIUM_VOCABULARY - 5)])
    tokenizer.padding_side = "left"
    words = numpy_stream("benchmark", "pairs").integers(5, MEDIUM_VOCABULARY, (pairs, MEDIUM_PROMPT + 2 * MEDIUM_NEW))
    ids = torch.from_numpy(words)
    ids[:, 0] = tokenizer.bos_token_id
    prompts, first, second = ids.split([MEDIUM_PROMPT, MEDIUM_NEW, MEDIUM_NEW], 1)
    first[:, -1] = second[:, -1] = tokenizer.eos_token_id
    data = PairBatch(
        torch.arange(pairs),
        *(Tokens(part.contiguous(), torch.full((pairs,), part.shape[1])) for part in (prompts, first, second)),
        torch.ones(pairs),
        ("random",) * pairs,
    )
    return Setting(
        "medium", tokenizer, data, MEDIUM_NEW, 6, lambda: random_model(MEDIUM, MEDIUM_VOCABULARY, seed=0).eval()
    )


SHAPES: dict[str, Callable[[], Setting]] = {"small": small, "medium": medium}


def write_preferences(pairs: PairBatch, tokenizer: PreTrainedTokenizerBase, file: Path) -> Path:
    """The pairs as JSON Lines of prompt, chosen and rejected, which this tokenizer turns into the same ids again;
    without the begin and end tokens, which readers put there.
    """
    special = {tokenizer.bos_token_id, tokenizer.eos_token_id}

    def text(ids: Sequence[int]) -> str:
        return " ".join(tokenizer.convert_ids_to_tokens([token for token in ids if token not in special]))

    with file.open("w", encoding="utf-8") as out:
        for prompt, chosen, rejected in ranked(pairs):
            row = {"prompt": text(prompt) + " ", "chosen": text(chosen), "rejected": text(rejected)}
            out.write(json.dumps(row) + "\n")
    return file


def ranked(pairs: PairBatch) -> list[tuple[list[int], list[int], list[int]]]:
    """Token ids of each prompt, the response preferred, and the other."""
    rows = zip(pairs.prompts.rows(), pairs.first.rows(), pairs.second.rows(), pairs.preference.tolist(), strict=True)
    return [(prompt, a, b) if preference > 0.5 else (prompt, b, a) for prompt, a, b, preference in rows]
