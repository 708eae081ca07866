"""Beyond the paper: does a better proxy make a better online run? Proxies of other forms and sizes."""

from aligngap.experiments.base import Experiment
from aligngap.experiments.proxy.analysis import RULE, analyse
from aligngap.experiments.proxy.sweep import arms, measures, obstacle

EXPERIMENT = Experiment(
    name="proxy",
    title="Proxies of other forms and sizes",
    question="Does online training against a proxy that agrees better with golden reach a higher win rate by golden, "
    "and over-optimise less?",
    finding="Hypothesis of ours; Tang et al. 2024 use one proxy, and name the point-wise one (appendix A) as the more "
    "controlled comparison: the better proxy's arm is ahead by golden at equal KL, with the higher peak.",
    rule=RULE,
    arms=arms,
    analyse=analyse,
    measures=measures,
    obstacle=obstacle,
)
