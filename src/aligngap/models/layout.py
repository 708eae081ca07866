"""How a model reads prompts and what follows them: packed (packing.py) where it can, else one sequence a row.

Packing needs an architecture that takes positions and a 4-D mask at their word. Many do not: ALiBi and recurrent layers
count columns, a sliding window gives way to a mask that is given. Right-padded rows with a plain mask suit all that
reads from left to right, and `transformers`' own generation all that can be sampled from. What holds for a model is
found out when it is loaded, by its architecture and by trying it on a few tokens.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from aligngap import ranks
from aligngap.errors import UserError, out_of_memory
from aligngap.models import lean
from aligngap.models.packing import pack
from aligngap.models.sampling import Choose, among, decode_cached, decode_generated, ended
from aligngap.models.seq2seq import decoded_logits, decoder_start
from aligngap.types import Tokens


@dataclass(frozen=True)
class Layout:
    """packed: positions and 4-D masks hold. window: of attention, in tokens; a packed sequence may not be longer.
    generates: what is not packed can be sampled by the model's own generation. lean: our own forward pass holds
    (lean.py).
    """

    packed: bool
    window: int | None = None
    generates: bool = True
    lean: bool = False

    def reads_lean(self, model: Any) -> bool:
        """Whether our own forward pass reads the model as it is now: hooks and training mode come and go."""
        return self.lean and lean.suits(model)

    def packs(self, prompts: Tokens, segments: Sequence[Tokens], more: int = 0) -> bool:
        """Whether these may be packed. more: tokens that are yet to come."""
        if not self.packed or self.window is None:
            return self.packed
        longest = prompts.ids.shape[1] + max((segment.ids.shape[1] for segment in segments), default=0)
        return longest + more <= self.window


def reads_apart(
    model: Any, prompts: Tokens, segments: Sequence[Tokens], *, predicting: bool = True
) -> list[torch.Tensor]:
    """What a model says of each segment behind its prompt, one sequence a row, right-padded; [n, width, ...] each.

    predicting: the logits that predict each token; else the hidden state at each token. An encoder-decoder predicts
    from what its encoder reads once. Padding positions hold arbitrary values.
    """
    if predicting and model.config.is_encoder_decoder:
        return _parted(decoded_logits(model, prompts, segments), prompts, segments)
    accepted = inspect.signature(model.forward).parameters
    rows = [behind(prompts, segment) for segment in segments]
    joined = Tokens.stack(rows)
    given: dict[str, Any] = {"input_ids": joined.ids, "attention_mask": joined.mask().long()}
    if "use_cache" in accepted:
        given["use_cache"] = False
    starts = prompts.lengths.repeat(len(segments)) - (1 if predicting else 0)
    if predicting and "logits_to_keep" in accepted:
        # The head is much of a small model, and its output most of a large vocabulary's memory.
        first = int(starts.min())
        given["logits_to_keep"] = torch.arange(first, joined.ids.shape[1], device=joined.ids.device)
        starts = starts - first
    output = model(**given)
    states = output.logits.float() if predicting else output.last_hidden_state
    columns = (starts[:, None] + torch.arange(max(s.ids.shape[1] for s in segments), device=starts.device)).clamp(
        max=states.shape[1] - 1
    )
    found = states[torch.arange(len(states), device=starts.device)[:, None], columns]
    return _parted(found, prompts, segments)


@torch.no_grad()
def decode_uncached(
    model: Any, prompts: Tokens, samples: int, limit: int, choose: Choose, ends: Sequence[int]
) -> Tokens:
    """As `decode_cached`, each token from the whole sequence, read anew: slow, and right wherever reading is."""
    repeated = prompts.take(torch.arange(len(prompts.ids), device=prompts.ids.device).repeat_interleave(samples))
    ids = torch.zeros((len(repeated.ids), limit), dtype=torch.int64, device=prompts.ids.device)
    for at in range(limit):
        # Its last token is yet to be chosen; no token is predicted from itself.
        response = Tokens(ids[:, : at + 1], torch.full_like(repeated.lengths, at + 1))
        ids[:, at] = choose(reads_apart(model, repeated, [response])[0][:, at], at)
        if not ranks.unfinished(not bool(among(response.ids, ends).any(1).all())):
            break
    return ended(ids[:, : at + 1], ends, limit)


def behind(prompts: Tokens, segment: Tokens) -> Tokens:
    """Each segment behind its prompt, without padding in between."""
    lengths = prompts.lengths + segment.lengths
    column = torch.arange(int(lengths.max()), device=lengths.device)
    in_segment = column - prompts.lengths[:, None]
    from_prompt = prompts.ids.gather(1, column.clamp(max=prompts.ids.shape[1] - 1).expand(len(lengths), -1))
    from_segment = segment.ids.gather(1, in_segment.clamp(0, segment.ids.shape[1] - 1))
    ids = torch.where(in_segment < 0, from_prompt, from_segment)
    return Tokens(ids * (column < lengths[:, None]), lengths)


def _parted(found: torch.Tensor, prompts: Tokens, segments: Sequence[Tokens]) -> list[torch.Tensor]:
    parts = found.split(len(prompts.ids))
    return [part[:, : segment.ids.shape[1]] for part, segment in zip(parts, segments, strict=True)]


# What a 4-D mask rules wholly; all else in a configuration's `layer_types` remembers in its own way.
_ATTENTION = {"full_attention", "sliding_attention", "chunked_attention", "attention"}
_WINDOWS = ("sliding_window", "attention_chunk_size", "window_size", "attention_window_size")
_PROMPTS, _SEGMENTS, _TRIED = (4, 2), ((3, 3), (1, 4)), 7
"""Lengths of the prompts and segments of a trial, and of its longest sequence."""


@torch.no_grad()
def detect(model: Any, *, predicting: bool = True) -> Layout:
    """How this model is to be read. predicting: a language model that is sampled from, else a backbone.

    What it says of a few tokens in each layout is compared with what it says of each sequence alone, unpadded. Raises
    UserError when no layout gives the same, or when what comes later changes what was said before.
    """
    try:
        trial = _Trial(model, predicting)
        trial.check_apart()
    except UserError:
        raise
    except Exception as error:  # an architecture fails in its own way
        if out_of_memory(error):
            raise
        raise _refused(model, f"it does not read a prompt and what follows ({error})") from error
    layout = _by_architecture(model)
    if layout.packed and not trial.packs():
        layout = replace(layout, packed=False)
    if predicting and not (layout.packed and layout.window is None):
        layout = replace(layout, generates=trial.generates())
    return replace(layout, lean=layout.packed and lean.suits(model) and trial.reads_lean())


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
        and (window is None or window >= _TRIED)
    )
    return Layout(packed, window)


class _Trial:
    """A few tokens, what the model says of each sequence alone, and how near another layout must come to it."""

    def __init__(self, model: Any, predicting: bool) -> None:
        self.model, self.predicting = model, predicting
        rows = len(self.model.get_input_embeddings().weight)
        draw = torch.Generator().manual_seed(0)

        def drawn(lengths: Sequence[int]) -> Tokens:
            return Tokens.collate([torch.randint(rows, (size,), generator=draw).tolist() for size in lengths]).to(
                model.device
            )

        self.prompts, self.segments = drawn(_PROMPTS), [drawn(lengths) for lengths in _SEGMENTS]
        if predicting and model.config.is_encoder_decoder and decoder_start(model) is None:
            raise _refused(self.model, "it does not say with which token its decoder starts (decoder_start_token_id)")
        self.alone = [self._alone(segment) for segment in self.segments]
        # Of two contexts: a layout that is wrong confuses one with the other.
        spread = (self.alone[0][0] - self.alone[0][1]).abs().max()
        self.bound = float(spread) * max(1e-4, 8 * torch.finfo(model.dtype).eps)
        self.noise = 0.0

    def _alone(self, segment: Tokens) -> list[torch.Tensor]:
        """Of each row, [length, ...]: from a batch of one without padding."""
        rows = range(len(_PROMPTS))
        parts = [(self.prompts.take(torch.tensor([k])), segment.take(torch.tensor([k]))) for k in rows]
        found = [
            reads_apart(self.model, prompt, [part], predicting=self.predicting)[0][0, : int(part.lengths)]
            for prompt, part in parts
        ]
        return [self._scaled(row) for row in found]

    def _scaled(self, said: torch.Tensor) -> torch.Tensor:
        exact = said.cpu().double()
        return exact.log_softmax(-1) if self.predicting else exact

    def _error(self, found: Sequence[torch.Tensor], numbers: Sequence[int] = (0, 1)) -> float:
        worst = 0.0
        for number, said in zip(numbers, found, strict=True):
            for row, alone in enumerate(self.alone[number]):
                worst = max(worst, float((self._scaled(said[row, : len(alone)]) - alone).abs().max()))
        return worst

    def check_apart(self) -> None:
        """UserError unless padded rows say what each says alone, and the future does not change the past."""
        self.noise = self._error(reads_apart(self.model, self.prompts, self.segments, predicting=self.predicting))
        if not self.noise <= 10 * self.bound:  # NaN is not
            raise _refused(self.model, "it says other things of a sequence in a batch than of the same sequence alone")
        if self.predicting:
            shorter = Tokens(self.segments[0].ids[:, :1], torch.ones_like(self.segments[0].lengths))
            said = reads_apart(self.model, self.prompts, [shorter])[0]
            past = max(
                float((self._scaled(said[row]) - alone[:1]).abs().max()) for row, alone in enumerate(self.alone[0])
            )
            if not past <= 10 * self.bound:
                raise _refused(self.model, "what follows a token changes what it says of that token")

    def packs(self) -> bool:
        """Whether packed rows, and sampling from a packed prefix, say what each sequence says alone."""
        tolerance = self.bound + 4 * self.noise
        packed = pack(self.prompts, self.segments)
        try:
            output = self.model(
                input_ids=packed.ids,
                attention_mask=packed.mask,
                position_ids=packed.positions,
                use_cache=False,
            )
            said = output.logits if self.predicting else output.last_hidden_state
            found = []
            for start, segment in zip(packed.starts, self.segments, strict=True):
                columns = torch.arange(start, start + segment.ids.shape[1])
                if self.predicting:
                    columns = torch.cat([torch.tensor([packed.prompt_width - 1]), columns[:-1]])
                found.append(said[:, columns.to(said.device)])
            if not self._error(found) <= tolerance:
                return False
            return not self.predicting or self._error(self._forced(decode_cached), (0, 0)) <= tolerance
        except Exception as error:  # an architecture refuses in its own way
            if out_of_memory(error):
                raise
            return False

    def reads_lean(self) -> bool:
        """Whether our own forward pass, and sampling by it, say what each sequence says alone."""
        tolerance = self.bound + 4 * self.noise
        try:
            read = lean.next_token_logits if self.predicting else lean.segment_states
            if not self._error(read(self.model, self.prompts, self.segments)) <= tolerance:
                return False
            if not self.predicting or not lean.plain(self.model):
                return True
            return self._error(self._forced(lean.decode), (0, 0)) <= tolerance
        except Exception as error:  # a model is of the type by name and not in what it does
            if out_of_memory(error):
                raise
            return False

    def generates(self) -> bool:
        """Whether generation goes on with given tokens as each sequence does alone."""
        try:
            return self._error(self._forced(decode_generated), (0, 0)) <= self.bound + 4 * self.noise
        except Exception as error:  # an architecture refuses in its own way
            if out_of_memory(error):
                raise
            return False

    def _forced(self, decode: Callable[..., Tokens]) -> list[torch.Tensor]:
        """Logits that predict each token of the first segments while they are decoded, [n, width, vocabulary]; of each
        of two samples a prompt.
        """
        segment, said = self.segments[0], list[torch.Tensor]()

        def choose(logits: torch.Tensor, at: int) -> torch.Tensor:
            said.append(logits)
            return segment.ids[:, at].repeat_interleave(2)

        decode(self.model, self.prompts, 2, segment.ids.shape[1], choose, ())
        together = torch.stack(said, 1)
        return [together[::2], together[1::2]]


def _refused(model: Any, why: str) -> UserError:
    return UserError(
        f"a model of type '{model.config.model_type}' cannot be used: {why}",
        where=str(model.name_or_path) or None,
        hint="Use a decoder that reads from left to right, or an encoder-decoder.",
    )
