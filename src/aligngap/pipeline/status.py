"""What `status.json` holds: checked as it is read, because it may be anyone's, or half of what it was."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from aligngap.errors import UserError, brief
from aligngap.store.identity import is_name

SCHEMA = 1

_Count = Annotated[int, Field(ge=0, lt=2**53)]
_Seconds = Annotated[float, Field(ge=0, lt=1e12)]
_Measured = Annotated[float, Field(gt=-1e300, lt=1e300)]


def _identity(text: str) -> str:
    if not is_name(text):
        raise ValueError("it can be no artefact's name")
    return text


def _place(text: str) -> str:
    if "\0" in text:
        raise ValueError("it can be no folder's name")
    return text


class _Checked(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


class _Stage(_Checked):
    identity: Annotated[str, AfterValidator(_identity)]
    label: str
    kind: str
    status: Literal["waiting", "running", "interrupted", "finished", "cached", "failed", "blocked"]
    done: _Count
    total: _Count
    rate: _Seconds | None
    seconds: _Seconds
    metrics: dict[str, _Measured | None] = {}
    reason: str


class _Status(_Checked):
    version: Literal[1] = Field(alias="schema")
    state: Literal["running", "interrupted", "finished", "failed"]
    pid: int
    started: str
    updated: str
    store: Annotated[str, AfterValidator(_place)]
    seconds: _Seconds
    left: _Seconds | None
    jobs: _Count
    fraction: Annotated[float, Field(ge=0, le=1)]
    memory_kills: _Count | None = None
    stages: list[_Stage]


def checked_status(value: object, path: Path) -> dict[str, Any]:
    """What was read from `path`, as it was written. Raises UserError, which names the key, for anything else."""
    try:
        return _Status.model_validate(value).model_dump(by_alias=True)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in problem["loc"]).lstrip(".")
        raise UserError(
            f"{brief(key) or 'all of it'}: {brief(problem['msg'], 400)}",
            where=str(path),
            hint="The file is damaged. Give the `aligngap run` command again: it writes this file anew.",
        ) from None


def writable(text: str) -> str:
    """A text without the halves of characters that stand for bytes of a file's name, which no file could hold."""
    return text.encode(errors="backslashreplace").decode()


def memory_kills() -> int | None:
    """How many processes this machine has killed for want of memory since it started; None where it does not say."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return None
    counts = [line.split()[1] for line in lines if line.startswith("oom_kill ")]
    return int(counts[0]) if counts and counts[0].isdigit() else None


def without_a_word(status: dict[str, Any], now: int | None) -> str:
    """What there is to say of a run that ended without a word. status: its last, from before anything is made of it;
    now: `memory_kills`.
    """
    before, running = status["memory_kills"], [stage["label"] for stage in status["stages"] if _was_running(stage)]
    for_memory = before is not None and now is not None and now > before
    why = "this machine has run out of memory since" if for_memory else "as a kill or a power cut does"
    what = f"; running then: {', '.join(running[:8])}" if running else ""
    more = f" and {len(running) - 8} more" if len(running) > 8 else ""
    lower = (
        f" If memory ran out: --jobs below {status['jobs']} needs less."
        if status["jobs"] > 1
        else " If memory ran out: a smaller batch or model needs less."
    )
    return f"The last run ended without a word at {status['updated']} ({why}){what}{more}.{lower}"


def _was_running(stage: dict[str, Any]) -> bool:
    return stage["status"] in ("running", "interrupted")
