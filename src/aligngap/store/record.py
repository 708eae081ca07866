"""On what a result was made: package versions, revision, machine.

Goes beside a result, never into its identity, and holds nothing that names a person, a host or a folder, so that a
result folder can be published as it is.
"""

from __future__ import annotations

import copy
import functools
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

from aligngap import __version__

_PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "scipy", "safetensors", "pyarrow", "polars")


def environment() -> dict[str, object]:
    """Versions, revision and machine, ready for JSON; what is not known is None.

    Reading the devices' names starts CUDA, so a process that forks workers which use the device must not call this
    first (the executors spawn theirs).
    """
    return copy.deepcopy(code()) | _machine()


# Once a process: the code that runs is the code that was imported, whatever happens to the checkout meanwhile.
@functools.cache
def code() -> dict[str, object]:
    """The part of `environment` that is the same in all processes that are forked from this one: versions, revision."""
    revision, dirty = _revision(Path(__file__).resolve().parents[1])
    return {
        "aligngap": __version__,
        "git_revision": revision,
        "git_dirty": dirty,
        "python": platform.python_version(),
        "packages": versions(),
    }


def _machine() -> dict[str, object]:
    return {
        "platform": f"{platform.system()}-{platform.machine()}",
        "cpu_count": cores(),
        "devices": _devices(),
    }


def versions() -> dict[str, str | None]:
    """Of the packages on which results depend; None for one that is not installed. Imports none of them."""
    return {name: _version(name) for name in _PACKAGES}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def cores() -> int | None:
    """Cores that this process may use, which in a container are fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _devices() -> list[str]:
    import torch

    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        names.append("mps")
    return names


def _revision(package: Path) -> tuple[str | None, bool | None]:
    """The commit of the checkout that holds this package, and whether the package's files differ from it."""
    # An installed copy may lie inside the checkout of something else, whose revision would mislead.
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None, None
    revision = _git(package, "rev-parse", "--verify", "HEAD")
    status = _git(package, "status", "--porcelain", "--", ".")
    if not revision or status is None:
        return None, None
    return revision.strip(), bool(status.strip())


def _git(folder: Path, *arguments: str) -> str | None:
    # Variables set by a git hook would point at another checkout; reading must not take the index's lock.
    variables = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    variables["GIT_OPTIONAL_LOCKS"] = "0"
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=20,
            env=variables,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
