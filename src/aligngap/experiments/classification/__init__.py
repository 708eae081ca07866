"""H3a, figure 6: who tells the better of two responses along the online stream: the proxy, or the policies?"""

from aligngap.experiments.base import Experiment
from aligngap.experiments.classification.analysis import RULE, analyse
from aligngap.experiments.classification.sweep import arms, measures

EXPERIMENT = Experiment(
    name="classification",
    title="H3a: the proxy as classifier",
    question="Along the online stream, does the proxy preference model tell the better response more often than the "
    "final online and the final offline policy do?",
    finding="The proxy is clearly the best classifier, and its accuracy decays as the stream drifts "
    "(Tang et al. 2024, figure 6).",
    rule=RULE,
    arms=arms,
    analyse=analyse,
    measures=measures,
)
