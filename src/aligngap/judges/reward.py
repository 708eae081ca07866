"""A point-wise reward model as a judge: any sequence classifier with one label."""

from __future__ import annotations

import inspect
import json
import math
from pathlib import Path
from typing import Any, Literal

import torch
from jinja2.exceptions import TemplateError
from pydantic import Field
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerBase

from aligngap.errors import UserError
from aligngap.judges.conversation import ConversationReader
from aligngap.judges.spec import JudgeIngredients, JudgeSpec, beside, digest_of
from aligngap.judges.text import TextJudge, prompt_text
from aligngap.models.build import SHIPPED, base_path, check_rows, read_model
from aligngap.models.context import positions
from aligngap.models.controls import Controls
from aligngap.models.folder import attempt, check_weights
from aligngap.models.tokenizer import written_by_template
from aligngap.store.contents import check_within
from aligngap.types import TokenIds, Tokens

Form = Literal["chat", "joined", "pair"]

_READING = 2
"""Of how a conversation becomes tokens; raised when the same texts give others."""
_FIRST, _FEW, _UNDECIDED = 3, 20, 0.05
"""A template that refuses so many first texts, or more than this share of at least so many, is not the texts' fault."""


class RewardJudge(TextJudge):
    """Prefers the response with the higher score r(x, y).

    tokenizer: the policy's; model, own: the reward model and its own tokenizer. form: how prompt and response are
    written for it. `chat`: by its chat template, as a conversation; where the policy's own chat template wrote the
    prompt, its turns are read back, and any other prompt is one user turn. `joined`: prompt and response as one text,
    closed by the end token if there is one. `pair`: as the two texts of a pair. longest: tokens; what is longer loses
    its beginning (`spent["texts_cut"]` counts). batch: texts at a time.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        model: Any,
        own: PreTrainedTokenizerBase,
        form: Form,
        *,
        longest: int | None = None,
        batch: int = 16,
        name: str = "reward model",
    ) -> None:
        super().__init__(tokenizer)
        self.model, self.form, self.batch, self.name = model, form, batch, name
        self.own: Any = own
        self.own.truncation_side = "left"
        # A GPT-2 takes token types, too, and has no embeddings of them: types of 0 would be another word everywhere.
        takes = "token_type_ids" in inspect.signature(model.forward).parameters
        learned = getattr(model.config.get_text_config(), "type_vocab_size", 0) > 0
        self._kinds = takes and (learned or "token_type_ids" in self.own("a", verbose=False))
        self.longest = longest or longest_input(model, own)
        self.spent = {"texts_scored": 0.0, "texts_cut": 0.0, "undecided": 0.0}
        self._asked = 0
        self._conversations = ConversationReader(tokenizer)
        self._controls = Controls(own)

    def likelihood(self, margin: torch.Tensor) -> torch.Tensor:
        """Bradley-Terry: the sigmoid of the scores' difference; float32 [n]."""
        return margin.float().sigmoid()

    def compare_orders(self, prompts: Tokens, first: Tokens, second: Tokens) -> None:
        """It reads each response by itself."""

    def read_prompt(self, ids: TokenIds) -> str:
        """In form `chat` the turns as JSON, else the text."""
        if self.form != "chat":
            return super().read_prompt(ids)
        alone = [{"role": "user", "content": prompt_text(self.tokenizer, ids)}]
        return json.dumps(self._conversations.read(ids) or alone)

    def compare_texts(self, prompts: list[str], first: list[str], second: list[str]) -> torch.Tensor:
        """Difference of the scores; float32 [n]."""
        sides = [list(zip(prompts, side, strict=True)) for side in (first, second)]
        distinct = list(dict.fromkeys((*sides[0], *sides[1])))
        inputs = {text: fields for text in distinct if (fields := self._read(*text)) is not None}
        scores = dict(zip(inputs, self.scores(list(inputs.values())), strict=True))
        a, b = (torch.tensor([scores.get(text, math.nan) for text in side]) for side in sides)
        return (a - b).nan_to_num(0.0)  # a text that the template refuses leaves its pair undecided, a tie

    def _read(self, prompt: str, response: str) -> dict[str, list[int]] | None:
        """A text's fields; None, and counted, where the model's template refuses it. Raises UserError where it refuses
        all of the first texts, or many: then it is no single text's fault.
        """
        self._asked += 1
        try:
            return self._encoded(prompt, response)
        except TemplateError as error:
            self.spent["undecided"] += 1
            refused = int(self.spent["undecided"])
            if (refused == self._asked and refused >= _FIRST) or refused > _UNDECIDED * max(self._asked, _FEW):
                raise UserError(
                    f"the reward model's chat template refuses {refused} of the first {self._asked} texts: {error}",
                    where=self.name,
                    hint="Use text: joined, or repair the template.",
                ) from error
            return None

    @torch.no_grad()
    def scores(self, inputs: list[dict[str, list[int]]]) -> list[float]:
        """The model's score of each input, in the order given; inputs of like lengths share a batch."""
        order = sorted(range(len(inputs)), key=lambda index: len(inputs[index]["input_ids"]))
        scores = [0.0] * len(inputs)
        for start in range(0, len(order), self.batch):
            rows = order[start : start + self.batch]
            result = self._forward([inputs[row] for row in rows])
            if not result.isfinite().all():
                raise UserError(
                    "the reward model gives scores that are not finite",
                    where=self.name,
                    hint="Use dtype: float32, or another model.",
                )
            for row, score in zip(rows, result.tolist(), strict=True):
                scores[row] = score
        self.spent["texts_scored"] += len(inputs)
        return scores

    def _forward(self, inputs: list[dict[str, list[int]]]) -> torch.Tensor:
        """Scores of one batch, float32 [n]. Padding is on the right, whatever the tokenizer says: encoders read their
        first position, and decoders their last token that is not the padding token.
        """
        device = self.model.device
        fields = {name: Tokens.collate([row[name] for row in inputs]) for name in inputs[0]}
        ids, real = fields["input_ids"].ids, fields["input_ids"].mask()
        rows = self.model.get_input_embeddings().weight.shape[0]
        if int(ids.max()) >= rows:
            raise UserError(
                f"the tokenizer gives token {int(ids.max())}, and the model knows {rows} tokens",
                where=self.name,
                hint="Save the tokenizer that the model was trained with beside it.",
            )
        config = self.model.config.get_text_config()
        own_padding = config.pad_token_id
        if (padding := own_padding) is None and len(inputs) > 1:
            # Without a padding token, a decoder takes the very last position for a text's end, and refuses batches. Any
            # token that is in none of the texts marks their ends as well; the end token, often taken, would hide them.
            used = set(ids[real].tolist())
            padding = next((token for token in range(rows) if token not in used), None)
            if padding is None:
                return torch.cat([self._forward([row]) for row in inputs])
        given = {name: part.ids.to(device) for name, part in fields.items()}
        given |= {
            "input_ids": ids.masked_fill(~real, padding or 0).to(device),
            "attention_mask": real.to(device).long(),
        }
        try:
            config.pad_token_id = padding
            return self.model(**given).logits[:, 0].float().cpu()  # type: ignore[no-any-return]
        finally:
            config.pad_token_id = own_padding

    def _encoded(self, prompt: str, response: str) -> dict[str, list[int]]:
        """One text's fields: `input_ids`, and `token_type_ids` for models that read them. Raises TemplateError."""
        if self.form == "chat":
            turns = [*json.loads(prompt), {"role": "assistant", "content": response}]
            # As in the other forms, a control token that somebody spells out ends no turn. What cannot be read as text
            # in any way stays as it is.
            guards = [(turn, self._controls.guard(turn["content"])) for turn in turns]
            guarded = [turn | {"content": guard.text} if guard else turn for turn, guard in guards]
            text = written_by_template(self.own, guarded, open_end=False)
            (ids,) = self._controls.ids([text], special=False)
            if len(ids) > self.longest:
                self.spent["texts_cut"] += 1
            return {"input_ids": ids[-self.longest :]}
        texts = (prompt, response) if self.form == "pair" else (prompt + response,)
        # Special tokens that a policy spells out are letters here: they end no text early.
        options: dict[str, Any] = {
            "split_special_tokens": True,
            "return_attention_mask": False,
            "return_token_type_ids": self._kinds,
            "verbose": False,
        }
        fields = dict(self.own(*texts, **options))
        end = self.own.eos_token_id
        closing = [end] if end is not None and fields["input_ids"][-1:] != [end] else []
        if len(fields["input_ids"]) + len(closing) > self.longest:
            self.spent["texts_cut"] += 1
            limit = self.longest - len(closing)
            fields = dict(self.own(*texts, **options, truncation=True, max_length=limit))
        fields["input_ids"] = fields["input_ids"] + closing
        if "token_type_ids" in fields:
            fields["token_type_ids"] = fields["token_type_ids"] + fields["token_type_ids"][-1:] * len(closing)
        return fields


