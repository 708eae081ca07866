"""Decoders of Llama's type, read by a forward pass of our own: the same weights and the same maths with less work.

`transformers` pads a batch to a rectangle and masks. Here a batch is one list of real tokens: norms, projections and
feed-forward layers see no padding, and only attention is computed on grids, a segment's on its prompt and itself. The
last layer computes what is asked of it and no more, the head only what predicts a token. Sampling keeps its own cache
and multiplies by fused weights. `layout.detect` compares what comes of it with what the model itself says before it is
used.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaMLP, LlamaRMSNorm
from transformers.models.mistral.modeling_mistral import MistralDecoderLayer, MistralMLP, MistralRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer, Qwen2MLP, Qwen2RMSNorm

from aligngap.models.build import with_gradients
from aligngap.models.sampling import Choose, decoded
from aligngap.types import Tokens

_LAYERS = (LlamaDecoderLayer, MistralDecoderLayer, Qwen2DecoderLayer)
_NORMS = (LlamaRMSNorm, MistralRMSNorm, Qwen2RMSNorm)
_FEED_FORWARD = (LlamaMLP, MistralMLP, Qwen2MLP)
_ROTARY = ("default", "linear", "llama3", "yarn")
"""Rotary embeddings that know a token's position, and not how long its sequence is."""
_FEW = 1 << 12
"""Scores of a sequence up to which attention is two products and a softmax. PyTorch's own kernel is slower there; with
more it is as fast, and needs less memory (docs/lab-log.md)."""


def suits(model: Any) -> bool:
    """Whether a model is of the type, and nothing asks for more than its forward pass (dropout, hooks). Its projections
    and feed-forward layers may be any modules, adapters included, and its gradients may be checkpointed.
    """
    backbone = backbone_of(model)
    layers = getattr(backbone, "layers", None)
    if not isinstance(layers, nn.ModuleList) or not all(type(layer) in _LAYERS for layer in layers):
        return False
    config = backbone.config
    return (
        set(getattr(config, "layer_types", None) or ()) <= {"full_attention"}
        and (getattr(config, "sliding_window", None) is None or not getattr(config, "use_sliding_window", True))
        and (config.rope_parameters or {}).get("rope_type") in _ROTARY
        and (config.attention_dropout == 0 or not backbone.training)
        and not any(_hooked(part) for part in (model, backbone, *layers, *(layer.self_attn for layer in layers)))
    )


def backbone_of(model: Any) -> Any:
    """The decoder beneath a language model's head."""
    return getattr(model, "model", model)


