"""A user's own function as a judge."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest
import torch

from aligngap.errors import UserError
from aligngap.judges.function import FunctionJudge, FunctionJudgeSpec
from aligngap.judges.spec import JudgeIngredients
from aligngap.types import Tokens
from unit.judges.texts import bpe, sides

TOKENIZER = bpe(eos_token="</s>", bos_token="<s>", pad_token="<pad>")
ROWS = [("Which?", "long answer", "short"), ("What?", "no", "a longer one"), ("Why?", "same", "same")]


def judge(rule: Any) -> FunctionJudge:
    return FunctionJudge(TOKENIZER, rule, "rules:prefer")


def asked(rule: Any, rows: Any = ROWS) -> list[float]:
    return judge(rule).margin(*sides(TOKENIZER, rows)).tolist()


def test_texts_come_in_and_probabilities_come_out() -> None:
    seen: list[Any] = []

    def rule(prompts: list[str], pairs: list[tuple[str, str]]) -> list[float]:
        seen.append((prompts, pairs))
        return [0.75, 0.0]

    made = judge(rule)
    tokens = sides(TOKENIZER, ROWS)
    assert made.probability(*tokens).tolist() == [0.75, 0.0, 0.5]
    assert made.prefer(*tokens).tolist() == [1.0, 0.0, 0.5]
    # The row whose responses are the same is a tie by definition, and is not asked about.
    assert seen[0] == (["Which?", "What?"], [("long answer", "short"), ("no", "a longer one")])
    assert made.calls == 6
    assert made.spent == {}


def test_special_tokens_in_the_middle_of_a_response_are_seen() -> None:
    seen: list[Any] = []
    rows = [("<s>Prompt<pad>", "one</s>two", "three")]
    asked(lambda prompts, pairs: seen.extend([*prompts, *pairs]) or [1], rows)
    assert seen == ["Prompt", ("one</s>two", "three")]


@pytest.mark.parametrize(
    "answers",
    [
        [1, 0],
        (1.0, 0.0),
        [True, False],
        np.array([1.0, 0.0]),
        np.array([1, 0], dtype=np.float32),
        [np.float32(1), np.bool_(False)],
        torch.tensor([1.0, 0.0]),
        [torch.tensor(1.0), torch.tensor(0)],
    ],
    ids=repr,
)
def test_any_sequence_of_numbers_will_do(answers: Any) -> None:
    assert asked(lambda prompts, pairs: answers) == [1, -1, 0]


@pytest.mark.parametrize(
    ("answers", "says"),
    [
        ([0.5, math.nan], "row 2 of 2"),
        ([0.5, math.nan], "returned nan"),
        ([1.5, 0.5], "row 1 of 2"),
        ([-0.1, 0.5], "no number from 0 to 1"),
        ([math.inf, 0.5], "row 1 of 2"),
        ([0.5], "1 values for 2 pairs"),
        ([0.5] * 3, "3 values for 2 pairs"),
        (["1", 0], "returned '1' (str), not a number"),
        ([None, 0], "nothing (None), not a number"),
        ([0, 1j], "row 2 of 2"),
        ([np.nan, 0], "row 1 of 2"),
        (None, "returned nothing (None)"),
        (0.5, "returned 0.5 (float), not a list"),
        ("10", "(str), not a list"),
        ({0: 1, 1: 0}, "(dict), not a list"),
        (np.zeros((2, 1)), "shape (2, 1)"),
    ],
    ids=repr,
)
def test_anything_else_is_one_clear_error(answers: Any, says: str) -> None:
    with pytest.raises(UserError) as caught:
        asked(lambda prompts, pairs: answers)
    assert says in str(caught.value)
    assert "'rules:prefer'" in str(caught.value)
    assert caught.value.hint


def test_an_error_in_the_function_names_its_row_and_line() -> None:
    def rule(prompts: list[str], pairs: list[tuple[str, str]]) -> list[float]:
        for prompt in prompts:
            if prompt == "What?":
                raise ValueError("no such\nword")
        return [1.0] * len(pairs)

    with pytest.raises(UserError) as caught:
        asked(rule)
    message = str(caught.value)
    assert "row 2 of 2 (prompt 'What?')" in message
    assert "ValueError: no such word" in message
    assert f"{Path(__file__).name}, line" in message
    assert isinstance(caught.value.__cause__, ValueError)


def test_an_error_that_only_the_batch_makes_is_told_without_a_row() -> None:
    def rule(prompts: list[str], pairs: list[tuple[str, str]]) -> list[float]:
        assert len(pairs) == 1
        return [1.0]

    with pytest.raises(UserError, match="AssertionError") as caught:
        asked(rule)
    assert "row" not in str(caught.value.where)


def test_a_function_that_exits_does_not_end_the_run_in_silence() -> None:
    with pytest.raises(UserError, match="SystemExit"):
        asked(lambda prompts, pairs: sys.exit(0))


def test_ctrl_c_in_the_function_is_no_fault_of_the_function() -> None:
    def rule(prompts: list[str], pairs: list[tuple[str, str]]) -> list[float]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        asked(rule)


def test_what_the_function_does_to_its_arguments_changes_nothing() -> None:
    def rule(prompts: list[str], pairs: list[tuple[str, str]]) -> list[float]:
        found = [float(len(a) > len(b)) for a, b in pairs]
        prompts.clear()
        pairs.clear()
        return found

    assert asked(rule) == [1, -1, 0]


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dedent(text), "utf-8")
    return path


LONGER = "def prefer(prompts, pairs):\n    return [float(len(a) > len(b)) for a, b in pairs]\n"
SHORTER = LONGER.replace(">", "<")


def built(spec: FunctionJudgeSpec, folder: Path | None) -> FunctionJudge:
    return spec.build(JudgeIngredients(tokenizer=TOKENIZER, search=folder))


def spec(function: str = "my_rules:prefer") -> FunctionJudgeSpec:
    return FunctionJudgeSpec(function=function)


def test_a_module_beside_the_study_is_found(tmp_path: Path) -> None:
    write(tmp_path, "my_rules.py", LONGER)
    assert built(spec(), tmp_path).margin(*sides(TOKENIZER, ROWS)).tolist() == [1, -1, 0]


def test_a_module_on_the_path_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "rules_on_the_path.py", LONGER)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert built(spec("rules_on_the_path:prefer"), None).margin(*sides(TOKENIZER, ROWS)).tolist() == [1, -1, 0]


def test_the_module_beside_the_study_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "elsewhere", "my_rules.py", SHORTER)
    write(tmp_path / "study", "my_rules.py", LONGER)
    monkeypatch.syspath_prepend(str(tmp_path / "elsewhere"))
    assert built(spec(), tmp_path / "study").margin(*sides(TOKENIZER, ROWS)).tolist() == [1, -1, 0]


def test_two_studies_may_have_modules_of_one_name(tmp_path: Path) -> None:
    for name, text in (("one", LONGER), ("other", SHORTER)):
        write(tmp_path / name, "my_rules.py", text)
    found = [built(spec(), tmp_path / name).margin(*sides(TOKENIZER, ROWS)).tolist() for name in ("one", "other")]
    assert found == [[1, -1, 0], [-1, 1, 0]]
    assert spec().identity(tmp_path / "one") != spec().identity(tmp_path / "other")


def test_an_edited_module_is_another_judge(tmp_path: Path) -> None:
    write(tmp_path, "my_rules.py", LONGER)
    before = spec().identity(tmp_path)
    assert built(spec(), tmp_path).margin(*sides(TOKENIZER, ROWS)).tolist() == [1, -1, 0]
    # Within the same second and of the same size, as no cache of Python's would notice.
    write(tmp_path, "my_rules.py", SHORTER)
    assert spec().identity(tmp_path) != before
    assert built(spec(), tmp_path).margin(*sides(TOKENIZER, ROWS)).tolist() == [-1, 1, 0]


def test_the_identity_knows_source_and_function_and_no_place(tmp_path: Path) -> None:
    for name in ("here", "there"):
        write(tmp_path / name, "my_rules.py", LONGER + "def other(prompts, pairs): ...\n")
    here, there = (spec().identity(tmp_path / name) for name in ("here", "there"))
    assert here == there
    assert str(tmp_path) not in str(here)
    assert here != spec("my_rules:other").identity(tmp_path / "here")


def test_a_module_may_import_its_neighbours(tmp_path: Path) -> None:
    write(tmp_path, "words_of_mine.py", "WORD = 'long'\n")
    write(
        tmp_path,
        "my_rules.py",
        """
        from words_of_mine import WORD

        def prefer(prompts, pairs):
            return [float(WORD in a) for a, b in pairs]
        """,
    )
    assert built(spec(), tmp_path).margin(*sides(TOKENIZER, ROWS)).tolist() == [1, -1, 0]


def test_a_module_is_found_without_importing_the_packages_above_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Identities are asked for by who only reads a run, which may be somebody else's and name any package."""
    mark = tmp_path / "imported"
    write(tmp_path, "package_of_theirs/__init__.py", f"from pathlib import Path\nPath({str(mark)!r}).touch()\n")
    write(tmp_path, "package_of_theirs/inner/__init__.py", f"from pathlib import Path\nPath({str(mark)!r}).touch()\n")
    write(tmp_path, "package_of_theirs/inner/rules.py", LONGER)
    monkeypatch.syspath_prepend(str(tmp_path))
    for search in (tmp_path, None):
        assert spec("package_of_theirs.inner.rules:prefer").identity(search)["source"]
    for missing in (
        "package_of_theirs.outer.rules",
        "package_of_theirs.inner.rules.deeper",
        "sys.rules",
        "json.tool.x",
    ):
        with pytest.raises(UserError, match="no such module"):
            spec(f"{missing}:prefer").identity(None)
    assert not mark.exists()
    assert "package_of_theirs" not in sys.modules


