"""What a world's data, its bases, its SFT policy and its judges must pass before a comparison rests on them.

A gate looks at the measuring instrument alone: none of it may know how online and offline training differ (an import
contract keeps all analysis out). A gate decides what is the default, never what is reported: what fails is run and
shown, too. Each is a stage, so a result is kept and found again by the identity of all that it rests on.
"""

from aligngap.gates.bases import BaseGate
from aligngap.gates.complexity import ComplexityGate
from aligngap.gates.data import DataGate
from aligngap.gates.golden import GoldenGate
from aligngap.gates.own import JudgeGate
from aligngap.gates.plan import gate_prompts, gates_of, own_gates
from aligngap.gates.record import Gate, GateResult, Record, Score
from aligngap.gates.sft import SftGate

__all__ = [
    "BaseGate",
    "ComplexityGate",
    "DataGate",
    "Gate",
    "GateResult",
    "GoldenGate",
    "JudgeGate",
    "Record",
    "Score",
    "SftGate",
    "gate_prompts",
    "gates_of",
    "own_gates",
]
