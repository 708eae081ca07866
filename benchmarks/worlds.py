"""The tables and examples of docs/worlds.md: what writers say and raters feel, at each end of each dial.

    python -m benchmarks.worlds [examples] [tables | raters | shortcuts | writers | complexities | lengths | advantages]

Everything is of seed 0 and of the code as it is; no policy is trained, and no judge.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from aligngap.errors import UserError
from aligngap.seeds import numpy_stream
from aligngap.tasks.worlds import WORLDS, World, world
from aligngap.tasks.worlds.advantage import authors_at
from aligngap.tasks.worlds.base import Dials, Writer, Written
from aligngap.tasks.worlds.synonyms import SYNONYMS
from benchmarks.markdown import table

ADVANTAGES = (-0.25, 0.25, 0.5)


class Pairs(NamedTuple):
    """Prompts, two responses each, what these are worth, and whether a rater preferred the first."""

    prompts: list[str]
    responses: list[tuple[Written, Written]]
    utilities: NDArray[np.float64]
    preferred: NDArray[np.float64]

    @property
    def differences(self) -> NDArray[np.float64]:
        return self.utilities[:, 0] - self.utilities[:, 1]

    @classmethod
    def of(cls, place: World, count: int, authors: Sequence[Writer] | None = None) -> Pairs:
        """The first pairs of seed 0, as a task has them."""
        writers, texts = authors or place.authors(), dict[str, None]()
        rng = numpy_stream("task", place.name, "prompts", "pairs", 0)
        while len(texts) < count:
            texts[place.prompt(rng)] = None
        responses, utilities, preferred = [], [], []
        for number, prompt in enumerate(texts):
            draw = numpy_stream("task", place.name, "pair", "pairs", 0, 0, number)
            first, second = (place.write(draw, prompt, writers[int(draw.integers(len(writers)))]) for _ in range(2))
            preferred.append(place.rate(draw, prompt, first, second))
            responses.append((first, second))
            utilities.append([place.utility(prompt, first), place.utility(prompt, second)])
        return cls(list(texts), responses, np.array(utilities), np.array(preferred))


def examples(place: World) -> Iterator[str]:
    """The longest of some prompts, what writers say to it, and its worth at the ends of each dial."""
    rng = numpy_stream("task", place.name, "prompts", 0)
    prompt = max((place.prompt(rng) for _ in range(8)), key=lambda text: len(text.split()))
    yield f"prompt      {prompt}"
    yield f"other words {' '.join(SYNONYMS.get(word, word) for word in prompt.split())}"
    levels = [place.at(Dials(complexity=level)) for level in range(place.most_complex + 1)]
    yield f"{'':87}worth at complexity {'  '.join(f'{level:>5}' for level in range(len(levels)))}"
    for author in place.authors():
        response = _response(place, prompt, author)
        worth = "  ".join(f"{level.utility(prompt, response):5.2f}" for level in levels)
        yield f"{author.name:11} {_text(response):94}{worth}"
    best, worst = place.authors()[0], place.authors()[-1]
    for title, changed in (
        ("style 1", place.at(Dials(style=1))),
        ("length 2", place.at(Dials(length=2))),
        ("length 9", place.at(Dials(length=9))),
    ):
        for author in changed.authors():
            if author.name in (best.name, worst.name):
                yield _line(title, changed, prompt, author)
    for advantage in (-0.25, 0.25):
        for author in authors_at(place, advantage):
            if author.name in (best.name, worst.name):
                yield _line(f"advantage {advantage:+g}", place, prompt, author)


def _line(title: str, place: World, prompt: str, author: Writer) -> str:
    response = _response(place, prompt, author)
    return f"{title:15} {author.name:11} {_text(response):90}{place.utility(prompt, response):5.2f}"


def _response(place: World, prompt: str, author: Writer) -> Written:
    return place.write(numpy_stream("task", place.name, "example", author.name), prompt, author)


def _text(response: Written) -> str:
    return response.text if response.ended else f"{response.text} (cut)"


def raters() -> str:
    """How often raters agree with the true sign."""
    rows = []
    for name in WORLDS:
        pairs, place = Pairs.of(world(name), 4000), world(name)
        decided = pairs.differences != 0
        right = ((pairs.differences > 0) == (pairs.preferred == 1))[decided]
        error = float(np.sqrt(right.mean() * (1 - right.mean()) / len(right)))
        expected = _sure(pairs.differences, place)
        rows.append((name, f"{decided.mean():.1%}", f"{right.mean():.1%} ± {error:.1%}", f"{expected:.1%}"))
    columns = ("world", "pairs with u1 ≠ u2", "raters agree with the sign of u1 - u2", "what Bradley-Terry expects")
    return table(columns, rows)


def shortcuts() -> str:
    """What openers and closers alone say, at both ends of style."""
    rows = []
    for name in WORLDS:
        for style in (0.0, 1.0):
            place = world(name).at(Dials(style=style))
            pairs = Pairs.of(place, 8000)
            openers = {opener for author in place.authors() for opener in author.openers} - {""}
            habits = [[_habits(one, openers) for one in both] for both in pairs.responses]
            flat = [one for both in habits for one in both]
            utility = pairs.utilities.ravel()
            stopped = np.array([closer is not None for _, closer in flat])
            opening = _explained([opener for opener, _ in flat], utility)
            closing = _explained([str(closer) for _, closer in flat if closer is not None], utility[stopped])
            lengths = np.array([[len(one.text.split()) for one in both] for both in pairs.responses])
            shorter = np.where(lengths[:, 0] == lengths[:, 1], 0.5, lengths[:, 0] < lengths[:, 1])
            brevity = float(np.mean(np.where(pairs.preferred == 1, shorter, 1 - shorter)))
            blind = _by_habits(habits, pairs.preferred)
            rows.append((name, f"{style:g}", f"{blind:.1%}", f"{opening:.2f}", f"{closing:.2f}", f"{brevity:.1%}"))
    columns = (
        "world",
        "style",
        "opener and closer alone agree with raters",
        "variance between openers",
        "between closers",
        "preferring the shorter response agrees with raters",
    )
    return table(columns, rows)


def _habits(response: Written, openers: set[str]) -> tuple[str, str | None]:
    """Opener and, where there is a full stop, closer."""
    words, (_, stop, closer) = response.text.split(), response.text.partition(" .")
    return words[0] if words[0] in openers else "", closer.strip() if stop else None


def _explained(groups: Sequence[str], values: NDArray[np.float64]) -> float:
    """Share of the values' variance that lies between groups."""
    names = np.array(groups)
    parts = [values[names == name] for name in np.unique(names)]
    return float(sum(len(part) * (part.mean() - values.mean()) ** 2 for part in parts) / (len(values) * values.var()))