def test_a_module_may_be_part_of_a_package(tmp_path: Path) -> None:
    write(tmp_path, "package_of_mine/__init__.py", "")
    write(tmp_path, "package_of_mine/words.py", "WORD = 'long'\n")
    text = "from .words import WORD\ndef prefer(prompts, pairs):\n    return [float(WORD in a) for a, b in pairs]\n"
    write(tmp_path, "package_of_mine/rules.py", text)
    made = built(spec("package_of_mine.rules:prefer"), tmp_path)
    assert made.margin(*sides(TOKENIZER, ROWS)).tolist() == [1, -1, 0]


def test_a_method_of_a_class_will_do(tmp_path: Path) -> None:
    write(
        tmp_path,
        "my_rules.py",
        """
        from dataclasses import dataclass

        @dataclass
        class Rule:
            @staticmethod
            def prefer(prompts, pairs):
                return [1.0 for _ in pairs]
        """,
    )
    assert built(spec("my_rules:Rule.prefer"), tmp_path).margin(*sides(TOKENIZER, ROWS)).tolist() == [1, 1, 0]


@pytest.mark.parametrize(
    ("text", "function", "says"),
    [
        (LONGER, "my_rules:perfer", "Did you mean 'prefer'?"),
        (LONGER + "LIST = []\n", "my_rules:LIST", "'LIST' is no function"),
        ("def broken(:\n", "my_rules:prefer", "SyntaxError"),
        ("import no_such_package_at_all\n", "my_rules:prefer", "No module named 'no_such_package_at_all'"),
        ("raise SystemExit\n", "my_rules:prefer", "cannot be imported"),
        (LONGER, "no_rules_of_that_name:prefer", "there is no such module"),
        (LONGER, "no_package_of_that_name.rules:prefer", "there is no such module"),
        (LONGER, "math:floor", "no Python source file"),
        (LONGER, "sys:exit", "no Python source file"),
    ],
)
def test_what_cannot_be_loaded_is_one_clear_error(tmp_path: Path, text: str, function: str, says: str) -> None:
    write(tmp_path, "my_rules.py", text)
    with pytest.raises(UserError) as caught:
        built(spec(function), tmp_path)
    assert says in str(caught.value)
    assert caught.value.hint


