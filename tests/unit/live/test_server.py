"""What is answered to whom: only this machine's own browser, asking for one of a few paths."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from aligngap.cli import main
from aligngap.errors import UserError
from aligngap.live.folder import Watched
from aligngap.live.server import Server, Site
from unit.live.run_folder import write_run
from unit.report.fixture_results import HOSTILE

PATHS = ("/", "/shell.css", "/shell.js", "/state", "/stages")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = write_run(tmp_path_factory.mktemp("run"), "interrupted")
    (folder / "secret.txt").write_text("not for anyone")
    with Server(Site(Watched(folder)), 0) as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        yield made
        made.shutdown()


def ask(server: Server, path: str, method: str = "GET", **headers: str) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
    for name, value in ({"Host": f"localhost:{server.port}"} | headers).items():
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer, body


def raw(server: Server, text: str) -> bytes:
    """What comes back for these very bytes, until the other side ends."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as line:
        line.sendall(text.encode("latin-1"))
        line.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: line.recv(65536), b""))


@pytest.mark.parametrize("path", PATHS)
def test_every_path_is_served_strictly(server: Server, path: str) -> None:
    answer, body = ask(server, path)
    assert (answer.status, len(body)) == (200, int(answer.headers["Content-Length"]))
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert answer.headers["Server"] == "aligngap"
    head, nothing = ask(server, path, "HEAD")
    assert (head.status, head.headers["Content-Length"], nothing) == (200, str(len(body)), b"")


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "[::1]"])
def test_this_machines_names_are_answered(server: Server, name: str) -> None:
    assert ask(server, "/state", Host=f"{name}:{server.port}")[0].status == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:{port}",
        "localhost",
        "localhost:1",
        "localhost:{port}.evil.example",
        "127.0.0.1.evil.example:{port}",
        "evil.example@localhost:{port}",
        "0.0.0.0:{port}",
        "",
    ],
)
@pytest.mark.parametrize("path", ["/", "/state", "/report", "/nowhere"])
def test_foreign_names_are_not(server: Server, host: str, path: str) -> None:
    answer, body = ask(server, path, Host=host.format(port=server.port))
    assert answer.status == 421
    assert b"stage" not in body


def test_a_request_without_a_host_or_with_two_is_refused(server: Server) -> None:
    here = f"localhost:{server.port}"
    assert raw(server, "GET /state HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 421 ")
    assert raw(server, "GET /state HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 421 ")
    two = f"GET /state HTTP/1.1\r\nHost: {here}\r\nHost: evil.example\r\n\r\n"
    assert raw(server, two).startswith(b"HTTP/1.1 421 ")


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "BREW"])
def test_only_get_and_head(server: Server, method: str) -> None:
    answer, body = ask(server, "/state", method)
    assert answer.status == 405
    assert answer.headers["Allow"] == "GET, HEAD"
    assert method.encode() not in body


@pytest.mark.parametrize(
    "path",
    [
        "/secret.txt",
        "/study.json",
        "/../study.json",
        "/..%2fstudy.json",
        "/report/../../study.json",
        "//etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/shell.js/../shell.html",
        "/state/",
        "/state\\..\\study.json",
        "http://localhost/state",
        "etc/passwd",
    ],
)
def test_no_path_leads_to_the_disk(server: Server, path: str) -> None:
    answer, body = ask(server, path)
    assert answer.status == 404
    assert body == b"There is no such page."


def test_what_is_no_request_is_not_quoted(server: Server) -> None:
    for text in (
        "<script>alert(1)</script>\r\n\r\n",
        "GET / HTTP/9.9<b>\r\n\r\n",
        f"GET /{'x' * 70_000} HTTP/1.1\r\n\r\n",
    ):
        answer = raw(server, text)
        assert b"<" not in answer
        assert b"xxx" not in answer


def test_a_body_is_not_taken_for_a_second_request(server: Server) -> None:
    inner = f"GET /stages HTTP/1.1\r\nHost: localhost:{server.port}\r\n\r\n"
    outer = f"GET /state HTTP/1.1\r\nHost: localhost:{server.port}\r\nContent-Length: {len(inner)}\r\n\r\n"
    assert raw(server, outer + inner).count(b"HTTP/1.1 200 ") == 1


def test_foreign_text_is_data_and_never_markup(server: Server) -> None:
    for path in ("/state", "/stages"):
        answer, body = ask(server, path)
        assert answer.headers["Content-Type"] == "application/json; charset=utf-8"
        json.loads(body)
    assert json.loads(ask(server, "/state")[1])["title"] == f"Study{HOSTILE}"
    reasons = [row["reason"] for row in json.loads(ask(server, "/stages")[1])]
    assert f"reason{HOSTILE}" in reasons
    assert HOSTILE.encode() not in ask(server, "/")[1]


def test_no_report_yet(server: Server) -> None:
    answer, body = ask(server, "/report")
    assert (answer.status, answer.headers["Content-Type"]) == (404, "text/plain; charset=utf-8")
    assert b"No arm has been evaluated yet" in body
    assert json.loads(ask(server, "/state")[1])["page"]["version"] == 0


def test_only_the_loopback_interface_is_listened_on(server: Server) -> None:
    assert server.socket.getsockname()[0] == "127.0.0.1"


def test_a_port_in_use_and_no_run(tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_run(tmp_path / "run")
    assert main(["watch", str(folder), "--port", str(server.port)]) == 2
    said = capsys.readouterr()
    assert said.err.splitlines()[0] == f"error: port {server.port} is in use"
    assert "--port 0" in said.err
    assert "Traceback" not in said.err + said.out
    assert main(["watch", str(tmp_path), "--port", "0"]) == 2
    assert "not a run's folder" in capsys.readouterr().err
    with pytest.raises(UserError, match="in use"):
        Server(Site(Watched(folder)), server.port)
