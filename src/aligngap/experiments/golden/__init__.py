"""Beyond the paper: where golden itself departs from the true utility, and whether further raters' pairs repair it."""

from aligngap.experiments.base import Experiment
from aligngap.experiments.golden.analysis import RULE, analyse
from aligngap.experiments.golden.sweep import arms, measures, obstacle

EXPERIMENT = Experiment(
    name="golden",
    title="Golden against the true utility",
    question="Golden stands for the human. Does a policy far from SFT win by golden what it does not win by the "
    "utility that the raters feel; and do more raters' pairs, or as many on-policy ones, repair that?",
    finding="Not in the paper, whose true utility nobody knows. Hypothesis: at high KL golden overrates the policy.",
    rule=RULE,
    arms=arms,
    analyse=analyse,
    measures=measures,
    obstacle=obstacle,
)
