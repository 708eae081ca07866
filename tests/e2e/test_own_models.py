"""A study with checkpoints of one's own: adapters, export, a base from scratch, and what cannot work."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from aligngap.cli import main
from aligngap.diagnosis.subject import sft_checkpoint
from aligngap.errors import UserError
from aligngap.experiments.bench import Bench
from aligngap.experiments.plan import Plan
from aligngap.experiments.spec import StudySpec
from aligngap.experiments.study import load_study
from aligngap.models.build import load_language_model
from aligngap.models.check import check_vocabulary
from aligngap.models.spec import Checkpoint
from aligngap.models.tokenizer import load_tokenizer
from aligngap.pipeline.graph import Stage
from aligngap.pipeline.rundir import RunDirectory
from aligngap.pipeline.stages import load_arm, load_policy
from aligngap.results import read
from aligngap.store.disk import read_json
from aligngap.store.identity import file_digest
from aligngap.store.store import Store
from checkpoints import qwen2, saved
from tiny import context_of, make, make_study

SETTINGS: dict[str, Any] = {
    "extends": "paper",
    "title": "Own models",
    "description": "a test",
    "datasets": {"walks": {"source": "walks.jsonl", "max_prompt_tokens": 24, "max_response_tokens": 8}},
    "models": {"policy": {"path": "base", "lora": {"r": 2}}, "golden": "base", "proxy": "base"},
    "experiments": ["goodhart", "classification", "discrimination", "theory", "staleness", "dataset"],
    "sft": {"lr": 1e-2, "steps": 3, "batch": 8},
    "golden": {"model": "pairwise", "optim": {"lr": 1e-3, "steps": 3, "batch": 8}},
    "proxy": {"model": "pairwise", "train_pairs": 32, "optim": {"lr": 1e-3, "steps": 3, "batch": 8}},
    "baseline": {"optim": {"lr": 2e-2, "steps": 6, "batch": 4, "warmup_steps": 1}},
    "sweep": {"lr_factors": [1.0], "betas": [0.1], "online": False},
    "evaluation": {"prompts": 10, "pairs": 10, "checkpoints": 2},
    "analysis": {"replicates": 100},
}


def rows() -> list[dict[str, str]]:
    draw = random.Random(0)
    walks = ["the dog ran home", "a cat sat there", "we went out", "rain fell all day", "she slept"]
    return [
        {"prompt": f"Tell me of walk {number}.", "chosen": f" {a}, and so did I.", "rejected": f" {b}"}
        for number, (a, b) in enumerate(draw.sample(walks, 2) for _ in range(90))
    ]


def written(place: Path, name: str = "study.yaml", **changes: Any) -> Path:
    """A study's file, with some of the settings changed."""
    (place / name).write_text(yaml.safe_dump(SETTINGS | changes), "utf-8")
    return place / name


CODE = """
from transformers import Qwen2Config, Qwen2ForCausalLM
class MyConfig(Qwen2Config):
    model_type = "mine"
class MyModel(Qwen2ForCausalLM):
    config_class = MyConfig
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("models")
    (place / "walks.jsonl").write_text("\n".join(json.dumps(row) for row in rows()), "utf-8")
    qwen2(place / "base", (text for row in rows() for text in row.values()))
    written(place)
    return place


@pytest.fixture(scope="module")
def study(folder: Path) -> StudySpec:
    return load_study(str(folder / "study.yaml"))


@pytest.fixture(scope="module")
def run(study: StudySpec, folder: Path) -> RunDirectory:
    """The study, run in this process."""
    with RunDirectory.use(folder / "run", study.model_dump(mode="json")) as directory:
        make_study(study, folder / "run")
    return directory


def resealed(home: Path) -> None:
    """Write an artefact's manifest anew, as who means harm would."""
    manifest = json.loads((home / "manifest.json").read_text())
    names = [path.relative_to(home).as_posix() for path in home.rglob("*") if path.is_file()]
    manifest["files"] = {
        name: {"sha256": file_digest(home / name), "size": (home / name).stat().st_size}
        for name in names
        if name != "manifest.json"
    }
    (home / "manifest.json").write_text(json.dumps(manifest))


def made(run: RunDirectory, stage: Stage) -> Path:
    return Store(run.folder / "store").get(stage.identity).path


def test_every_experiment_is_measured(run: RunDirectory) -> None:
    task = read_json(run.folder / "results.json")["tasks"]["walks"]
    assert {arm["status"] for arm in task["arms"]} == {"finished"}
    assert {measure["status"] for measure in task["measures"]} == {"finished"}
    online = read(run.folder).points.filter(family="online", split="held_out")
    start, last = (online.filter(step=step)["kl"].item() for step in (0, 6))
    assert start == 0  # fresh adapters change nothing
    assert last > 0


