"""Mutated studies and data sets: whatever is in a file, the user is told, and sees no traceback.

    python -m tests.faults.fuzz --seconds 300 --seed 1

A reader that raises anything but UserError, or takes longer than it should, is a finding; its input is kept.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import random
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import polars as pl

from aligngap.errors import UserError
from aligngap.experiments.plan import Plan
from aligngap.experiments.shipped import shipped, shipped_text
from aligngap.experiments.study import load_study
from aligngap.models.tokenizer import word_tokenizer
from aligngap.tasks.check import describe
from aligngap.tasks.datasets import DatasetSpec

TOKENIZER = word_tokenizer(["won", "left", "Why?", "Human:"])
SLOW = 20.0
"""Seconds after which a reader of a few kilobytes counts as hanging."""

_WORDS = [
    b"null", b"~", b"true", b"-1", b"0", b"1e999", b"-.inf", b".nan", b"NaN", b"Infinity", b"1" * 400, b"1" * 5000,
    b"[]", b"{}", b"[", b"{", b"]", b"}", b'"', b"'", b"\\", b",", b":", b": ", b"\n", b"\r\n", b"\t", b" ", b"\0",
    b"\x1a", b"\xff", b"\xc3\x28", b"\xef\xbb\xbf", b"\\ud800", b"&a", b"*a", b"&a [*a, *a]", b"<<: *a",
    b"!!python/object/apply:os.system", b"!!binary x", b"!!set {a}", b"!!timestamp 2001-01-01", b"2001-01-01",
    b"2001-99-01", b"--- ", b"...", b"? ", b"| ", b"> ", b"#", b"%", b"1_000", b"0x1f", b"010", b"1:30",
    b"extends: paper", b"extends: [quick]", b"datasets: {a: {source: .}}", b"seeds: [1.5]",
    b"models: {policy: {path: x}}", b"models: {sizes: &a [*a]}", b"experiments: [1]", b"[" * 2000, b"{a: " * 2000,
    b"- " * 500, b'{"a": ' * 2000, b"\xf0\x9f\x98\x80", b'"prompt": 3', b'"chosen": null', b"\x1f\x8b", b"PAR1",
    b'"chosen": [{"role": "user"}]', b"&b [1,1,1,1,1,1,1,1,1,1]", b"[*b,*b,*b,*b,*b,*b,*b,*b,*b,*b]",
]  # fmt: skip


def mutated(data: bytes, rng: random.Random) -> bytes:
    """A few random changes."""
    for _ in range(rng.choice([1, 1, 2, 3, 8])):
        at, size = rng.randrange(len(data) + 1), rng.choice([1, 1, 2, 5, 20, 200])
        kind = rng.randrange(6)
        if kind == 0 and data:
            at = min(at, len(data) - 1)
            data = data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
        elif kind == 1:
            data = data[:at] + data[at + size :]
        elif kind == 2:
            data = data[:at] + data[at : at + size] * rng.choice([2, 3]) + data[at + size :]
        elif kind == 3:
            data = data[:at] + rng.choice(_WORDS) + data[at + rng.choice([0, size]) :]
        elif kind == 4:
            data = data[:at] + rng.randbytes(size) + data[at:]
        else:  # a value in the place of another's, where there are such places
            places = [k for k, byte in enumerate(data) if byte in b":,[{"]
            if places:
                start = rng.choice(places) + 1
                end = min((k for k in range(start, len(data)) if data[k] in b",}]\n"), default=len(data))
                data = data[:start] + b" " + rng.choice(_WORDS) + data[end:]
    return data


_KNOWN = ("captain", "wife", "doctor", "lawyer")
"""Words that the shipped bases know: what they do not know is the same to them, and equal pairs are dropped."""


def rows() -> list[dict[str, object]]:
    """A record of every kind of format."""

    def turn(role: str, content: str) -> dict[str, str]:
        return {"role": role, "content": content}

    talk = [turn("user", "Why?"), turn("assistant", "won")]
    other = [turn("user", "Why?"), turn("assistant", "left")]
    return [
        {"prompt": "Say a or b:", "chosen": " won", "rejected": " left"},  # words that the shipped bases know
        {"prompt": [turn("user", "Why?")], "chosen": [talk[1]], "rejected": [other[1]]},
        {"chosen": talk, "rejected": other, "score_chosen": 2.0, "score_rejected": 1.0},
        {"chosen": "\n\nHuman: Hi\n\nAssistant: won", "rejected": "\n\nHuman: Hi\n\nAssistant: left"},
        {"conversation_a": talk, "conversation_b": other, "winner": "model_a", "turn": 1},
        {
            "instruction": "Do",
            "completions": [{"response": "won", "overall_score": 1}, {"response": "left", "overall_score": 2}],
        },
        {"info": {"post": "p", "title": "t"}, "summaries": [{"text": "won"}, {"text": "left"}], "choice": 1},
    ]


def data_files() -> dict[str, bytes]:
    """Good data sets, by name, each in a kind of file."""
    found: dict[str, bytes] = {}
    for number, row in enumerate(rows()):
        lines = [json.dumps({**row, "id": k} | ({"prompt": _KNOWN[k]} if row.get("prompt") else {})) for k in range(4)]
        found[f"{number}.jsonl"] = "\n".join(lines).encode()
        found[f"{number}.json"] = f"[{', '.join(lines)}]".encode()
        found[f"{number}.jsonl.gz"] = gzip.compress(found[f"{number}.jsonl"], mtime=0)
        buffer = io.BytesIO()
        pl.DataFrame([row] * 3).write_parquet(buffer)
        found[f"{number}.parquet"] = buffer.getvalue()
    plain = [{**rows()[0], "prompt": f'"{k}", a\n{_KNOWN[k]}'} for k in range(4)]
    found["plain.csv"] = pl.DataFrame(plain).write_csv().encode()
    found["plain.tsv"] = pl.DataFrame(plain).write_csv(separator="\t").encode()
    return found


def studies() -> dict[str, bytes]:
    """The shipped studies, and one that extends one of them and names data."""
    found = {f"{name}.yaml": shipped_text(name).encode() for name in shipped()}
    found["own.yaml"] = (
        b"extends: paper\nseeds: &s [0, 1]\ndatasets:\n  mine: {source: data.jsonl, max_response_tokens: 16}\n"
        b"tasks: [mine]\nexperiments: [goodhart]\nmodels: {policy: small, sizes: [small, {path: medium}]}\n"
    )
    return found


def read_study(path: Path) -> None:
    """What `plan` does with a study's file."""
    study = load_study(str(path), smoke=True)
    for name in study.datasets:
        if not study.datasets[name].source.endswith(".jsonl"):
            return  # a folder or hub set of its own making, which is not what is tried here
    Plan(study).check_models()


