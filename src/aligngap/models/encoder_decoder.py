"""Encoder-decoders (the original's T5 family): the encoder reads the prompt once, the decoder writes responses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers.utils.generic import ModelOutput

from aligngap.models.padded import Padded, split_segments
from aligngap.types import Tokens


class EncoderDecoder(Padded):
    """As `Padded`, but that the segments of a prompt share what the encoder made of it. Padding is on the right, where
    no real token looks.
    """

    def next_token_logits(self, prompts: Tokens, segments: Sequence[Tokens]) -> list[torch.Tensor]:
        count, joined = len(segments), Tokens.stack(segments)
        output = self.model(
            encoder_outputs=self._encoded(prompts, lambda states: states.repeat(count, 1, 1)),
            attention_mask=prompts.mask().long().repeat(count, 1),
            decoder_input_ids=torch.cat([self._start_column(len(joined.ids)), joined.ids[:, :-1]], 1),
            use_cache=False,
        )
        return split_segments(output.logits.float(), segments)

    def _generation_inputs(self, prompts: Tokens, samples: int) -> dict[str, Any]:
        return {
            "encoder_outputs": self._encoded(prompts, lambda states: states.repeat_interleave(samples, 0)),
            "attention_mask": prompts.mask().long().repeat_interleave(samples, 0),
            "decoder_input_ids": self._start_column(len(prompts.ids) * samples),
            "decoder_start_token_id": decoder_start(self.model),
        }

    def _encoded(self, prompts: Tokens, repeat: Callable[[torch.Tensor], torch.Tensor]) -> ModelOutput:
        """What the encoder makes of prompts, read once. repeat: [B, P, E] to as many rows as are decoded."""
        seen = prompts.mask()
        output = self.model.get_encoder()(input_ids=prompts.ids * seen, attention_mask=seen.long())
        # Of the encoder's own class: decoders with experts look for fields that others lack.
        return type(output)(last_hidden_state=repeat(output.last_hidden_state))  # type: ignore[no-any-return]

    def _start_column(self, rows: int) -> torch.Tensor:
        """The token with which the decoder starts, as a column, [rows, 1]; it is no part of a response."""
        token = decoder_start(self.model)
        assert token is not None, "a model without one is refused when it is loaded"
        return torch.full((rows, 1), token, device=self.model.device)


def decoder_start(model: Any) -> int | None:
    """As its configurations say. Where they do not: the padding token, with which T5 starts, or what begins a text."""
    for name in ("decoder_start_token_id", "pad_token_id", "bos_token_id"):
        for config in (getattr(model, "generation_config", None), model.config):
            if (token := getattr(config, name, None)) is not None:
                return int(token)
    return None
