"""A party of a job to which something happens at a chosen point, if it is one of some ranks.

    python doomed_rank.py FATE ARGUMENTS OF mpcfl.parties...

FATE is JSON: ``ranks``; ``signal``, or ``wait_for``, a file that appears once the world around
it has changed; and either ``after_s``, since the party's start or, with
``from_round``, since its first round, or ``stage``,
``round`` (from 1 on) and ``event``: "enter", "leave", or ``count``, the message before which it
happens. A stage that says less than so many messages is fatal as it ends. The file `met` in the
working folder tells that it happened, and when.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mpi4py import MPI

from mpcfl.net.meter import Meter
from mpcfl.net.mpi import MpiTransport
from mpcfl.parties.__main__ import main


class Fate:
    """Where this process is, and where it ends."""

    def __init__(self, fate: dict[str, Any]) -> None:
        self._fate = fate
        self._rounds = self._messages = 0
        self._stage = ""

    def enter(self, stage: str) -> None:
        self._rounds += stage == "reserve"
        if self._stage != stage:
            self._messages = 0
        self._stage = stage
        if self._rounds == 1 and stage == "reserve" and self._fate.get("from_round"):
            self.meet_by_time()
        if self._is_here(stage) and self._fate.get("event") == "enter":
            self.meet()

    def leave(self, stage: str) -> None:
        if self._is_here(stage) and self._fate.get("event") != "enter":
            self.meet()

    def message(self) -> None:
        self._messages += 1
        is_last = self._messages == self._fate.get("count")
        if is_last and self._fate.get("event") == "message" and self._is_here(self._stage):
            self.meet()

    def meet(self) -> None:
        Path("met").write_text(str(time.time()))
        if "wait_for" in self._fate:
            while not Path(self._fate["wait_for"]).exists():
                time.sleep(0.01)
            return
        os.kill(os.getpid(), self._fate["signal"])
        # Whoever is killed is gone before the next instruction that matters.
        time.sleep(1.0)

    def meet_by_time(self) -> None:
        timer = threading.Timer(self._fate["after_s"], self.meet)
        timer.daemon = True
        timer.start()

    def _is_here(self, stage: str) -> bool:
        return (stage, self._rounds) == (self._fate.get("stage"), self._fate.get("round"))


class WatchedCommunicator(MPI.Intracomm):
    """A communicator that tells before anything leaves."""

    fate: Fate

    def Isend(self, *arguments: Any, **named: Any) -> MPI.Request:  # noqa: N802 - MPI's name
        self.fate.message()
        return super().Isend(*arguments, **named)

    def Iallreduce(self, *arguments: Any, **named: Any) -> MPI.Request:  # noqa: N802 - MPI's
        self.fate.message()
        return super().Iallreduce(*arguments, **named)


def doom(fate: Fate) -> None:
    """Have stages and messages of this process watched."""
    stage, begin = Meter.stage, MpiTransport.__init__
    WatchedCommunicator.fate = fate

    @contextmanager
    def watched_stage(self: Meter, name: str) -> Iterator[None]:
        fate.enter(name)
        with stage(self, name):
            yield
        fate.leave(name)

    def watched_begin(self: Any, comm: MPI.Intracomm, *arguments: Any, **named: Any) -> None:
        begin(self, WatchedCommunicator(comm), *arguments, **named)

    Meter.stage = watched_stage  # type: ignore[method-assign]
    MpiTransport.__init__ = watched_begin  # type: ignore[method-assign]


def await_fate(text: str) -> None:
    """Do what FATE says, if this process is one of those whom it names."""
    chosen = json.loads(text)
    if int(os.environ["PMIX_RANK"]) not in chosen["ranks"]:
        return
    fate = Fate(chosen)
    if "after_s" in chosen and not chosen.get("from_round"):
        fate.meet_by_time()
    else:
        doom(fate)


if __name__ == "__main__":
    await_fate(sys.argv[1])
    sys.exit(main(sys.argv[2:]))
