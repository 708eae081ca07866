"""Causal attention of a batch in one list: each prompt on itself, each segment on its prompt and itself."""

from __future__ import annotations

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
    turned = torch.complex(*halves.unbind(2)) * rope
    return torch.view_as_real(turned).flatten(2).to(projected.dtype)


class _Rotated(torch.autograd.Function):
    """`rotated` with gradients, in fewer steps than its own would take."""

    @staticmethod
    def forward(ctx: Any, projected: torch.Tensor, rope: torch.Tensor) -> torch.Tensor:
        ctx.rope = rope
        return rotated(projected, rope)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        pairs = gradient.float().view(len(ctx.rope), -1, ctx.rope.shape[-1], 2)
        back = torch.view_as_complex(pairs) * ctx.rope.conj()
        return torch.cat([back.real, back.imag], 2).flatten(1).to(gradient.dtype), None


def _rotate(projected: torch.Tensor, rope: torch.Tensor) -> torch.Tensor:
    out: torch.Tensor = _Rotated.apply(projected, rope)  # type: ignore[no-untyped-call]
    return out


def attention_bias(hidden: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What is added to scores, given what a query may not look at, of the same shape. Not infinite: a prompt without a
    token would have nothing to look at.
    """
    return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, torch.finfo(dtype).min / 2)


def cached_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Attention of queries that are scaled, [n, H, T, D], on all of a KV cache, [n, G, W, D]; [n, H, T, D]. bias: added
    to the scores, [n or 1, 1, T, W].
    """
    small = q.shape[2] <= SAMPLES_PER_ROW or q.shape[2] * k.shape[2] <= _MATMUL_SCORES
    if q.dtype != torch.float32 or not small:
        return _kernel(q, k, v, bias)
    by_group = q.reshape(len(q) * k.shape[1], -1, q.shape[3])
    return _matmul(by_group, k.flatten(0, 1), v.flatten(0, 1), bias)[0].view(q.shape)


def _kernel(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """PyTorch's own; shapes as above."""
    grouped = q.shape[1] != k.shape[1]
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0, enable_gqa=grouped)


def _matmul(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Two products and a softmax on rows sorted by head: q [n * G, H / G * T, D]; k, v [n * G, W, D]; bias as above.

    Returns what comes of it, shaped as q, and the probabilities, [n * G, H / G * T, W].
    """
    scores = q.bmm(k.transpose(1, 2))
    if bias is not None:
        scores.view(len(bias), -1, *bias.shape[2:]).add_(bias)
    probabilities = scores.softmax(-1)
    return probabilities.bmm(v), probabilities


class _Matmul(torch.autograd.Function):
    """`_matmul` with gradients: many short sequences with small heads.

    With PyTorch's own kernel a training step takes a tenth longer there (docs/lab-log.md).
    """

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        out, probabilities = _matmul(q, k, v, bias)
        ctx.save_for_backward(q, k, v, probabilities)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        q, k, v, probabilities = ctx.saved_tensors
        of_probabilities = gradient.bmm(v.transpose(1, 2))
        scores = torch.ops.aten._softmax_backward_data(of_probabilities, probabilities, -1, gradient.dtype)
        return scores.bmm(k), scores.transpose(1, 2).bmm(q), probabilities.transpose(1, 2).bmm(gradient), None


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
    each group, [n, 1, T, W].
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
    """Where each token's query, key and value go in two groups of grids, prompts and segments, with last cells for the
    padding token; and which keys a query sees.

    heads: H, G. keep: the tokens that the last layer computes, the prompts' ends and the segments. every, kept: queries
    of all tokens, and of those. Cells hold the heads of tokens, [n, heads, T], so that nothing is to transpose.
    """

    def __init__(self, batch: VarlenBatch, prompt_ends: bool, heads: tuple[int, int], dtype: torch.dtype) -> None:
        device, padding, first = batch.ids.device, len(batch.ids) - 1, batch.first
        (rows, width), (count, _, longest) = batch.prompts.shape, batch.segments.shape
        in_prompts, in_segments = batch.prompts < padding, batch.segments < padding
        self.heads = heads
        # Half precision needs the sums that PyTorch's own kernel keeps.
        small = max(width, longest) * (width + longest) <= _MATMUL_SCORES
        self.matmul = device.type == "cpu" and dtype == torch.float32 and small
        q_heads, k_heads = heads

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
            attention_bias(hidden, dtype)[:, None]
            for hidden in (future, padded[: len(ends)], unseen.repeat(count, 1, 1))
        )
        self.every = Queries(queries(batch.prompts, segments, in_prompts, padding), (of_prompts, of_segments))
        shift, final = first - len(ends), every[: len(ends), None]
        is_end = torch.ones_like(final, dtype=torch.bool)
        self.kept = Queries(queries(final, segments - shift, is_end, padding - shift), (of_ends, of_segments))

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
        (heads, groups), size = self.heads, 2 * k_rope.shape[2]
        q_rows = [bias.shape[0] * heads * bias.shape[2] for bias in queries.biases]
        q_parts = queries.rows.spread(_rotate(q, q_rope).view(-1, size)).split([*q_rows, heads])
        k_parts = self.keys.spread(_rotate(k, k_rope).view(-1, size)).split(self.key_rows)
        v_parts = self.keys.spread(v.view(-1, size)).split(self.key_rows)
        outputs = []
        for bias, q_part, k_part, v_part in zip(queries.biases, q_parts, k_parts, v_parts, strict=False):
            if not bias.numel():
                continue
            rows = len(bias)
            if self.matmul:
                by_group = (x.view(rows * groups, -1, size) for x in (q_part, k_part, v_part))
                out = _Matmul.apply(*by_group, bias)  # type: ignore[no-untyped-call]
            else:
                k_grid, v_grid = (x.view(rows, groups, -1, size) for x in (k_part, v_part))
                out = _kernel(q_part.view(rows, heads, -1, size), k_grid, v_grid, bias)
            outputs.append(out.reshape(-1, size))
        outputs.append(torch.zeros_like(q_parts[-1]))
        return RowMap(queries.rows.cells[0], (queries.rows.source,)).spread(torch.cat(outputs)).view(len(q), -1)


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
