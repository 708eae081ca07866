"""How figures look, on the page and in images: names, colours, shapes, dashes and quiet axes.

Colours come from a `Theme`, in the page as CSS variables, so that dark mode and printing are matters of style alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from aligngap.results import FAMILIES, JUDGES, StudyResults

OPPONENT_NAMES = {"golden_policy": "the golden policy", "sft": "the SFT policy"}
JUDGE_NAMES = {"golden": "Golden judge", "true": "True utility", "proxy": "Proxy judge"}
SPLIT_NAMES = {"held_out": "held-out prompts", "train": "train prompts"}
FAMILY_NAMES = {
    "online": "Online",
    "offline": "Offline",
    "offline_proxy": "Offline, proxy's labels",
    "replay": "Replay, exact order",
    "shuffled": "Replay, shuffled",
    "golden_policy": "Golden policy",
}

#: On a light and on a dark ground, each at least 3:1 against it. The first six follow Okabe and Ito, told apart with
#: every common kind of colour blindness; after the proxy judge's come those for families that a study adds.
HUES = (
    ("#0072B2", "#4BA3E3"),
    ("#D55E00", "#FF8A4C"),
    ("#C2609A", "#EDA3CB"),
    ("#2E95D3", "#A5D8FF"),
    ("#009E73", "#35C99B"),
    ("#B88700", "#F0C24B"),
    ("#B4508A", "#F29CCB"),
    ("#4F3FB0", "#A79BF0"),
    ("#8A5A2B", "#D9B36C"),
    ("#1F8A94", "#6FD3DC"),
    ("#882255", "#E27FA8"),
    ("#7F7F1A", "#D6D66F"),
    ("#6E7781", "#A8B0B8"),
    ("#117733", "#7CCB8C"),
)
JUDGE_HUES = {"golden": 5, "true": 4, "proxy": 6}
_JUDGE_SHAPES = ("circle", "diamond", "triangle-up")
_SPARE_HUES = range(7, 14)
_SHAPES = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "triangle-right", "triangle-left")
_SOLID = (1, 0)
_DASHES = ((6, 3), (2, 2), (8, 3, 2, 3))

#: The shapes of Vega, as paths about the origin.
GLYPHS = {
    "circle": "M-4.5,0a4.5,4.5 0 1,0 9,0a4.5,4.5 0 1,0 -9,0",
    "square": "M-4,-4H4V4H-4Z",
    "triangle-up": "M0,-5L5,4H-5Z",
    "triangle-down": "M0,5L5,-4H-5Z",
    "triangle-right": "M5,0L-4,5V-5Z",
    "triangle-left": "M-5,0L4,5V-5Z",
    "diamond": "M0,-5.5L4.5,0L0,5.5L-4.5,0Z",
    "cross": "M-2,-5H2V-2H5V2H2V5H-2V2H-5V-2H-2Z",
    "stroke": "M-5,-1.5H5V1.5H-5Z",
}


@dataclass(frozen=True)
class Style:
    """How a family or a series is told apart: by hue (an index into `HUES`), shape and dash, never by one alone."""

    hue: int
    shape: str
    dash: tuple[int, ...] = _SOLID


_FAMILY_STYLES = {name: Style(index, _SHAPES[index]) for index, name in enumerate(FAMILIES)}


def styles(names: Sequence[str], families: Sequence[str] = ()) -> dict[str, Style]:
    """A style for each name. Those that are (or are labelled as) one of `families`, a family of the paper or a judge
    have that one's; others go through hues, shapes and dashes, of which no two among the first 168 share all.
    """
    known = _FAMILY_STYLES | (styles(families) if families else {})
    known |= {family_name(family).lower(): style for family, style in known.items()}
    known |= {JUDGE_NAMES[judge].lower(): style for judge, style in judge_styles().items()}
    result = {name: known[key] for name in names for key in (name, name.lower()) if key in known}
    # Solid lines are for what is known, where there is any.
    dashes = _DASHES if result else (_SOLID, *_DASHES)
    for index, name in enumerate(name for name in names if name not in result):
        hue = _SPARE_HUES[index % len(_SPARE_HUES)]
        dash = dashes[index // len(_SPARE_HUES) % len(dashes)]
        result[name] = Style(hue, _SHAPES[index % len(_SHAPES)], dash)
    return {name: result[name] for name in names}


def judge_styles() -> dict[str, Style]:
    return {j: Style(JUDGE_HUES[j], shape) for j, shape in zip(JUDGES, _JUDGE_SHAPES, strict=True)}


def family_name(family: str) -> str:
    return FAMILY_NAMES.get(family, family.replace("_", " ").capitalize())


@dataclass(frozen=True)
class Theme:
    """Colours as a drawing takes them (hexadecimal for images, CSS variables for the page), and what a report's charts
    have in common: its families and seeds. own: name and style of families that the report knows better.
    """

    ink: str
    muted: str
    grid: str
    hues: tuple[str, ...]
    families: tuple[str, ...]
    seeds: tuple[int, ...]
    own: tuple[tuple[str, str, Style], ...] = ()

    @classmethod
    def for_images(cls, data: StudyResults) -> Theme:
        light = tuple(light for light, _ in HUES)
        return cls("#22262b", "#5d6670", "#e6e8eb", light, tuple(data.families), tuple(data.seeds))

    @classmethod
    def for_page(cls, data: StudyResults, own: tuple[tuple[str, str, Style], ...] = ()) -> Theme:
        variables = tuple(f"var(--hue-{index})" for index in range(len(HUES)))
        return cls("var(--ink)", "var(--muted)", "var(--grid)", variables, tuple(data.families), tuple(data.seeds), own)

    @property
    def names(self) -> dict[str, str]:
        """What each family is called."""
        return {family: family_name(family) for family in self.families} | {name: label for name, label, _ in self.own}

    @property
    def styles(self) -> dict[str, Style]:
        """How each family is told apart."""
        return styles(self.families) | {name: style for name, _, style in self.own}


def config(theme: Theme) -> dict[str, Any]:
    """How every chart looks: quiet axes, light grid, no frame."""
    font = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
    return {
        "background": "transparent",
        "font": font,
        "view": {"stroke": None},
        "axis": {
            "labelColor": theme.muted,
            "titleColor": theme.muted,
            "titleFontWeight": "normal",
            "titleFontSize": 12,
            "titlePadding": 10,
            "labelFontSize": 11,
            "domainColor": theme.grid,
            "tickColor": theme.grid,
            "gridColor": theme.grid,
            "tickSize": 4,
            "labelPadding": 5,
        },
        "legend": {"labelColor": theme.ink, "labelFontSize": 11, "symbolSize": 60, "labelLimit": 220},
        "title": {"color": theme.ink, "fontSize": 13, "fontWeight": 600, "anchor": "start", "offset": 10},
    }