def read_data(path: Path) -> None:
    """What `check` does with a data set, in words or in tokens."""
    describe(DatasetSpec(source=str(path)), TOKENIZER if path.stat().st_size % 2 else None)


READERS: Mapping[str, tuple[Callable[[], dict[str, bytes]], Callable[[Path], None]]] = {
    "study": (studies, read_study),
    "data": (data_files, read_data),
}


def fuzz(reader: str, seconds: float, seed: int, folder: Path, limit: int = 10**9) -> tuple[Counter[str], list[str]]:
    """Until the time is up, or `limit` inputs: how many were read, and refused; and the findings."""
    make, read = READERS[reader]
    corpus, rng = make(), random.Random(seed)
    (folder / "data.jsonl").write_bytes(data_files()["0.jsonl"])
    counts: Counter[str] = Counter()
    findings: list[str] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end and counts.total() < limit:
        name = rng.choice(sorted(corpus))
        data = mutated(corpus[name], rng)
        path = folder / f"input-{name}"
        path.write_bytes(data)
        start = time.monotonic()
        try:
            read(path)
            counts["read"] += 1
        except UserError:
            counts["refused"] += 1
        except Exception:
            counts["findings"] += 1
            kept = folder / f"finding-{seed}-{counts.total()}-{name}"
            kept.write_bytes(data)
            findings.append(f"{kept}\n{traceback.format_exc()}")
        if (took := time.monotonic() - start) > SLOW:
            findings.append(f"{name}: {took:.0f} s")
            (folder / f"slow-{seed}-{counts.total()}-{name}").write_bytes(data)
    return counts, findings


def main() -> int:
    """Parse, run, print; 0 when nothing was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.fuzz", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="for each reader")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    broken = 0
    for reader in READERS:
        counts, findings = fuzz(reader, given.seconds, given.seed, folder)
        broken += len(findings)
        print(f"{reader}: {counts.total()} inputs, {dict(counts)}")
        print("\n".join(findings[:20]))
    print(f"{folder} keeps the findings" if broken else "nothing found")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
