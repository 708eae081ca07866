"""Judges that read text: what a policy was asked and wrote, decoded."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from aligngap.judges.base import Judge
from aligngap.judges.conversation import ConversationReader
from aligngap.models.tokenizer import end_tokens
from aligngap.types import TokenIds, Tokens


def prompt_text(tokenizer: PreTrainedTokenizerBase, ids: TokenIds) -> str:
    """A prompt's text, without special tokens."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


class PromptReader:
    """Prompts as somebody reads them who does not know the template: with who said what.

    What the policy's chat template wrote is read back as turns: a user's only turn as its text, several as
    `User: ...`, `Assistant: ...`. Where turns cannot be read back, the special tokens between them stay visible.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._conversations = ConversationReader(tokenizer)

    def __call__(self, ids: TokenIds) -> str:
        turns = self._conversations.read(ids)
        if turns is None:
            return self._with_marks(list(ids)) if self._tokenizer.chat_template else prompt_text(self._tokenizer, ids)
        if len(turns) == 1:
            return turns[0]["content"]
        return "\n\n".join(f"{turn['role'].capitalize()}: {turn['content']}" for turn in turns)

    def _with_marks(self, ids: list[int]) -> str:
        """The text with the special tokens that part it; those that only begin or pad it are left out."""
        words: Any = self._tokenizer
        outer = {words.bos_token_id, words.pad_token_id}
        while ids and ids[0] in outer:
            ids = ids[1:]
        plain = prompt_text(words, ids)
        return plain if not set(ids) & set(words.all_special_ids) else str(words.decode(ids)).strip() or plain


def response_text(tokenizer: PreTrainedTokenizerBase, ids: TokenIds) -> tuple[str, bool]:
    """A response's text without the end token that closes it, and whether there was one. Special tokens in mid-text
    stay visible: a policy that writes them has written them.
    """
    ended = bool(ids) and ids[-1] in end_tokens(tokenizer)
    return str(tokenizer.decode(list(ids[:-1] if ended else ids), clean_up_tokenization_spaces=False)), ended


class TextJudge(Judge):
    """Reads pairs as text. Responses of the same text are a tie, whatever their tokens, and are not asked about.

    tokenizer: the policy's, whose tokens the pairs are.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self._prompt = PromptReader(tokenizer)

    def compare(self, prompts: Tokens, first: Tokens, second: Tokens) -> torch.Tensor:
        """Margins, float32 [n]."""
        asked, a, b = prompts.rows(), self._responses(first), self._responses(second)
        margins = torch.zeros(len(asked))
        differ = [index for index in range(len(asked)) if a[index] != b[index]]
        if differ:
            rows = ([self.read_prompt(asked[k]) for k in differ], [a[k] for k in differ], [b[k] for k in differ])
            margins[differ] = torch.as_tensor(self.compare_texts(*rows), dtype=torch.float32)
        return margins.to(prompts.ids.device)

    def read_prompt(self, ids: TokenIds) -> str:
        """A prompt as `compare_texts` takes it."""
        return self._prompt(ids)

    def _responses(self, tokens: Tokens) -> list[str]:
        return [response_text(self.tokenizer, ids)[0] for ids in tokens.rows()]

    @abstractmethod
    def compare_texts(self, prompts: list[str], first: list[str], second: list[str]) -> Sequence[float] | torch.Tensor:
        """By how much each first response is preferred, for at least one pair; all pairs differ; [n]."""
