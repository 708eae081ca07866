"""H2, figure 5: is it the absolute quality of the online data that offline training lacks?"""

from aligngap.experiments.base import Experiment
from aligngap.experiments.quality.analysis import RULE, analyse
from aligngap.experiments.quality.sweep import arms, measures

EXPERIMENT = Experiment(
    name="quality",
    title="H2: data quality",
    question="Does offline training catch up when both responses of every pair come from the final online policy?",
    finding="Offline training on pairs of the final online policy is barely better than SFT: the data's absolute "
    "quality is not the cure (Tang et al. 2024, figure 5).",
    rule=RULE,
    arms=arms,
    analyse=analyse,
    measures=measures,
)
