"""H4, figure 9: is the gap a matter of contrastive losses? Best-of-2 online, offline and on its shuffled stream."""

from aligngap.experiments.base import Experiment
from aligngap.experiments.loss.analysis import RULE, analyse
from aligngap.experiments.loss.sweep import arms

EXPERIMENT = Experiment(
    name="loss",
    title="H4: a non-contrastive loss",
    question="Does the gap remain when the loss does not contrast winner and loser, but imitates the winner?",
    finding="The gap persists under Best-of-2, except on Chat Arena; Best-of-2 on its own shuffled online stream "
    "matches Best-of-2 online (Tang et al. 2024, figure 9).",
    rule=RULE,
    arms=arms,
    analyse=analyse,
)
