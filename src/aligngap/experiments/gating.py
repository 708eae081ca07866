"""Gates from a study: which it rests on, what the record says of them, and running those that it does not know."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from aligngap.errors import UserError, nearest
from aligngap.experiments.bench import SHARED_SEED, Bench
from aligngap.experiments.plan import Plan
from aligngap.experiments.spec import StudySpec, WorldSpec
from aligngap.gates import ComplexityGate, Gate, Record, gate_prompts
from aligngap.gates.plan import PROBE_BETAS
from aligngap.pipeline.executors.local import LocalExecutor
from aligngap.pipeline.executors.progress import Ledger, display
from aligngap.pipeline.executors.run import run_stages
from aligngap.pipeline.graph import Event, all_stages
from aligngap.pipeline.rundir import chosen_store
from aligngap.pipeline.stages import Base, Preference
from aligngap.results import GateResult
from aligngap.store import Store
from aligngap.tasks.worlds import WORLDS

Say = Callable[[str], None]


def gates_in(study: StudySpec, task: str, beta: float = PROBE_BETAS[0]) -> list[Gate]:
    """The gates that a study rests on in a task. Raises UserError for a task that is none of the study's."""
    if task not in study.tasks:
        raise UserError(f"the study has no task '{task}'", where="TASK", hint=nearest(task, study.tasks))
    return Plan(study).tasks[task].gates(beta)


def dial_gates(study: StudySpec, task: str) -> list[Gate]:
    """The gate of a world's complexity, for which golden is made at each; none for a world without that dial."""
    if task in study.datasets or not (most := WORLDS[task]().most_complex):
        return []
    optim = study.proxy.optim
    if optim is None:
        raise UserError("a proxy that is given has no N", where="proxy", hint="Give `proxy.optim`, to train one.")
    prompts, small, large = [], [], []
    for level in range(most + 1):
        dials = study.worlds.get(task, WorldSpec()).model_copy(update={"complexity": level})
        bench = Bench(study.model_copy(update={"worlds": {**study.worlds, task: dials}}), task, seed=SHARED_SEED)
        prompts.append(gate_prompts(bench.pairs))
        small.append(
            Preference(
                pairs=bench.pairs,
                base=Base.of(study.models.proxy),
                role="explicit",
                model=study.proxy.model,
                train_pairs=None,
                optim=optim,
                seed=0,
            )
        )
        large.append(bench.golden)
    return [ComplexityGate(prompts=tuple(prompts), small=tuple(small), large=tuple(large))]


def run_gates(
    study: StudySpec,
    tasks: Sequence[str],
    out: Path,
    *,
    known: Record,
    console: Console,
    say: Say,
    jobs: int | None = None,
    store: Path | None = None,
    dials: bool = False,
) -> list[GateResult]:
    """The gates' results, task after task: those that the record knows under these very settings, and the others run
    from nothing, or from what the store has. out: folder of logs, and of the store unless one is given. dials: whether
    to examine the worlds' dials as well, which takes far longer.

    Golden's probes have the first of `PROBE_BETAS` at which both pass KL 2. Raises UserError where a gate cannot be
    run, with the stage that failed.
    """

    def results_of(gates: Sequence[Gate]) -> list[GateResult]:
        new = [gate for gate in gates if known.of(gate) is None]
        made = _made(new, study, out, console, jobs, store) if new else []
        return [known.of(gate) or made.pop(0) for gate in gates]

    results: list[GateResult] = []
    for task in tasks:
        for beta in PROBE_BETAS:
            found = results_of(gates_in(study, task, beta))
            if all(score.passed for score in found[-1].scores if score.name.startswith("levels")):
                break
            say(f"{task}: at beta {beta:g} a probe does not pass KL 2.")
        results += [*found, *(results_of(dial_gates(study, task)) if dials else ())]
    return results


def _made(
    gates: Sequence[Gate], study: StudySpec, out: Path, console: Console, jobs: int | None, store: Path | None
) -> list[GateResult]:
    place = Store(chosen_store(out, store))
    ledger = Ledger(all_stages(gates), jobs or 1)
    logs = out / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    with (
        LocalExecutor(place, jobs=jobs, device=study.device, log_folder=logs) as executor,
        display(console, ledger) as show,
    ):

        def on_event(event: Event) -> None:
            ledger.update(event)
            show(event)

        outcome = run_stages(gates, executor, on_event)
    for gate in gates:
        if outcome.status[gate.identity] not in ("finished", "cached"):
            reason = outcome.reasons.get(gate.identity) or next(iter(outcome.reasons.values()), "")
            raise UserError(f"a gate could not be run: {reason}", where=gate.label, hint=f"Look into {logs}.")
    return [Gate.result(place.get(gate.identity).path) for gate in gates]
