"""What every world must do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np

from aligngap.models.tokenizer import SPECIAL_TOKENS, word_tokenizer
from aligngap.tasks.spec import response_ids
from aligngap.tasks.worlds.base import Appraisal, Dials, World, Writer, Written
from aligngap.testing.contract import Broken, must, run

_TRIES = 200


def check_world(place: World | type[World]) -> None:
    """Raises Broken, which says how, for a world that studies cannot use as they use ours."""
    run(WORLD_CHECKS, place() if isinstance(place, type) else place)


def says_what_it_is(place: World) -> None:
    """Its limits, its vocabulary and its writers."""
    must(place.max_response_tokens >= 2, "max_response_tokens leaves no room for a word and the end")
    must(place.rater_temperature > 0, "rater_temperature is not above 0")
    words = list(place.words())
    must(bool(words) and len(set(words)) == len(words), "words() is empty, or names a word twice")
    bad = [word for word in words if not word or word.split() != [word] or word in SPECIAL_TOKENS]
    must(not bad, f"words() holds {bad[:1]}, which is no single word, or a special token's name")
    must(list(place.words()) == words, "words() gives another order when asked again: token numbers depend on it")
    writers = list(place.writers())
    must(bool(writers) and all(isinstance(writer, Writer) for writer in writers), "writers() gives no Writer")
    must(len({writer.name for writer in writers}) == len(writers), "two writers have one name")


def asks_many_prompts_in_its_words(place: World) -> None:
    """Different ones, since a task takes each once; a function of the random stream alone."""
    prompts = _prompts(place)
    must(prompts == _prompts(place), "the same random stream gives another prompt")
    different = len(set(prompts))
    must(different > _TRIES // 2, f"only {different} of {_TRIES} prompts differ, and a task needs thousands")
    for prompt in prompts:
        _in_its_words(place, prompt, "a prompt")


def answers_in_its_words(place: World) -> None:
    """Every writer to every prompt, as a function of the random stream alone."""
    for number, prompt in enumerate(_prompts(place)[:60]):
        for writer in place.authors():
            one, two = (place.write(np.random.default_rng(number), prompt, writer) for _ in range(2))
            must(one == two, "the same random stream gives another response")
            _in_its_words(place, one.text, f"a response of writer '{writer.name}'")


def says_what_a_policy_can_say(place: World) -> None:
    """At every length that it may be set to: a policy goes on until it ends or has no token left, so a response lacks
    its end at exactly the limit and nowhere else. One that no policy could say is told from a policy's by that alone.
    """
    tokenizer = word_tokenizer(list(place.words()))
    lengths = range(2, place.max_response_tokens) if place.full_response_tokens else ()
    for world in (place, *(place.at(Dials(length=length)) for length in lengths)):
        for number, prompt in enumerate(_prompts(world)[:40]):
            for writer in world.authors():
                response = world.write(np.random.default_rng(number), prompt, writer)
                ids = response_ids(response, tokenizer)
                size = f"{len(ids)} of {world.limit} tokens"
                must(bool(ids), f"writer '{writer.name}' says nothing and does not end it")
                must(len(ids) <= world.limit, f"a response of writer '{writer.name}' is too long: {size}")
                whole = response.ended or len(ids) == world.limit
                must(whole, f"a response of writer '{writer.name}' has no end and {size}: no policy can say it")


def sets_its_dials(place: World) -> None:
    """Each changes what it is to change, and no more: complexity nothing that is written, style no writer's slips and
    no opener's or closer's share among all writers, length no prompt.
    """
    prompts, authors = _prompts(place)[:60], place.authors()
    for style in (0.0, 0.5, 1.0):
        styled = place.at(Dials(style=style))
        must(_prompts(styled)[:60] == prompts, "style changes a prompt")
        for one, other in zip(styled.authors(), authors, strict=True):
            must((one.name, one.slips) == (other.name, other.slips), f"style changes what writer '{one.name}' slips in")
        for habit in ("openers", "closers"):
            shares = [_shares([getattr(one, habit) for one in all_]) for all_ in (styled.authors(), authors)]
            must(all(abs(shares[0][word] - shares[1][word]) < 1e-9 for word in shares[1]), f"style changes {habit}")
    for complexity in range(1, place.most_complex + 1):
        easier, harder = (place.at(Dials(complexity=level)) for level in (complexity - 1, complexity))
        must(_prompts(harder)[:60] == prompts, "complexity changes a prompt")
        valued = 0
        for number, prompt in enumerate(prompts):
            for one, other in zip(authors, harder.authors(), strict=True):
                response = place.write(np.random.default_rng(number), prompt, one)
                again = harder.write(np.random.default_rng(number), prompt, other)
                must(again == response, "complexity changes a response")
                valued += harder.utility(prompt, response) != easier.utility(prompt, response)
        must(valued > 0, f"complexity {complexity} changes no response's utility")


def _shares(habits: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Each word's share among all writers, who write equally often."""
    return {
        word: sum(one.get(word, 0.0) / (sum(one.values()) or 1.0) for one in habits) / len(habits)
        for word in {word for one in habits for word in one}
    }


