"""Numbers as a reader takes them, and what a number of seeds lets one conclude."""

from __future__ import annotations

from aligngap.results import number


def text_of_number(value: object) -> str:
    """Three significant digits, whole numbers in full, a real minus; "no data" for what is not a finite number."""
    plain = number(value)
    if plain is None:
        return "no data"
    if isinstance(value, int) or (plain.is_integer() and abs(plain) < 1e15):
        return f"{int(plain):,}".replace(",", "\u202f").replace("-", "−")
    if abs(plain) >= 100:
        return f"{plain:,.0f}".replace(",", "\u202f").replace("-", "−")
    text = f"{plain:.3g}"
    if "e" in text:
        mantissa, exponent = text.split("e")
        text = f"{mantissa}e{int(exponent)}"
    return text.replace("-", "−")


def text_of_setting(value: object) -> str:
    """A setting in full: rounding it would make the page useless for a repetition."""
    return "no data" if number(value) is None else str(value)


def text_of_share(value: object) -> str:
    plain = number(value)
    return "no data" if plain is None else f"{plain * 100:.1f}%".replace("-", "−")


def seeds_note(n_seeds: int) -> str:
    """What the number of seeds lets a reader conclude."""
    if n_seeds == 0:
        return "No run of this study has a seed: no data."
    if n_seeds == 1:
        return (
            "One seed. Every interval covers the choice of prompts only: another run of the same study could land "
            "elsewhere by more than the intervals show. Read the verdicts as a description of this run."
        )
    if n_seeds < 5:
        return (
            f"{n_seeds} seeds, fewer than five. Intervals cover seeds and prompts, by t quantiles for so few seeds: "
            "they are wide, and cost a lot of power."
        )
    return f"{n_seeds} seeds. Intervals resample seeds, paired between arms, and prompts."
