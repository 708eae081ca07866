"""What is diagnosed: an SFT policy, and one pair of a preference data set for each of some prompts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from aligngap.errors import UserError
from aligngap.models.build import SHIPPED, load_language_model
from aligngap.models.check import check_vocabulary
from aligngap.models.context import context_of
from aligngap.models.policy import Policy
from aligngap.models.spec import Checkpoint
from aligngap.models.tokenizer import end_tokens, load_tokenizer
from aligngap.pipeline.rundir import RunDirectory
from aligngap.store import Store
from aligngap.store.contents import check_within
from aligngap.tasks.check import describe
from aligngap.tasks.datasets import DatasetSpec, open_parts
from aligngap.tasks.encode import make_dataset_pairs
from aligngap.tasks.spec import TaskSpec, make_pairs
from aligngap.tasks.worlds import WORLDS, world
from aligngap.types import PairBatch

MIN_PROMPTS = 10
"""With fewer, nothing can be held out to try a rule on."""


@dataclass(frozen=True)
class Subject:
    """pairs: one pair a prompt, the prompts all different. about: policy, data and counts, as plain JSON values."""

    policy: Policy
    tokenizer: PreTrainedTokenizerBase
    pairs: PairBatch
    about: Mapping[str, Any]


def sft_checkpoint(name: str) -> Checkpoint:
    """The policy that a name means: a shipped base, a folder, a hub id, or the SFT policy of a run's folder. Raises
    UserError.
    """
    if name in SHIPPED or not (Path(name) / "study.json").is_file():
        if name not in SHIPPED:
            check_within(Path(name))
        return Checkpoint(path=name)
    run = RunDirectory.open(Path(name))
    made = {stage["identity"] for stage in run.status()["stages"] if stage["kind"] == "sft"}
    store = run.store_path()
    finished = sorted(identity for identity in made if store.is_dir() and Store(store, reading=True).has(identity))
    if len(finished) != 1:
        what = f"this run has {len(finished)} SFT policies" if finished else "this run has no SFT policy yet"
        folders = ", ".join(str(store / identity / "model") for identity in finished)
        hint = f"Give one of {folders}." if finished else f"Go on with the run, or give a model. Its store: {store}."
        raise UserError(what, where=name, hint=hint)
    return Checkpoint(path=str(Store(store, reading=True).get(finished[0]).file("model")))


def load(policy: Checkpoint, data: DatasetSpec, prompts: int, *, device: str = "cpu") -> Subject:
    """Policy and pairs. data: a data set, whose limits are lowered to what the policy can take; a source that is the
    name of a built-in world means that. Raises UserError where either cannot be read, or there are too few prompts.
    """
    if not device_is_there(device):
        raise UserError(f"there is no device '{device}' here", where="--device", hint="Use cpu.")
    check_vocabulary(policy)
    tokenizer = load_tokenizer(policy)
    if data.source in WORLDS:
        pairs, limit, about = _of_world(data.source, tokenizer)
    else:
        pairs, limit, about = _of_data(data, policy, tokenizer, prompts)
    first: dict[tuple[int, ...], int] = {}
    for index, ids in enumerate(pairs.prompts.rows()):
        first.setdefault(tuple(ids), index)
    chosen = torch.tensor(list(first.values())[:prompts])
    if len(chosen) < MIN_PROMPTS:
        raise UserError(
            f"{len(chosen)} different prompts are too few: at least {MIN_PROMPTS} are needed",
            where=about["data"],
            hint="Give more data, or let --prompts be larger.",
        )
    pairs = pairs.take(chosen)
    model = load_language_model(policy, device, tokenizer)
    about = {"policy": policy.path, **about, "max_response_tokens": limit}
    return Subject(Policy(model, end_tokens(tokenizer), limit), tokenizer, pairs, about)


def _of_world(name: str, tokenizer: PreTrainedTokenizerBase) -> tuple[PairBatch, int, dict[str, Any]]:
    unknown = tokenizer.unk_token_id
    words = " ".join(world(name).words())
    if unknown is None or unknown in tokenizer(words)["input_ids"]:
        raise UserError(
            "this policy does not know the words of the built-in worlds",
            where=f"--data {name}",
            hint=f"Give one of the shipped bases ({', '.join(SHIPPED)}) or a policy trained from one. A data set of "
            f"the same name is ./{name}.",
        )
    data = make_pairs(TaskSpec(world=name), tokenizer)
    count = len(data.train)
    about = {"data": name, "format": "built-in world", "pairs": count, "prompts": count, "repeated_pairs": 0}
    return data.train, data.max_new_tokens, about


def _of_data(
    spec: DatasetSpec, policy: Checkpoint, tokenizer: PreTrainedTokenizerBase, prompts: int
) -> tuple[PairBatch, int, dict[str, Any]]:
    context = context_of(policy)
    response = min(spec.max_response_tokens, context.response, max(1, context.room // 2))
    limits = {
        "max_response_tokens": response,
        "max_prompt_tokens": min(spec.max_prompt_tokens, context.prompt, max(2, context.room - response)),
    }
    splits = {part.split for part in open_parts(spec)}
    contents = describe(spec, split=spec.split or ("train" if "train" in splits else None))
    # One pair of every prompt comes before the second of any. A few more, because prompts may be the same once cut.
    wanted = prompts + prompts // 4 + 8
    made = make_dataset_pairs(spec.model_copy(update={**limits, "train_pairs": wanted}), tokenizer)
    about = {
        "data": spec.source,
        "format": contents.format,
        "pairs": contents.kept,
        "prompts": contents.prompts,
        "repeated_pairs": contents.repeated_pairs,
        "rows_read": contents.tally.read,
        "rows_dropped": dict(contents.tally.dropped.most_common()),
        "cut_prompts": made.cuts.prompts,
        "cut_responses": made.cuts.responses,
        **limits,
    }
    return made.data.train, made.data.max_new_tokens, about


def device_is_there(name: str) -> bool:
    """Whether torch can put a tensor on it."""
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError):  # by device and build of torch
        return False
    return True