def values_any_text(place: World) -> None:
    """The true utility is a finite number for whatever a policy may write, and the same one when asked again."""
    rng = np.random.default_rng(0)
    known = [*place.words(), *SPECIAL_TOKENS, "Unheard-of"]
    texts = ["", " ", ".", *SPECIAL_TOKENS]
    texts += [" ".join(rng.choice(known, int(rng.integers(1, 20)))) for _ in range(_TRIES)]
    for text in texts:
        for ended in (True, False):
            response, prompt = Written(text, ended), place.prompt(rng)
            appraisal: object = place.appraise(prompt, response)
            must(isinstance(appraisal, Appraisal), f"appraise gives {type(appraisal).__name__}, not an Appraisal")
            value = place.utility(prompt, response)
            must(bool(np.isfinite(value)), f"the utility of {text!r} is {value}")
            must(place.utility(prompt, response) == value, "the same response has another utility when asked again")


def has_raters_who_feel_the_utility(place: World) -> None:
    """They prefer one of two, more often the better; and responses differ in what they are worth."""
    rng, writers = np.random.default_rng(0), list(place.writers())
    right = decided = 0
    for prompt in _prompts(place):
        first, second = (place.write(rng, prompt, writers[int(rng.integers(len(writers)))]) for _ in range(2))
        rated = place.rate(rng, prompt, first, second)
        must(rated in (0.0, 1.0), f"a rater says {rated}, not 1.0 for the first or 0.0 for the second")
        difference = place.utility(prompt, first) - place.utility(prompt, second)
        if difference:
            decided += 1
            right += (rated == 1.0) == (difference > 0)
    must(decided > _TRIES // 4, f"only {decided} of {_TRIES} pairs differ in utility: there is nothing to be learned")
    must(right > decided / 2, f"raters prefer the better response of only {right} in {decided} pairs")


def writes_documents_without_the_rater(place: World) -> None:
    """`document`, which bases learn from, asks neither rater nor writers, and is in the world's words."""
    documents = [place.document(np.random.default_rng(number)) for number in range(60)]

    def forbidden(*_: Any, **__: Any) -> NoReturn:
        raise Broken("document() asks rater or writers: a base would be taught what the rater values")

    names = ("appraise", "utility", "rate", "write", "writers")
    blind = type(type(place).__name__, (type(place),), dict.fromkeys(names, forbidden))()
    again = [blind.document(np.random.default_rng(number)) for number in range(60)]
    must(again == documents, "the same random stream gives another document")
    known = {*place.vocabulary(), *SPECIAL_TOKENS}
    for document in documents:
        unknown = [word for word in document.split() if word not in known]
        must(not unknown, f"a document uses {unknown[:1]}, which is not in vocabulary()")


def _prompts(place: World) -> list[str]:
    rng = np.random.default_rng(0)
    return [place.prompt(rng) for _ in range(_TRIES)]


def _in_its_words(place: World, text: str, what: str) -> None:
    known = set(place.words())
    unknown = [word for word in text.split() if word not in known]
    must(not unknown, f"{what} uses {unknown[:1]}, which is not among words()")
    must(" ".join(text.split()) == text, f"{what} has other gaps than single spaces: its tokens would lose them")


WORLD_CHECKS: tuple[Callable[[World], None], ...] = (
    says_what_it_is,
    asks_many_prompts_in_its_words,
    answers_in_its_words,
    says_what_a_policy_can_say,
    sets_its_dials,
    values_any_text,
    has_raters_who_feel_the_utility,
    writes_documents_without_the_rater,
)
