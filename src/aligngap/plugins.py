"""Users' own modules: losses, sources, judges, worlds, measures, experiments, registered beside ours by the same one
line.

A registry is a dictionary, and `LOSSES["mine"] = mine` in a plugin is all there is to it. What a plugin registers
carries the digest of the plugin's source into every identity that it has a part in, so an edited file makes again what
used it, and nothing else. Plugins are imported where a study is read to be planned or run, and in the processes that
run its stages; never because a result folder names them.
"""

from __future__ import annotations

import hashlib
import importlib
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import entry_points
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, NamedTuple, TypeVar

from pydantic import BaseModel, SerializationInfo, SerializerFunctionWrapHandler, model_serializer

from aligngap.errors import UserError, nearest
from aligngap.store.identity import file_digest

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)

GROUP = "aligngap.plugins"
"""Entry points of this group are plugins wherever their package is installed; the entry's value is the module."""


class Plugin(NamedTuple):
    """A module that has been imported. search: where it was looked for first; module: its name in `sys.modules`;
    package: the package that it is, or is in, if any; digest: of its source.
    """

    name: str
    search: Path | None
    module: str
    package: str | None
    digest: str


class _Entry(NamedTuple):
    """What a module has registered, and where in it."""

    value: Any
    module: str
    file: str
    line: int

    @property
    def plugin(self) -> Plugin | None:
        """The plugin that did it; None where the module was not imported as one."""
        return _plugin_of(self.module)

    def place(self, line: int | None = None) -> str:
        """For errors."""
        who = f"plugin '{self.plugin.name}'" if self.plugin else "module"
        return f"{who} ({Path(self.file).name}, line {line or self.line})"


_loaded: dict[str, Plugin] = {}
_run: set[str] = set()
"""Names of the modules that `load_module` has run."""
_registries: list[Registry[Any]] = []


class Registry(dict[str, T]):
    """What there is of a kind, by name. Ours are given; a plugin adds its own, and may not take a name that is there.
    What a plugin has registered is here as long as the plugin is loaded.

    what: the kind, for error messages. fault: what keeps a value from being registered under a name, in words; None
    where nothing does.
    """

    def __init__(
        self, what: str, ours: Mapping[str, T], fault: Callable[[str, object], str | None] = lambda name, value: None
    ) -> None:
        super().__init__(ours)
        self.what, self._ours, self._fault = what, ours, fault
        self._entries: dict[tuple[str, str], _Entry] = {}  # by module and name, also of plugins that are not loaded
        self._owners: dict[str, _Entry] = {}  # of what is here now
        _registries.append(self)

    def __setitem__(self, name: str, value: T) -> None:
        """Raises UserError, which names the line, for a name that is taken and for what is none of the kind."""
        frame = sys._getframe(1)
        self._add(name, _Entry(value, frame.f_globals["__name__"], frame.f_code.co_filename, frame.f_lineno))

    def _add(self, name: str, entry: _Entry) -> None:
        other, plugin = self._owners.get(name), entry.plugin
        if other and (other.file == entry.file or (plugin and plugin == other.plugin)):
            if other.plugin and not plugin:
                return  # imported in the ordinary way as well; the plugin's stays
            del self[name]
        if name in self:
            whose = other.place() if other else "aligngap itself"
            what = f"there is a {self.what} '{name}' already, of {whose}"
            raise UserError(what, where=entry.place(), hint="Rename yours.")
        if not _NAME.fullmatch(str(name)):
            fault: str | None = "a name is of letters, digits and _, and starts with a letter"
        else:
            fault = self._fault(name, entry.value)
        if fault:
            what = f"the {self.what} {name!r} cannot be registered: {fault}"
            raise UserError(what, where=entry.place(), hint="See docs/own-ideas.md.")
        super().__setitem__(name, entry.value)
        self._owners[name] = self._entries[entry.module, name] = entry

    def __delitem__(self, name: str) -> None:
        super().__delitem__(name)
        if entry := self._owners.pop(name, None):
            del self._entries[entry.module, name]

    def refresh(self) -> None:
        """Hold ours and what the plugins that are loaded now have registered."""
        self.clear()
        self.update(self._ours)
        self._owners.clear()
        for (module, name), entry in list(self._entries.items()):
            if entry.plugin or not any(_is_within(module, run) for run in _run):
                self._add(name, entry)

    def code(self, name: str) -> str | None:
        """The digest of the plugin that registered this; None for what is ours. Raises UserError for what no plugin
        did, whose code no identity would know and no other process would have.
        """
        entry = self._owners.get(name)
        if entry is None:
            return None
        if entry.plugin is None:
            raise UserError(
                f"the {self.what} '{name}' was registered outside a plugin",
                where=entry.place(),
                hint="Put it into a module of its own, and name that under `plugins` in the study.",
            )
        return entry.plugin.digest

    def place(self, name: str, error: BaseException | None = None) -> str | None:
        """Where this was registered, or where in that file an error came from, for errors; None for what is ours."""
        entry = self._owners.get(name)
        if entry is None:
            return None
        return entry.place(line_of(error, Path(entry.file)) if error else None)

    def tried(self, name: str, check: Callable[[T], None]) -> bool:
        """Whether this is a plugin's, and so has been tried by a check of its contract; ours are tested. Raises
        UserError for one that breaks it.
        """
        if self.code(name) is None:
            return False
        try:
            check(self[name])
        except UserError as error:
            raise UserError(error.what, where=error.where or self.place(name), hint=error.hint) from error
        except Exception as error:
            what = str(error) if isinstance(error, AssertionError) else f"it fails: {type(error).__name__}: {error}"
            raise UserError(
                f"the {self.what} '{name}' breaks its contract: {what}",
                where=self.place(name, error),
                hint=f"Correct it; `aligngap.testing.{check.__name__}` tries it again.",
            ) from error
        return True

    def known(self, name: str) -> str:
        """The name, if there is such a thing. Raises ValueError that says what there is, the nearest first, and
        UserError as `code` does.
        """
        if name not in self:
            raise ValueError(f"there is no {self.what} '{name}'. {nearest(name, self)}")
        self.code(name)
        return name


