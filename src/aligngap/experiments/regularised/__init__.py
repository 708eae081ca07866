"""Beyond the paper: does it help offline training to keep the winners' log-probability up?"""

from aligngap.experiments.base import Experiment
from aligngap.experiments.regularised.analysis import RULE, analyse
from aligngap.experiments.regularised.sweep import arms

EXPERIMENT = Experiment(
    name="regularised",
    title="Offline with the winners' log-probability kept up",
    question="Offline training lowers even the winners' log-probability. Does keeping it up close the gap to online?",
    finding="Hypothesis of ours; Tang et al. 2024 (section 5.3, figure 7) see the winners' log-probability fall, most "
    "for offline, and do not test a remedy: an SFT term (Liu et al. 2024) or DPO-positive (Pal et al. 2024) alone does "
    "not close half the gap.",
    rule=RULE,
    arms=arms,
    analyse=analyse,
)