@dataclass(frozen=True)
class Ragged:
    """n prompts and their segments as one list of tokens: all prompts, then each segment of all rows, then a spare one
    that stands for all padding.

    ids, positions: int64 [tokens]. lengths: of the prompts, [n]. prompts, segments: the place of each token of
    [n, width] and of [segments, n, width], the last one for padding. first: where the segments begin.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    lengths: torch.Tensor
    prompts: torch.Tensor
    segments: torch.Tensor
    first: int
    plans: dict[Any, _Plan] = field(default_factory=dict)

    def plan(self, ends: bool, heads: tuple[int, int], dtype: torch.dtype) -> _Plan:
        """How attention is computed. Made once: a policy and its reference read the same batch."""
        if (ends, heads, dtype) not in self.plans:
            self.plans[ends, heads, dtype] = _Plan(self, ends, heads, dtype)
        return self.plans[ends, heads, dtype]


_latest: tuple[list[torch.Tensor], Ragged] | None = None


def ragged(prompts: Tokens, segments: Sequence[Tokens]) -> Ragged:
    """Lay out prompts (n rows) and segments (n rows each) without padding. The very tensors of the last call are not
    laid out again.
    """
    global _latest
    given, last = [part for tokens in (prompts, *segments) for part in tokens], _latest
    if last is not None and len(given) == len(last[0]) and all(a is b for a, b in zip(given, last[0], strict=True)):
        return last[1]
    device, rows = prompts.ids.device, len(prompts.ids)
    width = max((part.ids.shape[1] for part in segments), default=0)
    real = prompts.mask()
    every = torch.arange(max(real.shape[1], width), device=device)
    ids, positions, masks = [prompts.ids[real]], [every[: real.shape[1]].expand_as(real)[real]], [real.flatten()]
    for part in segments:
        inside, more = part.mask(), part.ids.shape[1]
        ids.append(part.ids[inside])
        positions.append((prompts.lengths[:, None] + every[:more])[inside])
        masks.append(functional.pad(inside, (0, width - more)).flatten())
    spare = torch.zeros(1, dtype=torch.int64, device=device)
    listed, flat = torch.cat([*ids, spare]), torch.cat(masks)
    places = torch.where(flat, flat.cumsum(0) - 1, len(listed) - 1)
    in_prompts, in_segments = places.split([real.numel(), len(places) - real.numel()])
    found = Ragged(
        listed,
        torch.cat([*positions, spare]),
        prompts.lengths,
        in_prompts.view_as(real),
        in_segments.view(len(segments), rows, width),
        len(ids[0]),
    )
    _latest = given, found
    return found


def states(backbone: Any, batch: Ragged, *, ends: bool) -> torch.Tensor:
    """Last hidden states, [tokens kept, hidden]: with `ends` those of the prompts' last tokens, then those of the
    segments' tokens, then one that means nothing.
    """
    x = backbone.embed_tokens(batch.ids)
    turns = _turns(backbone, x, batch.positions)
    heads = backbone.config.num_attention_heads, backbone.config.num_key_value_heads
    plan = batch.plan(ends, heads, x.dtype)

    def through(layer: Any, x: torch.Tensor, *, final: bool) -> torch.Tensor:
        attention = layer.self_attn
        h = layer.input_layernorm(x)
        keys, values = attention.k_proj(h), attention.v_proj(h)
        asking = turns * attention.scaling
        if final:
            x, h, asking = (plan.keep.move(part) for part in (x, h, asking))
        x = x + attention.o_proj(plan.attend(attention.q_proj(h), keys, values, asking, turns, final=final))
        return x + layer.mlp(layer.post_attention_layernorm(x))  # type: ignore[no-any-return]

    for layer in backbone.layers:
        run = partial(through, layer, final=layer is backbone.layers[-1])
        again = layer.gradient_checkpointing and torch.is_grad_enabled()
        x = checkpoint(run, x, use_reentrant=False) if again else run(x)
    return backbone.norm(x)  # type: ignore[no-any-return]


def _turns(backbone: Any, like: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Of each position the rotations as complex numbers, [positions, 1, half a head]."""
    cos, sin = backbone.rotary_emb(like, positions[None])
    half = cos.shape[-1] // 2
    return torch.complex(cos[0, :, None, :half].float(), sin[0, :, None, :half].float())


