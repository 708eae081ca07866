"""Users' own modules: losses, sources, judges, worlds and experiments, registered beside ours by the same one line.

A registry is a dictionary, and `LOSSES["mine"] = mine` in a plugin is all there is to it. What a plugin registers
carries the digest of the plugin's source file into every identity that it has a part in, so an edited file makes anew
what used it, and nothing else. Plugins are imported where a study is read to be planned or run, and in the processes
that run its stages; never because a result folder names them.
"""

from __future__ import annotations

import hashlib
import importlib
import sys
import traceback
from collections.abc import Mapping, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import entry_points
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, SerializationInfo

from aligngap.errors import UserError, nearest
from aligngap.store.identity import file_digest

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)

GROUP = "aligngap.plugins"
"""Entry points of this group are plugins wherever their package is installed; the entry's value is the module."""


class Plugin(NamedTuple):
    """A module that has been imported. search: where it was looked for first; module: its name in `sys.modules`."""

    name: str
    search: Path | None
    module: str
    digest: str


_loaded: dict[str, Plugin] = {}
_importing: list[tuple[str, str]] = []


class Registry(dict[str, T]):
    """What there is of a kind, by name. Ours are given; a plugin adds its own, and may not take a name that is there.

    what: the kind, for error messages.
    """

    def __init__(self, what: str, ours: Mapping[str, T]) -> None:
        super().__init__(ours)
        self.what = what
        self._owners: dict[str, tuple[str, str]] = {}

    def __setitem__(self, name: str, value: T) -> None:
        """Raises UserError for a name that is taken."""
        owner = _importing[-1] if _importing else ("", "")
        before = self._owners.get(name)
        if name in self and (before is None or before[0] != owner[0]):
            whose = f"the plugin '{before[0]}'" if before and before[0] else "aligngap itself"
            where = f"plugin '{owner[0]}'" if owner[0] else None
            raise UserError(f"there is a {self.what} '{name}' already, of {whose}", where=where, mend="Rename yours.")
        super().__setitem__(name, value)
        self._owners[name] = owner

    def code(self, name: str) -> str | None:
        """The digest of the plugin that registered this; None for what is ours."""
        return self._owners[name][1] or None if name in self._owners else None

    def hint(self, name: str) -> str:
        """For an unknown name: what is known, the nearest first."""
        return f"there is no {self.what} '{name}'. {nearest(name, self)}"


def tagged(registry: Registry[type[M]], value: object, example: str) -> M:
    """The specification that a mapping with a `kind` stands for. Raises ValueError, with the nearest known name, for an
    unknown kind or key.
    """
    what = registry.what
    if not isinstance(value, Mapping):
        raise ValueError(f"a {what} is a mapping with a kind, as in {example}")
    kind: Any = value.get("kind")
    if kind is None:
        raise ValueError(f"a {what} needs a kind. Known: {', '.join(sorted(registry))}.")
    if not isinstance(kind, str) or kind not in registry:
        raise ValueError(f"there is no {what} of kind '{kind}'. {nearest(str(kind), registry)}")
    spec = registry[kind]
    for key in value:
        if key not in spec.model_fields:
            raise ValueError(f"a {what} of kind '{kind}' has no key '{key}'. {nearest(str(key), spec.model_fields)}")
    return spec.model_validate({**value, "kind": kind})


IDENTITY = "identity"
"""In the context of a dump that is to decide an identity; others are to be read back."""


def with_code(fields: dict[str, Any], code: str | None, info: SerializationInfo) -> dict[str, Any]:
    """A specification's fields, with the digest of the plugin that has a part in it where an identity is asked for."""
    return fields | {"code": code} if code and (info.context or {}).get(IDENTITY) else fields


def loaded() -> list[tuple[str, Path | None]]:
    """The plugins of this process, as `load_plugins` takes them: for another process to do the same."""
    return [(plugin.name, plugin.search) for plugin in _loaded.values()]


def code_of(module: str) -> str | None:
    """The digest of the plugin that a module is, or is a part of; None for all other modules."""
    owners = (p.digest for p in _loaded.values() if module == p.module or module.startswith(f"{p.module}."))
    return next(owners, None)


def installed() -> list[str]:
    """Modules that installed packages offer as plugins."""
    return sorted({point.module for point in entry_points(group=GROUP)})


def load_plugins(names: Sequence[str], search: Path | None = None) -> None:
    """Import plugins, each once as long as its source stays the same. search: the study's folder, looked at first.

    Raises UserError for a module that is not there, cannot be imported, or registers a name that is taken.
    """
    for name in names:
        source = find_module(name, search)
        digest = file_digest(str(source.origin))
        if name in _loaded and _loaded[name].digest == digest:
            continue
        _importing.append((name, digest))
        try:
            module = load_module(source, search)
        finally:
            _importing.pop()
        _loaded[name] = Plugin(name, search, module.__name__, digest)


def find_module(name: str, search: Path | None) -> ModuleSpec:
    """Where a module's source is: in the search folder, or wherever Python finds modules. Nothing is imported, not even
    the packages above it: a study that is somebody else's may name any. Raises UserError.
    """
    where = f"module '{name}'"
    importlib.invalidate_caches()
    found = _found(name, [PathFinder], [str(search)]) if search is not None else None
    found = found or _found(name, sys.meta_path, None)
    if found is None:
        places = f"neither beside the study file ({search}) nor" if search is not None else "not"
        raise UserError(
            f"there is no such module: {places} where Python looks",
            where=where,
            mend="Put the file beside the study, or install its package in the same environment.",
        )
    if found.origin is None or not found.origin.endswith(".py") or not Path(found.origin).is_file():
        raise UserError(
            "the module has no Python source file, which is part of every result's identity",
            where=where,
            mend="Write a module of your own that calls it.",
        )
    return found


def _found(name: str, finders: Sequence[Any], places: Sequence[str] | None) -> ModuleSpec | None:
    """places: where the outermost package is looked for; None is wherever Python looks."""
    found, whole = None, ""
    for part in name.split("."):
        whole = f"{whole}.{part}" if whole else part
        specs = (finder.find_spec(whole, places) for finder in finders if hasattr(finder, "find_spec"))
        found = next((spec for spec in specs if spec is not None), None)
        if found is None:
            return None
        places = list(found.submodule_search_locations or [])
    return found


def load_module(source: ModuleSpec, search: Path | None) -> ModuleType:
    """Runs a module's source file as it is now.

    The ordinary import would keep what it once loaded under the same name, from another folder or from the same file
    before it was edited; an identity says what is in the file. So the module goes by a name of its own, with its
    place and source in it. Raises UserError when it cannot be run.
    """
    path = Path(str(source.origin))
    where = f"module '{source.name}' ({path.name})"
    text = path.read_bytes()
    name = f"{source.name}_{hashlib.sha256(str(path).encode() + text).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    if search is not None and str(search) not in sys.path:
        sys.path.append(str(search))  # for what it imports; behind all else, so that it hides nothing
    spec = spec_from_file_location(name, path, submodule_search_locations=source.submodule_search_locations)
    assert spec is not None
    module = module_from_spec(spec)
    sys.modules[name] = module
    try:
        exec(compile(text, str(path), "exec"), module.__dict__)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, UserError) or not isinstance(error, Exception | SystemExit):
            raise
        words = "".join(traceback.format_exception_only(error)).strip()
        raise UserError(f"the module cannot be imported: {words}", where=where, mend="Mend the module.") from error
    return module
