"""Which ways of reading hold for a model: by its architecture, and by trying them on a few tokens when it is loaded.

Packing needs an architecture that takes positions and a 4-D mask at their word. Many do not: ALiBi and recurrent layers
count columns, a sliding window gives way to a mask that is given. Right-padded rows with a plain mask suit all that
reads from left to right, and `transformers`' own generation all that can be sampled from.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from aligngap.errors import UserError, out_of_memory
from aligngap.models.encoder_decoder import EncoderDecoder, decoder_start
from aligngap.models.engine import Engine
from aligngap.models.packing import Packed
from aligngap.models.padded import Padded
from aligngap.models.varlen.engine import Varlen
from aligngap.types import Tokens


@dataclass(frozen=True)
class Layout:
    """What holds of a model. packed: positions and 4-D masks. window: of attention, in tokens; a packed sequence may
    not be longer. generates: what is not packed can be sampled by the model's own generation. varlen: our own forward
    pass.
    """

    packed: bool
    window: int | None = None
    generates: bool = True
    varlen: bool = False

    def packs(self, prompts: Tokens, segments: Sequence[Tokens], more: int = 0) -> bool:
        """Whether these may be packed. more: tokens that are yet to come."""
        if not self.packed or self.window is None:
            return self.packed
        longest = prompts.ids.shape[1] + max((segment.ids.shape[1] for segment in segments), default=0)
        return longest + more <= self.window


# What a 4-D mask rules wholly; all else in a configuration's `layer_types` remembers in its own way.
_ATTENTION = {"full_attention", "sliding_attention", "chunked_attention", "attention"}
_WINDOWS = ("sliding_window", "attention_chunk_size", "window_size", "attention_window_size")
_PROMPTS, _SEGMENTS, _LONGEST = (4, 2), ((3, 3), (1, 4)), 7
"""Lengths of the prompts and segments of a trial, and of its longest sequence."""


def padded_engine(model: Any, *, predicting: bool, generates: bool = True) -> Padded:
    """What reads a model where neither of the other ways holds. predicting: as for `detect`; an encoder whose hidden
    states are read is a decoder's like.
    """
    kind = EncoderDecoder if predicting and model.config.is_encoder_decoder else Padded
    return kind(model, generates=generates)


@torch.no_grad()
def detect(model: Any, *, predicting: bool = True) -> Layout:
    """How this model is to be read. predicting: a language model that is sampled from, else a backbone.

    What it says of a few tokens in each layout is compared with what it says of each sequence alone, unpadded. Raises
    UserError when no layout gives the same, or when what comes later changes what was said before.
    """
    if predicting and model.config.is_encoder_decoder and decoder_start(model) is None:
        raise _refused(model, "it does not say with which token its decoder starts (decoder_start_token_id)")
    padded, varlen = padded_engine(model, predicting=predicting), Varlen(model)
    try:
        trial = _Trial(padded, predicting)
        trial.check_padded(padded)
    except UserError:
        raise
    except Exception as error:  # an architecture fails in its own way
        if out_of_memory(error):
            raise
        raise _refused(model, f"it does not read a prompt and what follows ({error})") from error
    layout = _by_architecture(model)
    if layout.packed and not trial.agrees(Packed(model)):
        layout = replace(layout, packed=False)
    if predicting and not (layout.packed and layout.window is None):
        layout = replace(layout, generates=trial.agrees(padded, reads=False))
    holds = layout.packed and varlen.reads() and trial.agrees(varlen, decodes=predicting and varlen.decodes())
    return replace(layout, varlen=holds)


def _by_architecture(model: Any) -> Layout:
    """What an architecture says of itself."""
    config = model.config.get_text_config(decoder=True)
    windows = [size for name in _WINDOWS if isinstance(size := getattr(config, name, None), int) and size > 0]
    window = min(windows, default=None)
    packed = (
        not model.config.is_encoder_decoder
        and "position_ids" in inspect.signature(model.forward).parameters
        and not getattr(model, "_is_stateful", False)
        and set(getattr(config, "layer_types", None) or ()) <= _ATTENTION
        and (window is None or window >= _LONGEST)
    )
    return Layout(packed, window)


class _Trial:
    """A few tokens, what the model says of each sequence alone, and how near another way must come to it."""

    def __init__(self, padded: Padded, predicting: bool) -> None:
        self.model, self.predicting = padded.model, predicting
        rows = len(self.model.get_input_embeddings().weight)
        draw = torch.Generator().manual_seed(0)

        def drawn(lengths: Sequence[int]) -> Tokens:
            ids = [torch.randint(rows, (size,), generator=draw).tolist() for size in lengths]
            return Tokens.collate(ids).to(self.model.device)

        self.prompts, self.segments = drawn(_PROMPTS), [drawn(lengths) for lengths in _SEGMENTS]
        self.alone = [self._alone(padded, segment) for segment in self.segments]
        # Of two contexts: a layout that is wrong confuses one with the other.
        spread = (self.alone[0][0] - self.alone[0][1]).abs().max()
        self.bound = float(spread) * max(1e-4, 8 * torch.finfo(self.model.dtype).eps)
        self.noise = 0.0

    def _alone(self, padded: Padded, segment: Tokens) -> list[torch.Tensor]:
        """Of each row, [T, V] or [T, E]: from a batch of one without padding."""
        rows = [torch.tensor([row]) for row in range(len(_PROMPTS))]
        parts = [(self.prompts.take(row), segment.take(row)) for row in rows]
        return [self._scaled(self._read(padded, prompt, [part])[0][0, : int(part.lengths)]) for prompt, part in parts]

    def _read(self, engine: Engine, prompts: Tokens, segments: Sequence[Tokens]) -> list[torch.Tensor]:
        return (engine.next_token_logits if self.predicting else engine.hidden_states)(prompts, segments)

    def _scaled(self, x: torch.Tensor) -> torch.Tensor:
        exact = x.cpu().double()
        return exact.log_softmax(-1) if self.predicting else exact

    def _error(self, grids: Sequence[torch.Tensor], numbers: Sequence[int] = (0, 1)) -> float:
        """The largest difference from what is said of the segments with these numbers alone."""
        worst = 0.0
        for number, grid in zip(numbers, grids, strict=True):
            for row, alone in enumerate(self.alone[number]):
                worst = max(worst, float((self._scaled(grid[row, : len(alone)]) - alone).abs().max()))
        return worst

    def check_padded(self, padded: Padded) -> None:
        """UserError unless padded rows say what each says alone, and the future does not change the past."""
        self.noise = self._error(self._read(padded, self.prompts, self.segments))
        if not self.noise <= 10 * self.bound:  # NaN is not
            raise _refused(self.model, "it says other things of a sequence in a batch than of the same sequence alone")
        if self.predicting:
            shorter = Tokens(self.segments[0].ids[:, :1], torch.ones_like(self.segments[0].lengths))
            logits = padded.next_token_logits(self.prompts, [shorter])[0]
            past = max(
                float((self._scaled(logits[row]) - alone[:1]).abs().max()) for row, alone in enumerate(self.alone[0])
            )
            if not past <= 10 * self.bound:
                raise _refused(self.model, "what follows a token changes what it says of that token")

    def agrees(self, engine: Engine, *, reads: bool = True, decodes: bool | None = None) -> bool:
        """Whether a way of reading (reads), and of sampling (decodes; if not given, where the model predicts), says
        what each sequence says alone.
        """
        tolerance = self.bound + 4 * self.noise
        try:
            if reads and not self._error(self._read(engine, self.prompts, self.segments)) <= tolerance:
                return False
            if not (self.predicting if decodes is None else decodes):
                return True
            return self._error(self._forced(engine), (0, 0)) <= tolerance
        except Exception as error:  # an architecture refuses in its own way, or is of a type by name alone
            if out_of_memory(error):
                raise
            return False

    def _forced(self, engine: Engine) -> list[torch.Tensor]:
        """Logits that predict each token of the first segments while they are decoded, [B, T, V]; of each of two
        samples a prompt.
        """
        segment, seen = self.segments[0], list[torch.Tensor]()

        def choose(logits: torch.Tensor, at: int) -> torch.Tensor:
            seen.append(logits)
            return segment.ids[:, at].repeat_interleave(2)

        engine.decode(self.prompts, 2, segment.ids.shape[1], choose, ())
        together = torch.stack(seen, 1)
        return [together[::2], together[1::2]]


def _refused(model: Any, why: str) -> UserError:
    return UserError(
        f"a model of type '{model.config.model_type}' cannot be used: {why}",
        where=str(model.name_or_path) or None,
        hint="Use a decoder that reads from left to right, or an encoder-decoder.",
    )