def _score_in_fp32(model: Any) -> None:
    """The head alone in fp32: half precision rounds scores of good answers to the same number, a tie that is none."""
    for name, head in model.named_children():
        if name != model.base_model_prefix:
            head.float().register_forward_pre_hook(
                lambda _, given: tuple(part.float() if torch.is_tensor(part) else part for part in given)
            )


def longest_input(model: Any, tokenizer: Any) -> int:
    """The most tokens that model and tokenizer say they can take."""
    return int(min(positions(model.base_model, model.config), tokenizer.model_max_length))


class RewardJudgeSpec(JudgeSpec):
    """A reward model: a folder or hub id of a sequence classifier with one label, and its own tokenizer.

    text: as `form` of `RewardJudge`; null is `chat` if the tokenizer has a chat template, else `joined`. max_length:
    null is what model and tokenizer can take. trust_remote_code: run code that comes with the checkpoint.
    """

    kind: Literal["reward"] = "reward"

    model: str
    revision: str | None = None
    text: Form | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    max_length: int | None = Field(None, ge=8)
    batch: int = Field(16, ge=1)
    trust_remote_code: bool = False

    def identity(self, search: Path | None = None) -> dict[str, object]:
        """The digest of the folder's files, or hub id and revision; and how it is read."""
        path = self._path(search)
        weights = digest_of(Path(path)) if Path(path).is_dir() else f"hub:{path}@{self.revision or 'main'}"
        reading = {"reading": _READING} if self.text in (None, "chat") else {}
        return {"model": weights, **self.model_dump(include={"kind", "text", "dtype", "max_length"}), **reading}

    def check(self, search: Path | None = None) -> None:
        self._tokenizer_and_config(self._path(search))

    def build(self, given: JudgeIngredients) -> RewardJudge:
        path = self._path(given.search)
        own, config = self._tokenizer_and_config(path)
        dtype, kind = getattr(torch, self.dtype), AutoModelForSequenceClassification
        model: Any = read_model(kind, path, config, dtype, what="reward model", **self._source)
        form = self.text or ("chat" if own.chat_template else "joined")
        if form == "chat" and not own.chat_template:
            raise UserError("the tokenizer has no chat template", where=path, hint="Use text: joined or text: pair.")
        if dtype is not torch.float32:
            _score_in_fp32(model)
        model = model.eval().requires_grad_(False).to(given.device)
        return RewardJudge(
            given.tokenizer, model, own, form, longest=self.max_length, batch=self.batch, name=f"reward model {path}"
        )

    @property
    def _source(self) -> dict[str, Any]:
        return {"revision": self.revision, "trust_remote_code": self.trust_remote_code}

    def _tokenizer_and_config(self, path: str) -> tuple[Any, Any]:
        """What is known of the model without its weights. Raises UserError for one that cannot be a reward model, and
        for weights that are not to be read.
        """
        config: Any = attempt(AutoConfig.from_pretrained, path, "reward model", **self._source)
        if config.num_labels != 1:
            raise UserError(
                f"a reward model has one label, and this model has {config.num_labels}",
                where=path,
                hint="Give a sequence classifier that was trained with num_labels=1.",
            )
        check_within(Path(path))
        check_weights(path, config, path, **self._source)
        own: Any = attempt(AutoTokenizer.from_pretrained, path, "reward model", **self._source)
        # A padding token that was added later is never looked up.
        tokens = 1 + max(token for token in own.get_vocab().values() if token != own.pad_token_id)
        check_rows(tokens, getattr(config.get_text_config(), "vocab_size", None), path)
        return own, config

    def _path(self, search: Path | None) -> str:
        path = beside(self.model, search)
        if path in SHIPPED:
            raise UserError(
                "the shipped bases are no reward models", where=f"model: {path}", hint="Give a folder or a hub id."
            )
        return base_path(path)
