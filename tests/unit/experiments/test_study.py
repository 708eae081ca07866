"""Studies as users write them, and as runs record them."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from aligngap.errors import UserError
from aligngap.experiments.plan import Plan
from aligngap.experiments.registry import EXPERIMENTS
from aligngap.experiments.shipped import shipped_text
from aligngap.experiments.spec import fifth, log_steps
from aligngap.experiments.study import load_study, resolved_study
from aligngap.models.build import base_path
from aligngap.models.tokenizer import load_tokenizer
from aligngap.plugins import use_plugins
from aligngap.tasks.encode import sizes


@pytest.mark.parametrize("name", list(EXPERIMENTS))
def test_an_experiment_is_a_study_by_its_name_on_the_settings_of_paper(name: str) -> None:
    study, paper = load_study(name), load_study("paper")
    assert load_study(name.replace("_", "-")) == study
    own = {"name": name, "title": EXPERIMENTS[name].title, "description": EXPERIMENTS[name].question}
    assert study == paper.model_copy(update={**own, "experiments": (name,)})


def test_a_plugins_experiment_runs_by_its_name_where_the_plugin_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_question.py").write_text(
        "from dataclasses import replace\n"
        "from aligngap.experiments.registry import EXPERIMENTS\n"
        "EXPERIMENTS['own_question'] = replace(EXPERIMENTS['coverage'], name='own_question')\n"
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no study and no experiment"):
        load_study("own-question")
    study = load_study("own-question", ["plugins=[own_question]"])
    assert (study.name, study.experiments, study.folder) == ("own_question", ("own_question",), tmp_path)
    use_plugins([])


def test_overrides_reach_what_they_name() -> None:
    study = load_study("quick", ["baseline.optim.lr=1e-3", "sweep.betas=[0.2, 0.4]", "analysis.judge=true"], seeds=3)
    assert (study.baseline.optim.lr, study.sweep.betas, study.seeds) == (1e-3, (0.2, 0.4), (0, 1, 2))


def test_an_override_goes_below_a_model_that_is_a_path_alone(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("{extends: quick, models: {policy: medium, golden: medium, proxy: small}}")
    for name, path in (("quick", "small"), (str(file), "medium")):
        policy = load_study(name, ["models.policy.lora.r=4", "models.policy.dtype=bfloat16"]).models.policy
        assert policy.lora is not None
        assert (policy.path, policy.lora.r, policy.dtype) == (path, 4, "bfloat16")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("baseline.optim.lrr=1", ["no key 'lrr'", "Did you mean 'lr'"]),
        ("baseline.optim.lr=-1", ["greater than 0", "baseline.optim.lr"]),
        ("baseline.optim.lr=fast", ["baseline.optim.lr", "fast"]),
        ("baseline.loss.name=ipp", ["no loss 'ipp'", "Did you mean 'ipo'"]),
        ("tasks=[sumarisation]", ["no task", "summarisation"]),
        ("tasks=[]", ["at least one task"]),
        ("experiments=[tandemm]", ["no experiment", "tandem"]),
        ("golden.model=pairwize", ["no preference model", "pairwise"]),
        ("seeds=[1, 1]", ["different numbers"]),
        ("device=gpu", ["device"]),
        ("nonsense", ["key=value"]),
        ("name.deeper=1", ["no keys below"]),
        ("seeds=[1", ["not valid YAML"]),
        ("seeds=" + "[" * 2000, ["not valid YAML"]),
        ("title=2001-99-99", ["not valid YAML"]),
        ("models.sizes=&a [*a]", ["not valid YAML"]),
    ],
)
def test_a_mistake_is_named_with_its_place(override: str, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        load_study("quick", [override])
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_unreadable_files(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("title: [unclosed\nseeds: [0]\n")
    with pytest.raises(UserError, match=r"bad\.yaml, line"):
        load_study(str(bad))
    bad.write_text("- a list\n")
    with pytest.raises(UserError, match="mapping"):
        load_study(str(bad))
    bad.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read"):
        load_study(str(bad))
    with pytest.raises(UserError, match="Did you mean 'quick'"):
        load_study("quik")


def test_a_file_of_ones_own_is_named_after_itself(tmp_path: Path) -> None:
    own = tmp_path / "mine.yaml"
    own.write_text(yaml.safe_dump({**yaml.safe_load(shipped_text("quick")), "experiments": ["tandem"]}))
    study = load_study(str(own))
    assert study.name == "mine"
    assert {arm.entry.family for arm in Plan(study).tasks["summarisation"].arms} == {
        "golden_policy",
        "online",
        "replay",
        "replay_mismatched",
    }


def test_a_study_extends_a_shipped_one(tmp_path: Path) -> None:
    """Its keys stand in the place of the other's, mapping by mapping; lists are replaced whole."""
    own = tmp_path / "mine.yaml"
    own.write_text(
        "extends: full\ntitle: Mine\nexperiments: [tandem]\nbaseline: {optim: {lr: 0.25}}\nsweep: {betas: [0.7]}\n"
    )
    mine, parent = load_study(str(own)), load_study("full")
    assert (mine.name, mine.title, mine.experiments) == ("mine", "Mine", ("tandem",))
    assert (mine.tasks, mine.seeds, mine.golden) == (parent.tasks, parent.seeds, parent.golden)
    assert mine.baseline.optim == parent.baseline.optim.model_copy(update={"lr": 0.25})
    assert mine.baseline.loss == parent.baseline.loss
    assert mine.sweep == parent.sweep.model_copy(update={"betas": (0.7,)})
    # `full` extends `paper` in its turn.
    assert mine.sft == load_study("paper").sft


