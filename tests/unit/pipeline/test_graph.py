"""What a stage may read, and what its identity covers."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path

import pytest

from aligngap.errors import UserError
from aligngap.pipeline.graph import Context, Stage, all_stages
from unit.pipeline.fake_stages import Fake, ReadsFurther

A = Fake(name="a")
B = Fake(name="b", after=(A,))
FURTHER = ReadsFurther(name="c", after=(B,))


def context(stage: Stage, folder: Path) -> Context:
    folders = {parent.identity: folder / parent.identity for parent in stage.parents}
    return Context(folders, folder, folder, lambda done, total, metrics: None)


def test_a_stage_reads_its_inputs_and_what_it_declares(tmp_path: Path) -> None:
    assert [stage.identity for stage in FURTHER.parents] == [B.identity, A.identity]
    given = context(FURTHER, tmp_path)
    assert given.folder(B) == tmp_path / B.identity
    assert given.folder(A) == tmp_path / A.identity
    assert given.folder(Fake(name="a")) == given.folder(A)  # by identity, whichever object names it


def test_what_is_not_declared_is_one_clear_error(tmp_path: Path) -> None:
    undeclared = context(Fake(name="c", after=(B,)), tmp_path)
    with pytest.raises(UserError) as error:
        undeclared.folder(A)
    assert error.value.what == "a stage reads what it has not declared: 'fake [a]'"
    assert error.value.where == f"fake {A.identity}"
    assert "`reads`" in error.value.hint


class ReadsElsewhere(Fake):
    """Reads a stage on which none of its inputs rests."""

    @property
    def reads(self) -> Sequence[Stage]:
        return (Fake(name="elsewhere"),)


def test_what_identity_does_not_cover_cannot_be_declared() -> None:
    with pytest.raises(UserError, match=r"reads what none of its inputs rests on: 'fake \[elsewhere\]'"):
        _ = ReadsElsewhere(name="c", after=(B,)).parents


def test_an_input_that_is_named_twice_is_one_parent() -> None:
    both = Fake(name="c", after=(A, B, Fake(name="a")))
    assert [stage.identity for stage in both.parents] == [A.identity, B.identity]
    assert [stage.identity for stage in all_stages([both])] == [A.identity, B.identity, both.identity]


def test_reads_are_no_part_of_the_identity() -> None:
    """An input's input is in the input's identity already."""
    assert FURTHER.described["inputs"] == {"after": [B.identity]}
    other = ReadsFurther(name="c", after=(Fake(name="b", after=(Fake(name="other"),)),))
    assert other.identity != FURTHER.identity
    assert pickle.loads(pickle.dumps(FURTHER)).identity == FURTHER.identity


def test_a_changed_copy_is_another_stage_whatever_was_asked_before() -> None:
    assert FURTHER.parents
    copy = FURTHER.model_copy(update={"after": (A,)})
    assert copy.identity != FURTHER.identity
    assert [stage.identity for stage in copy.parents] == [A.identity]
    assert FURTHER.model_copy().identity == FURTHER.identity
