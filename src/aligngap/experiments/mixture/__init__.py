"""Beyond the paper: how many on-policy pairs does offline training need?"""

from aligngap.experiments.base import Experiment
from aligngap.experiments.mixture.analysis import RULE, analyse
from aligngap.experiments.mixture.sweep import arms

EXPERIMENT = Experiment(
    name="mixture",
    title="A share of on-policy pairs",
    question="What share of the gap between online and offline does a share of on-policy pairs in offline training "
    "close?",
    finding="Hypothesis of ours, not tested by Tang et al. 2024: a little on-policy sampling goes a long way; a "
    "quarter of on-policy pairs closes at least half the gap.",
    rule=RULE,
    arms=arms,
    analyse=analyse,
)
