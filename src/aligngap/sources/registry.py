"""The sources a study can name. A new source is one file and one entry here."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from aligngap.sources.mixture import MixtureSpec
from aligngap.sources.recorded import RecordedSpec
from aligngap.sources.sampled import SampledSpec

AnySource = Annotated[SampledSpec | RecordedSpec | MixtureSpec, Field(discriminator="kind")]
