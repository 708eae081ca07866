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
from aligngap.store.contents import RECORD, all_but_weights, check_artefact, everything
from aligngap.store.store import Store, new_folder, read_json

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
    arm_folder, sft_folder, limit = _artefacts(Store(run.store_path(store), reading=True), entry["identity"], arm)
    specification: Any = read_json(sft_folder / RECORD)["specification"]
    options = {name: value for name, value in specification["base"].items() if name != "digest"}
    checkpoint = Checkpoint(path=str(sft_folder / "model"), trust_remote_code=trust_remote_code, **options)
    if adapter and (arm == SFT or checkpoint.lora is None):
        raise UserError(
            "the SFT policy is whole" if arm == SFT else "this arm trained all of its weights",
            where="--adapter",
            hint="Leave --adapter out.",
        )
    tokenizer = load_tokenizer(checkpoint)
    model: Any = load_language_model(checkpoint, tokenizer=tokenizer)
    what = "fine-tuned on both responses of every pair"
    if arm == SFT:
        step = 0
    else:
        step, weights = _kept_step(arm_folder, step)
        if checkpoint.lora:
            add_adapters(model, checkpoint.lora, 0)
        Policy(model, end_tokens(tokenizer), limit).load_weights(weights)
        what = f"trained from {entry['base']}"
        if checkpoint.lora:
            what += ": adapters of it, to be loaded onto the exported arm `sft`" if adapter else ", adapters merged"
        if not adapter:
            merge_adapters(model)
    model.generation_config = _as_the_study_samples(tokenizer, limit)
    name = f"{task}: {arm}, step {step}, seed {entry['seed']}"
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
            seed=entry["seed"],
            identity=(sft_folder if arm == SFT else arm_folder).name,
            limit=limit,
        )
        (half / "README.md").write_text(text, "utf-8")
    return name


def _artefacts(store: Store, identity: str, arm: str) -> tuple[Path, Path, int]:
    """Folders of an arm and of the SFT policy that it started from, and the limit of its responses. What is used of
    them is compared with its checksum, once. Raises UserError for what is damaged or not there.
    """
    home = store.root / identity
    check_artefact(home, all_but_weights if arm == SFT else everything)
    inputs: Any = read_json(home / RECORD)["inputs"]
    sft, pairs = store.root / inputs["sft"], store.root / inputs["task"]
    check_artefact(sft)
    check_artefact(pairs, all_but_weights)
    return home, sft, int(read_json(pairs / "task.json")["max_new_tokens"])


def _kept_step(folder: Path, step: int | None) -> tuple[int, Path]:
    """A step whose weights an arm has kept, the last if none is named, and their file. Raises UserError."""
    steps = {int(path.stem): path for path in (folder / "steps").glob("*.safetensors")}
    step = max(steps) if step is None else step
    if step not in steps:
        close = min(steps, key=lambda known: abs(known - step))
        raise UserError(
            f"the arm kept no step {step}; the nearest is {close}",
            where="--step",
            hint=f"Known: {', '.join(map(str, sorted(steps)))}.",
        )
    return step, steps[step]


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


def _chosen(run: RunDirectory, arm: str, task: str | None, seed: int | None) -> tuple[dict[str, Any], str]:
    """The arm's entry in results.json, and its task."""
    path = run.folder / "results.json"
    if not path.is_file():
        raise UserError("it has not been written yet", where=str(path), hint="Give the `aligngap run` command again.")
    tasks: dict[str, Any] = read_json(path)["tasks"]
    if task is not None and task not in tasks:
        raise UserError(f"there is no task '{task}'", where="--task", hint=nearest(task, tasks))
    listed = [(entry, name) for name in ([task] if task else tasks) for entry in tasks[name]["arms"]]
    names = {entry["name"] for entry, _ in listed}
    if arm != SFT:
        listed = [(entry, name) for entry, name in listed if entry["name"] == arm]
    if not listed:
        raise UserError(f"there is no arm '{arm}'", where="ARM", hint=nearest(arm, {*names, SFT}))
    seeds = sorted({entry["seed"] for entry, _ in listed})
    if seed is not None and seed not in seeds:
        known = ", ".join(map(str, seeds))
        raise UserError(f"the arm '{arm}' has no seed {seed}", where="--seed", hint=f"Known: {known}.")
    listed = [(entry, name) for entry, name in listed if seed in (None, entry["seed"])]
    finished = [(entry, name) for entry, name in listed if entry["status"] in ("finished", "cached")]
    if not finished:
        raise UserError(
            f"the arm '{arm}' did not come to its end: {listed[0][0]['reason']}",
            where=str(path),
            hint="Give the `aligngap run` command again.",
        )
    return finished[0]
