"""How a study names judges, and what becomes of their names."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from aligngap.errors import UserError
from aligngap.judges.base import Judge
from aligngap.judges.function import FunctionJudgeSpec
from aligngap.judges.model import ModelJudge
from aligngap.judges.registry import JUDGES, AnyJudge, GivenJudge
from aligngap.judges.spec import JudgeIngredients, JudgeSpec
from aligngap.judges.true_utility import TrueUtilityJudge, TrueUtilityJudgeSpec
from aligngap.models.build import Architecture, random_model
from aligngap.models.preference import PREFERENCE_MODELS
from aligngap.models.tokenizer import word_tokenizer
from aligngap.pipeline.graph import Context, Stage
from aligngap.tasks.worlds.arena import Arena
from fakes import ScriptedJudge, pairs_of
from unit.judges.texts import bpe

TOKENIZER = bpe(eos_token="</s>", bos_token="<s>", pad_token="<pad>")


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    judge: AnyJudge


def read(value: Any) -> JudgeSpec:
    return Section.model_validate({"judge": value}).judge


def test_the_kind_chooses_the_spec() -> None:
    found = read({"kind": "function", "function": "my_rules:prefer"})
    assert found == FunctionJudgeSpec(function="my_rules:prefer")
    assert Section(judge=found).judge is found


def test_every_kind_is_registered_by_its_own_name() -> None:
    for kind, spec in JUDGES.items():
        assert spec.model_fields["kind"].default == kind


def test_yaml_reads_the_word_true_as_a_truth_value() -> None:
    assert read({"kind": True}) == read({"kind": "true"}) == TrueUtilityJudgeSpec()


@pytest.mark.parametrize(
    ("value", "place", "says"),
    [
        ({"kind": "fuction"}, ("judge",), "Did you mean 'function'?"),
        ({"kind": "oracle"}, ("judge",), "Known: endpoint, function, preference, reward, true."),
        ({}, ("judge",), "a judge needs a kind"),
        ({"kind": ["function"]}, ("judge",), "there is no judge of kind"),
        ({"kind": "function", "functon": "a:b"}, ("judge",), "Did you mean 'function'?"),
        ({"kind": "function"}, ("judge", "function"), "Field required"),
        ({"kind": "function", "function": "a"}, ("judge", "function"), "module:function"),
        ({"kind": "reward", "model": "a/b", "batch": 0}, ("judge", "batch"), "greater than or equal to 1"),
        ({"kind": "preference", "folder": "f", "base": "small", "model": "paiwise"}, ("judge", "model"), "'pairwise'"),
        ("function", ("judge",), "a judge is a mapping"),
    ],
    ids=repr,
)
def test_a_wrong_name_is_an_error_in_its_place(value: Any, place: tuple[str, ...], says: str) -> None:
    with pytest.raises(ValidationError) as caught:
        read(value)
    (problem,) = caught.value.errors()
    assert problem["loc"] == place
    assert says in problem["msg"]


@pytest.mark.parametrize("kind", JUDGES)
def test_a_spec_survives_being_written_and_read(kind: str) -> None:
    given: dict[str, dict[str, Any]] = {
        "function": {"function": "my_rules:prefer"},
        "reward": {"model": "owner/model", "text": "pair"},
        "endpoint": {
            "url": "http://host/v1",
            "model": "m",
            "options": {"seed": 1},
            "prices": {"prompt": 1, "completion": 2},
        },
        "preference": {"folder": "f", "base": "small"},
        "true": {},
    }
    section = Section.model_validate({"judge": {"kind": kind, **given[kind]}})
    for mode in ("json", "python"):
        again = section.model_dump(mode=mode)
        assert again["judge"]["kind"] == kind
        assert Section.model_validate(again) == section
    assert pickle.loads(pickle.dumps(section)) == section


# A kind of one's own


class CoinSpec(JudgeSpec):
    """A user's judge."""

    kind: Literal["coin"] = "coin"
    side: int = 0

    def identity(self, search: Path | None = None) -> dict[str, object]:
        return self.model_dump()

    def build(self, given: JudgeIngredients) -> Judge:
        return ScriptedJudge(lambda prompt, response: self.side * len(response))


@pytest.fixture
def coin() -> Iterator[None]:
    JUDGES["coin"] = CoinSpec
    yield
    del JUDGES["coin"]


@pytest.mark.usefixtures("coin")
def test_one_line_registers_a_kind() -> None:
    section = Section.model_validate({"judge": {"kind": "coin", "side": 1}})
    assert section.judge == CoinSpec(side=1)
    assert section.model_dump() == {"judge": {"kind": "coin", "side": 1}}
    pairs = pairs_of([[1]], [[3, 2]], [[3, 3, 2]], [1.0])
    made = section.judge.build(JudgeIngredients(tokenizer=TOKENIZER))
    assert made.prefer(pairs.prompts, pairs.first, pairs.second).tolist() == [0.0]
    with pytest.raises(UserError, match="'coin' was registered outside a plugin"):
        GivenJudge.of(section.judge)  # in a study: its code would be part of no identity


# In a stage


class Judged(Stage):
    kind = "judged"

    judge: GivenJudge

    @property
    def label(self) -> str:
        return "judged"

    @property
    def work(self) -> float:
        return 1.0

    def run(self, context: Context) -> None: ...


RULES = "def prefer(prompts, pairs):\n    return [1.0 for _ in pairs]\n"