_NAME = re.compile("[A-Za-z][A-Za-z0-9_]*")


def kind_of(base: type, key: str) -> Callable[[str, object], str | None]:
    """For registries of classes: a registered class is a `base`, nothing in it is left abstract, and it says its name
    itself, as the attribute `key` or as that field's default.
    """

    def fault(name: str, value: object) -> str | None:
        if not isinstance(value, type) or not issubclass(value, base):
            return f"it is no subclass of {base.__name__}"
        if missing := sorted(getattr(value, "__abstractmethods__", ())):
            return f"it does not define {', '.join(missing)}"
        field = value.model_fields.get(key) if issubclass(value, BaseModel) else None
        own = field.default if field else getattr(value, key, None)
        return None if own == name else f"its {key} is {own!r}, not '{name}'"

    return fault


def function(name: str, value: object) -> str | None:
    """For registries of functions."""
    return None if callable(value) else "it is no function"


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


Registered = Mapping[str, Registry[Any]]
"""Fields that hold names, and the registries of these names."""


class Pluggable(BaseModel):
    """What a plugin may have a part in, by a class of its own or by a name that it has registered. Where an identity is
    asked for, by a dump in the context `IDENTITY`, the plugin's digest is part of it; this is the only way there.
    """

    registered: ClassVar[Registered] = {}

    @property
    def code(self) -> str | None:
        """The digest of the plugin that has a part in this; None for what is ours. Raises UserError as `Registry.code`
        does.
        """
        names = (registry.code(getattr(self, field)) for field, registry in self.registered.items())
        return code_of(type(self).__module__) or next(filter(None, names), None)

    @model_serializer(mode="wrap")
    def _with_code(self, handler: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        fields: dict[str, Any] = handler(self)
        code = self.code if (info.context or {}).get(IDENTITY) else None
        return fields | {"code": code} if code else fields


def loaded() -> list[tuple[str, Path | None]]:
    """The plugins of this process, as `load_plugins` takes them: for another process to do the same."""
    return [(plugin.name, plugin.search) for plugin in _loaded.values()]


def code_of(module: str) -> str | None:
    """The digest of the plugin that a module is, or is a part of; None for all other modules."""
    plugin = _plugin_of(module)
    return plugin.digest if plugin else None


def _plugin_of(module: str) -> Plugin | None:
    for plugin in _loaded.values():
        if any(_is_within(module, whole) for whole in (plugin.module, plugin.package) if whole):
            return plugin
    return None


def _is_within(module: str, whole: str) -> bool:
    return module == whole or module.startswith(f"{whole}.")


def installed() -> list[str]:
    """Modules that installed packages offer as plugins."""
    return sorted({point.module for point in entry_points(group=GROUP)})


def load_plugins(names: Sequence[str], search: Path | None = None) -> None:
    """Import plugins, each once as long as its source stays the same. search: the study's folder, looked at first.

    Raises UserError for a module that is not there, cannot be imported, or registers what cannot be.
    """
    for name in names:
        source = find_module(name, search)
        digest = source_digest(source)
        before = _loaded.pop(name, None)
        _loaded[name] = Plugin(name, search, _own_name(source, digest), _package(source), digest)
        if _loaded[name] == before:
            continue
        try:
            _refresh()  # what an earlier version registered is gone; what this one did, if it has been run, is here
            load_module(source, search)
        except BaseException:
            del _loaded[name]
            _refresh()
            raise


def use_plugins(names: Sequence[str], search: Path | None = None) -> None:
    """As `load_plugins`, of the installed packages too; and of no others, which another study had in this process."""
    wanted = [*installed(), *names]
    for name in set(_loaded) - set(wanted):
        del _loaded[name]
    _refresh()
    load_plugins(wanted, search)


def _refresh() -> None:
    for registry in _registries:
        registry.refresh()


def source_digest(source: ModuleSpec) -> str:
    """Of a module's file; of all Python files of the package, if the module is one or is in one."""
    path = Path(str(source.origin))
    depth = source.name.count(".") + (source.submodule_search_locations is not None)
    if not depth:
        return file_digest(path)
    root = path.parents[depth - 1]
    lines = (f"{file.relative_to(root).as_posix()}:{file_digest(file)}\n" for file in sorted(root.rglob("*.py")))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _package(source: ModuleSpec) -> str | None:
    top, dot, _ = source.name.partition(".")
    return top if dot or source.submodule_search_locations is not None else None


def _own_name(source: ModuleSpec, digest: str) -> str:
    return f"{source.name}_{hashlib.sha256(f'{source.origin}:{digest}'.encode()).hexdigest()[:12]}"


def find_module(name: str, search: Path | None) -> ModuleSpec:
    """Where a module's source is: in the search folder, or wherever Python finds modules. Nothing is imported, not even
    the packages above it: a study that is somebody else's may name any. Raises UserError.
    """
    where = f"module '{name}'"
    importlib.invalidate_caches()
    spec = _spec_of(name, [PathFinder], [str(search)]) if search is not None else None
    spec = spec or _spec_of(name, sys.meta_path, None)
    if spec is None:
        places = f"neither beside the study file ({search}) nor" if search is not None else "not"
        raise UserError(
            f"there is no such module: {places} where Python looks",
            where=where,
            hint="Put the file beside the study, or install its package in the same environment.",
        )
    if spec.origin is None or not spec.origin.endswith(".py") or not Path(spec.origin).is_file():
        raise UserError(
            "the module has no Python source file, which is part of every result's identity",
            where=where,
            hint="Write a module of your own that calls it.",
        )
    return spec


def _spec_of(name: str, finders: Sequence[Any], places: Sequence[str] | None) -> ModuleSpec | None:
    """places: where the outermost package is looked for; None is wherever Python looks."""
    spec, whole = None, ""
    for part in name.split("."):
        whole = f"{whole}.{part}" if whole else part
        candidates = (finder.find_spec(whole, places) for finder in finders if hasattr(finder, "find_spec"))
        spec = next((candidate for candidate in candidates if candidate is not None), None)
        if spec is None:
            return None
        places = list(spec.submodule_search_locations or [])
    return spec


def load_module(source: ModuleSpec, search: Path | None) -> ModuleType:
    """Runs a module's source file as it is now.

    The ordinary import would keep what it once loaded under the same name, from another folder or from the same file
    before it was edited; an identity says what is in the file. So the module goes by a name of its own, with its
    place and source in it. Raises UserError, which names the line, when it cannot be run.
    """
    path = Path(str(source.origin))
    name = _own_name(source, source_digest(source))
    if name in sys.modules:
        return sys.modules[name]
    if search is not None and str(search) not in sys.path:
        sys.path.append(str(search))  # for what it imports; behind all else, so that it hides nothing
    spec = spec_from_file_location(name, path, submodule_search_locations=source.submodule_search_locations)
    assert spec is not None
    module = module_from_spec(spec)
    sys.modules[name] = module
    _run.add(name)
    try:
        exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, UserError) or not isinstance(error, Exception | SystemExit):
            raise
        words = traceback.format_exception_only(error)[-1].strip()
        line = line_of(error, path)
        where = f"module '{source.name}' ({path.name}{f', line {line}' if line else ''})"
        raise UserError(f"the module cannot be imported: {words}", where=where, hint="Correct the module.") from error
    return module


def line_of(error: BaseException, path: Path) -> int | None:
    """The last line of a file that an error came through; None where it did not."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return error.lineno
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return lines[-1] if lines else None