def test_an_unknown_parent_names_the_nearest(tmp_path: Path) -> None:
    own = tmp_path / "mine.yaml"
    for parent in ("papper", str(tmp_path / "paper.yaml"), 3, ["paper"], {"paper": 1}):
        own.write_text(yaml.safe_dump({"extends": parent}))
        with pytest.raises(UserError) as caught:
            load_study(str(own))
        assert f"no shipped study '{parent}'" in caught.value.what
        assert caught.value.where == f"{own}, extends"
        assert "paper" in str(caught.value.hint)
    own.write_text("extends: papper\n")
    with pytest.raises(UserError, match="Did you mean 'paper'"):
        load_study(str(own))


@pytest.mark.parametrize(("total", "count"), [(1000, 8), (24, 3), (1, 2), (5, 10)])
def test_checkpoints_are_log_spaced_from_the_start_to_the_end(total: int, count: int) -> None:
    steps = log_steps(total, count)
    assert steps[0] == 0
    assert steps[-1] == total
    assert list(steps) == sorted(set(steps))
    assert fifth(total) in steps  # where the quality and dataset experiments sample
    if total == 1000:
        ratios = [b / a for a, b in pairwise(step for step in steps[1:] if step != fifth(total))]
        assert len(ratios) == count - 1
        assert max(ratios) / min(ratios) < 1.2


def test_aliases_that_unfold_to_too_much_or_to_themselves_are_refused(tmp_path: Path) -> None:
    own = tmp_path / "mine.yaml"
    tens = [f"x{k}: &x{k} [{', '.join([f'*x{k - 1}'] * 10)}]" for k in range(1, 12)]
    for text, word in (
        ("x0: &x0 [a]\n" + "\n".join(tens), "unfold"),
        ("extends: quick\nmodels: {sizes: &a [small, *a]}", "within what it stands for"),
    ):
        own.write_text(text)
        with pytest.raises(UserError, match=word):
            load_study(str(own))
    own.write_text("extends: quick\nseeds: &s [0, 1]\ndescription: two\nsweep: {betas: &b [0.1], lr_factors: *b}\n")
    assert load_study(str(own)).sweep.lr_factors == (0.1,)


def test_adapters_are_not_divided() -> None:
    lora = ["models.policy={path: small, lora: {r: 2}}", "parallel.processes=2"]
    assert load_study("quick", lora).parallel.processes == 2
    with pytest.raises(UserError, match="adapters cannot be divided among processes"):
        load_study("quick", [*lora, "parallel.sharding=full"])
    with pytest.raises(UserError, match="give processes: 2 or more"):
        load_study("quick", ["parallel.sharding=full"])


@pytest.mark.parametrize(
    "setting",
    [
        "sweep.lr_factors=[.nan]",
        "sweep.lr_factors=[-1]",
        "sweep.betas=[0]",
        "sweep.step_factors=[.inf]",
        "baseline.optim.lr=.inf",
        "baseline.loss.sft=.nan",
        "golden_policy_step_factor=.inf",
    ],
)
def test_numbers_that_are_none_are_refused_where_they_stand(setting: str) -> None:
    key = setting.partition("=")[0]
    with pytest.raises(UserError) as caught:
        load_study("quick", [setting])
    assert key in str(caught.value.where)


