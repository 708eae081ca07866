"""A language model behind an HTTP endpoint as a judge, against a real server that answers well or badly."""

from __future__ import annotations

import email.utils
import json
import logging
import multiprocessing
import os
import pickle
import signal
import socket
import sqlite3
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from aligngap.errors import UserError
from aligngap.judges import endpoint, wire
from aligngap.judges.endpoint import EndpointJudge, EndpointJudgeSpec
from aligngap.judges.spec import JudgeIngredients
from unit.judges.server import Asked, ChatServer, Reply, answers, chat_server, longer, wait_for
from unit.judges.texts import bpe, sides

TOKENIZER = bpe(eos_token="</s>", bos_token="<s>", pad_token="<pad>")
KEY = "sk-secret-0123456789abcdef"
ROWS = [
    ("Which?", "a long answer", "short"),
    ("What?", "no", "a longer one"),
    ("How?", "four", "five"),
    ("Why?", "same", "same"),
]

Serve = Callable[[Callable[[Asked], Reply]], ChatServer]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short waits between tries, and no proxy between this machine and itself."""
    monkeypatch.setattr(endpoint, "_FIRST_WAIT", 0.01)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")


@pytest.fixture
def serve() -> Iterator[Serve]:
    servers: list[Any] = []

    def start(script: Callable[[Asked], Reply]) -> ChatServer:
        context = chat_server(script)
        servers.append(context)
        return context.__enter__()

    yield start
    for context in servers:
        context.__exit__(None, None, None)


def spec_of(url: str, **settings: Any) -> EndpointJudgeSpec:
    return EndpointJudgeSpec.model_validate({"url": url, "model": "judge-1"} | settings)


def judge(server: ChatServer, cache: Path | None = None, **settings: Any) -> EndpointJudge:
    return spec_of(server.url, **settings).build(JudgeIngredients(tokenizer=TOKENIZER, cache=cache))


def margins(made: EndpointJudge, rows: Any = ROWS) -> list[float]:
    return made.margin(*sides(TOKENIZER, rows)).tolist()


def many(count: int) -> list[tuple[str, str, str]]:
    return [(f"Question {k}?", "a long answer", "short") for k in range(count)]


# What is asked, and what is made of the answers


@pytest.mark.parametrize("status", [400, 403, 413, 422, 451])
@pytest.mark.parametrize("place", [0, 5])
def test_one_refused_question_is_undecided_and_kept(serve: Serve, tmp_path: Path, status: int, place: int) -> None:
    def script(asked: Asked) -> Reply:
        refused = f"Question {place}?" in asked.text
        return Reply(status=status, body=b'{"error": "content filter"}') if refused else longer(asked)

    if status == 403 and place == 0:
        return  # before any answer, that is a key's fault
    server = serve(script)
    made = judge(server, tmp_path, concurrency=1)
    expected = [0.0 if number == place else 1.0 for number in range(40)]
    assert margins(made, many(40)) == expected
    assert (made.spent["refused"], made.spent["undecided"]) == (2, 2)
    before = len(server.asked)
    again = judge(server, tmp_path)
    assert margins(again, many(40)) == expected
    assert len(server.asked) == before  # nor is it asked again
    assert again.spent["refused"] == 2


def test_many_refused_questions_end_the_run(serve: Serve) -> None:
    def script(asked: Asked) -> Reply:
        refuses = any(f"Question {n}?" in asked.text for n in range(30, 39))
        return Reply(status=400, body=b"no") if refuses else longer(asked)

    with pytest.raises(UserError, match="no decision on"):
        margins(judge(serve(script), concurrency=1), many(40))


def test_an_answer_in_parts_is_an_answer(serve: Serve) -> None:
    def script(asked: Asked) -> Reply:
        says = longer(asked).says
        content = [{"type": "text", "text": says}]
        choice = {"index": 0, "message": {"role": "assistant", "content": content}}
        return Reply(body=json.dumps({"choices": [choice]}).encode())

    assert margins(judge(serve(script))) == [1, -1, 0, 0]


def test_both_orders_are_asked_and_ties_are_ties(serve: Serve) -> None:
    server = serve(longer)
    made = judge(server)
    assert margins(made) == [1, -1, 0, 0]
    texts = sorted(answers(asked.text) for asked in server.asked)
    pairs = [(a, b) for _, a, b in ROWS[:3]]  # identical responses cost nothing
    assert texts == sorted([*pairs, *((b, a) for a, b in pairs)])
    assert made.calls == 4
    assert {asked.path for asked in server.asked} == {"/v1/chat/completions"}
    assert server.asked[0].body | {"messages": []} == {
        "model": "judge-1",
        "messages": [],
        "temperature": 0.0,
        "max_tokens": 16,
    }


def test_a_judge_that_likes_what_comes_first_decides_nothing(serve: Serve) -> None:
    assert margins(judge(serve(lambda asked: Reply("A")))) == [0, 0, 0, 0]


def test_position_bias_shows_in_either_order_and_kept_answers_cost_nothing(serve: Serve, tmp_path: Path) -> None:
    server = serve(lambda asked: Reply("A"))
    made = judge(server, tmp_path)
    rows = ROWS[:3]
    margins(made, rows)
    asked = len(server.asked)
    found = made.orders(*sides(TOKENIZER, rows))
    assert found is not None
    assert (found[0].tolist(), found[1].tolist()) == ([1, 1, 1], [0, 0, 0])
    assert len(server.asked) == asked
    fair = judge(serve(longer)).orders(*sides(TOKENIZER, rows))
    assert fair is not None
    assert (fair[0].tolist(), fair[1].tolist()) == ([1, 0, 0.5], [1, 0, 0.5])


def test_one_order_and_a_tie_in_the_other_is_a_weak_preference(serve: Serve) -> None:
    made = judge(serve(lambda asked: Reply("A" if answers(asked.text)[0] == "a long answer" else "tie")))
    tokens = sides(TOKENIZER, ROWS[:1])
    assert made.margin(*tokens).tolist() == [0.5]
    assert made.probability(*tokens).tolist() == [0.75]
    assert made.prefer(*tokens).tolist() == [1.0]


@pytest.mark.parametrize("says", ["A", " a\n", "**A**", "[[A]]", '"A".', "A!"])
def test_replies_may_be_dressed(serve: Serve, says: str) -> None:
    made = judge(serve(lambda asked: Reply(says) if answers(asked.text)[0] == "a long answer" else Reply("B")))
    assert margins(made, ROWS[:1]) == [1]
    assert made.spent["undecided"] == 0


GARBAGE = ["", "A or B", "AB", "Answer A", "C", "both", "tie A", "I prefer A.", "ties", None]


@pytest.mark.parametrize("says", GARBAGE, ids=repr)
def test_nothing_else_is_an_answer(serve: Serve, says: str | None) -> None:
    server = serve(lambda asked: Reply(says))
    with pytest.raises(UserError, match="no decision"):
        margins(judge(server, repeats=0), ROWS[:1])


def test_template_pattern_and_options_are_the_users(serve: Serve) -> None:
    server = serve(lambda asked: Reply("Let me think. B is short.\nVerdict: B"))
    made = judge(
        server,
        template="{b}|{a}|{prompt}|{not a field}",
        answer=r"(?s).*Verdict: (A|B|tie)",
        temperature=None,
        max_tokens=None,
        options={"max_completion_tokens": 500, "reasoning_effort": "low"},
    )
    assert margins(made, [("Which {a}?", "one {b}", "two {prompt}")]) == [0]
    texts = sorted(asked.text for asked in server.asked)
    assert texts == ["one {b}|two {prompt}|Which {a}?|{not a field}", "two {prompt}|one {b}|Which {a}?|{not a field}"]
    assert {name: value for name, value in server.asked[0].body.items() if name != "messages"} == {
        "model": "judge-1",
        "max_completion_tokens": 500,
        "reasoning_effort": "low",
    }


def test_equal_questions_are_asked_once(serve: Serve) -> None:
    server = serve(longer)
    turned = [(x, b, a) for x, a, b in ROWS]
    assert margins(judge(server), [*ROWS, *turned, *ROWS]) == [1, -1, 0, 0, -1, 1, 0, 0, 1, -1, 0, 0]
    assert len(server.asked) == 6


def test_odd_characters_arrive_whole(serve: Serve) -> None:
    server = serve(longer)
    margins(judge(server), [("東京 🙂?", 'say "ä\\n"', "x")])
    assert ('say "ä\\n"', "x") in [answers(asked.text) for asked in server.asked]
    assert all("東京 🙂?" in asked.text for asked in server.asked)


def test_no_more_requests_at_a_time_than_allowed(serve: Serve) -> None:
    def slow(asked: Asked) -> Reply:
        time.sleep(0.03)
        return longer(asked)

    server = serve(slow)
    start = time.monotonic()
    assert margins(judge(server, concurrency=3), many(9)) == [1] * 9
    assert server.most_at_once == 3
    assert time.monotonic() - start < 18 * 0.03 + 1  # side by side, not one after another


def test_it_works_where_an_event_loop_runs_already(serve: Serve) -> None:
    import asyncio

    made = judge(serve(longer))

    async def notebook() -> list[float]:
        return margins(made)

    assert asyncio.run(notebook()) == [1, -1, 0, 0]


# Costs


def test_what_it_spends_is_counted(serve: Serve) -> None:
    made = judge(serve(longer), prices={"prompt": 2.0, "completion": 10.0})
    margins(made)
    assert made.spent == {
        "requests": 6,
        "cached": 0,
        "undecided": 0,
        "refused": 0,
        "prompt_tokens": 600,
        "completion_tokens": 6,
        "unmetered": 0,
        "cost": pytest.approx((600 * 2 + 6 * 10) / 1e6),
    }


@pytest.mark.parametrize(
    "usage", [None, "free", {"prompt_tokens": "many"}, {"prompt_tokens": -1}, {"prompt_tokens": 10**400}, []]
)
def test_replies_without_a_count_are_counted_as_such(serve: Serve, usage: Any) -> None:
    made = judge(serve(lambda asked: Reply("tie", usage=usage)))
    assert margins(made, ROWS[:1]) == [0]
    assert (made.spent["unmetered"], made.spent["prompt_tokens"]) == (2, 0)
    assert "cost" not in made.spent


# Failures that pass


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 529])
def test_passing_failures_are_tried_again(serve: Serve, status: int) -> None:
    server = serve(lambda asked: Reply(status=status) if asked.number < 3 else longer(asked))
    made = judge(server)
    assert margins(made) == [1, -1, 0, 0]
    assert made.spent["requests"] == len(server.asked) == 9
    assert made.spent["prompt_tokens"] == 600


def test_dropped_connections_are_tried_again(serve: Serve) -> None:
    server = serve(lambda asked: Reply(drop=True) if asked.number < 4 else longer(asked))
    assert margins(judge(server)) == [1, -1, 0, 0]


@pytest.mark.parametrize(
    "broken",
    [Reply(longer_by=10), Reply(headers={"Content-Encoding": "gzip"}, body=b"not packed")],
    ids=["cut short", "not what it says"],
)
def test_a_body_that_breaks_off_is_asked_for_again(serve: Serve, broken: Reply) -> None:
    server = serve(lambda asked: broken if asked.number < 3 else longer(asked))
    assert margins(judge(server)) == [1, -1, 0, 0]
    assert len(server.asked) == 9


def test_a_stalled_request_is_tried_again(serve: Serve) -> None:
    server = serve(lambda asked: Reply(stall=20) if asked.number < 2 else longer(asked))
    assert margins(judge(server, timeout=0.3)) == [1, -1, 0, 0]
    assert len(server.asked) == 8


def date_in(seconds: float) -> str:
    return email.utils.formatdate(time.time() + seconds, usegmt=True)


@pytest.mark.parametrize("header", ["0.4", lambda: date_in(1.6)], ids=["seconds", "date"])
def test_it_waits_as_long_as_it_is_told(serve: Serve, header: Any) -> None:
    at: list[float] = []

    def script(asked: Asked) -> Reply:
        at.append(time.monotonic())
        value = header if isinstance(header, str) else header()
        return Reply(status=429, headers={"Retry-After": value}) if len(at) == 1 else longer(asked)

    assert margins(judge(serve(script), concurrency=1), ROWS[:1]) == [1]
    assert at[1] - at[0] >= 0.38


@pytest.mark.parametrize("header", ["", "soon", "-3", "nan", "inf", "Wed, 99 Foo"])
def test_a_senseless_wait_is_no_wait(serve: Serve, header: str) -> None:
    server = serve(
        lambda asked: Reply(status=503, headers={"Retry-After": header}) if asked.number == 0 else Reply("tie")
    )
    assert margins(judge(server), ROWS[:1]) == [0]


def test_a_wait_that_is_too_long_fails_at_once(serve: Serve) -> None:
    server = serve(lambda asked: Reply(status=429, headers={"Retry-After": "3600"}))
    start = time.monotonic()
    with pytest.raises(UserError, match="3600 seconds would be too late"):
        margins(judge(server))
    assert time.monotonic() - start < 5


# Failures that do not


def test_it_gives_up_after_so_many_tries(serve: Serve) -> None:
    server = serve(lambda asked: Reply(status=503, body=b"overloaded, come back later"))
    with pytest.raises(UserError) as caught:
        margins(judge(server, retries=2, concurrency=1))
    assert "3 requests failed" in str(caught.value)
    assert "503, 'overloaded, come back later'" in str(caught.value)
    assert len(server.asked) == 3


@pytest.mark.parametrize("reply", [Reply(stall=20), Reply("A", drip=0.15)], ids=["silent", "drop by drop"])
def test_an_endpoint_that_stalls_times_out(serve: Serve, reply: Reply) -> None:
    server = serve(lambda asked: reply)
    start = time.monotonic()
    with pytest.raises(UserError, match=r"no response within 0\.3 seconds"):
        margins(judge(server, timeout=0.3, retries=1))
    assert time.monotonic() - start < 5


def test_a_question_takes_no_longer_than_its_patience(serve: Serve) -> None:
    server = serve(lambda asked: Reply(stall=20))
    start = time.monotonic()
    with pytest.raises(UserError, match=r"no answer within 0\.5 seconds"):
        margins(judge(server, timeout=30, patience=0.5))
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("status", "hint", "asked"),
    [(400, "options", 3), (401, "key", 1), (403, "key", 1), (404, "url", 1), (422, "options", 3)],
)
def test_a_refusal_of_all_questions_fails_at_once(serve: Serve, status: int, hint: str, asked: int) -> None:
    server = serve(lambda asked: Reply(status=status, body=b'{"error": {"message": "I will not"}}'))
    with pytest.raises(UserError) as caught:
        margins(judge(server, concurrency=1))
    assert len(server.asked) == asked
    assert f"HTTP status {status}" in str(caught.value)
    assert "I will not" in str(caught.value)
    assert hint in str(caught.value.hint)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_nobody_is_followed_elsewhere(serve: Serve, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-test-0123456789")
    other = serve(longer)
    server = serve(lambda asked: Reply(status=status, headers={"Location": f"{other.url}/chat/completions"}))
    with pytest.raises(UserError) as caught:
        margins(judge(server, concurrency=1, key_variable="JUDGE_KEY"))
    assert (len(server.asked), len(other.asked)) == (1, 0)
    assert f"HTTP status {status}: it sends us on to '{other.url}/chat" in caught.value.what
    assert "url" in str(caught.value.hint)


def test_where_nothing_listens_it_fails_at_once() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # and does not listen
        url = f"http://127.0.0.1:{held.getsockname()[1]}/v1"
        made = spec_of(url, concurrency=1).build(JudgeIngredients(tokenizer=TOKENIZER))
        with pytest.raises(UserError, match="judge-1: the connection failed") as caught:
            margins(made)
        assert "requests failed" not in str(caught.value)
        assert "url" in str(caught.value.hint)


def test_an_endpoint_that_goes_away_is_waited_for(serve: Serve) -> None:
    server = serve(longer)
    made = judge(server, retries=2, concurrency=1)
    assert margins(made, ROWS[:1]) == [1]
    server.close()
    with pytest.raises(UserError, match=r"3 requests failed.*the connection failed"):
        margins(made, ROWS[1:])


def test_a_host_that_does_not_exist_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def resolve(host: Any, *arguments: Any, **options: Any) -> Any:
        asked.append(str(host))
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    made = spec_of("http://no-such-host.invalid/v1", concurrency=1).build(JudgeIngredients(tokenizer=TOKENIZER))
    with pytest.raises(UserError, match="Name or service not known"):
        margins(made)
    assert len(asked) <= 2  # both orders may be asked side by side; a retry of each would be many more


def test_a_server_that_speaks_no_http_is_a_clear_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def talk() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(65536)
                    connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")

        threading.Thread(target=talk, daemon=True).start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        made = spec_of(url, retries=1).build(JudgeIngredients(tokenizer=TOKENIZER))
        with pytest.raises(UserError, match="the connection failed"):
            margins(made)
        listening.shutdown(socket.SHUT_RDWR)


# Garbage


BODIES = [
    b"",
    b"<html>Welcome to nginx</html>",
    b"\xff\xfe\x00",
    b"[]",
    b'"A"',
    b"{}",
    b'{"choices": []}',
    b'{"choices": [{"message": {"content": "A"}}, {"message": {"content": "B"}}]}',
    b'{"choices": {"message": {"content": "A"}}}',
    b'{"choices": [{"message": null}]}',
    b'{"choices": [{"message": {"content": "A and B"}}]}',
    b'{"error": {"message": "overloaded"}}',
    b'{"choices": [{"text": "A"}]}',
    b'{"choices": [{"message": {"content": ["A"]}}]}',
    b'{"choices": [{"message": {"content": "A"}}',
    b"[" * 100_000,
]


@pytest.mark.parametrize("body", BODIES, ids=lambda body: repr(body[:40]))
def test_garbage_is_asked_again_then_no_decision_then_an_error(serve: Serve, body: bytes) -> None:
    server = serve(lambda asked: Reply(body=body))
    with pytest.raises(UserError) as caught:
        margins(judge(server, repeats=1, concurrency=1), ROWS[:1])
    assert len(server.asked) == 4  # two questions, each twice
    assert "no decision on 2 of 2 questions" in str(caught.value)


def test_the_error_shows_an_example(serve: Serve) -> None:
    server = serve(lambda asked: Reply("As a language model, I\ncannot choose. " + "la " * 10_000))
    with pytest.raises(UserError) as caught:
        margins(judge(server), ROWS[:1])
    assert "the reply was 'As a language model, I cannot choose. la la" in str(caught.value)
    assert len(str(caught.value)) < 800


def test_a_body_without_end_is_cut(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "_LARGEST_BODY", 1 << 16)
    server = serve(lambda asked: Reply(body=b"x" * (1 << 24)))
    with pytest.raises(UserError, match="no decision"):
        margins(judge(server, repeats=0), ROWS[:1])


def test_a_question_may_be_answered_at_the_second_time(serve: Serve) -> None:
    seen: set[str] = set()

    def script(asked: Asked) -> Reply:
        first = asked.text not in seen
        seen.add(asked.text)
        return Reply("Hm.") if first else longer(asked)

    made = judge(serve(script))
    assert margins(made) == [1, -1, 0, 0]
    assert (made.spent["requests"], made.spent["undecided"], made.spent["prompt_tokens"]) == (12, 0, 1200)


def undecided_about(numbers: set[int]) -> Callable[[Asked], Reply]:
    """No decision on these questions when the long answer comes first."""

    def script(asked: Asked) -> Reply:
        odd = any(f"Question {k}?" in asked.text for k in numbers) and answers(asked.text)[0] == "a long answer"
        return Reply("Hm.") if odd else longer(asked)

    return script


def test_a_few_undecided_are_ties(serve: Serve) -> None:
    made = judge(serve(undecided_about({3, 7})), undecided=0.1, repeats=1)
    found = margins(made, many(10))
    # The other order was decided, but one order alone says nothing: that is where position bias lives.
    assert found == [0.0 if k in (3, 7) else 1.0 for k in range(10)]
    assert made.spent["undecided"] == 2


def test_more_undecided_than_allowed_are_an_error(serve: Serve) -> None:
    with pytest.raises(UserError, match=r"no decision on 3 of 20 questions, of which 2 may be without"):
        margins(judge(serve(undecided_about({3, 5, 7})), undecided=0.1, repeats=0), many(10))


def test_the_share_is_of_all_that_was_asked(serve: Serve) -> None:
    made = judge(serve(undecided_about({0, 21, 22})), undecided=0.05, repeats=0)
    assert margins(made, many(20))[0] == 0
    assert margins(made, [(f"Question {k}?", "a long answer", "short") for k in range(20, 40)])[1:3] == [0, 0]
    assert (made.spent["undecided"], made.spent["requests"]) == (3, 80)


def test_an_endpoint_that_only_talks_nonsense_is_stopped_early(serve: Serve) -> None:
    server = serve(lambda asked: Reply("Hm."))
    with pytest.raises(UserError, match="no decision"):
        margins(judge(server, repeats=0, concurrency=2), many(100))
    assert len(server.asked) <= 10 + 1 + 2  # a twentieth of 200, one more, and what was under way


# What is kept


def test_nothing_is_asked_twice(serve: Serve, tmp_path: Path) -> None:
    server = serve(longer)
    made = judge(server, tmp_path / "new" / "cache")
    assert margins(made) == margins(made) == margins(judge(server, tmp_path / "new" / "cache")) == [1, -1, 0, 0]
    assert len(server.asked) == 6
    assert (made.spent["requests"], made.spent["cached"]) == (6, 6)
    # The other way round is the same two questions.
    assert margins(judge(server, tmp_path / "new" / "cache"), [(x, b, a) for x, a, b in ROWS]) == [-1, 1, 0, 0]
    assert len(server.asked) == 6


@pytest.mark.parametrize(
    "change",
    [
        {"model": "judge-2"},
        {"temperature": 0.5},
        {"temperature": None},
        {"max_tokens": 17},
        {"options": {"seed": 1}},
        {"template": endpoint.TEMPLATE + " "},
        {"answer": "(A|B|tie)"},
    ],
    ids=repr,
)
def test_what_decides_the_answer_is_asked_anew(serve: Serve, tmp_path: Path, change: dict[str, Any]) -> None:
    server = serve(longer)
    margins(judge(server, tmp_path))
    margins(judge(server, tmp_path, **change))
    assert len(server.asked) == 12


def test_what_does_not_decide_it_is_not(serve: Serve, tmp_path: Path) -> None:
    server = serve(longer)
    margins(judge(server, tmp_path))
    change = {"concurrency": 2, "timeout": 3, "retries": 1, "patience": 9, "prices": {"prompt": 1, "completion": 1}}
    margins(judge(server, tmp_path, **change))
    assert len(server.asked) == 6


def test_no_decision_is_not_kept(serve: Serve, tmp_path: Path) -> None:
    with pytest.raises(UserError):
        margins(judge(serve(lambda asked: Reply("Hm.")), tmp_path, repeats=0))
    server = serve(longer)
    # The same address, with an endpoint that is well again.
    made = EndpointJudge(TOKENIZER, spec_of(server.url), None, tmp_path)
    assert margins(made) == [1, -1, 0, 0]


def test_what_was_answered_before_a_failure_is_kept(serve: Serve, tmp_path: Path) -> None:
    ill = True

    def script(asked: Asked) -> Reply:
        return Reply(status=401) if ill and asked.number >= 5 else longer(asked)

    server = serve(script)
    with pytest.raises(UserError):
        margins(judge(server, tmp_path, concurrency=1), many(5))
    ill = False
    assert margins(judge(server, tmp_path), many(5)) == [1] * 5
    assert len(server.asked) == 6 + 5


def in_a_process(work: Callable[[], object]) -> tuple[BaseProcess, Connection]:
    """A fork of this process, which has all it needs; what `work` returns comes through the connection."""
    fork = multiprocessing.get_context("fork")
    receive, send = fork.Pipe(duplex=False)
    worker = fork.Process(target=lambda: send.send(work()))
    worker.start()
    return worker, receive


def test_several_processes_share_what_is_kept(serve: Serve, tmp_path: Path) -> None:
    """Each question's answer is by chance; once it is kept, all processes give it."""
    lock, flips = threading.Lock(), [0]

    def by_chance(asked: Asked) -> Reply:
        with lock:
            flips[0] += 1
            return Reply("AB"[flips[0] * 7919 % 13 % 2])

    server = serve(by_chance)
    running = [in_a_process(lambda: margins(judge(server, tmp_path), many(40))) for _ in range(3)]
    found = [received.recv() for _, received in running]
    for worker, _ in running:
        worker.join()
    assert found[0] == found[1] == found[2]
    assert len(set(found[0])) == 3
    with sqlite3.connect(tmp_path / "endpoint.sqlite") as database:
        assert database.execute("SELECT count(*) FROM verdicts").fetchone() == (80,)


