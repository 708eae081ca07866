"""A policy: samples and scores responses. Temperature is 1 throughout, in sampling as in scoring."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from aligngap import ranks
from aligngap.models import lean
from aligngap.models.layout import Layout, decode_uncached, detect, reads_apart
from aligngap.models.lora import adapters, adapters_off, copied, load_trained_state, trained_state
from aligngap.models.packing import pack
from aligngap.models.sampling import by_noise, decode_cached, decode_generated
from aligngap.models.sharding import load_weights, parts, save_weights
from aligngap.timings import spending
from aligngap.types import Tokens


class Policy:
    """A language model, decoder or encoder-decoder, seen as a distribution over responses.

    A response is a sequence of at most `max_new_tokens` tokens; it ends with one of `ends`, unless it ran into that
    limit. layout: how the model is read (found out if not given).
    """

    def __init__(
        self, model: PreTrainedModel, ends: int | Sequence[int], max_new_tokens: int, layout: Layout | None = None
    ) -> None:
        self.model, self.max_new_tokens = model, max_new_tokens
        self.ends = (ends,) if isinstance(ends, int) else tuple(ends)
        self.layout = detect(model) if layout is None else layout

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self.model.device

    def next_token_logits(self, prompts: Tokens, segments: Sequence[Tokens]) -> list[torch.Tensor]:
        """Logits that predict each token of each segment behind its prompt.

        Returns per segment [n, width, vocabulary]; padding positions hold arbitrary values.
        """
        if self.layout.reads_lean(self.model):
            return lean.next_token_logits(self.model, prompts, segments)
        if not self.layout.packs(prompts, segments):
            return reads_apart(self.model, prompts, segments)
        logits, columns = self._packed_logits(prompts, segments)
        return [logits[:, index] for index in columns]

    def log_probs(self, prompts: Tokens, segments: Sequence[Tokens]) -> list[torch.Tensor]:
        """log pi(segment | prompt), summed over each segment's real tokens; per segment [n]."""
        if self.layout.reads_lean(self.model):
            return lean.log_probs(self.model, prompts, segments)
        if not self.layout.packs(prompts, segments):
            said = zip(reads_apart(self.model, prompts, segments), segments, strict=True)
            return [
                ((logits.gather(2, segment.ids[..., None])[..., 0] - logits.logsumexp(-1)) * segment.mask()).sum(-1)
                for logits, segment in said
            ]
        logits, columns = self._packed_logits(prompts, segments)
        normaliser = logits.logsumexp(-1)
        rows = torch.arange(len(prompts.ids), device=logits.device)[:, None]
        return [
            ((logits[rows, index, segment.ids] - normaliser[:, index]) * segment.mask()).sum(-1)
            for segment, index in zip(segments, columns, strict=True)
        ]

    def _packed_logits(self, prompts: Tokens, segments: Sequence[Tokens]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Logits at the positions that predict a response token, and for each segment which of them are its own.

        Nothing is computed at other prompt positions: the head is the larger part of a small model.
        """
        packed = pack(prompts, segments)
        device = packed.ids.device
        keep, columns = [torch.tensor([packed.prompt_width - 1])], []
        at = 1
        for start, segment in zip(packed.starts, segments, strict=True):
            rest = segment.ids.shape[1] - 1
            keep.append(torch.arange(start, start + rest))
            columns.append(torch.cat([torch.zeros(1, dtype=torch.int64), torch.arange(at, at + rest)]).to(device))
            at += rest
        output = self.model(
            input_ids=packed.ids,
            attention_mask=packed.mask,
            position_ids=packed.positions,
            use_cache=False,
            logits_to_keep=torch.cat(keep).to(device),
        )
        return output.logits.float(), columns

    @spending("sampling")
    def sample(self, prompts: Tokens, samples: int, noise: torch.Tensor) -> Tokens:
        """`samples` responses to each prompt, rows grouped by prompt.

        noise: uniform numbers, [n * samples, max_new_tokens]; the responses are a function of weights, prompts and
        noise, so several ranks can share the prompts. Another engine (continuous batching, vLLM) would stand here.
        """
        return ranks.spread(
            lambda prompts, noise: self._sample(prompts, samples, noise.flatten(0, 1)),
            prompts,
            noise.unflatten(0, (len(prompts.ids), samples)),
        )

    def _sample(self, prompts: Tokens, samples: int, noise: torch.Tensor) -> Tokens:
        limit = noise.shape[1]
        if self.layout.reads_lean(self.model) and lean.plain(self.model):
            decode = lean.decode
        elif self.layout.packs(prompts, [], more=limit):
            decode = decode_cached
        else:
            decode = decode_generated if self.layout.generates else decode_uncached
        return decode(self.model, prompts, samples, limit, by_noise(noise, self.device), self.ends)

    def frozen_copy(self) -> Policy:
        """A copy that later training does not change. With adapters, it shares the weights beneath them."""
        if ranks.sharded():
            return Remembered(self)
        model = copied(self.model)
        return Policy(model.requires_grad_(False), self.ends, self.max_new_tokens, self.layout)

    def load_from(self, other: Policy) -> None:
        """Take over another policy's weights."""
        load_trained_state(self.model, trained_state(other.model))

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The tensors that tell it from the policy it started from; for step checkpoints."""
        return trained_state(self.model)

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Take over what `state_dict` gave. Raises ValueError for another model's."""
        load_trained_state(self.model, state)

    def save_weights(self, path: Path) -> None:
        """The weights alone, as safetensors; of a policy with adapters, the adapters'. Of several ranks the first
        writes, and all must ask.
        """
        if own := adapters(self.model):
            if ranks.first():
                save_file({name: weight.detach() for name, weight in own.items()}, str(path))
        else:
            save_weights(self.model, path)

    def load_weights(self, path: Path) -> None:
        """Weights saved by `save_weights`."""
        if adapters(self.model):
            load_trained_state(self.model, load_file(str(path)))
        else:
            load_weights(self.model, path, str(self.device))


class WithoutAdapters(Policy):
    """What a policy with adapters is with them off: the policy it started from, in the same memory."""

    def next_token_logits(self, prompts: Tokens, segments: Sequence[Tokens]) -> list[torch.Tensor]:
        with adapters_off(self.model):
            return super().next_token_logits(prompts, segments)

    def log_probs(self, prompts: Tokens, segments: Sequence[Tokens]) -> list[torch.Tensor]:
        with adapters_off(self.model):
            return super().log_probs(prompts, segments)

    def sample(self, prompts: Tokens, samples: int, noise: torch.Tensor) -> Tokens:
        with adapters_off(self.model):
            return super().sample(prompts, samples, noise)


class Remembered(Policy):
    """A sharded policy as it was: such a model cannot be copied. It has this rank's part of the weights of then, which
    take the place of the live ones around each call.
    """

    def __init__(self, policy: Policy) -> None:
        super().__init__(policy.model, policy.ends, policy.max_new_tokens, policy.layout)
        self._then = [part.clone() for part in parts(self.model)]

    @contextmanager
    def _as_then(self) -> Iterator[None]:
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for live, then in zip(parts(self.model), self._then, strict=True):
            now = live.clone()
            live.copy_(then)
            then.copy_(now)

    def load_from(self, other: Policy) -> None:
        for then, part in zip(self._then, parts(other.model), strict=True):
            then.copy_(part)

    def state_dict(self) -> dict[str, torch.Tensor]:
        with self._as_then():
            return {name: weight.clone() for name, weight in super().state_dict().items()}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        with self._as_then():
            super().load_state_dict(state)

    def next_token_logits(self, prompts: Tokens, segments: Sequence[Tokens]) -> list[torch.Tensor]:
        with self._as_then():
            return super().next_token_logits(prompts, segments)

    def log_probs(self, prompts: Tokens, segments: Sequence[Tokens]) -> list[torch.Tensor]:
        with self._as_then():
            return super().log_probs(prompts, segments)

    def sample(self, prompts: Tokens, samples: int, noise: torch.Tensor) -> Tokens:
        with self._as_then():
            return super().sample(prompts, samples, noise)
