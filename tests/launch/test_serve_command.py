"""`mpcfl serve` by real requests: what it answers, and all that it refuses."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mpcfl.errors import ConfigError
from mpcfl.launch.serve_command import RunServer, ServeOptions, open_server, serve_run
from mpcfl.report import live_state
from mpcfl.report.live_state import read_state

sys.path.append(str(Path(__file__).parent.parent / "report"))

from run_folders import held, make_folder

PATHS = ("/", "/fragment", "/state.json")


@pytest.fixture(autouse=True)
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_state, "_LOOK_AGAIN_S", 0.0)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RunServer]:
    with held(make_folder(tmp_path / "run", 3)) as folder:
        yield from _serving(ServeOptions(folder.path, "127.0.0.1", 0))


def _serving(options: ServeOptions) -> Iterator[RunServer]:
    with open_server(options) as opened:
        thread = threading.Thread(target=opened.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield opened
        opened.shutdown()
        thread.join()


def ask(
    server: RunServer, path: str, method: str = "GET", **headers: str
) -> tuple[int, dict[str, str], str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer.status, dict(answer.getheaders()), body


def test_the_page_the_fragment_and_the_state_are_there(server: RunServer) -> None:
    status, headers, page = ask(server, "/")
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    status, _, part = ask(server, "/fragment")
    assert status == 200
    assert part in page
    status, headers, text = ask(server, "/state.json")
    assert (status, headers["Content-Type"]) == (200, "application/json")
    assert json.loads(text) == json.loads(read_state(server.folder).to_json())


@pytest.mark.parametrize("path", [*PATHS, "/nothing"])
def test_every_answer_is_locked_down(server: RunServer, path: str) -> None:
    _, headers, _ = ask(server, path)
    policy = headers["Content-Security-Policy"].split("; ")
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert "Access-Control-Allow-Origin" not in headers
    assert "Python" not in headers["Server"]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_nothing_but_reading_is_answered(server: RunServer, method: str) -> None:
    before = sorted(server.folder.rglob("*"))
    status, headers, _ = ask(server, "/state.json", method)
    assert (status, headers["Allow"]) == (405, "GET, HEAD")
    assert sorted(server.folder.rglob("*")) == before


def test_a_head_has_the_headers_and_no_body(server: RunServer) -> None:
    # By hand: clients don't read what must not be there.
    with socket.create_connection(("127.0.0.1", server.server_port)) as link:
        link.sendall(f"HEAD /fragment HTTP/1.0\r\nHost: {server.url[7:-1]}\r\n\r\n".encode())
        answer = b"".join(iter(lambda: link.recv(1 << 16), b""))
    headers, separator, body = answer.partition(b"\r\n\r\n")
    assert (headers.split()[1], separator, body) == (b"200", b"\r\n\r\n", b"")
    assert int(headers.split(b"Content-Length: ")[1].split()[0]) > 1000


@pytest.mark.parametrize(
    "path",
    [
        "/job.json", "/run.json", "/ledger/party-0.jsonl", "/local/", "/../job.json", "/./",
        "/%2e%2e/%2e%2e/etc/passwd", "/state.json/", "/fragment?x=1", "/fragment/../job.json", "*",
    ],
)  # fmt: skip
def test_nothing_else_of_the_folder_or_the_machine_is_there(server: RunServer, path: str) -> None:
    status, _, body = ask(server, path)
    assert status == 404
    assert "SECRET" not in body
    assert body == "there are /, /fragment and /state.json\n"


def test_nothing_private_is_served(server: RunServer) -> None:
    assert not any("SECRET" in ask(server, path)[2] for path in PATHS)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{}", "127.0.0.1", "10.0.0.1:{}", ""]
)
def test_who_asks_by_another_name_is_refused(server: RunServer, path: str, host: str) -> None:
    status, _, body = ask(server, path, Host=host.format(server.server_port))
    assert status == 421
    assert body == f"this server has another name; open {server.url}\n"


@pytest.mark.parametrize("host", ["127.0.0.1:{}", "localhost:{}", "LOCALHOST:{}"])
def test_this_machine_has_its_names(server: RunServer, host: str) -> None:
    assert ask(server, "/", Host=host.format(server.server_port))[0] == 200


def test_elsewhere_any_name_will_do(tmp_path: Path) -> None:
    with held(make_folder(tmp_path / "run", 1)) as folder:
        for server in _serving(ServeOptions(folder.path, "0.0.0.0", 0)):  # noqa: S104
            assert not server.is_local
            assert ask(server, "/", Host="hospital.example")[0] == 200


def test_a_folder_that_is_gone_is_no_end_of_the_server(server: RunServer) -> None:
    job = (server.folder / "job.json").rename(server.folder / "elsewhere.json")
    status, _, body = ask(server, "/fragment")
    assert status == 503
    assert "holds no run" in body
    job.rename(server.folder / "job.json")
    assert ask(server, "/fragment")[0] == 200


def test_several_look_at_once_and_one_who_says_nothing_holds_nobody_up(server: RunServer) -> None:
    with socket.create_connection(("127.0.0.1", server.server_port)):
        found: list[int] = []
        threads = [
            threading.Thread(target=lambda: found.append(ask(server, "/")[0])) for _ in range(5)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == [200] * 5


def test_a_port_that_is_taken_is_an_error_with_a_remedy(server: RunServer) -> None:
    taken = ServeOptions(server.folder, "127.0.0.1", server.server_port)
    with pytest.raises(ConfigError, match=r"is taken; choose another with --port, or a free one"):
        serve_run(taken)


@pytest.mark.parametrize("host", ["203.0.113.1", "no such host", "nowhere.invalid"])
def test_an_address_that_is_not_here_is_an_error_with_a_remedy(
    server: RunServer, host: str
) -> None:
    with pytest.raises(ConfigError, match=r"can't listen at port 0 of .*; choose another --host"):
        serve_run(ServeOptions(server.folder, host, 0))


def test_where_there_is_no_run_nothing_is_served(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no run"):
        serve_run(ServeOptions(tmp_path, "127.0.0.1", 0))


@pytest.mark.skipif(not socket.has_ipv6, reason="needs IPv6")
def test_the_other_loopback_works_too(tmp_path: Path) -> None:
    with held(make_folder(tmp_path / "run", 1)) as folder:
        try:
            opened = open_server(ServeOptions(folder.path, "::1", 0))
        except ConfigError:
            pytest.skip("this machine has no ::1")
        with opened:
            assert opened.is_local
            assert opened.url == f"http://[::1]:{opened.server_port}/"
            assert opened.is_meant(f"[::1]:{opened.server_port}")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_says_where_and_ends_well_when_it_is_told_to(
    tmp_path: Path, number: signal.Signals, listening: Callable[[], None]
) -> None:
    with held(make_folder(tmp_path / "run", 2)) as folder:
        command = (
            sys.executable,
            "-m",
            "mpcfl.launch",
            "serve",
            folder.path,
            "--port",
            "0",
            "--json",
        )
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=listening,
            env=os.environ | {"PYTHONWARNINGS": "error"},
        )
        try:
            assert process.stdout is not None
            document: dict[str, Any] = json.loads(process.stdout.readline())
            assert document["folder"] == str(folder.path)
            port = int(document["url"].rstrip("/").rpartition(":")[2])
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            connection.request("GET", "/state.json")
            assert json.loads(connection.getresponse().read())["task"] == "digits"
            connection.close()
            process.send_signal(number)
            stdout, stderr = process.communicate(timeout=30)
        finally:
            process.kill()
            process.wait()
    assert (process.returncode, stdout) == (0, "")
    assert stderr == "no longer serving; the run is not touched\n"
