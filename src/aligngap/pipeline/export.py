"""A policy of a run as an ordinary Hugging Face folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PreTrainedTokenizerBase

from aligngap.errors import UserError, nearest
from aligngap.models.build import check_read_back, load_language_model
from aligngap.models.lora import add_adapters, merge_adapters, save_adapters
from aligngap.models.policy import Policy
from aligngap.models.spec import Checkpoint
from aligngap.models.tokenizer import end_tokens, load_tokenizer
from aligngap.pipeline.rundir import RunDirectory
from aligngap.results import FINISHED, ArmRecord, read
from aligngap.store.artefact import Artefact
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

    Raises UserError for what is not there or is damaged, and for a folder that is not empty.
    """
    entry, task = _chosen(run, arm, task, seed)
    trained, sft, limit = _artefacts(Store(run.store_path(store), reading=True), entry.identity)
    specification: Any = sft.record()["specification"]
    options = {name: value for name, value in specification["base"].items() if name != "digest"}
    checkpoint = Checkpoint(path=str(sft.file("model")), trust_remote_code=trust_remote_code, **options)
    if adapter and (arm == SFT or checkpoint.lora is None):
        raise UserError(
            "the SFT policy is whole" if arm == SFT else "this arm trained all of its weights",
            where="--adapter",
            hint="Leave --adapter out.",
        )
    tokenizer = load_tokenizer(checkpoint)
    step, weights = (0, None) if arm == SFT else _kept_step(trained, step)
    model = _exported(checkpoint, tokenizer, weights, limit, merged=not adapter)
    what = "fine-tuned on both responses of every pair" if arm == SFT else f"trained from {entry.base}"
    if checkpoint.lora and arm != SFT:
        what += ": adapters of it, to be loaded onto the exported arm `sft`" if adapter else ", adapters merged"
    name = f"{task}: {arm}, step {step}, seed {entry.seed}"
    with new_folder(out) as half:
        if adapter:
            save_adapters(model, half)
        else:
            model.save_pretrained(half)
            check_read_back(model, checkpoint.at(half))
        tokenizer.save_pretrained(half)
        text = _README.format(
            title=name,
            what=what,
            study=run.study["title"],
            task=task,
            arm=arm,
            step=step,
            seed=entry.seed,
            identity=(sft if arm == SFT else trained).identity,
            limit=limit,
        )
        (half / "README.md").write_text(text, "utf-8")
    return name


def _artefacts(store: Store, identity: str) -> tuple[Artefact, Artefact, int]:
    """An arm and the SFT policy that it started from, and the limit of its responses. Raises UserError for what is
    damaged or not there.
    """
    home = Artefact(identity, store.root / identity)
    inputs: Any = home.record()["inputs"]
    sft, pairs = (Artefact(inputs[name], store.root / inputs[name]) for name in ("sft", "task"))
    return home, sft, int(read_json(pairs.file("task.json"))["max_new_tokens"])


def _exported(
    checkpoint: Checkpoint, tokenizer: PreTrainedTokenizerBase, weights: Path | None, limit: int, *, merged: bool
) -> Any:
    """The SFT policy's model, or that of an arm whose file of weights is given."""
    model: Any = load_language_model(checkpoint, tokenizer=tokenizer)
    if weights is not None:
        if checkpoint.lora:
            add_adapters(model, checkpoint.lora, 0)
        Policy(model, end_tokens(tokenizer), limit).load_weights(weights)
        if merged:
            merge_adapters(model)
    model.generation_config = _as_the_study_samples(tokenizer, limit)
    return model


def _kept_step(arm: Artefact, step: int | None) -> tuple[int, Path]:
    """A step whose weights an arm has kept, the last if none is named, and their file. Raises UserError."""
    steps = {int(path.stem): path.name for path in (arm.path / "steps").glob("*.safetensors")}
    step = max(steps) if step is None else step
    if step not in steps:
        close = min(steps, key=lambda known: abs(known - step))
        raise UserError(
            f"the arm kept no step {step}; the nearest is {close}",
            where="--step",
            hint=f"Known: {', '.join(map(str, sorted(steps)))}.",
        )
    return step, arm.file(f"steps/{steps[step]}")


def _as_the_study_samples(tokenizer: PreTrainedTokenizerBase, limit: int) -> GenerationConfig:
    return GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=limit,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=list(end_tokens(tokenizer)),
        pad_token_id=tokenizer.pad_token_id,
    )


def _chosen(run: RunDirectory, arm: str, task: str | None, seed: int | None) -> tuple[ArmRecord, str]:
    """What the results say of the arm, and its task."""
    tasks = {entry.name: entry for entry in read(run.folder).tasks}
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
