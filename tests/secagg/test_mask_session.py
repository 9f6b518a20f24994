"""What ends a session of masked sums: closing it, an exchange that broke off, and a fork."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import numpy as np
import pytest

from mpcfl.errors import OutOfOrder, PartyLost
from mpcfl.net.memory import run_parties
from mpcfl.secagg.base import SumSettings
from mpcfl.secagg.registry import load_backend

RUN_ID = "00" * 16
DIM = 6
BACKENDS = ("ring", "crypten")


def exit_code_of_child(work: Callable[[], object]) -> int:
    """Run ``work`` in a child: 0 if it is refused, 1 if it goes through, less if it hangs."""
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        try:
            work()
        except OutOfOrder:
            os._exit(0)
        os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("precompute", [False, True])
def test_a_child_process_can_use_no_mask_of_its_parent(backend: str, precompute: bool) -> None:
    chosen = SumSettings(DIM, run_id=RUN_ID, precompute=precompute)

    def party(transport):
        session = load_backend(backend)(transport, chosen)
        session.prepare()
        codes = []
        if transport.rank == 0:

            def send():
                protected = session.protect(np.ones(DIM, np.int64))
                if backend == "ring":  # whose masks are added as they are sent
                    protected.source(0, np.empty(DIM, np.uint32))

            codes = [exit_code_of_child(send)]
            if precompute:
                codes.append(exit_code_of_child(session.prepare))
        transport.allgather(b"")
        total = session.open(session.aggregate(session.protect(np.ones(DIM, np.int64))))
        session.close()
        return codes, total.tolist()

    (codes, total), _ = run_parties(2, party)
    assert codes == [0] * len(codes) != []
    assert total == [2] * DIM, "the parent goes on as if nothing had been"


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_sum_that_broke_off_is_the_last_of_its_session(backend, monkeypatch):
    chosen = SumSettings(DIM, run_id=RUN_ID)

    def party(transport):
        session = load_backend(backend)(transport, chosen)

        def whole_sum():
            return session.open(session.aggregate(session.protect(np.ones(DIM, np.int64))))

        with monkeypatch.context() as patch:
            if transport.rank == 0:
                patch.setattr(transport, "begin_gather", _fail)
                with pytest.raises(MemoryError):
                    whole_sum()
            else:
                with pytest.raises(PartyLost):
                    whole_sum()
        with pytest.raises(OutOfOrder, match="broke off"):
            whole_sum()
        session.close()
        with pytest.raises(OutOfOrder, match="closed"):
            whole_sum()

    run_parties(2, party, deadline_s=0.5)


def _fail(*_: object) -> None:
    raise MemoryError


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_closed_session_refuses_what_was_protected_before(backend):
    chosen = SumSettings(DIM, run_id=RUN_ID, precompute=True)

    def party(transport):
        session = load_backend(backend)(transport, chosen)
        protected = session.protect(np.ones(DIM, np.int64))
        before = transport.meter.bytes_sent
        session.close()
        with pytest.raises(OutOfOrder, match="closed"):
            session.open(session.aggregate(protected))
        assert transport.meter.bytes_sent == before

    run_parties(2, party)
