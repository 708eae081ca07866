"""The stages of the protocol (Tang et al. 2024, section 4, figure 2): each reads artefacts, does one thing, writes one
artefact.

Seconds of work are measured rates on one core of the reference machine (docs/benchmarks.md); they feed `aligngap plan`
and the executor's order, nothing else.
"""

from aligngap.pipeline.stages.base import SPLITS, Base, JudgeStage, PairsStage, load_judge, predictions
from aligngap.pipeline.stages.evaluation import Evaluate, Measured, Responses, Start, evaluation_prompts, utilities
from aligngap.pipeline.stages.generated import Generate
from aligngap.pipeline.stages.judging import Agreement, Given, Preference
from aligngap.pipeline.stages.pairs import Pairs, Relabel
from aligngap.pipeline.stages.policies import Arm, Reference, Sft, load_arm, load_policy, sample_in_chunks

__all__ = [
    "SPLITS",
    "Agreement",
    "Arm",
    "Base",
    "Evaluate",
    "Generate",
    "Given",
    "JudgeStage",
    "Measured",
    "Pairs",
    "PairsStage",
    "Preference",
    "Reference",
    "Relabel",
    "Responses",
    "Sft",
    "Start",
    "evaluation_prompts",
    "load_arm",
    "load_judge",
    "load_policy",
    "predictions",
    "sample_in_chunks",
    "utilities",
]
