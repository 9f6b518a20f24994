"""What one rank refuses, all hear of: that it does, but not why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mpcfl.errors import MpcflError, ProtocolError, WrapDetected
from mpcfl.net.memory import run_parties
from mpcfl.net.meter import Meter
from mpcfl.net.transport import Transport
from mpcfl.secagg.refusal import Refusal, work_together

N_RANKS = 3


def outcomes(work: Callable[[int], Any], number: Callable[[int], int] = lambda _: 4) -> list[Any]:
    """Work at every rank; return results, refusals and errors, by rank."""

    def party(transport: Transport) -> Any:
        rank = transport.rank
        try:
            return work_together(transport, number(rank), lambda: work(rank), Meter())
        except MpcflError as error:
            return error

    return run_parties(N_RANKS, party)


def test_results_come_back_where_nobody_refuses() -> None:
    assert outcomes(lambda rank: 10 * rank) == [0, 10, 20]


def test_a_refusal_is_heard_by_all_and_its_reason_stays_where_it_is() -> None:
    def work(rank: int) -> None:
        if rank != 1:
            raise WrapDetected(f"value of rank {rank}")

    heard = outcomes(work)
    assert all(isinstance(refusal, Refusal) for refusal in heard)
    assert [str(refusal.error) for refusal in heard] == [
        "value of rank 0",
        "rank 0, 2 refused its settings or its vector; see the error there",
        "value of rank 2",
    ]
    assert isinstance(heard[1].error, ProtocolError)


def test_the_reason_is_not_sent() -> None:
    sent = []

    class Recording:
        def __init__(self, transport: Transport) -> None:
            self._transport = transport

        def allgather(self, message: bytes) -> list[bytes]:
            sent.append(message)
            return self._transport.allgather(message)

    def party(transport: Transport) -> object:
        def work() -> None:
            raise WrapDetected("canary")

        return work_together(Recording(transport), 0, work, Meter())

    run_parties(2, party)
    assert len(sent) == 2
    assert all(b"canary" not in message for message in sent)


@pytest.mark.parametrize("odd", range(N_RANKS))
def test_a_rank_at_another_sum_is_named(odd: int) -> None:
    heard = outcomes(lambda rank: rank, lambda rank: 5 if rank == odd else 4)
    assert all(type(error) is ProtocolError for error in heard)
    for rank, error in enumerate(heard):
        named = odd if rank != odd else min(set(range(N_RANKS)) - {odd})
        assert str(error).startswith(f"rank {named} is not at sum {5 if rank == odd else 4} as ")


@pytest.mark.parametrize("said", [b"", b"\x01", b"\x01" + (4).to_bytes(8, "big"), bytes(100)])
def test_a_rank_that_says_something_else_is_named(said: bytes) -> None:
    def party(transport: Transport) -> Any:
        if transport.rank == 1:
            return transport.allgather(said)
        try:
            return work_together(transport, 4, lambda: None, Meter())
        except ProtocolError as error:
            return str(error)

    heard = run_parties(N_RANKS, party)
    for rank in (0, 2):
        assert heard[rank].startswith("a ready message from rank 1 was expected")
