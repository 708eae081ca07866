"""What W&B has written offline: its files are a log of records in LevelDB's framing, each a protocol buffer."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_BLOCK, _HEADER = 32768, 7


@dataclass
class OfflineRun:
    """A run as `wandb sync` would send it."""

    name: str = ""
    group: str = ""
    project: str = ""
    run_id: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    exit_code: int | None = None


def offline_runs(folder: Path) -> dict[str, OfflineRun]:
    """By name, the runs below DIR/wandb."""
    found = [_run(path) for path in sorted(folder.glob("offline-run-*/*.wandb"))]
    return {run.name: run for run in found}


def _run(path: Path) -> OfflineRun:
    from wandb.proto import wandb_internal_pb2

    run = OfflineRun()
    for data in _records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run.name, run.group = record.run.display_name, record.run.run_group
            run.project, run.run_id = record.run.project, record.run.run_id
            run.config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        elif kind == "history":
            pairs = ((item.key or ".".join(item.nested_key), item.value_json) for item in record.history.item)
            run.rows.append({key: json.loads(value) for key, value in pairs})
        elif kind == "exit":
            run.exit_code = record.exit.exit_code
    return run


def _records(data: bytes) -> list[bytes]:
    assert data[:4] == b":W&B"
    found, part, at = [], b"", _HEADER
    while at + _HEADER <= len(data):
        if _BLOCK - at % _BLOCK < _HEADER:  # too little of the block is left for a header
            at += _BLOCK - at % _BLOCK
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        part += data[at + _HEADER : at + _HEADER + size]
        at += _HEADER + size
        if kind in (1, 4):  # whole, or the last part of one
            found.append(part)
            part = b""
    return found
