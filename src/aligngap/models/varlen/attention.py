"""Causal attention of a batch in one list: each prompt on itself, each segment on its prompt and itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional

from aligngap.models.varlen.batch import VarlenBatch

_MATMUL_SCORES = 1 << 12
"""Scores of a sequence up to which attention is two products and a softmax. PyTorch's own kernel is slower there; with
more it is as fast, and needs less memory (docs/lab-log.md)."""
SAMPLES_PER_ROW = 4
"""Of so many samples of a prompt each looks at the tokens of all, those of the others hidden. There are as many fewer
products, and a prompt's keys and values are kept once; with more samples the hidden tokens would cost more than that
saves."""


def rotations(backbone: Any, like: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Rotary embedding (RoPE; Su et al. 2021, 2104.09864) of positions [N] as complex numbers, [N, 1, D / 2]."""
    cos, sin = backbone.rotary_emb(like, positions[None])
    half = cos.shape[-1] // 2
    return torch.complex(cos[0, :, None, :half].float(), sin[0, :, None, :half].float())


def rotated(projected: torch.Tensor, rope: torch.Tensor) -> torch.Tensor:
    """Queries or keys, [N, heads * D], rotated by `rope`, [N, 1, D / 2]; [N, heads, D].

    Numbers that turn together come out side by side, not half a head apart: products of queries and keys are the same.
    """
    halves = projected.float().view(len(projected), -1, 2, rope.shape[-1])
    turned = torch.complex(halves[:, :, 0], halves[:, :, 1]) * rope
    return torch.view_as_real(turned).flatten(2).to(projected.dtype)


def _rotated_back(gradient: torch.Tensor, rope: torch.Tensor) -> torch.Tensor:
    """The adjoint of `rotated`: from [N * heads, D] to [N, heads * D]."""
    back = torch.view_as_complex(gradient.view(len(rope), -1, rope.shape[-1], 2)) * rope.conj()
    return torch.cat([back.real, back.imag], 2).flatten(1)


def attention_bias(hidden: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What is added to scores, given what a query may not look at, of the same shape. Not infinite: a prompt without a
    token would have nothing to look at.
    """
    return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, torch.finfo(dtype).min / 2)


def cached_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Attention of queries that are scaled, [B, H, T, D], on keys and values, [B, G, W, D]; [B, H, T, D]. bias: added
    to the scores, [B or 1, 1, T, W].
    """
    (rows, heads, width, size), groups = q.shape, k.shape[1]
    if q.dtype != torch.float32 or (width > SAMPLES_PER_ROW and width * k.shape[2] > _MATMUL_SCORES):
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0, enable_gqa=heads != groups)
    scores = torch.bmm(q.reshape(rows * groups, -1, size), k.flatten(0, 1).transpose(1, 2))
    if bias is not None:
        scores.view(rows, heads, width, -1).add_(bias)
    return torch.bmm(scores.softmax(-1), v.flatten(0, 1)).view(q.shape)


class RowMap(NamedTuple):
    """Rows of a list onto the cells of grids, and back.

    source: the row that each cell holds, [cells]. cells: the cell of each row, [rows]; where a row has several, the
    first of them, and then the others of the rows at the list's beginning.
    """

    source: torch.Tensor
    cells: tuple[torch.Tensor, ...]

    def spread(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, X] -> [cells, X]"""
        cells: torch.Tensor = _Spread.apply(x, self)  # type: ignore[no-untyped-call]
        return cells

    def summed(self, x: torch.Tensor) -> torch.Tensor:
        """The adjoint of `spread`: [cells, X] -> [rows, X], of each row the sum over its cells."""
        first, *others = self.cells
        rows = x.index_select(0, first)
        for more in others:
            rows[: len(more)] += x.index_select(0, more)
        return rows


class _Spread(torch.autograd.Function):
    """An ordinary index would add gradients up row by row: it does not know that most rows have one cell.

    Rows that stand for padding have no gradient, wherever they are.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, rows: RowMap) -> torch.Tensor:
        ctx.rows = rows
        return x.index_select(0, rows.source)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        return ctx.rows.summed(gradient), None


class Queries(NamedTuple):
    """Which tokens ask: their cells in the two groups of grids (prompts, segments), and what is added to the scores of
    each group, [sequences, 1, T, W] (`AttentionPlan._per_head` for products by hand).
    """

    rows: RowMap
    biases: tuple[torch.Tensor, torch.Tensor]


def plan_for(batch: VarlenBatch, prompt_ends: bool, heads: tuple[int, int], dtype: torch.dtype) -> AttentionPlan:
    """How attention of a batch is computed. Kept on the batch: a policy and its reference read the same one."""
    key = prompt_ends, heads, dtype
    if key not in batch.plans:
        batch.plans[key] = AttentionPlan(batch, prompt_ends, heads, dtype)
    plan: AttentionPlan = batch.plans[key]
    return plan


