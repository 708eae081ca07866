"""One sequence a row, padded on the right with a plain mask: suits all that reads from left to right."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from aligngap import ranks
from aligngap.models.engine import Engine
from aligngap.models.packing import left_pad
from aligngap.models.sampling import Choose, among, ended
from aligngap.types import Tokens


class Padded(Engine):
    """Reads rows of a prompt and a segment. Samples by the model's own `generate`, which knows every kind of cache; or,
    where that does not hold (generates=False), each token from the whole sequence: slow, and right wherever reading is.
    """

    def __init__(self, model: Any, *, generates: bool = True) -> None:
        super().__init__(model)
        self.generates = generates

    def next_token_logits(self, prompts: Tokens, segments: Sequence[Tokens]) -> list[torch.Tensor]:
        rows = Tokens.stack([behind(prompts, segment) for segment in segments])
        starts = prompts.lengths.repeat(len(segments)) - 1
        options: dict[str, Any] = {}
        if "logits_to_keep" in inspect.signature(self.model.forward).parameters:
            # The head is much of a small model, and its output most of a large vocabulary's memory.
            first = int(starts.min())
            options["logits_to_keep"] = torch.arange(first, rows.ids.shape[1], device=rows.ids.device)
            starts = starts - first
        return _segments_from(self._run(rows, **options).logits.float(), starts, segments)

    def hidden_states(self, prompts: Tokens, segments: Sequence[Tokens]) -> list[torch.Tensor]:
        rows = Tokens.stack([behind(prompts, segment) for segment in segments])
        return _segments_from(self._run(rows).last_hidden_state, prompts.lengths.repeat(len(segments)), segments)

    def _run(self, rows: Tokens, **options: Any) -> Any:
        if "use_cache" in inspect.signature(self.model.forward).parameters:
            options["use_cache"] = False
        return self.model(input_ids=rows.ids, attention_mask=rows.mask().long(), **options)

    @torch.no_grad()
    def decode(self, prompts: Tokens, samples: int, limit: int, choose: Choose, ends: Sequence[int]) -> Tokens:
        if not self.generates:
            return self._decode_uncached(prompts, samples, limit, choose, ends)
        given = self._generation_inputs(prompts, samples)
        before = given["decoder_input_ids" if "decoder_input_ids" in given else "input_ids"]
        return ended(self._generate(given, limit, choose, ends)[:, before.shape[1] :], ends, limit)

    def _decode_uncached(
        self, prompts: Tokens, samples: int, limit: int, choose: Choose, ends: Sequence[int]
    ) -> Tokens:
        repeated = prompts.take(torch.arange(len(prompts.ids), device=prompts.ids.device).repeat_interleave(samples))
        ids = torch.zeros((len(repeated.ids), limit), dtype=torch.int64, device=prompts.ids.device)
        for at in range(limit):
            # Its last token is yet to be chosen; no token is predicted from itself.
            response = Tokens(ids[:, : at + 1], torch.full_like(repeated.lengths, at + 1))
            ids[:, at] = choose(self.next_token_logits(repeated, [response])[0][:, at], at)
            if not ranks.unfinished(not bool(among(response.ids, ends).any(1).all())):
                break
        return ended(ids[:, : at + 1], ends, limit)

    def _generation_inputs(self, prompts: Tokens, samples: int) -> dict[str, Any]:
        """What `generate` is given of each of B * samples rows."""
        ids, real = (part.repeat_interleave(samples, 0) for part in left_pad(prompts))
        return {"input_ids": ids, "attention_mask": real.long()}

    def _generate(self, given: dict[str, Any], limit: int, choose: Choose, ends: Sequence[int]) -> torch.Tensor:
        """The tokens given and at most `limit` behind them, [B * samples, width]; zeros behind an end."""
        config = GenerationConfig(
            max_new_tokens=limit, eos_token_id=list(ends) or None, pad_token_id=0, do_sample=False, use_cache=True
        )
        # What a configuration leaves open, `generate` takes from the model's own: penalties, forced tokens, ...
        own, self.model.generation_config = self.model.generation_config, GenerationConfig()
        try:
            return self.model.generate(  # type: ignore[no-any-return]
                **given,
                generation_config=config,
                logits_processor=LogitsProcessorList([_Chosen(choose)]),
                synced_gpus=ranks.sharded(),
            )
        finally:
            self.model.generation_config = own


class _Chosen(LogitsProcessor):
    """Leaves one token to choose from."""

    def __init__(self, choose: Choose) -> None:
        self.choose, self.at = choose, 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        token = self.choose(scores, self.at)
        self.at += 1
        return torch.full_like(scores, -torch.inf).scatter(1, token[:, None], 0.0)


def behind(prompts: Tokens, segment: Tokens) -> Tokens:
    """Each segment behind its prompt, without padding in between."""
    lengths = prompts.lengths + segment.lengths
    column = torch.arange(int(lengths.max()), device=lengths.device)
    in_segment = column - prompts.lengths[:, None]
    from_prompt = prompts.ids.gather(1, column.clamp(max=prompts.ids.shape[1] - 1).expand(len(lengths), -1))
    from_segment = segment.ids.gather(1, in_segment.clamp(0, segment.ids.shape[1] - 1))
    ids = torch.where(in_segment < 0, from_prompt, from_segment)
    return Tokens(ids * (column < lengths[:, None]), lengths)


def _segments_from(x: torch.Tensor, starts: torch.Tensor, segments: Sequence[Tokens]) -> list[torch.Tensor]:
    """From rows, [S * B, width, X], what begins at their columns `starts`, [S * B]; [B, T, X] a segment."""
    longest = max(segment.ids.shape[1] for segment in segments)
    columns = (starts[:, None] + torch.arange(longest, device=starts.device)).clamp(max=x.shape[1] - 1)
    return split_segments(x[torch.arange(len(x), device=starts.device)[:, None], columns], segments)


def split_segments(x: torch.Tensor, segments: Sequence[Tokens]) -> list[torch.Tensor]:
    """From [S * B, longest T, X], one segment below the other, to [B, T, X] a segment."""
    parts = x.chunk(len(segments))
    return [part[:, : segment.ids.shape[1]] for part, segment in zip(parts, segments, strict=True)]
