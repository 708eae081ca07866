"""What must hold of a checkpoint before it is trained: its tokens, its context, and that all models read alike."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from aligngap.errors import UserError
from aligngap.models.build import SHIPPED, check_rows
from aligngap.models.context import NO_LIMIT, context_of
from aligngap.models.folder import check_weights, load_config, source_of
from aligngap.models.spec import Checkpoint
from aligngap.models.tokenizer import load_tokenizer, token_count
from aligngap.store.contents import check_within


def check_vocabulary(checkpoint: Checkpoint) -> None:
    """Raises UserError where the tokenizer has tokens that the model has no embedding of, where either cannot be
    read, and for weights that are not to be read (see `check_weights`).
    """
    if checkpoint.path not in SHIPPED:
        _checked(checkpoint.as_loaded, checkpoint.digest())


@lru_cache(maxsize=64)
def _checked(checkpoint: Checkpoint, digest: str) -> PreTrainedTokenizerBase:
    """The tokenizer, of a checkpoint whose vocabulary was checked. Once a process for the same files."""
    tokenizer, config = load_tokenizer(checkpoint), load_config(checkpoint)
    check_within(Path(checkpoint.location))
    check_weights(checkpoint.location, config, checkpoint.path, **source_of(checkpoint))
    rows = getattr(config.get_text_config(), "vocab_size", None)
    check_rows(token_count(tokenizer), rows, checkpoint.path)
    return tokenizer


def check_alike(policy: Checkpoint, others: list[Checkpoint]) -> None:
    """Raises UserError unless all these models read the policy's tokens: pairs are token ids, the same for all."""
    for other in others:
        if other.as_loaded == policy.as_loaded:
            continue  # shipped bases are compared too: those of two generations have other words
        ours, theirs = (_checked(each.as_loaded, each.digest()) for each in (policy, other))
        if not alike(ours, theirs):
            raise UserError(
                f"the model '{other.name}' has another tokenizer than the policy '{policy.name}': "
                f"{len(theirs)} tokens against {len(ours)}"
                + ("" if len(theirs) != len(ours) else ", with other ids or special tokens"),
                where="models",
                hint="All models of a study share the policy's tokenizer. A judge that reads text need not: give one "
                "as golden.judge or proxy.judge (docs/judges.md).",
            )


def alike(a: PreTrainedTokenizerBase, b: PreTrainedTokenizerBase) -> bool:
    """Whether two tokenizers give the same ids the same meaning, what ends and separates responses among them."""
    special = ("bos_token_id", "eos_token_id", "sep_token_id")
    return a.get_vocab() == b.get_vocab() and all(getattr(a, name) == getattr(b, name) for name in special)


def check_lengths(
    checkpoint: Checkpoint,
    prompt: int,
    response: int,
    *,
    task: str,
    own_data: bool,
    backbone: bool = False,
    both: bool = False,
) -> None:
    """Raises UserError when a model cannot read a prompt with a response (`context_of`).

    prompt, response: tokens of the longest ones. backbone: whether it reads them as a preference model does; both:
    whether it then reads two responses and a separator behind each. task: the pairs'; own_data: whether it is a data
    set of the study, whose limits can be lowered.
    """
    context = context_of(checkpoint, backbone=backbone)
    follows = 2 * (response + 1) if both else response
    if context.fits(prompt, follows):
        return
    read = f"both responses of up to {response} and two separators" if both else f"a response of up to {response}"
    takes = f"takes {context.together}"
    if context.together == NO_LIMIT:
        takes = f"takes a prompt of {context.prompt} and a response of {context.response}"
    hint = f"Lower datasets.{task}.max_prompt_tokens or datasets.{task}.max_response_tokens, or take a longer model."
    raise UserError(
        f"a prompt of {prompt} tokens with {read} is {prompt + follows} tokens; '{checkpoint.name}' {takes}",
        where=f"datasets.{task}" if own_data else f"task {task}",
        hint=hint if own_data else "Take a model with a longer context.",
    )
