"""The samples that a page holds: as many prompts as fit, in their order, with the responses to them."""

from __future__ import annotations

from typing import Any

import polars as pl

from aligngap.report.packing import packed
from aligngap.results import StudyResults, shortened

#: Checkpoints and seeds of which samples are shown, the fullest choice first, and what the page says of each.
_CHOICES = (
    (False, False, ""),
    (True, False, "first, peak and last checkpoint of each run"),
    (True, True, "first, peak and last checkpoint of each arm’s first seed"),
)
_FEW_PROMPTS = 12


def samples(data: StudyResults, task: str, budget: int) -> dict[str, Any] | None:
    """Prompts of a task in their order, as many as fit `budget` bytes of the page, with the responses to them.

    Prompts are never chosen by what was answered: a choice by the outcome would mislead. Where only a few would fit,
    fewer checkpoints and then fewer seeds are shown of each arm.
    """
    frame = data.samples.filter(pl.col("task") == task)
    # Seeds have prompts and opponents of their own, where they are recorded with them.
    seeds = frame.filter(pl.col("who") != "policy")["seed"].drop_nulls().unique().sort().to_list()
    if len(seeds) > 1:
        frame = frame.filter(pl.col("seed").is_null() | (pl.col("seed") == seeds[0]))
    policy = frame.filter(pl.col("who") == "policy")
    if policy.is_empty():
        return None
    runs = data.runs.filter(pl.col("task") == task)
    keys = policy.select("split", "prompt_number").unique().sort("split", "prompt_number").rows()
    # Both splits come to the reader, however few fit.
    by_split = [[key for key in keys if key[0] == split] for split in dict.fromkeys(key[0] for key in keys)]
    keys = [group[i] for i in range(max(map(len, by_split))) for group in by_split if i < len(group)]
    for few_steps, first_seed, words in _CHOICES:
        chosen = _thinned(frame, runs, few_steps=few_steps, first_seed=first_seed)
        kept = _that_fit(chosen, keys, budget)
        left_out = [f"samples of seed {seeds[0]}"] * (len(seeds) > 1)
        left_out += [f"first {len(kept)} of {len(keys)} prompts"] * (len(kept) < len(keys)) + [words] * bool(words)
        if len(kept) >= min(_FEW_PROMPTS, len(keys)):
            break
    note = f"To keep this page small: the {'; the '.join(left_out)}. All are in samples.parquet." if left_out else ""
    return {**_arranged(chosen, runs, kept), "note": note}


def _thinned(frame: pl.DataFrame, runs: pl.DataFrame, *, few_steps: bool, first_seed: bool) -> pl.DataFrame:
    policy = frame.filter(pl.col("who") == "policy")
    if first_seed:
        policy = policy.filter(pl.col("seed").is_null() | (pl.col("seed") == pl.col("seed").min().over("arm")))
    if few_steps:
        marks = runs.select("arm", "seed", "peak_step").unique(["arm", "seed"])
        steps = pl.col("step")
        ends = [steps.min().over("arm", "seed"), steps.max().over("arm", "seed"), pl.col("peak_step")]
        policy = policy.join(marks, on=["arm", "seed"], how="left", nulls_equal=True)
        policy = policy.filter(pl.any_horizontal(steps.eq_missing(end) for end in ends)).drop("peak_step")
    return pl.concat([frame.filter(pl.col("who") != "policy"), policy])


def _that_fit(frame: pl.DataFrame, keys: list[tuple[Any, Any]], budget: int) -> list[tuple[Any, Any]]:
    """The first prompts that fit, by the packed size of a few of them."""
    tried = keys[: 2 * _FEW_PROMPTS]
    size = len(packed(_arranged(frame, pl.DataFrame(schema=_MARKS), tried)))
    # A twentieth is kept back, because other prompts may be longer.
    return keys[: max(0, int(0.95 * budget * len(tried) / size))]


def _sample_text(text: str | None) -> str | None:
    return None if text is None else shortened(text, 8000)


_MARKS = {"arm": pl.String, "seed": pl.Int64, "peak_step": pl.Int64, "end_step": pl.Int64}


def _arranged(frame: pl.DataFrame, runs: pl.DataFrame, keys: list[tuple[Any, Any]]) -> dict[str, Any]:
    """Prompts with the fixed policies' answers, and for each run and checkpoint its answers by the prompt's place."""
    position = {key: index for index, key in enumerate(keys)}
    order = pl.DataFrame(
        {"split": [key[0] for key in keys], "prompt_number": [key[1] for key in keys]},
        schema={"split": pl.String, "prompt_number": pl.Int64},
    )
    prompts: list[dict[str, Any]] = [
        {"split": split, "number": n, "text": None, "sft": None, "golden_policy": None} for split, n in keys
    ]
    result: dict[tuple[Any, Any, Any], list[list[Any]]] = {}
    for row in frame.join(order, on=["split", "prompt_number"], how="semi").iter_rows(named=True):
        index = position[row["split"], row["prompt_number"]]
        scores = [row[name] for name in ("utility", "margin_golden", "margin_proxy", "win_golden_policy_golden")]
        cells = [
            _sample_text(row["response"]),
            row["ended"],
            *(None if s is None else float(f"{s:.4g}") for s in scores),
        ]
        prompts[index]["text"] = _sample_text(row["prompt"])
        if row["who"] == "policy":
            result.setdefault((row["arm"], row["seed"], row["step"]), []).append([index, *cells])
        elif row["who"] in prompts[index]:
            prompts[index][row["who"]] = cells
    marks = {(row["arm"], row["seed"]): row for row in runs.to_dicts()}
    place = {arm: index for index, arm in enumerate(dict.fromkeys(runs["arm"].to_list()))}
    entries = []
    for arm, seed, step in sorted(result, key=lambda key: (place.get(key[0], len(place)), key[1] or 0, key[2] or 0)):
        mark = marks.get((arm, seed), {})
        peak, end = (step is not None and step == mark.get(f"{what}_step") for what in ("peak", "end"))
        rows = sorted(result[arm, seed, step], key=lambda cells: int(cells[0]))
        entries.append({"arm": arm, "seed": seed, "step": step, "rows": rows, "peak": peak, "end": end})
    return {"prompts": prompts, "runs": entries}