def test_the_sft_policy_is_an_ordinary_folder_and_arms_keep_adapters_only(run: RunDirectory, study: StudySpec) -> None:
    bench = Bench(study, "walks")
    sft = load_file(made(run, bench.sft) / "model/model.safetensors")
    base = load_file(Path(study.models.policy.path) / "model.safetensors")
    assert sft.keys() == base.keys()
    moved = {name for name in sft if not torch.equal(sft[name], base[name])}
    assert any("q_proj" in name for name in moved)
    assert "model.embed_tokens.weight" not in moved
    for entry in (bench.online(0), bench.offline(0)):
        for path in made(run, entry.stage).rglob("*.safetensors"):
            assert all(".lora_" in name for name in load_file(path))


def test_arms_of_a_seed_start_from_the_same_adapters(run: RunDirectory, study: StudySpec) -> None:
    bench = Bench(study, "walks")
    first, second = (
        load_file(made(run, entry.stage) / "steps/000000.safetensors") for entry in (bench.online(0), bench.offline(0))
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_policy_and_reference_are_one_model(run: RunDirectory, study: StudySpec, tmp_path: Path) -> None:
    arm = Bench(study, "walks").online(0).stage
    context = context_of(arm, Store(run.folder / "store"), tmp_path)
    policy, reference = load_arm(context, arm.sft, arm.task)
    assert policy.model is reference.model
    weights = made(run, arm) / "final.safetensors"
    policy.load_weights(weights)
    pairs = arm.task.read(context, "held_out")
    with torch.no_grad():
        for ours, alone in (
            (policy, load_policy(context, arm.sft, arm.task, weights)),
            (reference, load_policy(context, arm.sft, arm.task)),
        ):
            there, here = (p.log_probs(pairs.prompts, [pairs.first])[0] for p in (ours, alone))
            assert torch.equal(there, here)


def test_an_exported_arm_is_the_policy(
    run: RunDirectory, study: StudySpec, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "policy"
    assert main(["export", str(run.folder), "online", str(out)]) == 0
    arm = Bench(study, "walks").online(0).stage
    context = context_of(arm, Store(run.folder / "store"), tmp_path)
    policy = load_policy(context, arm.sft, arm.task, made(run, arm) / "final.safetensors")
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    ids = load_tokenizer(str(out))("Tell me of walk 7.", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        ours, theirs = (each(input_ids=ids).logits for each in (policy.model, model))
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert not any("lora" in name for name in load_file(out / "model.safetensors"))
    generation = GenerationConfig.from_pretrained(out)
    assert (generation.temperature, generation.top_k, generation.max_new_tokens) == (1.0, 0, 8)
    assert generation.eos_token_id == list(policy.ends)
    text = (out / "README.md").read_text("utf-8")
    assert all(part in text for part in ("Own models", "walks", "online, step 6, seed 0", arm.identity))
    capsys.readouterr()
    before = {path: path.read_bytes() for path in out.iterdir()}
    for arguments, words in (
        (["online", str(out)], "not empty"),
        (["onlin", str(tmp_path / "x")], "Did you mean 'online'?"),
        (["online", str(tmp_path / "x"), "--step", "5"], "the nearest is 6"),
        (["online", str(tmp_path / "x"), "--seed", "3"], "no seed 3"),
        (["online", str(tmp_path / "x"), "--task", "walk"], "Did you mean 'walks'?"),
    ):
        assert main(["export", str(run.folder), *arguments]) == 2
        assert words in capsys.readouterr().err
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["policy"]
    assert main(["export", str(run.folder), "sft", str(tmp_path / "sft")]) == 0
    exported, sft = (load_file(at / "model.safetensors") for at in (tmp_path / "sft", made(run, arm.sft) / "model"))
    assert exported.keys() == sft.keys()
    assert all(torch.equal(exported[name], value) for name, value in sft.items())


@pytest.mark.parametrize("arm", ["online", "sft"])
def test_a_flipped_byte_of_what_is_used_is_refused_by_name(
    run: RunDirectory, study: StudySpec, arm: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What `verify` would name, `export` and `diagnose` do not use; what they do not use, they do not look at."""
    copy = Path(shutil.copytree(run.folder, tmp_path / "run"))
    bench = Bench(study, "walks")
    stage, file = (
        (bench.sft, "model/model.safetensors") if arm == "sft" else (bench.online(0).stage, "steps/000006.safetensors")
    )
    damaged = made(RunDirectory.open(copy), stage) / file
    content = bytearray(damaged.read_bytes())
    content[-9] ^= 64
    damaged.write_bytes(bytes(content))
    assert main(["export", str(copy), arm, str(tmp_path / "out")]) == 2
    assert f"{stage.identity}/{file}: altered" in "".join(capsys.readouterr().err.split("\n"))
    assert not (tmp_path / "out").exists()
    if arm == "sft":
        with pytest.raises(UserError, match=f"{file}: altered"):
            sft_checkpoint(str(damaged.parent))  # as `diagnose` takes an artefact's model
        (tmp_path / "link").symlink_to(damaged.parent)
        for path in (damaged.parent, tmp_path / "link"):  # as a study takes one, by whatever way it is reached
            with pytest.raises(UserError, match=f"{file}: altered"):
                check_vocabulary(Checkpoint(path=str(path)))
    else:
        assert main(["export", str(copy), "sft", str(tmp_path / "out")]) == 0
        whole = made(RunDirectory.open(copy), bench.sft) / "model"
        assert sft_checkpoint(str(whole)).path == str(whole)


def test_the_data_say_which_tokens_end_a_response(run: RunDirectory, study: StudySpec) -> None:
    assert read_json(made(run, Bench(study, "walks").pairs) / "data.json")["end_tokens"] == ["<eos>"]


def test_lengths_are_checked_by_plan_for_each_model_as_it_reads(folder: Path) -> None:
    """Where the limits do not say already that all fit, the pairs do."""
    long = {"walks": {"source": "walks.jsonl", "max_prompt_tokens": 120, "max_response_tokens": 20}}
    fitting = load_study(str(written(folder, "fits.yaml", datasets=long)))
    Plan(fitting).check_models()  # no prompt is as long as it might be
    too_long = {"walks": {"source": "walks.jsonl", "max_prompt_tokens": 24, "max_response_tokens": 60}}
    with pytest.raises(UserError, match=r"both responses of up to 60 .* 'base' takes 128"):
        Plan(load_study(str(written(folder, "long.yaml", datasets=too_long)))).check_models()


def test_plan_says_which_models_are_slow_and_reckons_with_it(folder: Path) -> None:
    saved("mamba", folder / "states", (text for row in rows() for text in row.values()))
    models = {"policy": "states", "golden": "states", "proxy": "states"}
    slow = Plan(load_study(str(written(folder, "slow.yaml", models=models))))
    fast = Plan(load_study(str(written(folder, "fast.yaml", models=dict.fromkeys(models, "base")))))
    assert fast.slow_models == []
    (line,) = slow.slow_models
    assert "'states' is slow, about 20 times" in line
    assert slow.work() > 5 * fast.work()


def test_an_exported_full_arm_has_identical_logits(folder: Path, tmp_path: Path) -> None:
    models = {"policy": "base", "golden": "base", "proxy": "base"}
    study = load_study(str(written(folder, "full.yaml", models=models, experiments=["goodhart"])))
    with RunDirectory.use(tmp_path / "run", study.model_dump(mode="json")) as directory:
        make_study(study, tmp_path / "run")
    assert main(["export", str(directory.folder), "online", str(tmp_path / "out"), "--step", "1"]) == 0
    weights = load_file(made(directory, Bench(study, "walks").online(0).stage) / "steps/000001.safetensors")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert all(torch.equal(model.state_dict()[name], value) for name, value in weights.items())
    assert AutoTokenizer.from_pretrained(tmp_path / "out").eos_token == "<eos>"
    # Somebody else's run could say that its code is to be trusted. It is for who exports to say so.
    mark, home = tmp_path / "ran", made(directory, Bench(study, "walks").sft) / "model"
    (home / "mine.py").write_text(f"from pathlib import Path\nPath({str(mark)!r}).touch()\n{CODE}")
    config = json.loads((home / "config.json").read_text())
    auto = {"AutoConfig": "mine.MyConfig", "AutoModelForCausalLM": "mine.MyModel"}
    (home / "config.json").write_text(json.dumps(config | {"model_type": "mine", "auto_map": auto}))
    resealed(home.parent)
    said = json.loads((directory.folder / "study.json").read_text())
    said["models"]["policy"] = {"path": "base", "trust_remote_code": True}
    (directory.folder / "study.json").write_text(json.dumps(said))
    assert main(["export", str(directory.folder), "online", str(tmp_path / "other")]) == 2
    assert not mark.exists()
    assert not (tmp_path / "other").exists()
    assert main(["export", str(directory.folder), "online", str(tmp_path / "other"), "--trust-remote-code"]) == 0
    assert mark.exists()


def test_bfloat16_runs_through(folder: Path, tmp_path: Path) -> None:
    policy = {"path": "base", "dtype": "bfloat16", "gradient_checkpointing": True}
    judge = {"path": "base", "dtype": "bfloat16", "lora": {"r": 2}}
    models = {"policy": policy, "golden": judge, "proxy": "base"}
    study = load_study(str(written(folder, "half.yaml", models=models, experiments=["goodhart"])))
    bench, store = Bench(study, "walks"), Store(tmp_path / "store")
    evaluation = bench.evaluation(bench.online(0))
    table = pl.read_parquet(make(evaluation, store) / "per_prompt.parquet")
    assert table.filter(pl.col("step") == 0)["kl"].unique().to_list() == [0.0]
    assert table.filter(pl.col("step") == 6)["kl"].mean() > 0  # type: ignore[operator]
    for stage, part in ((bench.sft, "model"), (bench.golden, "backbone")):
        weights = load_file(store.get(stage.identity).path / part / "model.safetensors")
        assert {value.dtype for value in weights.values()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"models": {"policy": "base", "golden": "small", "proxy": "base"}}, ["'small' has another tokenizer"]),
        ({"models": {"policy": "wide", "golden": "wide", "proxy": "wide"}}, ["embedding has 200 rows"]),
        ({"models": {"policy": {"path": "base", "loar": {}}, "golden": "base", "proxy": "base"}}, ["no key 'loar'"]),
    ],
)
def test_what_cannot_work_is_one_error_before_anything_runs(
    folder: Path, changes: dict[str, Any], words: list[str]
) -> None:
    if not (folder / "wide").is_dir():
        qwen2(folder / "wide", (text for row in rows() for text in row.values()), rows=200)
    with pytest.raises(UserError) as caught:
        Plan(load_study(str(written(folder, "wrong.yaml", **changes)))).check_models()
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_too_long_for_the_context_is_found_before_training(folder: Path, tmp_path: Path) -> None:
    qwen2(tmp_path / "short", (text for row in rows() for text in row.values()), context=12)
    models = dict.fromkeys(("policy", "golden", "proxy"), str(tmp_path / "short"))
    bench = Bench(load_study(str(written(folder, "short.yaml", models=models))), "walks")
    store = Store(tmp_path / "store")
    for stage in (bench.sft, bench.golden):
        with pytest.raises(UserError, match=r"'short' takes 12") as caught:
            make(stage, store)
        assert "datasets.walks.max_prompt_tokens" in str(caught.value.hint)
        assert not store.has(stage.identity)


def test_a_base_from_scratch_learns_the_train_texts(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "base"
    shape = ["--hidden", "16", "--layers", "1", "--heads", "2", "--vocabulary", "320", "--context", "64"]
    given = ["scratch", str(folder / "walks.jsonl"), "--out", str(out), *shape]
    assert main([*given, "--steps", "100"]) == 0
    checkpoint = Checkpoint(path=str(out))
    tokenizer, model = load_tokenizer(checkpoint), load_language_model(checkpoint)
    text = "Tell me of walk 3. Ünïcode, too\n"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert ids[0] == tokenizer.bos_token_id
    assert main(["scratch", str(folder / "walks.jsonl"), "--out", str(tmp_path / "raw"), *shape]) == 0
    raw = load_language_model(str(tmp_path / "raw"))
    batch = torch.tensor([tokenizer("Tell me of walk 3. the dog ran home, and so did I.")["input_ids"]])
    with torch.no_grad():
        learned, random_loss = (float(each(input_ids=batch, labels=batch).loss) for each in (model, raw))
    assert learned < random_loss - 0.2
    capsys.readouterr()
    assert main(given) == 2
    assert "not empty" in capsys.readouterr().err
    odd = ["scratch", str(folder / "walks.jsonl"), "--out", str(tmp_path / "odd"), "--hidden", "30", "--heads", "4"]
    assert main(odd) == 2
    assert "--heads" in capsys.readouterr().err
    (folder / "cut.jsonl").write_text('{"prompt": "a", ')
    (tmp_path / "file").touch()
    for data, place, words in (("cut", "new/base", "line 1"), ("walks", "file/base", "cannot be written")):
        assert main(["scratch", str(folder / f"{data}.jsonl"), "--out", str(tmp_path / place), *shape]) == 2
        assert words in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "file", "raw"]  # what failed left nothing
