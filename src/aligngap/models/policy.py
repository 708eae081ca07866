"""A policy: samples and scores responses. Temperature is 1 throughout, in sampling as in scoring."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from aligngap import ranks
from aligngap.models.layout import Layout
from aligngap.models.lora import adapters, adapters_off, copied, load_trained_state, trained_state
from aligngap.models.reader import Reader
from aligngap.models.sampling import by_noise
from aligngap.models.sharding import load_weights, parts, save_weights
from aligngap.timings import spending
from aligngap.types import Tokens


class Policy:
    """A language model, decoder or encoder-decoder, seen as a distribution over responses.

    A response is a sequence of at most `max_new_tokens` tokens; it ends with one of `ends`, unless it ran into that
    limit. layout: which ways of reading hold for the model (found out if not given).

    Shapes: B prompts, S segments behind each, T tokens of the longest one, V tokens in the vocabulary.
    """

    def __init__(
        self, model: PreTrainedModel, ends: int | Sequence[int], max_new_tokens: int, layout: Layout | None = None
    ) -> None:
        self.model, self.max_new_tokens = model, max_new_tokens
        self.ends = (ends,) if isinstance(ends, int) else tuple(ends)
        self.reader = Reader(model, layout)

    @property
    def layout(self) -> Layout:
        """Which ways of reading hold for the model."""
        return self.reader.layout

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self.model.device

    def weights_in_place(self) -> AbstractContextManager[None]:
        """Entered around each call that reads the model; puts weights in place that are not the model's own."""
        return nullcontext()

    def next_token_logits(self, prompts: Tokens, segments: Sequence[Tokens]) -> list[torch.Tensor]:
        """Logits that predict each token of each segment behind its prompt.

        Returns per segment [B, T, V]; padding positions hold arbitrary values.
        """
        with self.weights_in_place():
            return self.reader.next_token_logits(prompts, segments)

    def log_probs(self, prompts: Tokens, segments: Sequence[Tokens]) -> list[torch.Tensor]:
        """log pi(segment | prompt), summed over each segment's real tokens, in nats; per segment [B]."""
        with self.weights_in_place():
            return self.reader.log_probs(prompts, segments)

    @spending("sampling")
    def sample(self, prompts: Tokens, samples: int, noise: torch.Tensor) -> Tokens:
        """`samples` responses to each prompt, rows grouped by prompt.

        noise: uniform numbers, [B * samples, max_new_tokens]; the responses are a function of weights, prompts and
        noise, so several ranks can share the prompts. Another engine (continuous batching, vLLM) would stand here.
        """
        with self.weights_in_place():
            return ranks.map_rows(
                lambda prompts, noise: self._sample(prompts, samples, noise.flatten(0, 1)),
                prompts,
                noise.unflatten(0, (len(prompts.ids), samples)),
            )

    def _sample(self, prompts: Tokens, samples: int, noise: torch.Tensor) -> Tokens:
        return self.reader.decode(prompts, samples, noise.shape[1], by_noise(noise, self.device), self.ends)

    def frozen_copy(self) -> Policy:
        """A copy that later training does not change. With adapters, it shares the weights beneath them."""
        if ranks.sharded():
            return ShardedCopy(self)
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

    def weights_in_place(self) -> AbstractContextManager[None]:
        return adapters_off(self.model)


class ShardedCopy(Policy):
    """A sharded policy as it was: such a model cannot be copied. It has this rank's part of the weights of then, which
    take the place of the live ones around each call.
    """

    def __init__(self, policy: Policy) -> None:
        super().__init__(policy.model, policy.ends, policy.max_new_tokens, policy.layout)
        self._copies = [part.clone() for part in parts(self.model)]

    @contextmanager
    def weights_in_place(self) -> Iterator[None]:
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for live, copy in zip(parts(self.model), self._copies, strict=True):
            now = live.clone()
            live.copy_(copy)
            copy.copy_(now)

    def load_from(self, other: Policy) -> None:
        for copy, part in zip(self._copies, parts(other.model), strict=True):
            copy.copy_(part)

    def state_dict(self) -> dict[str, torch.Tensor]:
        with self.weights_in_place():
            return {name: weight.clone() for name, weight in super().state_dict().items()}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        with self.weights_in_place():
            super().load_state_dict(state)