def _by_habits(habits: Sequence[Sequence[tuple[str, str | None]]], preferred: NDArray[np.float64]) -> float:
    """A logistic regression on openers and closers, fitted to the first half of the pairs: its agreement with raters
    on the other half, ties one half.
    """
    known = {habit: at for at, habit in enumerate(dict.fromkeys(_marks(one) for both in habits for one in both))}
    marks = {mark: at for at, mark in enumerate(dict.fromkeys(mark for pair in known for mark in pair))}
    x = np.zeros((len(habits), len(marks)))
    for row, both in enumerate(habits):
        for sign, one in zip((1, -1), both, strict=True):
            for mark in _marks(one):
                x[row, marks[mark]] += sign
    half, weights = len(x) // 2, np.zeros(len(marks))
    for _ in range(30):  # Newton's method, a little ridge
        chance = 1 / (1 + np.exp(-x[:half] @ weights))
        gradient = x[:half].T @ (preferred[:half] - chance) - 1e-2 * weights
        hessian = (x[:half] * (chance * (1 - chance))[:, None]).T @ x[:half] + 1e-2 * np.eye(len(marks))
        weights += np.linalg.solve(hessian, gradient)
    margin = x[half:] @ weights
    decided = np.where(np.abs(margin) < 1e-9, 0.5, margin > 0)
    return float(np.mean(np.where(preferred[half:] == 1, decided, 1 - decided)))


def _marks(habits: tuple[str, str | None]) -> tuple[str, str]:
    opener, closer = habits
    return f"opens {opener}", f"closes {closer}"


