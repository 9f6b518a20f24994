"""`mpcfl serve`: one run as a web page, from one process of Python's own; it only reads.

By default nobody but this machine gets there. A page of another site can't read it either: what
asks by another name than the one that is served is refused (DNS rebinding), and no answer may be
put into a frame. Where it listens elsewhere, everybody who reaches the port sees what is public
to all parties anyway.
"""

from __future__ import annotations

import errno
import ipaddress
import json
import socket
import socketserver
import sys
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

from mpcfl.errors import ConfigError
from mpcfl.report.live_page import fragment, live_page, security_policy
from mpcfl.report.live_state import read_state

# Whoever says nothing for so long is not waited for.
_REQUEST_S = 10.0
_HTML, _JSON, _TEXT = "text/html; charset=utf-8", "application/json", "text/plain; charset=utf-8"
_LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """What `mpcfl serve` was asked for; port 0 takes a free one."""

    folder: Path
    host: str
    port: int
    as_json: bool = False


def serve_run(options: ServeOptions) -> None:
    """Serve a run's page until this process is told to end.

    Raises:
        ConfigError: there is no run, or the address can't be listened at.
    """
    read_state(options.folder)
    with open_server(options) as server:
        if options.as_json:
            document = {"url": server.url, "folder": str(options.folder)}
            sys.stdout.write(json.dumps(document) + "\n")
        else:
            sys.stdout.write(f"{options.folder} is at {server.url} (Ctrl-C ends this)\n")
        sys.stdout.flush()
        if not server.is_local:
            sys.stderr.write(f"everybody who reaches {server.url} sees this run\n")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            sys.stderr.write("no longer serving; the run is not touched\n")


class RunServer(ThreadingHTTPServer):
    """Serves one run folder; it must exist.

    Args:
        options: what was asked for; its address is taken at once.
    """

    daemon_threads = True

    def __init__(self, options: ServeOptions) -> None:
        self.folder = options.folder
        self.is_local = _is_local(options.host)
        self.address_family = _family(options.host)
        super().__init__((options.host, options.port), _Handler)
        named = f"[{options.host}]" if ":" in options.host else options.host
        self.url = f"http://{named}:{self.server_port}/"
        self._names = frozenset(
            f"{name}:{self.server_port}" for name in (*_LOCAL_NAMES, named.lower())
        )

    def server_bind(self) -> None:
        """Take the address, without a question to a name server as the base class asks it."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def is_meant(self, host: str | None) -> bool:
        """Tell whether a request names this server; elsewhere others may have names for it."""
        return not self.is_local or (host is not None and host.lower() in self._names)


def open_server(options: ServeOptions) -> RunServer:
    """Return a server that listens.

    Raises:
        ConfigError: the address is taken, not this machine's, or not allowed.
    """
    try:
        return RunServer(options)
    except OSError as error:
        where = f"port {options.port} of {options.host}"
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"{where} is taken; choose another with --port, or a free one with --port 0"
            ) from None
        raise ConfigError(
            f"can't listen at {where}: {error.strerror}; choose another --host or --port"
        ) from None


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


class _Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD for three paths, and nothing else."""

    server: RunServer
    timeout = _REQUEST_S
    server_version = "mpcfl"
    sys_version = ""
    _PATHS: ClassVar = frozenset({"/", "/fragment", "/state.json"})

    def do_GET(self) -> None:
        """Answer with a page, or a part of it."""
        status, kind, text = self._content()
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", security_policy())
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Cache-Control", "no-store")
        if status == HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET, HEAD")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    # Every method is answered in one place, most of them by a refusal; the names are Python's.
    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815
    do_PATCH = do_OPTIONS = do_TRACE = do_CONNECT = do_GET  # noqa: N815

    def _content(self) -> tuple[HTTPStatus, str, str]:
        if self.command not in ("GET", "HEAD"):
            return HTTPStatus.METHOD_NOT_ALLOWED, _TEXT, "only GET and HEAD are answered\n"
        if not self.server.is_meant(self.headers.get("Host")):
            words = f"this server has another name; open {self.server.url}\n"
            return HTTPStatus.MISDIRECTED_REQUEST, _TEXT, words
        if self.path not in self._PATHS:
            return HTTPStatus.NOT_FOUND, _TEXT, "there are /, /fragment and /state.json\n"
        try:
            state = read_state(self.server.folder)
        except ConfigError as error:
            return HTTPStatus.SERVICE_UNAVAILABLE, _TEXT, f"{error}\n"
        if self.path == "/state.json":
            return HTTPStatus.OK, _JSON, state.to_json()
        return (
            HTTPStatus.OK,
            _HTML,
            fragment(state) if self.path == "/fragment" else live_page(state),
        )

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is Python's
        """Say nothing of requests."""
