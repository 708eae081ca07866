"""Built-in worlds: embedded tasks whose rater's true utility is known. One world a file, one registry line each."""

from __future__ import annotations

from aligngap.errors import UserError, nearest
from aligngap.plugins import Registry, kind_of
from aligngap.tasks.worlds.arena import Arena
from aligngap.tasks.worlds.base import World, Writer
from aligngap.tasks.worlds.harmlessness import Harmlessness
from aligngap.tasks.worlds.helpfulness import Helpfulness
from aligngap.tasks.worlds.summarisation import Summarisation

WORLDS: Registry[type[World]] = Registry(
    "world",
    {
        "summarisation": Summarisation,
        "helpfulness": Helpfulness,
        "harmlessness": Harmlessness,
        "arena": Arena,
    },
    kind_of(World, "name"),
)
"""A user's own module adds its by one line: `WORLDS["mine"] = Mine`."""


def world(name: str) -> World:
    """The built-in world of this name. Raises UserError, naming the nearest known one."""
    if name not in WORLDS:
        raise UserError(f"there is no built-in world '{name}'", hint=nearest(name, WORLDS))
    return WORLDS[name]()


__all__ = ["WORLDS", "World", "Writer", "world"]