def test_a_module_that_failed_is_read_anew(tmp_path: Path) -> None:
    write(tmp_path, "my_rules.py", "1 / 0\n")
    with pytest.raises(UserError, match="ZeroDivisionError"):
        built(spec(), tmp_path)
    write(tmp_path, "my_rules.py", LONGER)
    assert built(spec(), tmp_path).margin(*sides(TOKENIZER, ROWS)).tolist() == [1, -1, 0]


@pytest.mark.parametrize("name", ["my_rules", "my_rules:", ":prefer", "my rules:prefer", "my_rules:prefer()", "a..b:c"])
def test_the_name_has_two_parts(name: str) -> None:
    with pytest.raises(ValueError, match="module:function"):
        FunctionJudgeSpec(function=name)


def test_tokens_of_one_text_are_a_tie_whatever_the_function_says() -> None:
    prompts, first, _ = sides(TOKENIZER, [("Which?", "Paris", "Paris")])
    letters = [TOKENIZER.convert_tokens_to_ids(letter) for letter in "Paris"]
    apart = Tokens.collate([[*letters, TOKENIZER.eos_token_id]])
    open_ended = Tokens.collate([first.rows()[0][:-1]])
    for other in (apart, open_ended):
        assert other.rows() != first.rows()
        assert judge(lambda prompts, pairs: [1.0] * len(pairs)).margin(prompts, first, other).tolist() == [0]
