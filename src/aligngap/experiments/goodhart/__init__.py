"""Figure 1: win rate against KL, online and offline, from the same preference data under one loss."""

from aligngap.experiments.base import Experiment
from aligngap.experiments.goodhart.analysis import RULE, analyse
from aligngap.experiments.goodhart.sweep import arms

EXPERIMENT = Experiment(
    name="goodhart",
    title="Online against offline at equal KL",
    question="From the same preference data and under the same loss, does online training reach a higher win rate "
    "than offline training at the same KL from the SFT policy?",
    finding="Online is better at every KL and has the higher peak; both rise, then fall (Tang et al. 2024, figure 1).",
    rule=RULE,
    arms=arms,
    analyse=analyse,
)
