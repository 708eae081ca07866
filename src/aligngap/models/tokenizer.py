"""Tokenizers: of words or bytes, made here, or beside a checkpoint; and what in them begins, writes and ends a text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2.exceptions import TemplateError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from aligngap.errors import UserError
from aligngap.models.folder import CONFIG, attempt_checkpoint, load_config, path_of

if TYPE_CHECKING:
    from aligngap.models.spec import Checkpoint

SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<sep>", "<unk>")


def word_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """A Hugging Face tokenizer with one token a word; prompts start with `<bos>`."""
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys((*SPECIAL_TOKENS, *words)))}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", vocabulary["<bos>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        sep_token="<sep>",
        unk_token="<unk>",
    )


def byte_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of at most so many tokens, trained on texts; prompts start with `<bos>`. No text is
    unknown to it, and every text comes back as it was.
    """
    special = [token for token in SPECIAL_TOKENS if token != "<unk>"]
    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    core.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", special.index("<bos>"))]
    )
    names = {f"{token.strip('<>')}_token": token for token in special}
    return PreTrainedTokenizerFast(tokenizer_object=core, **names)


def load_tokenizer(model: str | Checkpoint) -> PreTrainedTokenizerBase:
    """The tokenizer saved beside a model, with a pad token and left padding; a path may hold a tokenizer and no model.
    UserError when it cannot be read, or has no end token.

    Its `eos_token` is the one token that closes a response, in data as in samples: what its chat template writes behind
    an answer, else the end token that it came with. `end_tokens` says what else ends a sampled response.
    """
    alone = isinstance(model, str) and Path(model).is_dir() and not (Path(model) / CONFIG).is_file()
    settings = attempt_checkpoint(get_tokenizer_config, model, "tokenizer")
    # A tokenizer of no model's own kind is what its file says. `AutoTokenizer` would put that of the model's type in
    # its place, which cuts texts otherwise and may have tokens that the model does not know.
    plain = ("PreTrainedTokenizerFast", "TokenizersBackend", *([None] if alone else []))
    kind = PreTrainedTokenizerFast if settings.get("tokenizer_class") in plain else AutoTokenizer
    tokenizer: Any = attempt_checkpoint(kind.from_pretrained, model, "tokenizer")
    for how in ("is_local", "local_files_only"):  # it was read, which is saved with it: artefacts would differ
        tokenizer.init_kwargs.pop(how, None)
    config = None if alone else load_config(model)
    listed = _listed_ends(model)
    given_end = tokenizer.eos_token_id
    closing = _template_end(tokenizer, listed)
    if closing is not None:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(closing)
    if tokenizer.eos_token_id is None:
        raise UserError(
            "the tokenizer has no end-of-sequence token: a response could not end",
            where=path_of(model),
            hint="Set `eos_token` and save the tokenizer again.",
        )
    if not getattr(config, "is_encoder_decoder", False) and given_end is not None:
        _leave_prompts_open(tokenizer, given_end, path_of(model))
    tokenizer.ends = _ends(tokenizer, [given_end, *listed, *_as_list(getattr(config, "eos_token_id", None))], listed)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    return tokenizer  # type: ignore[no-any-return]


def end_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """What ends a response: the closing token (`eos_token`), and then what else the model was taught to end with
    (`generation_config.eos_token_id`), which a policy may sample. No response goes on behind any of them. Empty for an
    encoder's tokenizer, which has none.
    """
    words: Any = tokenizer
    own = () if words.eos_token_id is None else (int(words.eos_token_id),)
    return getattr(words, "ends", None) or own


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Tokens that steer and say nothing: those that stand for no text, those that end a response, and the added ones
    that the chat template writes around a user's turn, whether or not somebody flagged them as special.
    """
    words: Any = tokenizer
    unknown = {words.unk_token_id} - {words.bos_token_id, *end_tokens(tokenizer)}  # it stands for any text
    return frozenset({*_special(words), *end_tokens(tokenizer), *_around_turns(words)} - unknown - {None})


def _around_turns(tokenizer: Any) -> set[int]:
    if not getattr(tokenizer, "chat_template", None):
        return set()
    try:
        text = written_by_template(tokenizer, [{"role": "user", "content": "a"}], open_end=False)
    except TemplateError:
        return set()
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return {token for token in ids if token in tokenizer.added_tokens_decoder}


def token_count(tokenizer: PreTrainedTokenizerBase) -> int:
    """One more than the largest id. Not their number: a vocabulary may have gaps."""
    return max(tokenizer.get_vocab().values()) + 1


_ANSWER = "\ue000"  # private use: no template contains it, none changes it


TEMPLATE_DAY = datetime(2025, 1, 1)
"""What templates that write today's date are told. A real one would make other ids under the same identity tomorrow."""


