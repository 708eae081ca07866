"""Families, series and judges look the same everywhere, and can be told apart."""

import pytest

from aligngap.report.style import HUES, JUDGE_HUES, styles
from unit.report.fixture_results import FURTHER


def test_families_are_told_apart_and_stay_as_they_are() -> None:
    families = ["offline", "online", *FURTHER]
    found = styles(families)
    assert found["online"] == styles(["online"])["online"]
    assert len(set(found.values())) == len(families)
    # Hue alone would not do: a reader may not see it.
    assert len({(style.shape, style.dash) for style in styles(FURTHER[:7]).values()}) == 7


def test_a_series_looks_like_the_family_or_the_judge_it_is() -> None:
    families = ["online", *FURTHER]
    found = styles(["Window 16", "golden judge", "online", "of its own"], families)
    assert found["Window 16"] == styles(families)["window_16"]
    assert found["golden judge"].hue == JUDGE_HUES["golden"]
    assert found["of its own"] not in (found["Window 16"], found["golden judge"], found["online"])


@pytest.mark.parametrize(("ground", "column"), [("#ffffff", 0), ("#14171b", 1)])
def test_every_hue_can_be_seen_on_its_ground(ground: str, column: int) -> None:
    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for pair in HUES:
        low, high = sorted((luminance(ground), luminance(pair[column])))
        assert (high + 0.05) / (low + 0.05) >= 3, pair