def stage(folder: Path, text: str = RULES) -> Judged:
    folder.mkdir(exist_ok=True)
    (folder / "my_rules.py").write_text(text)
    return Judged(judge=GivenJudge.of(FunctionJudgeSpec(function="my_rules:prefer"), folder))


def test_the_judge_is_part_of_the_stages_identity_and_its_path_is_not(tmp_path: Path) -> None:
    one, same, other = stage(tmp_path / "one"), stage(tmp_path / "two"), stage(tmp_path / "three", RULES + "# edited\n")
    assert one.identity == same.identity != other.identity
    assert set(one.specification) == {"judge"}
    assert set(one.specification["judge"]) == {"identity"}  # type: ignore[call-overload]
    assert str(tmp_path) not in str(one.specification)
    assert pickle.loads(pickle.dumps(one)).identity == one.identity


def test_a_judge_that_has_changed_is_not_built(tmp_path: Path) -> None:
    made = stage(tmp_path).judge
    given = JudgeIngredients(tokenizer=TOKENIZER, search=tmp_path)
    made.build(given)
    stage(tmp_path, RULES + "# edited\n")
    with pytest.raises(UserError, match="have changed since the run began"):
        made.build(given)


# The kinds that are no files of their own in this folder


def test_only_worlds_have_a_true_utility() -> None:
    spec = TrueUtilityJudgeSpec()
    tokenizer = word_tokenizer(["a"])
    assert isinstance(spec.build(JudgeIngredients(tokenizer=tokenizer, world=Arena())), TrueUtilityJudge)
    with pytest.raises(UserError, match="only built-in worlds"):
        spec.build(JudgeIngredients(tokenizer=tokenizer))


WORDS = "one two three four".split()


@pytest.fixture(scope="module")
def preference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store's folder of a preference model, and its base beside it."""
    root = tmp_path_factory.mktemp("preference")
    tokenizer = word_tokenizer(WORDS)
    base = random_model(Architecture(hidden=16, layers=1, heads=2, intermediate=16), len(tokenizer), 0)
    base.save_pretrained(root / "base")
    tokenizer.save_pretrained(root / "base")
    model = PREFERENCE_MODELS["pairwise"](base.model, tokenizer.sep_token_id)
    for weight in model.readout.parameters():
        weight.data.normal_(generator=torch.Generator().manual_seed(0))
    (root / "model").mkdir()
    model.save(root / "model")
    (root / "model" / "record.json").write_text('{"seconds": 1}')
    return root


def preference_spec(root: Path, **settings: Any) -> JudgeSpec:
    return read({"kind": "preference", "folder": str(root / "model"), "base": str(root / "base")} | settings)


def test_a_saved_preference_model_judges_as_it_did(preference: Path) -> None:
    tokenizer = word_tokenizer(WORDS)
    made = preference_spec(preference).build(JudgeIngredients(tokenizer=tokenizer))
    base = random_model(Architecture(hidden=16, layers=1, heads=2, intermediate=16), len(tokenizer), 0)
    model = PREFERENCE_MODELS["pairwise"](base.model, tokenizer.sep_token_id)
    model.load_readout(preference / "model")
    pairs = pairs_of([[1, 5], [1, 6]], [[6, 7, 2], [8, 2]], [[8, 8, 2], [5, 6, 7, 2]], [1.0, 0.0])
    sides = (pairs.prompts, pairs.first, pairs.second)
    margin = made.margin(*sides)
    assert margin.abs().min() > 1e-4
    torch.testing.assert_close(margin, ModelJudge(model.eval()).margin(*sides))
    torch.testing.assert_close(made.probability(*sides), (margin + 1) / 2)


def test_a_preference_models_identity_is_its_weights(preference: Path) -> None:
    plain = preference_spec(preference).identity()
    assert str(preference) not in str(plain)
    (preference / "model" / "record.json").write_text('{"seconds": 2}')
    assert preference_spec(preference).identity() == plain
    assert preference_spec(preference, model="pointwise").identity() != plain
    readout = preference / "model" / "readout.safetensors"
    before = readout.read_bytes()
    readout.write_bytes(before + b" ")
    assert preference_spec(preference).identity() != plain
    readout.write_bytes(before)


def test_models_beside_the_study_are_found(preference: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = read({"kind": "preference", "folder": "model", "base": "base"})
    assert spec.identity(preference) == preference_spec(preference).identity()
    spec.build(JudgeIngredients(tokenizer=word_tokenizer(WORDS), search=preference))
    with pytest.raises(UserError):
        spec.identity()
    monkeypatch.chdir(preference)
    assert spec.identity() == preference_spec(preference).identity()


def test_a_preference_model_of_other_tokens_is_refused(preference: Path) -> None:
    with pytest.raises(UserError, match="not the policy's"):
        preference_spec(preference).build(JudgeIngredients(tokenizer=word_tokenizer([*WORDS, "five"])))


def test_a_folder_without_a_preference_model_is_refused(preference: Path, tmp_path: Path) -> None:
    spec = preference_spec(preference, folder=str(tmp_path))
    for use in (spec.identity, lambda: spec.build(JudgeIngredients(tokenizer=word_tokenizer(WORDS)))):
        with pytest.raises(UserError, match=r"no backbone/config\.json"):
            use()
    broken = tmp_path / "model"
    (broken / "backbone").mkdir(parents=True)
    for name in ("backbone/config.json", "readout.safetensors"):
        (broken / name).write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        preference_spec(preference, folder=str(broken)).build(JudgeIngredients(tokenizer=word_tokenizer(WORDS)))