def written_by_template(
    tokenizer: Any, turns: Sequence[Mapping[str, Any]], *, open_end: bool, tools: Sequence[Any] | None = None
) -> str:
    """A conversation as the tokenizer's chat template writes it, on `TEMPLATE_DAY`; open_end: with what begins an
    answer behind it. Raises TemplateError whatever goes wrong in the template, which is somebody else's program.
    """
    try:
        template = _on_fixed_day(tokenizer.get_chat_template(None, tools))
        return str(
            tokenizer.apply_chat_template(
                list(turns), tools=tools, chat_template=template, tokenize=False, add_generation_prompt=open_end
            )
        )
    except TemplateError:
        raise
    except Exception as error:
        raise TemplateError(f"{type(error).__name__}: {error}") from error


_NOW = re.compile(r"""strftime_now\(\s*(['"])(.*?)\1\s*\)""")


def _on_fixed_day(template: str) -> str:
    """The template with today's date as text. `transformers` gives templates a function of its own, and lets nobody
    give another.
    """
    fixed = _NOW.sub(lambda call: repr(TEMPLATE_DAY.strftime(call[2])), template)
    if "strftime_now(" in fixed:
        raise TemplateError("it asks for today's date in a way that cannot be fixed to one day")
    return fixed


def _answer_written(tokenizer: Any) -> tuple[str, str] | None:
    """What the chat template writes before an answer and behind it; None without one, or where it refuses."""
    if not getattr(tokenizer, "chat_template", None):
        return None
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _ANSWER}]
    try:
        before, answer, behind = written_by_template(tokenizer, turns, open_end=False).rpartition(_ANSWER)
    except TemplateError:
        return None
    return (before, behind) if answer else None


def _template_end(tokenizer: Any, listed: Sequence[int]) -> int | None:
    """The token that the chat template writes first behind an answer, if that stands for no text, or is among the ends
    that the model's generation configuration lists.
    """
    written = _answer_written(tokenizer)
    ids = tokenizer(written[1].lstrip(), add_special_tokens=False)["input_ids"] if written else []
    return int(ids[0]) if ids and ids[0] in {*_special(tokenizer), *_named_and_written(tokenizer, listed)} else None


def _named_and_written(tokenizer: Any, listed: Sequence[int]) -> set[int]:
    """Ends that a generation configuration lists and the chat template writes: they end a response, whether or not
    somebody flagged them as special. Tokens that were added count wherever they are written, others behind an answer.
    """
    written = _answer_written(tokenizer)
    if written is None:
        return set()
    before, behind = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in written)
    added = {token for token in (*before, *behind) if token in tokenizer.added_tokens_decoder}
    return set(listed) & (added | {token for token in behind if tokenizer.decode([token]).strip()})


def _leave_prompts_open(tokenizer: Any, end: int, path: str) -> None:
    """A decoder goes on behind its prompt; a tokenizer that closes every text with an end token would keep it from
    that. Raises UserError where it cannot be told not to.
    """

    ids = tokenizer("a")["input_ids"]
    if ids[-1:] == [end]:
        tokenizer.add_bos_token = ids[0] == tokenizer.bos_token_id  # what it did by other means goes with them
        tokenizer.add_eos_token = False
        if tokenizer("a")["input_ids"] != ids[:-1]:
            raise UserError(
                "the tokenizer closes every text with the end token, so that a decoder cannot go on behind a prompt",
                where=path,
                hint="Save it with add_eos_token=False, or without that part of its post-processor.",
            )


def _listed_ends(model: str | Checkpoint) -> list[int]:
    """The end tokens that a model's generation configuration lists; none where there is none."""
    try:
        taught = attempt_checkpoint(GenerationConfig.from_pretrained, model, "generation configuration")
    except UserError:
        return []
    return _as_list(taught.eos_token_id)


def _as_list(value: Any) -> list[int]:
    return [token for token in (value if isinstance(value, list | tuple) else [value]) if token is not None]


def _ends(tokenizer: Any, candidates: Sequence[int | None], listed: Sequence[int]) -> tuple[int, ...]:
    # A configuration's default may name any token: what stands for text, or begins or parts it, is no end.
    roles = ("bos_token_id", "unk_token_id", "sep_token_id", "cls_token_id", "mask_token_id")
    ends = _special(tokenizer) | _named_and_written(tokenizer, listed)
    ends -= {getattr(tokenizer, role, None) for role in roles}
    others = [token for token in candidates if token is not None and token in ends]
    return tuple(dict.fromkeys([int(tokenizer.eos_token_id), *others]))


def _special(tokenizer: Any) -> set[int]:
    """Ids that stand for no text."""
    added = {token for token, written in tokenizer.added_tokens_decoder.items() if written.special}
    return added | set(tokenizer.all_special_ids)
