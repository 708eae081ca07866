from __future__ import annotations

import getpass
import json
import os
import platform
import subprocess
from pathlib import Path

import pytest

import aligngap
from aligngap.store import environment
from aligngap.store.record import _revision


def test_environment_is_json_and_names_the_packages() -> None:
    record = environment()
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record["aligngap"] == aligngap.__version__
    packages = record["packages"]
    assert isinstance(packages, dict)
    assert all(packages[name] for name in ("torch", "transformers", "numpy", "safetensors", "pyarrow"))
    assert isinstance(record["cpu_count"], int)
    assert isinstance(record["devices"], list)


def test_environment_names_no_person_host_or_folder() -> None:
    text = json.dumps(environment())
    assert str(Path.home()) not in text
    assert os.getcwd() not in text
    host = platform.node()
    assert not host or f'"{host}"' not in text
    assert f'"{getpass.getuser()}"' not in text


def test_a_caller_cannot_change_the_next_record() -> None:
    environment()["aligngap"] = "changed"
    assert environment()["aligngap"] == aligngap.__version__


def git(folder: Path, *arguments: str) -> None:
    options = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(folder), *options, *arguments], check=True, capture_output=True)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = tmp_path / "src" / "package"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    return folder


def test_revision_of_a_checkout(package: Path, tmp_path: Path) -> None:
    assert _revision(package) == (None, None)
    git(tmp_path, "init")
    # Inside somebody else's checkout, but no part of it.
    assert _revision(package) == (None, None)
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    revision, dirty = _revision(package)
    assert revision is not None
    assert len(revision) == 40
    assert dirty is False
    (tmp_path / "notes.txt").write_text("outside the package")
    assert _revision(package) == (revision, False)
    (package / "__init__.py").write_text("x = 1")
    assert _revision(package) == (revision, True)


def test_no_git_is_no_error(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert _revision(package) == (None, None)
