"""H3b, figures 7 and 8: do policies that tell good from bad responses better also write better ones?"""

from aligngap.experiments.base import Experiment
from aligngap.experiments.discrimination.analysis import RULE, analyse
from aligngap.experiments.discrimination.sweep import arms, measures

EXPERIMENT = Experiment(
    name="discrimination",
    title="H3b: discrimination against generation",
    question="Is a policy that classifies preferences better also the one that generates better responses?",
    finding="Offline policies classify better (60-70%) than online ones (about 50%) yet generate worse; the winners' "
    "log-probability falls for all, most for offline; self-classification is near chance (Tang et al. 2024, figures 7 "
    "and 8).",
    rule=RULE,
    arms=arms,
    analyse=analyse,
    measures=measures,
)
