"""H5, figures 10, 11 and 14: does a larger policy close the gap between online and offline?"""

from aligngap.experiments.base import Experiment
from aligngap.experiments.scaling.analysis import RULE, analyse
from aligngap.experiments.scaling.sweep import arms, obstacle

EXPERIMENT = Experiment(
    name="scaling",
    title="H5: larger policies",
    question="With the same data and the same proxy, is a larger policy all that offline training needs to catch up "
    "with online training?",
    finding="Peaks rise with the policy's size at the same KL; the gap of the shuffled online stream shrinks, that of "
    "offline training only slowly: scaling the policy alone does not close it (Tang et al. 2024, figures 10, 11 and "
    "14).",
    rule=RULE,
    arms=arms,
    analyse=analyse,
    obstacle=obstacle,
)
