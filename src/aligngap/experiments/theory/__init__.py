"""Appendix H: the optimum that theory promises for full-support data, next to what training reaches."""

from aligngap.experiments.base import Experiment
from aligngap.experiments.theory.analysis import RULE, analyse
from aligngap.experiments.theory.sweep import arms, measures

EXPERIMENT = Experiment(
    name="theory",
    title="Theory's optimum against practice",
    question="Does offline training on narrow pairs reach the improvement over the policy behind the pairs that the "
    "closed-form optimum promises?",
    finding="With full support, theory predicts a policy better than the one behind the pairs; in practice narrow "
    "pairs do not show that improvement (Tang et al. 2024, appendix H).",
    rule=RULE,
    arms=arms,
    analyse=analyse,
    measures=measures,
)
