"""The measures that a study can ask of every arm (`evaluation.measures`), beside those that it always has. A user's own
module adds its by one line: `MEASURES["mine"] = mine`.
"""

from __future__ import annotations

from aligngap.measure.base import ArmMeasure
from aligngap.measure.responses import repetition, sft_log_prob
from aligngap.plugins import Registry, function

TAKEN = frozenset(
    "task arm family name seed baseline identity run base step split prompt prompt_number response response_ids who "
    "ended loss lr beta kl kl_se tokens utility proxy accuracy drift pairs correct self_accuracy value".split()
)
"""Columns of the files of results (docs/results-format.md)."""
_TAKEN_STARTS = ("win_", "margin_", "rate_", "se_", "n_", "ties_")


def _fault(name: str, value: object) -> str | None:
    if name in TAKEN or name.startswith(_TAKEN_STARTS) or name.endswith("_se"):
        return "a column of the results has this name"
    return function(name, value)


MEASURES: Registry[ArmMeasure] = Registry("measure", {"sft_log_prob": sft_log_prob, "repetition": repetition}, _fault)