def test_a_recorded_study_is_read_as_it_was(tmp_path: Path) -> None:
    study = load_study("full", ["analysis.judge=true"], seeds=2)
    recorded = study.model_dump(mode="json")
    assert resolved_study(recorded) == study
    assert resolved_study(recorded, tmp_path).folder == tmp_path
    with pytest.raises(UserError, match="Extra inputs are not permitted"):
        resolved_study(recorded | {"of_another_version": 1})
    with pytest.raises(UserError, match="no experiment 'of_a_plugin'"):
        resolved_study(recorded | {"experiments": ["of_a_plugin"]})


def study_file(tmp_path: Path, text: str) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return str(path)


def test_a_key_that_is_given_twice_names_both_lines(tmp_path: Path) -> None:
    text = "extends: paper\ntitle: mine\nsweep:\n  betas: [0.1]\n  lr_factors: [1.0]\n  betas: [0.5]\n"
    with pytest.raises(UserError, match=r"the key 'betas' is given twice, in lines 4 and 6") as caught:
        load_study(study_file(tmp_path, text))
    assert "line 6" in str(caught.value.where)


@pytest.mark.parametrize("text", ["".join(f"k{n}: 1\n" for n in range(200_000)), "a: [" + "1," * 1_200_000 + "]"])
def test_a_file_far_longer_than_a_study_is_refused_before_it_is_read(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match="far longer than any study"):
        load_study(study_file(tmp_path, text))


