"""Section 6, figure 12: which property of a data set makes offline training work: proximity, contrast or quality?"""

from aligngap.experiments.base import Experiment
from aligngap.experiments.dataset.analysis import RULE, analyse
from aligngap.experiments.dataset.sweep import arms, measures

EXPERIMENT = Experiment(
    name="dataset",
    title="What a good offline data set is",
    question="Of four sets of pairs on the same prompts with the same judge's labels, which does offline training "
    "gain from: those near the SFT policy, those of high contrast, or those of high quality?",
    finding="A side near the SFT policy is what helps; contrast alone and quality alone do not "
    "(Tang et al. 2024, section 6, figure 12).",
    rule=RULE,
    arms=arms,
    analyse=analyse,
    measures=measures,
)
