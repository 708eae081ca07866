"""The page and its few files on localhost, for this machine's own browser.

What a browser is lent to by another site must not reach it: only the loopback interface is listened on, only requests
for one of its names are answered (a foreign name may be made to point here, to read what is served), only GET and HEAD,
only the five paths below, none of which is a path on the disk, and no page of another site may show it in a frame.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any
from urllib.parse import urlsplit

from aligngap.errors import UserError
from aligngap.live.folder import Look, Watched
from aligngap.live.making import Renewal

HOST = "127.0.0.1"
_TICK = 0.5
_SHELL_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; frame-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@dataclass(frozen=True)
class Answer:
    """What a path gives."""

    body: bytes
    kind: str
    policy: str = "default-src 'none'; frame-ancestors 'none'"
    status: HTTPStatus = HTTPStatus.OK


class Site:
    """What is served of a run."""

    def __init__(self, watched: Watched) -> None:
        self._watched = watched
        self._renewal = Renewal(watched)
        self._look: Look = watched.look()
        self.paths: dict[str, Callable[[], Answer]] = {
            "/": lambda: Answer(_file("shell.html"), "text/html", _SHELL_POLICY),
            "/shell.css": lambda: Answer(_style(), "text/css"),
            "/shell.js": lambda: Answer(_file("shell.js"), "text/javascript"),
            "/state": self._state,
            "/stages": lambda: _json(self._watched.table(self._look)),
            "/report": self._report,
        }

    def tick(self) -> None:
        """Look at the folder, and have the page renewed if there is something new."""
        self._look = self._watched.look()
        self._renewal.tick(self._look)

    def close(self) -> None:
        """End the process that makes pages."""
        self._renewal.close()

    def _state(self) -> Answer:
        renewal = self._renewal
        page = {"version": renewal.version, "made": renewal.made, "making": renewal.at_work, "problem": renewal.problem}
        if renewal.page is not None:
            page |= {"arms": renewal.page.arms, "of": renewal.page.of, "final": renewal.page.final}
        return _json(self._watched.summary(self._look) | {"page": page})

    def _report(self) -> Answer:
        page = self._renewal.page
        if page is None:
            text = b"No arm has been evaluated yet, so there is no report."
            return Answer(text, "text/plain", status=HTTPStatus.NOT_FOUND)
        return Answer(page.html, "text/html", f"{page.policy}; frame-ancestors 'self'")


class Server(ThreadingHTTPServer):
    """Serves a site until it is shut down. Raises UserError when the port cannot be had."""

    daemon_threads = True
    # On Windows this would let another program take the port over.
    allow_reuse_address = os.name != "nt"

    def __init__(self, site: Site, port: int) -> None:
        self.site = site
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            raise UserError(
                f"port {port} is in use" if taken else f"port {port} cannot be had: {error.strerror}",
                where="--port",
                hint="Give another --port, or --port 0 for any that is free.",
            ) from error
        self.port = int(self.server_address[1])
        names = ("localhost", HOST, "[::1]")
        # A browser leaves out the port that its scheme has anyway.
        self.hosts = {f"{name}:{self.port}" for name in names} | (set(names) if self.port == 80 else set())

    @property
    def url(self) -> str:
        """Where to look."""
        return f"http://localhost:{self.port}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A reader who goes away in the midst of an answer is no error."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    timeout = 60  # seconds that a silent connection may keep a thread

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if self.headers.get_all("Host", []) not in [[host] for host in self.server.hosts]:
            self._send(_plain(HTTPStatus.MISDIRECTED_REQUEST, "Only for localhost, and for this port."))
            return
        # The query is the page's own, so that a browser does not show an older one.
        result = self.server.site.paths.get(urlsplit(self.path).path if self.path.startswith("/") else self.path)
        self._send(result() if result else _plain(HTTPStatus.NOT_FOUND, "There is no such page."))

    def _send(self, answer: Answer) -> None:
        # What came with the request has not been read, and must not be taken for the next one.
        headers = getattr(self, "headers", {})
        if "Content-Length" in headers or "Transfer-Encoding" in headers:
            self.close_connection = True
        self.send_response(answer.status)
        if answer.status == HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET, HEAD")
        if self.close_connection:
            self.send_header("Connection", "close")
        self.send_header("Content-Type", f"{answer.kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(answer.body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Content-Security-Policy", answer.policy)
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the library refuses by itself (other methods, what is no request), without quoting the request."""
        status = HTTPStatus.METHOD_NOT_ALLOWED if code == HTTPStatus.NOT_IMPLEMENTED else HTTPStatus(code)
        self.close_connection = True
        self._send(_plain(status, status.phrase))

    def version_string(self) -> str:
        """Who serves, without versions."""
        return "aligngap"

    def log_message(self, format: str, *args: Any) -> None:
        """The terminal is not for requests."""


def watch(server: Server) -> None:
    """Serve, and follow the run, until KeyboardInterrupt."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.2}, daemon=True)
    thread.start()
    pause = threading.Event()
    try:
        while True:
            server.site.tick()
            pause.wait(_TICK)
    finally:
        server.shutdown()
        server.server_close()
        server.site.close()


def _json(value: object) -> Answer:
    return Answer(json.dumps(value, separators=(",", ":"), allow_nan=False).encode(), "application/json")


def _plain(status: HTTPStatus, text: str) -> Answer:
    return Answer(text.encode(), "text/plain", status=status)


def _file(name: str) -> bytes:
    return resources.files("aligngap.live").joinpath(name).read_bytes()


def _style() -> bytes:
    # The report's own colours and tables, so that both look like one page.
    return resources.files("aligngap.report").joinpath("style.css").read_bytes() + b"\n" + _file("shell.css")
