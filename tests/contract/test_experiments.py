"""One contract for every experiment."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from aligngap.experiments.base import Experiment
from aligngap.experiments.registry import EXPERIMENTS
from aligngap.testing.experiments import EXPERIMENT_CHECKS


@pytest.mark.parametrize("check", EXPERIMENT_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_contract(name: str, check: Callable[[Experiment], None]) -> None:
    check(EXPERIMENTS[name])