def test_pages_that_messages_point_to_exist() -> None:
    root = Path(__file__).resolve().parents[3]
    for source in (root / "src").rglob("*"):
        if source.suffix not in (".py", ".j2", ".js", ".html", ".template", ".yaml"):
            continue
        for page, anchor in re.findall(r"docs/([\w-]+\.md)(?:#([\w-]+))?", source.read_text("utf-8")):
            path = root / "docs" / page
            assert path.is_file(), f"{source.name} points to docs/{page}"
            titles = re.findall(r"^#+ (.*)$", path.read_text("utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
            assert not anchor or anchor in anchors, f"{source.name} points to docs/{page}#{anchor}"


@pytest.mark.parametrize(("pairs", "share"), [(40, 0.25), (2000, 0.1), (60, 0.5)])
def test_smoke_keeps_the_share_that_is_held_out(tmp_path: Path, pairs: int, share: float) -> None:
    rows = [{"prompt": f"question {n}", "chosen": " a", "rejected": " b"} for n in range(pairs)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = f"extends: paper\ndatasets: {{mine: {{source: pairs.jsonl, held_out_share: {share}}}}}\n"
    study = load_study(study_file(tmp_path, text), smoke=True)
    found = sizes(study.datasets["mine"])
    assert found.held_out == min(round(pairs * share), 128)
    assert found.train == min(pairs - round(pairs * share), 640)


def write_pairs(folder: Path, count: int, shared: int = 0) -> None:
    """Pairs in the shipped bases' words; shared: words with which both answers begin."""
    words = sorted(word for word in load_tokenizer(base_path("small")).get_vocab() if word.isalpha())
    rows = []
    for n in range(count):
        same = " ".join([words[0]] * shared)
        rows.append({"prompt": words[n], "chosen": f"{same} {words[1]}", "rejected": f"{same} {words[2]}"})
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_plan_tells_what_the_limits_cost(tmp_path: Path) -> None:
    """A rule (answers differ) that holds of the text is asked again of what the limits leave, before the run."""
    write_pairs(tmp_path, 60)
    longer = tmp_path / "longer"
    longer.mkdir()
    write_pairs(longer, 20, shared=9)
    rows = (longer / "pairs.jsonl").read_text().replace('"prompt": "', '"prompt": "the the ')
    with (tmp_path / "pairs.jsonl").open("a") as handle:
        handle.write(rows)
    text = (
        "extends: paper\ndatasets: {mine: {source: pairs.jsonl, held_out_pairs: 20, max_response_tokens: 8, "
        "max_prompt_tokens: 3}}\n"
    )
    lines = [line for line in Plan(load_study(study_file(tmp_path, text))).check_data() if line.startswith("mine: ")]
    same = "the two answers are the same once cut to 8 tokens: 20 (row 61,"
    assert any(same in line and line.startswith("mine: dropped:") for line in lines)
    wide = text.replace("max_response_tokens: 8", "max_response_tokens: 10")
    lines = [line for line in Plan(load_study(study_file(tmp_path, wide))).check_data() if line.startswith("mine: ")]
    assert "mine: 20 of the prompts of 80 pairs are longer than max_prompt_tokens (3) and lose their beginning" in lines
    assert (
        "mine: 40 of the 160 answers of 80 pairs are longer than max_response_tokens (10) and lose their end" in lines
    )


def test_a_plan_refuses_what_the_limits_leave_too_little_of(tmp_path: Path) -> None:
    write_pairs(tmp_path, 60, shared=9)
    text = "extends: paper\ndatasets: {mine: {source: pairs.jsonl, held_out_pairs: 10, max_response_tokens: 8}}\n"
    with pytest.raises(UserError, match="no pair is left") as caught:
        Plan(load_study(study_file(tmp_path, text))).check_data()
    assert "the same once cut to 8 tokens: 60 (row 1," in str(caught.value.hint)


@pytest.mark.parametrize(
    ("pairs", "settings", "problem"),
    [
        (60, "held_out_pairs: 60", "cannot be split"),
        (60, "held_out_pairs: 400", "cannot be split"),
        (40, "held_out_share: 0.5", "fewer than a batch"),
        (60, "held_out_pairs: 3", "held-out prompts are too few"),
        (60, "split: nosuch", "no row names 'nosuch' as its split"),
    ],
)
def test_a_plan_refuses_what_its_run_would(tmp_path: Path, pairs: int, settings: str, problem: str) -> None:
    write_pairs(tmp_path, pairs)
    text = f"extends: paper\ndatasets: {{mine: {{source: pairs.jsonl, {settings}}}}}\n"
    plan = Plan(load_study(study_file(tmp_path, text)))
    with pytest.raises(UserError, match=problem):
        plan.check_data()


def test_a_plan_says_how_often_few_pairs_are_gone_over(tmp_path: Path) -> None:
    write_pairs(tmp_path, 60)
    text = "extends: paper\ndatasets: {mine: {source: pairs.jsonl, held_out_pairs: 10}}\n"
    plan = Plan(load_study(study_file(tmp_path, text)))
    steps, batch = (plan.specification["baseline"]["optim"][name] for name in ("steps", "batch"))
    (line,) = [line for line in plan.check_data() if line.startswith("baseline on mine")]
    assert f"go over the 50 pairs {steps * batch / 50:,.0f} times" in line
    assert plan.check_data([plan.tasks["mine"].bench.pairs.identity]) == []  # made already: nothing is read again


@pytest.mark.parametrize("key", ["baseline.optim.steps", "data.train_pairs", "evaluation.seed", "seeds", "sft.batch"])
@pytest.mark.parametrize("digits", [17, 400])
def test_an_absurd_number_is_one_error_that_names_its_key(key: str, digits: int) -> None:
    number = "9" * digits
    with pytest.raises(UserError, match=f"a number of {digits} digits") as caught:
        load_study("quick", [f"{key}=[{number}]" if key == "seeds" else f"{key}={number}"])
    assert key.rpartition(".")[2] in str(caught.value.where)


@pytest.mark.parametrize("seeds", [0, 10**10, 10**400])
def test_an_absurd_number_of_seeds_is_one_error(seeds: int) -> None:
    with pytest.raises(UserError, match="seeds are") as caught:
        load_study("quick", seeds=seeds)
    assert caught.value.where == "--seeds"


LONG = "9" * 400


@pytest.mark.parametrize(
    "override",
    [
        f"device={LONG}",
        f"device='{LONG}'",
        f"tasks=[w{LONG}]",
        f"seeds=['{LONG}']",
        f"baseline.optim.lr='x{LONG}'",
        f"baseline.optim.k{LONG}=1",
        f"datasets={{d: {{source: a, split: [{'1, ' * 3000}]}}}}",
        f"datasets={{'{LONG}!': {{source: a}}}}",
        f"worlds={{w{LONG}: {{}}}}",
        f"evaluation.measures=[m{LONG}]",
        f"baseline.loss.name=l{LONG}",
        f"golden.judge={{kind: k{LONG}}}",
        f"x{LONG}",
        f"device='{LONG}",
    ],
)
def test_what_was_given_is_cut_in_the_message(override: str) -> None:
    """A message that holds what was given holds its beginning: hundreds of digits hide what is wrong with them."""
    with pytest.raises(UserError) as caught:
        load_study("quick", [override])
    for part in (caught.value.what, caught.value.where or ""):
        assert not re.search(r"\S{300}", part), part
        assert len(part) < 1200
