"""Appendix F: offline on the online run's pairs in their exact order is the online run, if their token ids match."""

from aligngap.experiments.base import Experiment
from aligngap.experiments.tandem.analysis import RULE, analyse
from aligngap.experiments.tandem.sweep import arms

EXPERIMENT = Experiment(
    name="tandem",
    title="Tandem replay",
    question="Does replaying the online run's pairs in their exact order give the online run, and does it still when "
    "every response has lost its end token, as on a trip through text?",
    finding="Equal up to numerical noise, if and only if the token ids match exactly; a slight mismatch diverges "
    "drastically (Tang et al. 2024, appendix F).",
    rule=RULE,
    arms=arms,
    analyse=analyse,
)
