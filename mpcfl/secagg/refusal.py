"""What one rank refuses, all ranks hear of, so that none waits for a rank that has given up.

Ranks tell each other *that* they refuse, and not why: the reason may say something about an
input. Semi-honest: a rank may of course refuse without a reason.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from mpcfl.errors import ProtocolError
from mpcfl.net.meter import Meter
from mpcfl.net.transport import Transport
from mpcfl.net.wire import FLAG, U64, Format, Kind

Result = TypeVar("Result")

# What ranks tell each other before a step.
_ANSWER = Format(Kind.READY, number=U64, is_ready=FLAG)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Some rank refused and all ranks have heard it; ``error`` is what to raise at this one."""

    error: Exception


def work_together(
    transport: Transport, number: int, work: Callable[[], Result], clock: Meter
) -> Result | Refusal:
    """Do local work at every rank and hear how it went; what failed stays at its rank.

    Args:
        transport: joins the ranks.
        number: of the step; equal at all ranks.
        work: sends nothing.
        clock: takes the time of waiting for the others, as the stage "agree".

    Raises:
        ProtocolError: another rank is at another step, or makes another call.
        PartyLost: not all ranks were heard.
    """
    try:
        result = work()
    except Exception as error:  # noqa: BLE001 - the others must hear of any; it is raised here
        _tell(transport, number, is_ready=False)
        return Refusal(error)
    with clock.stage("agree"):
        refused = _tell(transport, number, is_ready=True)
    if refused:
        who = ", ".join(str(rank) for rank in refused)
        return Refusal(
            ProtocolError(f"rank {who} refused its settings or its vector; see the error there")
        )
    return result


def _tell(transport: Transport, number: int, *, is_ready: bool) -> list[int]:
    """Tell all ranks how a step goes here; return the ranks that refused theirs."""
    refused = []
    own = _ANSWER.encode(number=number, is_ready=is_ready)
    for rank, message in enumerate(transport.allgather(own)):
        answer = _ANSWER.decode(message, f"rank {rank}")
        if answer["number"] != number:
            raise ProtocolError(
                f"rank {rank} is not at sum {number} as this rank is (0 is the opening); make "
                "the same calls at all ranks, and open a new session"
            )
        if not answer["is_ready"]:
            refused.append(rank)
    return refused
