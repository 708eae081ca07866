"""What a field of a result file may hold, and what becomes of the rest: the one place that guards what is read."""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Annotated, Any, Protocol, TypeVar

from pydantic import BeforeValidator, SerializerFunctionWrapHandler, WrapSerializer

#: What no reader sees and some program obeys; lone surrogates, too, which a broken tokenizer can produce and no file
#: in UTF-8 can hold. Marks of direction stay: text that runs from right to left needs them, and the page contains them.
HIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
#: No title, name or reason that is read is longer than this.
LONGEST, _LONGEST_NAME = 4000, 200
_LARGEST = 2**53  # beyond which JSON's readers do not agree on a whole number


def number(value: object) -> float | None:
    """A finite number, or None for everything else."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    return float(value) if math.isfinite(value) else None


def shortened(text: str, longest: int) -> str:
    """At most `longest` characters, never in silence: what is left out is counted."""
    if len(text) <= longest:
        return text
    kept = longest - 40
    return f"{text[:kept]} … ({len(text) - kept:,} more characters)"


def readable(value: Any) -> Any:
    """The same value of JSON, with every text as a reader can take it: hidden characters as �, and no end that nobody
    reads. What is readable stays as it is.
    """
    if isinstance(value, str):
        return shortened(HIDDEN.sub("\ufffd", value), LONGEST)
    if isinstance(value, Mapping):
        return {readable(key): readable(item) for key, item in value.items()}
    return [readable(item) for item in value] if isinstance(value, list) else value


def name_of(value: object) -> str:
    """A name on one line, short enough for a legend; two that are long and differ still do."""
    text = _line(readable(value))
    return text if len(text) <= _LONGEST_NAME else f"{text[: _LONGEST_NAME - 12]}… ({zlib.crc32(text.encode()):08x})"


def _line(value: object) -> str:
    """Vega cannot read a name that holds a separator of lines."""
    return " ".join(str(value or "").split())


def _number(value: object) -> float | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, Real)):
        raise ValueError(f"not a number: {value!r:.40}")
    return number(value)


def place(value: object) -> float | str | None:
    """Where a point lies on its x axis: a number, or a name. Raises ValueError for anything else."""
    return name_of(value) if isinstance(value, str) else _number(value)


def _whole(value: object) -> int | None:
    result = _number(value)
    if result is not None and (not result.is_integer() or abs(result) >= _LARGEST):
        raise ValueError(f"not a whole number below 2^53: {value!r:.40}")
    return None if result is None else int(result)


def _text(value: object) -> object:
    return "" if value is None else value


def plain(value: Any) -> Any:
    """As JSON has it: what is not a finite number becomes null, a sequence a list."""
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if isinstance(value, bool) or not isinstance(value, Real):
        return value
    return int(value) if isinstance(value, Integral) else number(value)


Number = Annotated[float | None, BeforeValidator(_number)]
"""A finite number; null for what was not measured, and for NaN and infinity, which JSON does not have."""
Whole = Annotated[int | None, BeforeValidator(_whole)]
Text = Annotated[str, BeforeValidator(_text)]
Line = Annotated[str, BeforeValidator(_line)]
Name = Annotated[str, BeforeValidator(name_of)]
Plain = Annotated[dict[str, Any], BeforeValidator(plain)]
"""An object of whatever settings or measurements there are, with null for what is not a finite number."""


class _Named(Protocol):
    @property
    def name(self) -> str: ...


T = TypeVar("T", bound=_Named)


def _listed(value: object) -> object:
    if not isinstance(value, Mapping):
        return value
    return [{**part, "name": name} if isinstance(part, Mapping) else part for name, part in value.items()]


def _by_name(records: Sequence[_Named], handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
    return {row.pop("name"): row for row in handler(records)}


ByName = Annotated[tuple[T, ...], BeforeValidator(_listed), WrapSerializer(_by_name)]
"""In a file an object by name, here records that know their `name`, in the same order."""