def test_a_broken_file_of_answers_is_a_clear_error(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "endpoint.sqlite").write_bytes(b"this is no database, but long enough to look like one" * 100)
    with pytest.raises(UserError, match=r"endpoint\.sqlite.*cannot be used") as caught:
        margins(judge(serve(longer), tmp_path))
    assert "delete the file" in str(caught.value.hint)


def test_a_file_in_the_folders_place_is_a_clear_error(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(UserError, match="cannot be used"):
        margins(judge(serve(longer), tmp_path / "cache"))


# The key


def test_the_key_comes_from_the_environment_and_goes_into_the_header(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", KEY + "\n")
    server = serve(longer)
    margins(judge(server, key_variable="MY_KEY"))
    assert {asked.headers["Authorization"] for asked in server.asked} == {f"Bearer {KEY}"}


def test_without_a_variable_no_key_is_sent(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server = serve(longer)
    margins(judge(server))
    assert not any("authorization" in name.lower() for asked in server.asked for name in asked.headers)


@pytest.mark.parametrize(
    ("value", "says"), [(None, "not set"), ("  ", "not set"), ("two words", "no key"), ("ü", "no key")]
)
def test_a_key_that_is_none_is_an_error_before_anything_is_sent(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, value: str | None, says: str
) -> None:
    if value is not None:
        monkeypatch.setenv("MY_KEY", value)
    server = serve(longer)
    with pytest.raises(UserError, match=says) as caught:
        judge(server, key_variable="MY_KEY")
    assert "MY_KEY" in str(caught.value)
    assert value is None or not value.strip() or value not in str(caught.value)


def test_the_key_is_written_nowhere(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Not by an endpoint that repeats it in every way, nor by logs of the libraries."""
    monkeypatch.setenv("MY_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    replies = [
        Reply(status=401, body=f"Incorrect API key provided: {KEY}".encode()),
        Reply(status=500, body=f"key {KEY}".encode()),
        Reply(f"I like {KEY}"),
        Reply(body=KEY.encode()),
        Reply(stall=20),
        Reply("A", headers={"X-Key": "yours"}),
        Reply(f"{KEY}\nVerdict: A"),
    ]
    words: list[str] = []
    for number, reply in enumerate(replies):
        pattern = {"answer": r"(?s).*Verdict: (A|B|tie)"} if number == 6 else {}
        server = serve(lambda asked, reply=reply: reply)  # type: ignore[misc]
        made = judge(
            server, tmp_path / str(number), key_variable="MY_KEY", retries=0, repeats=0, patience=0.5, **pattern
        )
        words += [repr(made), repr(vars(made)), str(made.spec), json.dumps(made.spec.identity())]
        words.append(json.dumps(made.spec.model_dump(mode="json")))
        if number < 5:
            with pytest.raises(UserError) as caught:
                margins(made)
            error = caught.value
            words += [str(error), repr(error), pickle.dumps(error).decode("latin-1")]
            assert (error.__cause__, error.__context__) == (None, None)
            assert error.__traceback__ is not None
            ours = error.with_traceback(error.__traceback__.tb_next)  # this function's own variables hold the key
            words += traceback.TracebackException.from_exception(ours, capture_locals=True).format()
        else:
            margins(made)
    words += [record.getMessage() for record in caplog.records]
    assert not [text for text in words if KEY in text]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 7
    assert not [path for path in files if KEY.encode() in path.read_bytes()]


def test_a_key_in_the_study_is_refused(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    with pytest.raises(UserError, match="written in the study") as caught:
        judge(serve(longer), key_variable="MY_KEY", options={"user": KEY})
    assert KEY not in str(caught.value)


# Stopping


class Stopped(BaseException):
    """What a stage's process makes of SIGTERM."""


@pytest.mark.parametrize(("number", "says"), [(signal.SIGINT, "KeyboardInterrupt"), (signal.SIGTERM, "Stopped")])
def test_a_signal_ends_what_is_under_way(serve: Serve, number: signal.Signals, says: str) -> None:
    server = serve(lambda asked: Reply(stall=60))

    def stop(number: int, frame: object) -> None:
        raise Stopped

    def work() -> tuple[str, float]:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, stop)
        try:
            margins(judge(server), many(40))
        except (KeyboardInterrupt, Stopped) as error:
            return type(error).__name__, time.monotonic()
        return "nothing", 0.0

    worker, received = in_a_process(work)
    wait_for(lambda: server.at_once == 8, 60)
    start = time.monotonic()
    assert worker.pid is not None
    os.kill(worker.pid, number)
    name, end = received.recv()
    worker.join()
    assert (name, worker.exitcode) == (says, 0)
    assert end - start < 2


# The spec


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"url": "api.openai.com/v1"}, "address such as"),
        ({"url": "ftp://host/v1"}, "address such as"),
        ({"url": "http://"}, "address such as"),
        ({"url": "http://host:port/v1"}, "address such as"),
        ({"url": "https://user:word@host/v1"}, "no key, password or query"),
        ({"url": "https://host/v1?key=abc"}, "no key, password or query"),
        ({"key_variable": "sk-abc"}, "name of an environment variable"),
        ({"template": "{prompt} {a}"}, "lacks {b}"),
        ({"answer": "(A|B"}, "pattern is broken"),
        ({"answer": "A|B|tie"}, "one group"),
        ({"options": {"temperature": 1}}, "'temperature' is none of the further options"),
        ({"options": {"stream": True}}, "'stream' is none"),
        ({"concurrency": 0}, "greater than or equal to 1"),
        ({"undecided": 1.5}, "less than or equal to 1"),
        ({"kee": "MY_KEY"}, "Extra inputs"),
    ],
    ids=repr,
)
def test_the_spec_refuses(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match="validation error") as caught:
        spec_of(**({"url": "http://host/v1"} | change))
    assert says in str(caught.value)


def test_the_whole_address_will_do() -> None:
    assert spec_of("http://host/v1/chat/completions").url == spec_of("http://host/v1/").url == "http://host/v1"


def test_the_identity_is_all_that_decides_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = spec_of("http://host/v1").identity()
    same = {"key_variable": "MY_KEY", "concurrency": 2, "timeout": 3, "retries": 1, "patience": 9, "undecided": 0.5}
    assert spec_of("http://host/v1", **same, prices={"prompt": 1, "completion": 1}).identity() == plain
    changes: list[dict[str, Any]] = [
        {"url": "http://other/v1"},
        {"model": "judge-2"},
        {"template": "{prompt}{a}{b}"},
        {"answer": "(A|B)"},
        {"temperature": 1.0},
        {"max_tokens": None},
        {"options": {"seed": 1}},
        {"repeats": 0},
    ]
    for change in changes:
        assert spec_of(**({"url": "http://host/v1"} | change)).identity() != plain, change


def test_without_its_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httpx2", None)
    with pytest.raises(UserError, match="httpx2") as caught:
        spec_of("http://host/v1").build(JudgeIngredients(tokenizer=TOKENIZER))
    assert "aligngap[endpoint]" in str(caught.value.hint)
