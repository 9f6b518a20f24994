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

Result = TypeVar("Result")

# What ranks tell each other before a step: one of these and the number of the step.
_READY, _REFUSED = b"\x01", b"\x00"
_NUMBER_BYTES = 8


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
        ProtocolError: another rank is at another step.
        PartyLost: not all ranks were heard.
    """
    try:
        result = work()
    except Exception as error:  # noqa: BLE001 - the others must hear of any; it is raised here
        _tell(transport, number, _REFUSED)
        return Refusal(error)
    with clock.stage("agree"):
        refused = _tell(transport, number, _READY)
    if refused:
        who = ", ".join(str(rank) for rank in refused)
        return Refusal(
            ProtocolError(f"rank {who} refused its settings or its vector; see the error there")
        )
    return result


def _tell(transport: Transport, number: int, word: bytes) -> list[int]:
    """Tell all ranks how a step goes here; return the ranks that refused theirs."""
    ready, refused = (w + number.to_bytes(_NUMBER_BYTES, "big") for w in (_READY, _REFUSED))
    answers = transport.allgather(ready if word == _READY else refused)
    for rank, answer in enumerate(answers):
        if answer not in (ready, refused):
            raise ProtocolError(
                f"rank {rank} is not at sum {number} as this rank is (0 is the opening); make "
                "the same calls at all ranks, and open a new session"
            )
    return [rank for rank, answer in enumerate(answers) if answer == refused]
