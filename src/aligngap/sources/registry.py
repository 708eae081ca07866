"""The sources a study can name. A new source is one file and one entry here; a user's own module adds its by one line:
`SOURCES["mine"] = MySpec`.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, SerializeAsAny

from aligngap.plugins import Registry, kind_of, tagged
from aligngap.sources.base import SourceSpec
from aligngap.sources.mixture import MixtureSpec
from aligngap.sources.recorded import RecordedSpec
from aligngap.sources.sampled import SampledSpec

SOURCES: Registry[type[SourceSpec]] = Registry(
    "source",
    {"sampled": SampledSpec, "recorded": RecordedSpec, "mixture": MixtureSpec},
    kind_of(SourceSpec, "kind"),
)


def source_spec(value: object) -> SourceSpec:
    """The spec that a mapping with a `kind` stands for. Raises ValueError for an unknown kind or key."""
    return value if isinstance(value, SourceSpec) else tagged(SOURCES, value, "{kind: sampled, sync_period: 4}")


AnySource = Annotated[SerializeAsAny[SourceSpec], BeforeValidator(source_spec)]
"""A field of this type takes any source that is registered when it is read."""
