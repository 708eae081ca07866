"""H1, figure 4: does the online data's coverage explain the gap? Offline on every pair the online run saw, shuffled."""

from aligngap.experiments.base import Experiment
from aligngap.experiments.coverage.analysis import RULE, analyse
from aligngap.experiments.coverage.sweep import arms

EXPERIMENT = Experiment(
    name="coverage",
    title="H1: data coverage",
    question="Is it what the online data covers that makes online better, rather than when each pair is seen?",
    finding="Offline training on all the online run's pairs, uniformly shuffled, is little better than offline "
    "training: coverage alone does not explain the gap, except on Chat Arena (Tang et al. 2024, figure 4).",
    rule=RULE,
    arms=arms,
    analyse=analyse,
)
