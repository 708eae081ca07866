"""Peak memory of an arm, in a process of its own, beside the peer's.

    python -m benchmarks.memory ours|peer offline|online small|medium

Both train for the steps of a round on the setting's pairs: our loop, and trl's trainer as in `peer_trl`, whose process
imports nothing of aligngap. Printed, as JSON: the process's peak (its largest resident set), and what it held when all
was imported and nothing built. `python -m benchmarks` runs these processes and compares their peaks.
"""

from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.setting import Setting

ARMS = ("offline", "online")
ROOT = Path(__file__).parents[1]


def megabytes() -> float:
    """The largest resident set of this process so far."""
    status = Path("/proc/self/status")
    if status.is_file():  # `ru_maxrss` begins with what the parent held, whose image a child is before it becomes this
        return int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def ours(arm: str, shape: str) -> dict[str, float]:
    """Our peak and imports."""
    from benchmarks.ours import ARMS as LOOPS
    from benchmarks.setting import SHAPES

    imports = megabytes()
    LOOPS[arm](SHAPES[shape]())()
    return {"peak": megabytes(), "imports": imports}


def peer(arm: str, plan: Path) -> dict[str, float]:
    """The peer's peak and imports; plan: what `write_plan` wrote."""
    from transformers import AutoModelForSequenceClassification

    from benchmarks.peer_trl import Study

    imports = megabytes()
    study = Study(json.loads(plan.read_text("utf-8")))
    folder, optim, beta = study.plan["models"]["policy"], study.plan["arm"], study.plan["beta"]
    if arm == "offline":
        study.offline(folder, study.train, optim, beta, ())
    else:
        judge = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
        study.online(folder, judge.eval().requires_grad_(False), optim, beta, ())
    return {"peak": megabytes(), "imports": imports}


def write_plan(setting: Setting, folder: Path) -> Path:
    """The setting as files, for a process that knows nothing of it."""
    from aligngap.train.step import OptimSpec
    from benchmarks.entries import write_preferences
    from benchmarks.peers import BETA
    from benchmarks.setting import BATCH, LEARNING_RATE

    model = setting.make_model()
    model.config.pad_token_id = setting.tokenizer.pad_token_id
    for part in (model, setting.tokenizer):
        part.save_pretrained(folder / "model")
    file = str(write_preferences(setting, folder / "pairs.jsonl"))
    plan = {
        "out": str(folder),
        "data": {"train": file, "held_out": file},
        "models": {"policy": str(folder / "model")},
        "max_new_tokens": setting.limit,
        "arm": OptimSpec(lr=LEARNING_RATE, steps=setting.steps, batch=BATCH, warmup_steps=0).model_dump(),
        "beta": BETA,
    }
    path = folder / "plan.json"
    path.write_text(json.dumps(plan))
    return path


def compare(setting: Setting, arm: str, rounds: int) -> dict[str, Any]:
    """Rows as `python -m benchmarks` writes them; the ratio is the peer's peak over ours."""
    from benchmarks.markdown import quartiles

    with tempfile.TemporaryDirectory() as folder:
        plan = write_plan(setting, Path(folder))
        found = [(_measured("ours", arm, setting.name), _measured("peer", arm, str(plan))) for _ in range(rounds)]
    ratios = [theirs["peak"] / mine["peak"] for mine, theirs in found]
    spread = quartiles(ratios)
    sides = {
        f"{prefix}{name}_megabytes": quartiles([pair[side][name] for pair in found]).middle
        for side, prefix in enumerate(("", "peer_"))
        for name in ("peak", "imports")
    }
    return {
        "ratio": spread.middle,
        "low": spread.low,
        "high": spread.high,
        "peak_share": None,
        "peer": "trl DPOTrainer" if arm == "offline" else "trl OnlineDPOTrainer",
        **sides,
        "ratios": ratios,
    }


def _measured(*words: str) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"benchmarks.memory {' '.join(words)} failed:\n{done.stderr[-4000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    side, which, what = sys.argv[1:]
    print(json.dumps(ours(which, what) if side == "ours" else peer(which, Path(what))))
