"""A language model behind an OpenAI-compatible HTTP endpoint as a judge.

Every pair is asked about in both orders; answers are kept on disk, so that no question is paid for twice. The key comes
from an environment variable and goes into the request's header, nowhere else.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn, TypeVar
from urllib.parse import urlsplit

import torch
from pydantic import BaseModel, ConfigDict, Field, JsonValue, SecretStr, ValidationError, field_validator
from transformers import PreTrainedTokenizerBase

from aligngap.errors import UserError
from aligngap.judges.base import Orders, decision, share
from aligngap.judges.spec import JudgeIngredients, JudgeSpec
from aligngap.judges.text import TextJudge
from aligngap.judges.verdicts import Verdicts
from aligngap.judges.wire import Completion, Usage, lasting, post, retry_after, trouble
from aligngap.store.identity import canonical
from aligngap.types import Tokens

if TYPE_CHECKING:
    from httpx2 import AsyncClient, Request

T = TypeVar("T")

TEMPLATE = """\
You are given a request and two answers to it, A and B. Decide which answer is better. Judge only how well each \
answers the request; neither the order of the answers nor their length matters by itself.

[Request]
{prompt}
[End of request]

[Answer A]
{a}
[End of answer A]

[Answer B]
{b}
[End of answer B]

Which answer is better? Reply with nothing but A, B or tie."""

ANSWER = r"\W*(A|B|tie)\W*"

_VERDICTS = {"a": 1, "b": -1, "tie": 0}
_REFUSED = 2
"""Kept in a verdict's place for a question that the endpoint did not take."""
# Statuses that pass: the request took too long, came too early or too often; so do those of the server's own trouble.
_PASSING = frozenset({408, 409, 425, 429})
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0
# Shares are of at least so many questions: one odd answer among a few is no sign that the endpoint cannot judge.
_FEW = 20
# So many first questions refused, and none answered, are the request's fault and not the questions'.
_FIRST = 3
_JITTER = random.Random()


