"""Contract tests for what users write themselves: the very checks that ours have to pass.

    from aligngap.testing import check_loss
    from my_losses import calibrated


    def test_my_loss() -> None:
        check_loss(calibrated)

Each `check_...` runs every check of its contract, and raises `Broken`, an AssertionError that says in a sentence what
is wrong. The checks themselves are in `LOSS_CHECKS`, `SOURCE_CHECKS` and so on, for those who want a test of each.
"""

from aligngap.testing.contract import Broken
from aligngap.testing.experiments import EXPERIMENT_CHECKS, analysed, check_experiment, entries, finished
from aligngap.testing.judges import JUDGE_CHECKS, Judged, check_judge
from aligngap.testing.losses import LOSS_CHECKS, check_loss
from aligngap.testing.measures import MEASURE_CHECKS, check_measure, some_answers
from aligngap.testing.sources import SOURCE_CHECKS, check_source, ingredients
from aligngap.testing.worlds import WORLD_CHECKS, check_world

__all__ = [
    "EXPERIMENT_CHECKS",
    "JUDGE_CHECKS",
    "LOSS_CHECKS",
    "MEASURE_CHECKS",
    "SOURCE_CHECKS",
    "WORLD_CHECKS",
    "Broken",
    "Judged",
    "analysed",
    "check_experiment",
    "check_judge",
    "check_loss",
    "check_measure",
    "check_source",
    "check_world",
    "entries",
    "finished",
    "ingredients",
    "some_answers",
]
