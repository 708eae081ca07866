"""A real HTTP server on this machine that speaks the chat completions protocol, well or badly, as a test scripts it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Asked:
    """One request: its number from 0, its fields, its message."""

    number: int
    path: str
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def text(self) -> str:
        return str(self.body["messages"][-1]["content"])


@dataclass
class Reply:
    """What comes back. says: the assistant's words; body: raw bytes in place of a completion; usage: as a JSON value.
    stall: seconds before anything is sent; drip: seconds between bytes; drop: close the connection instead;
    longer_by: how many bytes more are announced than come.
    """

    says: str | None = "A"
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    usage: Any = field(default_factory=lambda: {"prompt_tokens": 100, "completion_tokens": 1, "total_tokens": 101})
    stall: float = 0.0
    drip: float = 0.0
    drop: bool = False
    longer_by: int = 0

    def content(self) -> bytes:
        if self.body is not None:
            return self.body
        message = {"role": "assistant", "content": self.says}
        completion = {"object": "chat.completion", "choices": [{"index": 0, "message": message}], "usage": self.usage}
        return json.dumps(completion).encode()


class ChatServer:
    """Answers by `script`, keeps what it was asked and how many requests were under way at most."""

    def __init__(self, script: Callable[[Asked], Reply]) -> None:
        self.script = script
        self.asked: list[Asked] = []
        self.most_at_once = self.at_once = 0
        self.closing = threading.Event()
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # or the body waits 40 ms for the header's receipt

            def do_POST(self) -> None:
                outer.answer(self)

            def log_message(self, *arguments: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64

            def handle_error(self, *arguments: Any) -> None:
                pass  # clients that go away in mid-answer are what some tests are about

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        content = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        with self._lock:
            asked = Asked(len(self.asked), handler.path, dict(handler.headers), json.loads(content))
            self.asked.append(asked)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            reply = self.script(asked)
            self.closing.wait(reply.stall)
        finally:
            with self._lock:
                self.at_once -= 1
        if reply.drop:
            handler.close_connection = True
            return
        body = reply.content()
        handler.send_response(reply.status)
        for name, value in ({"Content-Type": "application/json"} | dict(reply.headers)).items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(body) + reply.longer_by))
        handler.close_connection |= reply.longer_by > 0
        handler.end_headers()
        for start in range(0, len(body), 1 if reply.drip else len(body)):
            handler.wfile.write(body[start:] if not reply.drip else body[start : start + 1])
            if reply.drip and self.closing.wait(reply.drip):
                return

    def close(self) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def chat_server(script: Callable[[Asked], Reply]) -> Iterator[ChatServer]:
    """A server for a while."""
    server = ChatServer(script)
    try:
        yield server
    finally:
        server.close()


def answers(text: str) -> tuple[str, str]:
    """The two answers in a question made with the default template."""
    a = text.partition("[Answer A]\n")[2].partition("\n[End of answer A]")[0]
    b = text.partition("[Answer B]\n")[2].partition("\n[End of answer B]")[0]
    return a, b


def longer(asked: Asked) -> Reply:
    """An unbiased judge: the longer answer, a tie for the same length."""
    a, b = answers(asked.text)
    return Reply("tie" if len(a) == len(b) else "A" if len(a) > len(b) else "B")


def wait_for(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Until it holds; an AssertionError if it never does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)
