"""Beyond the paper: how stale may samples be? Online with growing sync periods, to sampling from SFT alone."""

from aligngap.experiments.base import Experiment
from aligngap.experiments.staleness.analysis import RULE, analyse
from aligngap.experiments.staleness.sweep import arms

EXPERIMENT = Experiment(
    name="staleness",
    title="Stale samples between online and offline",
    question="With the same prompts and the same judge, does training get worse the longer the policy that samples "
    "lags behind the policy in training?",
    finding="Hypothesis of ours; Tang et al. 2024 compare the two ends only, and the sync period is the dial of "
    "2506.21495: performance falls as sampling grows stale, and pairs sampled from the SFT policy alone are below "
    "online ones.",
    rule=RULE,
    arms=arms,
    analyse=analyse,
)