class AttentionPlan:
    """Where each token's query, key and value go in two groups of grids, prompts and segments, with a last cell for the
    padding token; and which keys a query sees.

    heads: H, G. keep: the tokens that the last layer computes, the prompts' ends and the segments. every, kept: queries
    of all tokens, and of those. Cells hold tokens; where attention is products by hand (`matmul`), the heads of tokens,
    in an order that leaves nothing to transpose.
    """

    def __init__(self, batch: VarlenBatch, prompt_ends: bool, heads: tuple[int, int], dtype: torch.dtype) -> None:
        device, padding, first = batch.ids.device, len(batch.ids) - 1, batch.first
        (rows, width), (count, _, longest) = batch.prompts.shape, batch.segments.shape
        in_prompts, in_segments = batch.prompts < padding, batch.segments < padding
        self.heads = heads
        # Half precision needs the sums that PyTorch's own kernel keeps.
        small = max(width, longest) * (width + longest) <= _MATMUL_SCORES
        self.matmul = device.type == "cpu" and dtype == torch.float32 and small
        q_heads, k_heads = heads if self.matmul else (1, 1)

        every = torch.arange(padding + 1, device=device)
        ends = batch.prompt_ends[: rows if prompt_ends else 0]
        keep = torch.cat([ends, every[first:]])
        # What is not kept has the padding token's gradient, which is 0.
        kept_at = torch.full_like(every, len(keep) - 1).index_copy(0, keep, every[: len(keep)])
        self.keep = RowMap(keep, (kept_at,))

        segments = batch.segments.flatten(0, 1)  # [S * B, T]
        seen = torch.cat([batch.prompts.repeat(count, 1), segments], 1) if count else segments  # [S * B, P + T]
        source, (alone, behind, last) = _cells([batch.prompts, seen], padding, k_heads)
        behind = behind.view(count, rows, seen.shape[1], k_heads)
        own = torch.cat([alone[in_prompts], behind[:, :, width:][in_segments], last])
        copies = (part[in_prompts].flatten() for part in behind[:, :, :width])  # of a prompt, for each segment
        self.keys = RowMap(source, (own.flatten(), *copies))
        self.key_rows = [alone.numel(), behind.numel(), last.numel()]

        def queries(of_prompts: torch.Tensor, of_segments: torch.Tensor, real: torch.Tensor, end: int) -> RowMap:
            source, (alone, behind, last) = _cells([of_prompts, of_segments], end, q_heads)
            cells = torch.cat([alone[real], behind.view(*in_segments.shape, q_heads)[in_segments], last])
            return RowMap(source, (cells.flatten(),))

        column, later = every[:width], every[:longest]
        future = (column > column[:, None]).expand(rows, -1, -1)
        padded = (column >= batch.lengths[:, None])[:, None]
        unseen = torch.cat([padded.expand(-1, longest, -1), (later > later[:, None]).expand(rows, -1, -1)], 2)
        of_prompts, of_ends, of_segments = (
            self._per_head(attention_bias(hidden, dtype))
            for hidden in (future, padded[: len(ends)], unseen.repeat(count, 1, 1))
        )
        self.every = Queries(queries(batch.prompts, segments, in_prompts, padding), (of_prompts, of_segments))
        shift, final = first - len(ends), every[: len(ends), None]
        is_end = torch.ones_like(final, dtype=torch.bool)
        self.kept = Queries(queries(final, segments - shift, is_end, padding - shift), (of_ends, of_segments))

    def _per_head(self, bias: torch.Tensor) -> torch.Tensor:
        """A bias, [n, T, W], as the scores lie: [n, 1, T, W]; for products by hand, [n * G, H / G * T, W]."""
        if not self.matmul:
            return bias[:, None]
        heads, groups = self.heads
        rows, queries, keys = bias.shape
        return bias[:, None].expand(-1, heads, -1, -1).reshape(rows * groups, heads // groups * queries, keys)

    def attend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        q_rope: torch.Tensor,
        k_rope: torch.Tensor,
        queries: Queries,
    ) -> torch.Tensor:
        """What attention gives each token that asks, [M, H * D].

        q: projected, of the M tokens of `queries` (`every` or `kept`), [M, H * D]; k, v: of all, [N, G * D]. q_rope,
        k_rope: rotations, of queries with their scale, [M, 1, D / 2] and [N, 1, D / 2].
        """
        if self.matmul:
            out: torch.Tensor = _MatmulAttention.apply(q, k, v, q_rope, k_rope, queries, self)  # type: ignore[no-untyped-call]
            return out
        turned = rotated(q, q_rope)
        size = turned.shape[2]
        rows = [bias.shape[0] * bias.shape[2] for bias in queries.biases]
        q_parts = queries.rows.spread(turned.flatten(1)).split([*rows, 1])
        k_parts, v_parts = (self.keys.spread(x).split(self.key_rows) for x in (rotated(k, k_rope).flatten(1), v))

        def by_head(x: torch.Tensor, sequences: int) -> torch.Tensor:
            """[sequences * T, heads * D] -> [sequences, heads, T, D]"""
            return x.view(sequences, -1, x.shape[1] // size, size).transpose(1, 2)

        outputs = []
        for bias, q_part, k_part, v_part in zip(queries.biases, q_parts, k_parts, v_parts, strict=False):
            if not bias.numel():
                continue
            of_heads = functional.scaled_dot_product_attention(
                by_head(q_part, len(bias)),
                by_head(k_part, len(bias)),
                by_head(v_part, len(bias)),
                attn_mask=bias,
                scale=1.0,
                enable_gqa=self.heads[0] != self.heads[1],
            )
            outputs.append(of_heads.transpose(1, 2).reshape(-1, self.heads[0] * size))
        outputs.append(outputs[0].new_zeros(1, self.heads[0] * size))
        return RowMap(queries.rows.cells[0], (queries.rows.source,)).spread(torch.cat(outputs))


def _cells(grids: list[torch.Tensor], padding: int, heads: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Which row each cell holds, and the number of the cell of each of a token's heads, [n, width, heads] a grid and
    [1, heads] for the padding token. grids: of tokens, [n, width].
    """
    head = torch.arange(heads, device=grids[0].device)
    source = [(grid[:, None] * heads + head[:, None]).flatten() for grid in grids]
    number = torch.arange(sum(map(len, source)) + heads, device=head.device)
    parts = number.split([*map(len, source), heads])
    numbers = [
        part.view(len(grid), heads, grid.shape[1]).transpose(1, 2) for part, grid in zip(parts, grids, strict=False)
    ]
    return torch.cat([*source, padding * heads + head]), [*numbers, parts[-1][None]]


class _MatmulAttention(torch.autograd.Function):
    """Attention of many short sequences with small heads: two products and a softmax on rows sorted by head.

    With PyTorch's own kernel a training step takes a tenth longer there (docs/lab-log.md).
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        q_rope: torch.Tensor,
        k_rope: torch.Tensor,
        queries: Queries,
        plan: AttentionPlan,
    ) -> torch.Tensor:
        tokens, size = len(q), 2 * k_rope.shape[2]
        q = rotated(q, q_rope).view(-1, size).index_select(0, queries.rows.source)
        k = rotated(k, k_rope).view(-1, size).index_select(0, plan.keys.source)
        v = v.view(-1, size).index_select(0, plan.keys.source)
        out = torch.zeros_like(q)
        probabilities = []
        for bias, q_part, out_part, k_part, v_part in _groups(plan, queries, (q, out), (k, v)):
            chosen = q_part.bmm(k_part.transpose(1, 2)).add_(bias).softmax(-1)
            torch.bmm(chosen, v_part, out=out_part)
            probabilities.append(chosen)
        ctx.save_for_backward(q, k, v, q_rope, k_rope, *probabilities)
        ctx.queries, ctx.plan = queries, plan
        return out.index_select(0, queries.rows.cells[0]).view(tokens, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        q, k, v, q_rope, k_rope, *probabilities = ctx.saved_tensors
        queries, plan = ctx.queries, ctx.plan
        g = gradient.reshape(-1, q.shape[1]).index_select(0, queries.rows.source)
        # Products fill all of it but the padding token's rows, which are the last, and a group without keys.
        full = all(bias.numel() for bias in queries.biases)
        dq, dk, dv = (torch.empty_like(part) if full else torch.zeros_like(part) for part in (q, k, v))
        for part, heads in zip((dq, dk, dv), (plan.heads[0], *[plan.heads[1]] * 2), strict=True):
            part[-heads:].zero_()
        groups = _groups(plan, queries, (q, g, dq), (k, v, dk, dv))
        for chosen, (_, q_part, g_part, dq_part, k_part, v_part, dk_part, dv_part) in zip(
            probabilities, groups, strict=True
        ):
            torch.bmm(chosen.transpose(1, 2), g_part, out=dv_part)
            dp = g_part.bmm(v_part.transpose(1, 2))
            ds = torch.ops.aten._softmax_backward_data(dp, chosen, -1, chosen.dtype)
            torch.bmm(ds, k_part, out=dq_part)
            torch.bmm(ds.transpose(1, 2), q_part, out=dk_part)
        return (
            _rotated_back(queries.rows.summed(dq), q_rope),
            _rotated_back(plan.keys.summed(dk), k_rope),
            plan.keys.summed(dv).view(len(k_rope), -1),
            *[None] * 4,
        )


def _groups(
    plan: AttentionPlan, queries: Queries, of_queries: Sequence[torch.Tensor], of_keys: Sequence[torch.Tensor]
) -> Iterator[list[torch.Tensor]]:
    """Of each group that is not empty its bias, and the rows of queries and of keys (and of what else lies as they do),
    [sequences, length, D].
    """
    rows = [bias.shape[0] * bias.shape[1] for bias in queries.biases]
    q_parts = [part.split([*rows, plan.heads[0]]) for part in of_queries]
    k_parts = [part.split(plan.key_rows) for part in of_keys]
    size = of_queries[0].shape[1]
    for number, bias in enumerate(queries.biases):
        if bias.numel():
            yield [
                bias,
                *(part[number].view(*bias.shape[:2], size) for part in q_parts),
                *(part[number].view(len(bias), bias.shape[2], size) for part in k_parts),
            ]
