"""Beyond the paper: does online win by its samples or by its loss? Online RLOO with a KL penalty beside online IPO."""

from aligngap.experiments.base import Experiment
from aligngap.experiments.policy_gradient.analysis import RULE, analyse
from aligngap.experiments.policy_gradient.sweep import arms

EXPERIMENT = Experiment(
    name="policy_gradient",
    title="A policy gradient on the same online samples",
    question="Is it on-policy sampling that makes online better, whatever loss is trained on the samples?",
    finding="Hypothesis of ours, not tested by Tang et al. 2024: online policy gradient (RLOO: Ahmadian et al. 2024) "
    "is no worse than online IPO and above offline IPO, because on-policy sampling matters and not the loss.",
    rule=RULE,
    arms=arms,
    analyse=analyse,
)
