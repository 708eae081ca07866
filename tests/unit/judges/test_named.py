"""Judges as the command line names them."""

from __future__ import annotations

from pathlib import Path

import pytest

from aligngap.errors import UserError
from aligngap.judges.endpoint import EndpointJudgeSpec
from aligngap.judges.function import FunctionJudgeSpec
from aligngap.judges.model import PreferenceJudgeSpec
from aligngap.judges.named import named_judge
from aligngap.judges.reward import RewardJudgeSpec
from aligngap.judges.spec import JudgeSpec
from aligngap.judges.true_utility import TrueUtilityJudgeSpec


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("function:my_rules:prefer", FunctionJudgeSpec(function="my_rules:prefer")),
        ("reward:some/folder", RewardJudgeSpec(model="some/folder")),
        ("preference:there", PreferenceJudgeSpec(folder="there", base="policy")),
        ("true", TrueUtilityJudgeSpec()),
    ],
)
def test_inline(text: str, spec: JudgeSpec) -> None:
    assert named_judge(text, {"base": "policy"}) == (spec, Path())


@pytest.mark.parametrize("under", ["", "judge:\n  "])
def test_a_file_by_itself_or_under_its_key(tmp_path: Path, under: str) -> None:
    path = tmp_path / "judge.yaml"
    indent = "\n  " if under else "\n"
    path.write_text(f"{under}kind: endpoint{indent}url: http://localhost:1/v1{indent}model: m\n")
    assert named_judge(str(path)) == (EndpointJudgeSpec(url="http://localhost:1/v1", model="m"), tmp_path)


def test_a_files_own_setting_stands(tmp_path: Path) -> None:
    path = tmp_path / "judge.yml"
    path.write_text("{kind: preference, folder: there, base: medium}")
    assert named_judge(str(path), {"base": "policy"})[0] == PreferenceJudgeSpec(folder="there", base="medium")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("fuction:a:b", "Did you mean 'function'?"),
        ("function", "needs 'function'"),
        ("function:alone", "not of the form module:function"),
        ("endpoint:http://localhost/v1", "needs 'model'"),
        ("preference:there", "needs 'base'"),
        ("true:there", "takes no argument"),
        ("", "no judge of kind ''"),
        ("nowhere.yaml", "cannot be read"),
    ],
)
def test_a_mistake_is_one_error(text: str, says: str) -> None:
    with pytest.raises(UserError) as caught:
        named_judge(text)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("- 1", "holds no judge"),
        ("a: [", "cannot be read"),
        ("kind: oracle", "no judge of kind 'oracle'"),
        ("{kind: reward, modle: x}", "no key 'modle'"),
    ],
)
def test_a_mistake_in_a_file_is_one_error(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "judge.yaml").write_text(content)
    with pytest.raises(UserError) as caught:
        named_judge(str(tmp_path / "judge.yaml"))
    assert says in str(caught.value)
