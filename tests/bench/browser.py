"""A headless Chromium that is driven over a pipe by its DevTools protocol; nothing else is needed.

It opens files of this machine only, keeps its profile in a folder that the test gives it, and
ends with the block.
"""

import json
import os
import select
import shutil
import signal
import subprocess
import time
from contextlib import contextmanager

_OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-extensions", "--hide-scrollbars", "--remote-debugging-pipe",
)  # fmt: skip
# The protocol's two ends in the browser, by its definition.
_REDIRECTED = 'exec "$@" 3<&"$READ_FD" 4>&"$WRITE_FD"'
_DEADLINE_S = 60.0


def find_browser():
    """Return the path of Chromium or Chrome; None where there is none."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((path for path in map(shutil.which, names) if path is not None), None)


class Tab:
    """One page; `events` keeps all that it reported so far."""

    def __init__(self, reading, writing):
        self._reading, self._writing = reading, writing
        self._buffer, self._number, self._session = b"", 0, None
        self.events = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method, **parameters):
        """Send a command and return its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._writing, json.dumps(message).encode() + b"\0")
        answer = self._wait(lambda found: found.get("id") == self._number)
        assert "error" not in answer, answer
        return answer["result"]

    def open(self, path, width):
        """Load a file at a width in pixels, and wait until it is there."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=900, deviceScaleFactor=1, mobile=False,
        )  # fmt: skip
        self.events.clear()
        self.call("Page.navigate", url=path.as_uri())
        if not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self._wait(lambda found: found.get("method") == "Page.loadEventFired")

    def prefer(self, scheme):
        """Ask pages for a light or a dark look."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", features=features)

    def evaluate(self, expression):
        """Return the value of an expression in the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def complaints(self):
        """Return what went to the console, to the log, or failed to load."""
        kinds = {"Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown",
                 "Network.loadingFailed"}  # fmt: skip
        return [event for event in self.events if event["method"] in kinds]

    def requests(self):
        """Return the addresses that were asked for."""
        sent = (e for e in self.events if e["method"] == "Network.requestWillBeSent")
        return [event["params"]["request"]["url"] for event in sent]

    def _wait(self, wanted):
        end = time.monotonic() + _DEADLINE_S
        while True:
            while b"\0" in self._buffer:
                text, self._buffer = self._buffer.split(b"\0", 1)
                found = json.loads(text)
                if "method" in found:
                    self.events.append(found)
                if wanted(found):
                    return found
            ready, _, _ = select.select([self._reading], [], [], end - time.monotonic())
            assert ready, "the browser does not answer"
            piece = os.read(self._reading, 1 << 16)
            assert piece, "the browser ended"
            self._buffer += piece


@contextmanager
def open_tab(browser, folder):
    """Start a browser and yield a tab of it; no process is left after the block."""
    to_browser, from_browser = os.pipe(), os.pipe()
    handed = (to_browser[0], from_browser[1])
    names = {"READ_FD": str(handed[0]), "WRITE_FD": str(handed[1]), "HOME": str(folder)}
    command = [browser, *_OPTIONS, f"--user-data-dir={folder / 'profile'}"]
    process = subprocess.Popen(
        [shutil.which("bash") or "bash", "-c", _REDIRECTED, "bash", *command],
        env={**os.environ, **names},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=handed,
        start_new_session=True,
    )
    try:
        for end in handed:
            os.close(end)
        yield Tab(from_browser[0], to_browser[1])
    finally:
        # Its helpers are in its session.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(from_browser[0])
        os.close(to_browser[1])