def complexities() -> str:
    """What complexity leaves as it is (raters) and what it changes (what the level before would say)."""
    rows = []
    for name in WORLDS:
        base = world(name)
        data = Pairs.of(base, 4000)
        before: NDArray[np.float64] | None = None
        for level in range(base.most_complex + 1):
            place = base.at(Dials(complexity=level))
            both = zip(data.prompts, data.responses, strict=True)
            u = np.array([[place.utility(prompt, one) for one in pair] for prompt, pair in both])
            d = u[:, 0] - u[:, 1]
            near = float(np.mean(np.abs(d) <= place.rater_temperature))
            alike = "" if before is None else f"{np.mean(((before > 0) == (d > 0))[(before != 0) & (d != 0)]):.1%}"
            rows.append((name, level, f"{u.mean():.2f}", f"{_sure(d, place):.1%}", f"{near:.1%}", alike))
            before = d
    columns = (
        "world",
        "complexity",
        "mean utility",
        "raters agree with the true sign, as Bradley-Terry expects",
        "pairs within the temperature",
        "true signs that the level before says",
    )
    return table(columns, rows)


def lengths() -> str:
    """What the length leaves of the responses."""
    rows = []
    for name in WORLDS:
        base = world(name)
        for length in (2, 3, 5, 7, 9, 12, base.max_response_tokens):
            place = base.at(Dials(length=length))
            pairs = Pairs.of(place, 2000)
            unended = np.mean([not one.ended for both in pairs.responses for one in both])
            decided = np.mean(pairs.differences != 0)
            sure = f"{_sure(pairs.differences, place):.1%}"
            spread = f"{pairs.utilities.std():.2f}"
            rows.append(
                (name, length, f"{pairs.utilities.mean():.2f}", spread, f"{decided:.1%}", sure, f"{unended:.1%}")
            )
    columns = (
        "world",
        "length",
        "mean utility",
        "its sd",
        "pairs with u1 ≠ u2",
        "raters agree",
        "responses without an end",
    )
    return table(columns, rows)


def advantages() -> str:
    """How good better and worse writers are."""
    rows = []
    for name in WORLDS:
        place = world(name)
        own = Pairs.of(place, 4000)
        low, high = np.quantile(own.utilities, (0.1, 0.9))
        rows.append((name, "0", f"{own.utilities.mean():.2f}", "0", f"{np.mean(own.differences != 0):.1%}"))
        for advantage in ADVANTAGES:
            try:
                pairs = Pairs.of(place, 4000, authors_at(place, advantage))
            except UserError as error:
                rows.append((name, f"{advantage:+g}", "-", error.what.partition(": ")[2], "-"))
                continue
            mean, decided = pairs.utilities.mean(), np.mean(pairs.differences != 0)
            gained = (mean - own.utilities.mean()) / (high - low)
            rows.append((name, f"{advantage:+g}", f"{mean:.2f}", f"{gained:+.2f}", f"{decided:.1%}"))
    return table(("world", "advantage", "mean utility", "advantage measured", "pairs with u1 ≠ u2"), rows)


def writers() -> str:
    """Mean utility of every writer, over 4,000 prompts."""
    rows = []
    for name in WORLDS:
        place, rng = world(name), numpy_stream("task", name, "prompts", "pairs", 0)
        prompts = [place.prompt(rng) for _ in range(4000)]
        for author in place.authors():
            worth = [
                place.utility(prompt, place.write(numpy_stream("task", name, "writer", author.name, k), prompt, author))
                for k, prompt in enumerate(prompts)
            ]
            rows.append((name, author.name, f"{np.mean(worth):.2f}"))
    return table(("world", "writer", "mean utility"), rows)


def _sure(differences: NDArray[np.float64], place: World) -> float:
    """How often raters agree with the true sign where there is one, as Bradley-Terry has it."""
    decided = differences[differences != 0]
    return float(np.mean(1 / (1 + np.exp(-np.abs(decided) / place.rater_temperature))))


def main(what: Sequence[str]) -> None:
    """Print what is asked for; everything where nothing is."""
    tables = {one.__name__: one for one in (raters, shortcuts, writers, complexities, lengths, advantages)}
    asked = [name for name in tables if name in what or "tables" in what or not what]
    if "examples" in what or not what:
        for name in WORLDS:
            print(f"### {name}\n\n```\n{chr(10).join(examples(world(name)))}\n```\n")
    for name in asked:
        print(f"{tables[name]()}\n", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
