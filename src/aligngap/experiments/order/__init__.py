"""Figure 13: how much of its order may the online stream lose? Shuffled within windows of growing size."""

from aligngap.experiments.base import Experiment
from aligngap.experiments.order.analysis import RULE, analyse
from aligngap.experiments.order.sweep import arms

EXPERIMENT = Experiment(
    name="order",
    title="Order of the online stream",
    question="How far can the online run's pairs be moved from the step they were sampled at before offline training "
    "on them falls behind?",
    finding="Offline training on the online stream is robust to shuffling within small windows, then deteriorates as "
    "the windows grow (Tang et al. 2024, figure 13).",
    rule=RULE,
    arms=arms,
    analyse=analyse,
)