def _rotated(projected: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of queries or keys, [tokens, heads, head size].

    Numbers that turn together come out side by side, not half a head apart: products of queries and keys are the same.
    """
    halves = projected.float().view(len(projected), -1, 2, turns.shape[-1])
    turned = torch.complex(halves[:, :, 0], halves[:, :, 1]) * turns
    return torch.view_as_real(turned).flatten(2).to(projected.dtype)


def _turned_back(gradient: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """The adjoint of `_rotated`: from [tokens * heads, head size] to [tokens, heads * head size]."""
    back = torch.view_as_complex(gradient.view(len(turns), -1, turns.shape[-1], 2)) * turns.conj()
    return torch.cat([back.real, back.imag], 2).flatten(1)


class _Places(NamedTuple):
    """Rows of a list to other places, and back.

    there: which row goes to each place. back: the place of each row; where it has several, the first of them, and then
    the others of the rows at the list's beginning.
    """

    there: torch.Tensor
    back: tuple[torch.Tensor, ...]

    def move(self, x: torch.Tensor) -> torch.Tensor:
        """The rows at their places."""
        moved: torch.Tensor = _Moved.apply(x, self)  # type: ignore[no-untyped-call]
        return moved

    def returned(self, x: torch.Tensor) -> torch.Tensor:
        """What lies at a row's places, summed."""
        first, *others = self.back
        found = x.index_select(0, first)
        for more in others:
            found[: len(more)] += x.index_select(0, more)
        return found


class _Moved(torch.autograd.Function):
    """An ordinary index would add gradients up row by row: it does not know that most rows have one place.

    Rows that stand for padding have no gradient, wherever they are.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, places: _Places) -> torch.Tensor:
        ctx.places = places
        return x.index_select(0, places.there)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        return ctx.places.returned(gradient), None


class _Plan:
    """Causal attention of a list of tokens, each prompt on itself, each segment on its prompt and itself: two groups of
    grids, and a last place for the spare token. Rows of the grids are tokens; by hand, the heads of tokens, in an order
    that leaves nothing to transpose.
    """

    def __init__(self, batch: Ragged, ends: bool, heads: tuple[int, int], dtype: torch.dtype) -> None:
        device, spare, first = batch.ids.device, len(batch.ids) - 1, batch.first
        (rows, width), (count, _, more) = batch.prompts.shape, batch.segments.shape
        in_prompts, in_segments = batch.prompts < spare, batch.segments < spare
        self.heads, self.dtype = heads, dtype
        # Half precision needs the sums that PyTorch's own kernel keeps.
        self.by_hand = device.type == "cpu" and dtype == torch.float32 and max(width, more) * (width + more) <= _FEW

        every, own = (
            torch.arange(spare + 1, device=device),
            (batch.lengths.cumsum(0) - 1).clamp(min=0)[: rows if ends else 0],
        )
        keep = torch.cat([own, every[first:]])
        # What is not kept has the spare token's gradient, which is 0.
        kept_at = torch.full_like(every, len(keep) - 1).index_copy(0, keep, every[: len(keep)])
        self.keep = _Places(keep, (kept_at,))

        asking, answering = heads if self.by_hand else (1, 1)
        segments = batch.segments.flatten(0, 1)
        behind = torch.cat([batch.prompts.repeat(count, 1), segments], 1) if count else segments
        there, (alone, after, last) = _places([batch.prompts, behind], spare, answering)
        after = after.view(count, rows, behind.shape[1], answering)
        back = torch.cat([alone[in_prompts], after[:, :, width:][in_segments], last])
        self.keys = _Places(there, (back.flatten(), *(part[in_prompts].flatten() for part in after[:, :, :width])))
        self.key_rows = [alone.numel(), after.numel(), last.numel()]
        there, (alone, after, last) = _places([batch.prompts, segments], spare, asking)
        back = torch.cat([alone[in_prompts], after.view(*in_segments.shape, asking)[in_segments], last])
        self.queries = _Places(there, (back.flatten(),))
        shift, final = first - len(own), every[: len(own), None]
        there, (alone, after, last) = _places([final, segments - shift], spare - shift, asking)
        back = torch.cat([alone[:, 0], after.view(*in_segments.shape, asking)[in_segments], last])
        self.kept_queries = _Places(there, (back.flatten(),))

        column, later = every[:width], every[:more]
        ahead = (column > column[:, None]).expand(rows, -1, -1)
        beyond = (column >= batch.lengths[:, None])[:, None]
        unseen = torch.cat([beyond.expand(-1, more, -1), (later > later[:, None]).expand(rows, -1, -1)], 2)
        among, of_ends, of_segments = (
            self._per_head(_bias(blind, dtype)) for blind in (ahead, beyond[: len(own)], unseen.repeat(count, 1, 1))
        )
        self.biases, self.kept_biases = (among, of_segments), (of_ends, of_segments)

    def _per_head(self, bias: torch.Tensor) -> torch.Tensor:
        """A bias, [n, queries, keys], as the scores lie."""
        if not self.by_hand:
            return bias[:, None]
        heads, groups = self.heads
        rows, queries, keys = bias.shape
        return bias[:, None].expand(-1, heads, -1, -1).reshape(rows * groups, heads // groups * queries, keys)

    def attend(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        asking: torch.Tensor,
        turning: torch.Tensor,
        *,
        final: bool,
    ) -> torch.Tensor:
        """What attention gives each token, [tokens, heads * head size], from projections, [tokens, heads * head size].

        asking, turning: rotations of queries (and their scale), and of keys. final: in the last layer, of kept tokens.
        """
        places, biases = (self.kept_queries, self.kept_biases) if final else (self.queries, self.biases)
        if self.by_hand:
            given = (queries, keys, values, asking, turning, places, self, biases)
            by_hand: torch.Tensor = _ByHand.apply(*given)  # type: ignore[no-untyped-call]
            return by_hand
        rotated = _rotated(queries, asking)
        size = rotated.shape[2]
        rows = [bias.shape[0] * bias.shape[2] for bias in biases]
        q = places.move(rotated.flatten(1)).split([*rows, 1])
        k, v = (self.keys.move(part).split(self.key_rows) for part in (_rotated(keys, turning).flatten(1), values))
        found = []
        for number, bias in enumerate(biases):
            if not bias.numel():
                continue
            a, b, c = (part[number].view(len(bias), -1, part[number].shape[1] // size, size) for part in (q, k, v))
            of_heads = functional.scaled_dot_product_attention(
                a.transpose(1, 2),
                b.transpose(1, 2),
                c.transpose(1, 2),
                attn_mask=bias,
                scale=1.0,
                enable_gqa=self.heads[0] != self.heads[1],
            )
            found.append(of_heads.transpose(1, 2).reshape(-1, self.heads[0] * size))
        found.append(found[0].new_zeros(1, self.heads[0] * size))
        return _Places(places.back[0], (places.there,)).move(torch.cat(found))


def _bias(blind: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What is added to scores, given what a query may not look at, of the same shape. Not infinite: a prompt without a
    token would have nothing to look at.
    """
    return torch.zeros(blind.shape, dtype=dtype, device=blind.device).masked_fill_(blind, torch.finfo(dtype).min / 2)


def _places(grids: list[torch.Tensor], spare: int, heads: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Which row goes to each place, and the number of the place of each of a token's heads, [n, width, heads] a grid
    and [1, heads] for the spare token. grids: of tokens, [n, width].
    """
    head = torch.arange(heads, device=grids[0].device)
    there = [(grid[:, None] * heads + head[:, None]).flatten() for grid in grids]
    number = torch.arange(sum(map(len, there)) + heads, device=head.device)
    parts = number.split([*map(len, there), heads])
    numbers = [
        part.view(len(grid), heads, grid.shape[1]).transpose(1, 2) for part, grid in zip(parts, grids, strict=False)
    ]
    return torch.cat([*there, spare * heads + head]), [*numbers, parts[-1][None]]


class _ByHand(torch.autograd.Function):
    """Attention of many short sequences with small heads: two products and a softmax on rows sorted by head.

    With PyTorch's own kernel a training step takes a tenth longer there (docs/lab-log.md).
    """

    @staticmethod
    def forward(
        ctx: Any,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        asking: torch.Tensor,
        turning: torch.Tensor,
        places: _Places,
        plan: _Plan,
        biases: tuple[torch.Tensor, ...],
    ) -> torch.Tensor:
        size = 2 * turning.shape[2]
        q = _rotated(queries, asking).view(-1, size).index_select(0, places.there)
        k = _rotated(keys, turning).view(-1, size).index_select(0, plan.keys.there)
        v = values.view(-1, size).index_select(0, plan.keys.there)
        found = torch.zeros_like(q)
        probabilities = []
        for bias, a, out, b, c in _grouped(plan, biases, (q, found), (k, v)):
            chosen = a.bmm(b.transpose(1, 2)).add_(bias).softmax(-1)
            torch.bmm(chosen, c, out=out)
            probabilities.append(chosen)
        ctx.save_for_backward(q, k, v, asking, turning, *probabilities)
        ctx.places, ctx.plan, ctx.biases = places, plan, biases
        return found.index_select(0, places.back[0]).view(len(queries), -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        q, k, v, asking, turning, *probabilities = ctx.saved_tensors
        places, plan = ctx.places, ctx.plan
        out = gradient.reshape(-1, q.shape[1]).index_select(0, places.there)
        # Products fill all of it but the spare token's rows, which are the last, and a group without keys.
        full = all(bias.numel() for bias in ctx.biases)
        to_q, to_k, to_v = (torch.empty_like(part) if full else torch.zeros_like(part) for part in (q, k, v))
        for part, heads in zip((to_q, to_k, to_v), (plan.heads[0], *[plan.heads[1]] * 2), strict=True):
            part[-heads:].zero_()
        parts = _grouped(plan, ctx.biases, (q, out, to_q), (k, v, to_k, to_v))
        for chosen, (_, a, g, to_a, b, c, to_b, to_c) in zip(probabilities, parts, strict=True):
            torch.bmm(chosen.transpose(1, 2), g, out=to_c)
            scores = torch.ops.aten._softmax_backward_data(g.bmm(c.transpose(1, 2)), chosen, -1, chosen.dtype)
            torch.bmm(scores, b, out=to_a)
            torch.bmm(scores.transpose(1, 2), a, out=to_b)
        return (
            _turned_back(places.returned(to_q), asking),
            _turned_back(plan.keys.returned(to_k), turning),
            plan.keys.returned(to_v).view(len(turning), -1),
            *[None] * 5,
        )


def _grouped(
    plan: _Plan, biases: tuple[torch.Tensor, ...], queries: Sequence[torch.Tensor], keys: Sequence[torch.Tensor]
) -> Iterator[list[torch.Tensor]]:
    """Of each group that is not empty its bias, and the rows of queries and of keys (and of what else lies as they do),
    [sequences, length, size].
    """
    rows = [bias.shape[0] * bias.shape[1] for bias in biases]
    of_queries = [part.split([*rows, plan.heads[0]]) for part in queries]
    of_keys = [part.split(plan.key_rows) for part in keys]
    size = queries[0].shape[1]
    for number, bias in enumerate(biases):
        if bias.numel():
            yield [
                bias,
                *(part[number].view(*bias.shape[:2], size) for part in of_queries),
                *(part[number].view(len(bias), bias.shape[2], size) for part in of_keys),
            ]


def log_probs(model: Any, prompts: Tokens, segments: Sequence[Tokens]) -> list[torch.Tensor]:
    """log pi(segment | prompt), summed over each segment's tokens; per segment [n]."""
    batch = ragged(prompts, segments)
    wanted = batch.ids[batch.first : -1]
    each = -functional.cross_entropy(_predicting(model, batch)[:-1], wanted, reduction="none")
    places = batch.segments - batch.first
    return list(functional.pad(each, (0, 1)).index_select(0, places.flatten()).view_as(places).sum(2))


def next_token_logits(model: Any, prompts: Tokens, segments: Sequence[Tokens]) -> list[torch.Tensor]:
    """Logits that predict each token of each segment, [n, width, vocabulary]; anything where there is none."""
    batch = ragged(prompts, segments)
    return _spread(_predicting(model, batch), batch, segments)


def segment_states(backbone: Any, prompts: Tokens, segments: Sequence[Tokens]) -> list[torch.Tensor]:
    """Last hidden states of each segment's tokens, [n, width, hidden]; anything where there is none."""
    batch = ragged(prompts, segments)
    return _spread(states(backbone, batch, ends=False), batch, segments)


@dataclass(frozen=True)
class Kept:
    """What a decoder has read, so that it can go on behind it: n rows.

    real: which columns are tokens and not padding, bool [n, width]. layers: keys and values, a tensor a layer,
    [2, n, heads of keys, width, head size].
    """

    real: torch.Tensor
    layers: tuple[torch.Tensor, ...]

    def take(self, index: torch.Tensor) -> Kept:
        """These rows."""
        return Kept(self.real[index], tuple(layer.index_select(1, index) for layer in self.layers))


@torch.no_grad()
def read_on(backbone: Any, tokens: Tokens, behind: Kept | None = None) -> tuple[torch.Tensor, Kept]:
    """Read tokens behind what has been read before, each row behind its own.

    Returns the last hidden states of the tokens, [n, width, hidden], anything at padding; and all that is read now.
    """
    real, device = tokens.mask(), tokens.ids.device
    rows, width = real.shape
    before = real[:, :0] if behind is None else behind.real
    column = torch.arange(width, device=device)
    x = backbone.embed_tokens(tokens.ids[real])
    turns = _turns(backbone, x, (before.sum(1, keepdim=True) + column)[real])
    places = (real.flatten().cumsum(0) - 1).clamp(min=0)
    ahead = (column > column[:, None]).expand(rows, -1, -1)
    bias = _bias(torch.cat([~before[:, None].expand(-1, width, -1), ahead], 2), x.dtype)[:, None]

    def grid(x: torch.Tensor, size: int) -> torch.Tensor:
        return x.flatten(1).index_select(0, places).view(rows, width, -1, size).transpose(1, 2)

    layers = []
    for number, layer in enumerate(backbone.layers):
        attention = layer.self_attn
        h, size = layer.input_layernorm(x), attention.head_dim
        asking = grid(_rotated(attention.q_proj(h), turns * attention.scaling), size)
        new = [grid(_rotated(attention.k_proj(h), turns), size), grid(attention.v_proj(h), size)]
        both = torch.stack(new)
        if behind is not None:
            both = torch.cat([behind.layers[number], both], 3)
        layers.append(both)
        found = _attended(asking, both[0], both[1], bias).transpose(1, 2).reshape(rows * width, -1)
        x = x + attention.o_proj(found[real.flatten()])
        x = x + layer.mlp(layer.post_attention_layernorm(x))
    found = backbone.norm(x).index_select(0, places).view(rows, width, -1)
    return found, Kept(torch.cat([before, real], 1), tuple(layers))


def _spread(rows: torch.Tensor, batch: Ragged, segments: Sequence[Tokens]) -> list[torch.Tensor]:
    """What belongs to the segments' tokens and the spare one, on a grid for each segment."""
    places = batch.segments - batch.first
    return [
        rows.index_select(0, place[:, : part.ids.shape[1]].flatten()).view(*part.ids.shape, rows.shape[1])
        for place, part in zip(places, segments, strict=True)
    ]


def _predicting(model: Any, batch: Ragged) -> torch.Tensor:
    """Logits that predict each of the segments' tokens, in their order, and a spare row; [tokens + 1, vocabulary]."""
    found = states(model.model, batch, ends=True)
    rows = len(batch.lengths)
    places = batch.segments - batch.first + rows - 1  # of the token before
    places[:, :, :1] = torch.arange(rows, device=places.device)[:, None]
    before = [places[batch.segments < len(batch.ids) - 1], torch.tensor([len(found) - 1], device=places.device)]
    return model.lm_head(found.index_select(0, torch.cat(before))).float()  # type: ignore[no-any-return]


def _hooked(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        # That one concerns the model's own forward pass.
        or any(hook is not with_gradients for hook in module._forward_pre_hooks.values())
    )


def plain(model: Any) -> bool:
    """Whether a model that `suits` is made of plain matrices and norms, so that `decode` may multiply by them fused."""
    backbone = backbone_of(model)
    norms = [backbone.norm, *(part for layer in backbone.layers for part in _norms(layer))]
    linear = [part for layer in backbone.layers for part in _projections(layer)]
    return (
        all(type(layer.mlp) in _FEED_FORWARD for layer in backbone.layers)
        and all(type(part) in _NORMS for part in norms)
        and all(type(part) is nn.Linear for part in linear)
        and not any(_hooked(part) for part in (*norms, *linear, *(layer.mlp for layer in backbone.layers)))
    )


def _norms(layer: Any) -> list[Any]:
    return [layer.input_layernorm, layer.post_attention_layernorm]


def _projections(layer: Any) -> list[Any]:
    attention, mlp = layer.self_attn, layer.mlp
    return [getattr(attention, f"{name}_proj") for name in "qkvo"] + [
        getattr(mlp, f"{name}_proj") for name in ("gate", "up", "down")
    ]


@torch.no_grad()
def decode(model: Any, prompts: Tokens, samples: int, limit: int, choose: Choose, ends: Sequence[int]) -> Tokens:
    """As `sampling.decode_cached`, for a model that `suits` and is `plain`: each prompt is read once, then one pass a
    token; both multiply by fused weights. Up to `_TOGETHER` samples of a prompt share a row of the cache.

    A pass looks at as much of the cache as is filled. On a device that records its work (CUDA graphs) a pass over all
    of it, with what is to come hidden, would stand here.
    """
    batch = ragged(prompts, [])
    # An eighth of a pass is what the other mode costs. What is made in this one cannot be learned from: it stays here.
    with torch.inference_mode():
        found = _Decoder(model, batch, samples, limit).decoded(choose, ends)
    return Tokens(found.ids.clone(), found.lengths.clone())


_TOGETHER = 4
"""Of so many samples each looks at the tokens of all, those of the others hidden. There are as many fewer products, and
a prompt's keys and values are kept once; with more samples the hidden tokens would cost more than that saves."""


class _Decoder:
    """A model that has read prompts and is to go on with several samples of each."""

    def __init__(self, model: Any, batch: Ragged, samples: int, limit: int) -> None:
        self.model, self.backbone, self.limit = model, model.model, limit
        self.together = math.gcd(samples, _TOGETHER)
        self.start = batch.lengths.repeat_interleave(samples)
        rows, self.width = batch.prompts.shape
        self.norm = _Norm(self.backbone.norm)
        x = self.backbone.embed_tokens(batch.ids)
        self.turns = _turns(self.backbone, x, torch.arange(self.width + limit, device=x.device))
        apart = samples // self.together
        self.layers = [
            _Decoding(layer, apart * rows, self.width, self.together, limit) for layer in self.backbone.layers
        ]
        turning = self.turns.index_select(0, batch.positions)
        column = torch.arange(self.width, device=x.device)
        hidden, ahead = column >= batch.lengths[:, None], column > column[:, None]
        own = (batch.lengths.cumsum(0) - 1).clamp(min=0)
        for layer in self.layers:
            final = layer is self.layers[-1]
            blind = hidden[:, None] if final else ahead[None]
            x = layer.read(x, turning, batch.prompts, apart, own if final else None, _bias(blind, x.dtype)[:, None])
        self.said = self._logits(x).repeat_interleave(samples, 0)
        self.bias = self._unseen(hidden.repeat_interleave(apart, 0), x.dtype)

    def _unseen(self, hidden: torch.Tensor, dtype: torch.dtype) -> torch.Tensor | None:
        """What is added to the scores of the cache's columns, [rows, 1, together, columns]: those of a prompt's padding
        (hidden, [rows, width]) and of other samples' tokens count for nothing. None where there are none of either.
        """
        if self.together == 1 and not bool(hidden.any()):
            return None
        sample = torch.arange(self.together, device=hidden.device)
        others = (sample != sample[:, None]).repeat(1, self.limit).expand(len(hidden), -1, -1)
        return _bias(torch.cat([hidden[:, None].expand(-1, self.together, -1), others], 2), dtype)[:, None]

    def _logits(self, x: torch.Tensor) -> torch.Tensor:
        normed = self.norm.direction(x.float()).mul_(self.norm.scale)
        return self.model.lm_head(normed.to(x.dtype))  # type: ignore[no-any-return]

    def following(self, token: torch.Tensor, at: int) -> torch.Tensor:
        """Logits behind a token of each sample, [n, vocabulary]. at: the token's number."""
        x = self.backbone.embed_tokens(token)
        turning = self.turns.index_select(0, self.start + at)
        end = self.width + (at + 1) * self.together
        bias = None if self.bias is None else self.bias[..., :end]
        for layer in self.layers:
            x = layer(x, turning, end, bias)
        return self._logits(x)

    def decoded(self, choose: Choose, ends: Sequence[int]) -> Tokens:
        """The samples."""
        return decoded(self.said, self.following, self.limit, choose, ends)


class _Decoding:
    """A layer with fused weights that keeps the keys and values of what it has read.

    At these sizes the time goes into the number of operations: the norms' weights are multiplied into the matrices
    behind them, the queries' scale too. The cache has a row for each prompt: its tokens, then the first token of each
    of the samples that share it, then the second of each ...
    """

    def __init__(self, layer: Any, rows: int, width: int, together: int, limit: int) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.size, self.together = attention.head_dim, together
        self.heads, self.groups = (part.out_features // self.size for part in (attention.q_proj, attention.k_proj))
        self.before, self.behind = map(_Norm, _norms(layer))
        asking = _side_by_side(attention.q_proj, self.size, attention.scaling)
        turning = _side_by_side(attention.k_proj, self.size)
        self.qkv = _joined([asking, turning, _parts(attention.v_proj)], self.before.scale)
        self.gate_up = _joined([_parts(mlp.gate_proj), _parts(mlp.up_proj)], self.behind.scale)
        self.act, self.out, self.down = mlp.act_fn, _parts(attention.o_proj), _parts(mlp.down_proj)
        # What is not filled yet is not looked at.
        self.cache = self.qkv[0].new_empty(2, rows, self.groups, width + together * limit, self.size)
        self.keys, self.values = self.cache

    def read(
        self,
        x: torch.Tensor,
        turning: torch.Tensor,
        places: torch.Tensor,
        apart: int,
        own: torch.Tensor | None,
        bias: torch.Tensor,
    ) -> torch.Tensor:
        """The layer's output for a list of tokens, [tokens, hidden], or for those in `own`, one of each prompt.

        places: of the prompts' tokens in the list, [n, width]; apart: rows of the cache for each prompt; bias: added to
        the scores, [n or 1, 1, queries, width].
        """
        (rows, width), size = places.shape, self.size
        qkv = self._projected(x, turning)
        grid = qkv.index_select(0, places.flatten()).view(rows, width, -1, size)
        new = grid[:, :, self.heads :].view(rows, width, 2, self.groups, size).permute(2, 0, 3, 1, 4)
        self.cache[:, :, :, :width] = new.repeat_interleave(apart, 1) if apart > 1 else new
        keys, values = self.keys[::apart, :, :width], self.values[::apart, :, :width]
        if own is not None:
            x, qkv = x.index_select(0, own), qkv.index_select(0, own)
            queries = qkv[:, : self.heads * size].view(rows, self.heads, 1, size)
            return self._through(x, _attended(queries, keys, values, bias).flatten(1))
        found = _attended(grid[:, :, : self.heads].transpose(1, 2), keys, values, bias).transpose(1, 2)
        real = places.flatten() < len(x) - 1
        listed = found.reshape(rows * width, -1)[real]
        return self._through(x, functional.pad(listed, (0, 0, 0, len(x) - len(listed))))

    def __call__(self, x: torch.Tensor, turning: torch.Tensor, end: int, bias: torch.Tensor | None) -> torch.Tensor:
        """The layer's output for one more token of each sample, [n, hidden]. end: columns of the cache with the token's
        own; bias: added to the scores, [rows, 1, samples, columns].
        """
        n, heads, groups, size, together = len(x), self.heads, self.groups, self.size, self.together
        rows = n // together
        qkv = self._projected(x, turning)
        queries = qkv[:, : heads * size].view(rows, together, heads, size).transpose(1, 2)
        new = qkv[:, heads * size :].view(rows, together, 2, groups, size).permute(2, 0, 3, 1, 4)
        self.cache.narrow(3, end - together, together).copy_(new)
        keys, values = self.keys.narrow(2, 0, end), self.values.narrow(2, 0, end)
        return self._through(x, _attended(queries, keys, values, bias).transpose(1, 2).reshape(n, heads * size))

    def _projected(self, x: torch.Tensor, turning: torch.Tensor) -> torch.Tensor:
        """Queries, keys and values, side by side, the first two turned."""
        qkv = functional.linear(self.before.direction(x), *self.qkv)
        turned = qkv[:, : (self.heads + self.groups) * self.size]
        exact = turned.float()
        torch.view_as_complex(exact.view(len(x), -1, self.size // 2, 2)).mul_(turning)
        if exact.dtype != qkv.dtype:
            turned.copy_(exact)
        return qkv

    def _through(self, x: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """What comes behind attention; x is changed."""
        _add(x, attended, self.out)
        gate, up = functional.linear(self.behind.direction(x), *self.gate_up).chunk(2, 1)
        return _add(x, self.act(gate).mul_(up), self.down)


class _Norm:
    """A norm in two parts: rows divided by their length, which costs few operations, and a scale of the columns.

    What it adds to the mean square is the square of one more number in each row.
    """

    def __init__(self, norm: Any) -> None:
        columns = norm.weight.shape[0]
        self.scale = norm.weight.float() * columns**0.5
        self.more = torch.tensor((columns * norm.variance_epsilon) ** 0.5, device=norm.weight.device)

    def direction(self, x: torch.Tensor) -> torch.Tensor:
        """Rows of about unit length."""
        wide = x.float()
        lengths = torch.linalg.vector_norm(wide, dim=1, keepdim=True)
        return (wide / lengths.hypot_(self.more)).to(x.dtype)  # type: ignore[no-any-return]


def _attended(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """Attention, [n, heads, queries, head size], of queries that are scaled; heads of keys and values are as many or
    fewer. bias: added to the scores, [n or 1, 1, queries, keys].
    """
    (rows, heads, many, size), groups = queries.shape, keys.shape[1]
    if queries.dtype != torch.float32 or (many > _TOGETHER and many * keys.shape[2] > _FEW):
        return functional.scaled_dot_product_attention(
            queries, keys, values, attn_mask=bias, scale=1.0, enable_gqa=heads != groups
        )
    scores = torch.bmm(queries.reshape(rows * groups, -1, size), keys.flatten(0, 1).transpose(1, 2))
    if bias is not None:
        scores.view(rows, heads, many, -1).add_(bias)
    return torch.bmm(scores.softmax(-1), values.flatten(0, 1)).view(queries.shape)


Affine = tuple[torch.Tensor, torch.Tensor | None]


def _parts(projection: nn.Linear) -> Affine:
    return projection.weight, projection.bias


def _side_by_side(projection: Any, size: int, scale: float = 1.0) -> Affine:
    """Weight and bias whose outputs come in the order in which `_rotated` leaves its own, times `scale`."""

    def ordered(part: torch.Tensor) -> torch.Tensor:
        return part.view(-1, 2, size // 2, *part.shape[1:]).transpose(1, 2).reshape(part.shape) * scale

    return ordered(projection.weight), None if projection.bias is None else ordered(projection.bias)


def _joined(parts: Sequence[Affine], scale: torch.Tensor) -> Affine:
    """Projections of the same input as one that scales it first; a bias where one of them has one. scale: in fp32, so
    that weights of less precision are rounded once.
    """
    found = torch.cat([weight for weight, _ in parts])
    weights = found.float().mul_(scale).to(found.dtype)
    if all(bias is None for _, bias in parts):
        return weights, None
    return weights, torch.cat([weight.new_zeros(len(weight)) if bias is None else bias for weight, bias in parts])


def _add(x: torch.Tensor, inner: torch.Tensor, projection: Affine) -> torch.Tensor:
    weight, bias = projection
    x.addmm_(inner, weight.t())
    return x if bias is None else x.add_(bias)
