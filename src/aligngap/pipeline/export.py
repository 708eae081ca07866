"""A policy of a run as an ordinary Hugging Face folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from aligngap.errors import UserError, nearest
from aligngap.models.build import end_tokens, load_language_model, load_tokenizer
from aligngap.models.lora import add_adapters, merge_adapters, save_adapters
from aligngap.models.policy import Policy
from aligngap.models.spec import Checkpoint
from aligngap.pipeline.rundir import RunDirectory
from aligngap.results import FINISHED, ArmRecord, read
from aligngap.store.disk import new_folder, read_json
from aligngap.store.store import Store

SFT = "sft"
"""The name that stands for the policy which all arms start from."""

_README = """# {title}

A policy of an `aligngap` study, {what}.

- study: {study}
- task: {task}
- arm: {arm}, step {step}, seed {seed}
- artefact: `{identity}`

It samples at temperature 1 from the whole distribution, as `generation_config.json` says; responses end with the end
token, after at most {limit} tokens in the study. Prompts are written as the study wrote them: by the tokenizer's chat
template where it has one, else as plain text.
"""


def export(
    run: RunDirectory,
    arm: str,
    out: Path,
    *,
    task: str | None = None,
    seed: int | None = None,
    step: int | None = None,
    store: Path | None = None,
    trust_remote_code: bool = False,
    adapter: bool = False,
) -> str:
    """Write an arm's policy to `out`, whole or not at all. Returns what was written, in words.

    arm: its name in results.json, or `sft`. task, seed: by default the first that has the arm finished; step: one that
    the arm kept, by default the last. trust_remote_code: run Python code that came with the policy's checkpoint; what
    the run's folder says of that does not count, since it may be somebody else's. adapter: write the adapters alone, in
    `peft`'s format, instead of merging them.

    Raises UserError for what is not there, and for a folder that is not empty.
    """
    found, task = _chosen(run, arm, task, seed)
    kept = Store(run.store_path(store), reading=True)
    artefact = kept.get(found.identity)
    inputs: Any = artefact.record()["inputs"]
    sft = kept.get(inputs["sft"])
    specification: Any = sft.record()["specification"]
    options = {name: value for name, value in specification["base"].items() if name != "digest"}
    checkpoint = Checkpoint(path=str(sft.file("model")), trust_remote_code=trust_remote_code, **options)
    tokenizer, model = load_tokenizer(checkpoint), load_language_model(checkpoint)
    if adapter and (arm == SFT or checkpoint.lora is None):
        raise UserError(
            "the SFT policy is whole" if arm == SFT else "this arm trained all of its weights",
            where="--adapter",
            hint="Leave --adapter out.",
        )
    limit = int(read_json(kept.get(inputs["task"]).file("task.json"))["max_new_tokens"])
    if arm == SFT:
        step = 0
    else:
        steps = {int(path.stem): path for path in (artefact.path / "steps").glob("*.safetensors")}
        step = max(steps) if step is None else step
        if step not in steps:
            close = min(steps, key=lambda known: abs(known - step))
            raise UserError(
                f"the arm kept no step {step}; the nearest is {close}",
                where="--step",
                hint=f"Known: {', '.join(map(str, sorted(steps)))}.",
            )
        if checkpoint.lora:
            add_adapters(model, checkpoint.lora, 0)
        Policy(model, end_tokens(tokenizer), limit).load_weights(artefact.file(f"steps/{steps[step].name}"))
        if not adapter:
            merge_adapters(model)
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=limit,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=list(end_tokens(tokenizer)),
        pad_token_id=tokenizer.pad_token_id,
    )
    what = "fine-tuned on both responses of every pair" if arm == SFT else f"trained from {found.base}"
    if checkpoint.lora and arm != SFT:
        what += ": adapters of it, to be loaded onto the exported arm `sft`" if adapter else ", adapters merged"
    text = _README.format(
        title=f"{task}: {arm}, step {step}, seed {found.seed}",
        what=what,
        study=run.study["title"],
        task=task,
        arm=arm,
        step=step,
        seed=found.seed,
        identity=sft.identity if arm == SFT else artefact.identity,
        limit=limit,
    )
    with new_folder(out) as half:
        if adapter:
            save_adapters(model, half)
        else:
            model.save_pretrained(half)
        tokenizer.save_pretrained(half)
        (half / "README.md").write_text(text, "utf-8")
    return f"{task}: {arm}, step {step}, seed {found.seed}"


def _chosen(run: RunDirectory, arm: str, task: str | None, seed: int | None) -> tuple[ArmRecord, str]:
    """What the results say of the arm, and its task."""
    tasks = {found.name: found for found in read(run.folder).tasks}
    if task is not None and task not in tasks:
        raise UserError(f"there is no task '{task}'", where="--task", hint=nearest(task, tasks))
    listed = [(record, name) for name in ([task] if task else tasks) for record in tasks[name].arms]
    names = {record.name for record, _ in listed}
    if arm != SFT:
        listed = [(record, name) for record, name in listed if record.name == arm]
    if not listed:
        raise UserError(f"there is no arm '{arm}'", where="ARM", hint=nearest(arm, {*names, SFT}))
    seeds = sorted({record.seed for record, _ in listed if record.seed is not None})
    if seed is not None and seed not in seeds:
        known = ", ".join(map(str, seeds))
        raise UserError(f"the arm '{arm}' has no seed {seed}", where="--seed", hint=f"Known: {known}.")
    listed = [(record, name) for record, name in listed if seed in (None, record.seed)]
    finished = [(record, name) for record, name in listed if record.status == FINISHED]
    if not finished:
        raise UserError(
            f"the arm '{arm}' did not come to its end: {listed[0][0].reason}",
            where=str(run.folder),
            hint="Give the `aligngap run` command again.",
        )
    return finished[0]