class Prices(BaseModel):
    """What a million tokens cost, in any currency."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    prompt: float = Field(ge=0)
    completion: float = Field(ge=0)


class EndpointJudgeSpec(JudgeSpec):
    """An endpoint that answers `POST {url}/chat/completions` as OpenAI's does.

    url: up to and with the version, as in https://api.openai.com/v1. key_variable: the environment variable that holds
    the key; null sends none. template: the question, with `{prompt}`, `{a}` and `{b}`. answer: a pattern that the whole
    reply must match, in either case; its group says A, B or tie. options: further fields of the request.

    repeats: how often a question is asked again when the reply is no answer, before the pair counts as undecided, a
    tie. undecided: the largest share of questions without an answer; beyond it the judge fails.

    concurrency: requests at a time, of each process. timeout: seconds that one request may take. retries: how often a
    request that failed is sent again. patience: seconds that a question may take with all its requests and waits.
    """

    kind: Literal["endpoint"] = "endpoint"

    url: str
    model: str
    key_variable: str | None = None
    template: str = TEMPLATE
    answer: str = ANSWER
    temperature: float | None = Field(0.0, ge=0)
    max_tokens: int | None = Field(16, ge=1)
    options: dict[str, JsonValue] = Field(default_factory=dict)
    repeats: int = Field(2, ge=0)
    undecided: float = Field(0.05, ge=0, le=1)
    concurrency: int = Field(8, ge=1)
    timeout: float = Field(60.0, gt=0)
    retries: int = Field(6, ge=0)
    patience: float = Field(300.0, gt=0)
    prices: Prices | None = None

    @field_validator("url")
    @classmethod
    def _address(cls, value: str) -> str:
        parts = urlsplit(value)
        try:
            fits = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:  # a port that is no number
            fits = False
        if not fits:
            raise ValueError("the url must be an address such as https://api.openai.com/v1")
        if parts.query or parts.fragment or parts.username or parts.password:
            # It is part of the identity, which is written down: a key in it would be, too.
            raise ValueError("the url must hold no key, password or query; a key comes from key_variable")
        return value.rstrip("/").removesuffix("/chat/completions")

    @field_validator("key_variable")
    @classmethod
    def _name(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):
            raise ValueError("key_variable is the name of an environment variable, never the key itself")
        return value

    @field_validator("template")
    @classmethod
    def _filled(cls, value: str) -> str:
        if missing := [field for field in ("{prompt}", "{a}", "{b}") if field not in value]:
            raise ValueError(f"the template lacks {', '.join(missing)}")
        return value

    @field_validator("answer")
    @classmethod
    def _pattern(cls, value: str) -> str:
        try:
            groups = re.compile(value).groups
        except re.error as error:
            raise ValueError(f"the pattern is broken: {error}") from None
        if groups != 1:
            raise ValueError(f"the pattern must have one group, which says A, B or tie; it has {groups}")
        return value

    @field_validator("options")
    @classmethod
    def _further(cls, value: dict[str, JsonValue]) -> dict[str, JsonValue]:
        for name in ("model", "messages", "temperature", "max_tokens", "stream", "n"):
            if name in value:
                raise ValueError(
                    f"'{name}' is none of the further options; it has a key of its own, or must not change"
                )
        canonical(value)
        return value

    def identity(self, search: Path | None = None) -> dict[str, object]:
        """Where and what is asked, and how replies are read; never key, waits, limits or prices."""
        decisive = {"kind", "url", "model", "answer", "temperature", "max_tokens", "options", "repeats"}
        return {**self.model_dump(include=decisive), "template": hashlib.sha256(self.template.encode()).hexdigest()}

    def build(self, given: JudgeIngredients) -> EndpointJudge:
        try:
            import anyio  # noqa: F401
            import httpx2  # noqa: F401
        except ImportError as error:
            raise UserError(
                f"the endpoint judge needs a package that is not installed: {error.name}",
                where="judge: {kind: endpoint}",
                hint="pip install 'aligngap[endpoint]'",
            ) from None
        return EndpointJudge(given.tokenizer, self, self._key(), given.cache)

    def _key(self) -> SecretStr | None:
        if self.key_variable is None:
            return None
        key = os.environ.get(self.key_variable, "").strip()
        where = f"judge endpoint {self.url}"
        if not key:
            raise UserError(
                f"the environment variable {self.key_variable} is not set",
                where=where,
                hint="Set it to the endpoint's key before the run starts.",
            )
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise UserError(
                f"the environment variable {self.key_variable} holds no key that a header could carry",
                where=where,
                hint="Set it to the key alone.",
            )
        # What is shorter is a stand-in for a server that wants none, and may well be a word of the template.
        if len(key) >= 8 and key in json.dumps(self.model_dump(mode="json")):
            raise UserError(
                f"the key in {self.key_variable} is written in the study as well",
                where=where,
                hint="Take it out there: what a study says is written into every result.",
            )
        return SecretStr(key)


@dataclass
class _Question:
    """One order of one pair. trouble: why there is no answer yet, in words for an error."""

    text: str
    key: str
    trouble: str = "no answer yet"


class _Refused(Exception):
    """The endpoint does not take this one question: a content filter, say, or too long a text."""


class EndpointJudge(TextJudge):
    """Asks an endpoint about both orders of every pair.

    The margin is the mean of both orders' verdicts, seen from the first response: 1, 0.5 (preferred in one order, a tie
    in the other), 0 (ties, or each order prefers another response), and so on. A pair of which one order is undecided
    is a tie.

    `spent`: requests (all that were sent), cached (questions that needed none), undecided, refused (of those),
    prompt_tokens and completion_tokens (by the endpoint's own count), unmetered (replies without one); cost, if there
    are prices.

    Raises UserError when the endpoint refuses, stays away, or gives no decision on too many questions.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        spec: EndpointJudgeSpec,
        key: SecretStr | None = None,
        cache: Path | None = None,
    ) -> None:
        super().__init__(tokenizer)
        self.spec, self._key, self._cache = spec, key, cache
        self._pattern = re.compile(spec.answer, re.IGNORECASE)
        self._asked = 0
        self._reached = self._answered = False
        names = ("requests", "cached", "undecided", "refused", "prompt_tokens", "completion_tokens", "unmetered")
        self.spent = dict.fromkeys((*names, "cost") if spec.prices else names, 0.0)

    def likelihood(self, margin: torch.Tensor) -> torch.Tensor:
        """Mean over both orders, a tie counting one half; float32 [n]."""
        return share(margin)

    def compare_texts(self, prompts: list[str], first: list[str], second: list[str]) -> list[float]:
        """Mean of both orders' verdicts, in [-1, 1]; [n]."""
        verdicts = self._both_orders(prompts, first, second)
        return [0.0 if a is None or b is None else (a - b) / 2 for a, b in verdicts]

    def compare_orders(self, prompts: Tokens, first: Tokens, second: Tokens) -> Orders:
        """The verdict of either order; one half where there is none."""
        texts = ([self.read_prompt(ids) for ids in prompts.rows()], self._responses(first), self._responses(second))
        verdicts = self._both_orders(*texts)
        forward, backward = (torch.tensor([float(pair[order] or 0) for pair in verdicts]) for order in (0, 1))
        return decision(forward), decision(-backward)

    def _both_orders(
        self, prompts: list[str], first: list[str], second: list[str]
    ) -> list[tuple[int | None, int | None]]:
        """Verdicts on the response read first, when that is the first of the two and when it is the second."""
        rows = list(zip(prompts, first, second, strict=True))
        forward = [self._question(prompt, a, b) for prompt, a, b in rows]
        backward = [self._question(prompt, b, a) for prompt, a, b in rows]
        verdicts = self._verdicts({question.key: question for question in (*forward, *backward)})
        return [(verdicts[one.key], verdicts[other.key]) for one, other in zip(forward, backward, strict=True)]

    def _question(self, prompt: str, a: str, b: str) -> _Question:
        fields = {"{prompt}": prompt, "{a}": a, "{b}": b}
        # In one pass, so that a response that spells a field out is not filled in.
        text = re.sub(r"\{(prompt|a|b)\}", lambda field: fields[field[0]], self.spec.template)
        decisive = {"scheme": 1, "url": self.spec.url, "body": self._body(text), "answer": self.spec.answer}
        return _Question(text, hashlib.sha256(canonical(decisive).encode()).hexdigest())

    def _body(self, text: str) -> dict[str, object]:
        body: dict[str, object] = {"model": self.spec.model, "messages": [{"role": "user", "content": text}]}
        given = {"temperature": self.spec.temperature, "max_tokens": self.spec.max_tokens}
        return body | {name: value for name, value in given.items() if value is not None} | self.spec.options

    def _verdicts(self, questions: dict[str, _Question]) -> dict[str, int | None]:
        """By the questions' keys: 1 for A, -1 for B, 0 for a tie, None for no decision."""
        self._asked += len(questions)
        with Verdicts.opened(self._cache) as cache:
            verdicts = {key: verdict for key in questions if (verdict := cache.get(key)) is not None}
            self.spent["cached"] += len(verdicts)
            for key, verdict in verdicts.items():
                if verdict == _REFUSED:
                    self.spent["refused"] += 1
                    questions[key].trouble = "the endpoint had refused it in an earlier run"
                    self._count_undecided(questions[key])
            if left := [question for key, question in questions.items() if key not in verdicts]:
                verdicts |= _run(lambda: self._ask(left, cache))
        return {key: None if (verdict := verdicts.get(key)) == _REFUSED else verdict for key in questions}

    async def _ask(self, questions: Sequence[_Question], cache: Verdicts) -> dict[str, int]:
        """The decisions there are. The first failure ends all that is under way."""
        import anyio
        import httpx2

        places = anyio.CapacityLimiter(self.spec.concurrency)
        verdicts: dict[str, int] = {}

        refused: list[_Question] = []

        async def answer(question: _Question) -> None:
            async with places:
                try:
                    verdict = await self._decided(client, question)
                except _Refused:
                    refused.append(question)
                    if not self._answered and len(refused) >= _FIRST:
                        self._fail(question.trouble, "request")
                    return
            if verdict is None:
                self._count_undecided(question)
            else:
                # What another process was told first counts, so that all give the same answer from now on.
                verdicts[question.key] = cache.keep(question.key, verdict)

        timeout = httpx2.Timeout(self.spec.timeout, pool=None)
        async with (
            httpx2.AsyncClient(auth=self._sign, timeout=timeout) as client,
            anyio.create_task_group() as group,
        ):
            for question in questions:
                group.start_soon(answer, question)
        if refused and not self._answered:
            self._fail(refused[-1].trouble, "request")
        for question in refused:
            # Kept only now: where the endpoint takes no question at all, that says nothing of any one of them.
            verdicts[question.key] = cache.keep(question.key, _REFUSED)
            self.spent["refused"] += 1
            self._count_undecided(question)
        return verdicts

    def _sign(self, request: Request) -> Request:
        # The only place where the key is in the open.
        if self._key is not None:
            request.headers["Authorization"] = f"Bearer {self._key.get_secret_value()}"
        return request

    async def _decided(self, client: AsyncClient, question: _Question) -> int | None:
        """The verdict; None when no reply held one."""
        import anyio

        try:
            with anyio.fail_after(self.spec.patience) as scope:
                for _ in range(1 + self.spec.repeats):
                    reply, body = await self._reply(client, question, scope.deadline)
                    match = self._pattern.fullmatch(reply.strip())
                    verdict = _VERDICTS.get((match[1] or "").casefold()) if match else None
                    if verdict is not None:
                        return verdict
                    question.trouble = f"the reply was {self._quoted(reply or body)}"
        except TimeoutError:
            self._fail(f"no answer within {self.spec.patience:g} seconds: {question.trouble}", "patience")
        return None

    async def _reply(self, client: AsyncClient, question: _Question, deadline: float) -> tuple[str, str]:
        """The reply, and the whole response, after as many requests as it takes."""
        import anyio
        import httpx2

        content = json.dumps(self._body(question.text)).encode()
        for retry in range(1 + self.spec.retries):
            told_to_wait = 0.0
            self.spent["requests"] += 1
            try:
                with anyio.fail_after(self.spec.timeout):  # httpx limits each read, of which there may be many
                    status, headers, body = await post(client, f"{self.spec.url}/chat/completions", content)
            except (httpx2.RequestError, httpx2.InvalidURL, TimeoutError) as error:
                question.trouble = trouble(error, self.spec.timeout)
                if lasting(error, self._reached):
                    self._fail(question.trouble, "url")
            else:
                self._reached = True
                if 200 <= status < 300:
                    self._answered = True
                    return self._message(body), body.decode(errors="replace")
                question.trouble = f"HTTP status {status}, {self._quoted(body.decode(errors='replace'))}"
                if 300 <= status < 400:  # not followed: the key and the texts are for this address alone
                    elsewhere = self._quoted(headers.get("Location", ""))
                    self._fail(f"HTTP status {status}: it sends us on to {elsewhere}", "url")
                if status not in _PASSING and status < 500:
                    if status in (401, 405) or (status in (403, 404) and not self._answered):
                        self._fail(question.trouble, "key" if status in (401, 403) else "request")
                    raise _Refused
                told_to_wait = retry_after(headers.get("Retry-After", ""))
            if retry == self.spec.retries:
                break
            # Unlike waits, so that what was refused at once does not come back at once.
            own_wait = min(_FIRST_WAIT * 2**retry, _LONGEST_WAIT) * _JITTER.uniform(0.75, 1.0)
            wait = max(own_wait, told_to_wait)
            if anyio.current_time() + wait > deadline:
                self._fail(f"{question.trouble}; to try again in {wait:.0f} seconds would be too late", "patience")
            await anyio.sleep(wait)
        self._fail(f"{1 + self.spec.retries} requests failed, the last one so: {question.trouble}", "retries")

    def _message(self, body: bytes) -> str:
        """The assistant's words in a response's body, whose bill is counted; none in what is no chat completion."""
        try:
            completion = Completion.model_validate_json(body)
            usage = completion.usage
        except ValidationError:
            completion, usage = None, None
        try:
            bill = Usage.model_validate(usage)
        except ValidationError:
            self.spent["unmetered"] += 1
        else:
            self.spent["prompt_tokens"] += bill.prompt_tokens
            self.spent["completion_tokens"] += bill.completion_tokens
            if prices := self.spec.prices:
                millionths = bill.prompt_tokens * prices.prompt + bill.completion_tokens * prices.completion
                self.spent["cost"] += millionths / 1e6
        return completion.choices[0].message.text if completion is not None else ""

    def _count_undecided(self, question: _Question) -> None:
        self.spent["undecided"] += 1
        allowed = math.floor(self.spec.undecided * max(self._asked, _FEW) + 1e-9)
        if self.spent["undecided"] > allowed:
            self._fail(
                f"no decision on {self.spent['undecided']:.0f} of {self._asked} questions, of which {allowed} may be "
                f"without; the last time {question.trouble}",
                "undecided",
            )

    def _quoted(self, text: str) -> str:
        """Its beginning, for an error. Without the key, should the endpoint repeat it."""
        if self._key is not None:
            text = text.replace(self._key.get_secret_value(), "(key)")
        text = " ".join(text.split())
        return repr(text[:200] + ("..." if len(text) > 200 else "")) if text else "empty"

    def _fail(self, what: str, why: str) -> NoReturn:
        hints = {
            "key": f"Check the key in the environment variable {self.spec.key_variable}."
            if self.spec.key_variable
            else "Name the environment variable that holds the key: key_variable.",
            "url": "Check the url, and that the endpoint runs.",
            "request": "Check url, model and options: the endpoint does not take the request.",
            "retries": "Wait and run again: answers that came are kept. A lower concurrency may help.",
            "patience": "Wait and run again: answers that came are kept. Or give timeout and patience more seconds.",
            "undecided": "Change template, answer or max_tokens, take another model, or allow more (undecided).",
        }
        where = f"judge endpoint {self.spec.url}, model {self.spec.model}"
        raise UserError(what, where=where, hint=hints[why]) from None


def _run(work: Callable[[], Awaitable[T]]) -> T:
    """Runs asynchronous work to its end, in a thread of its own, for this one may have an event loop already, as in a
    notebook. An exception here, such as a signal's, cancels the work at once.
    """
    from anyio.from_thread import start_blocking_portal

    try:
        with start_blocking_portal() as portal:
            return portal.call(work)
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
    if isinstance(error, UserError):
        # Its words say it all; its past holds requests, and those the key.
        error.__context__ = None
        raise error.with_traceback(None)
    raise error
