"""Who shares masks with whom in a job: the figures of `mpcfl plan`, and the sentences on them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from mpcfl.config import MASKED_BACKENDS, Job
from mpcfl.secagg.neighbors import (
    FAILURE_BITS,
    failure_exponent,
    most_removed,
    resolve_neighbors,
)

# So few parties beyond the planned ones are as easily underestimated as not.
_THIN_MARGIN = 4


@dataclass(frozen=True, slots=True)
class MaskGraph:
    """Which parties share masks, and how many may be colluding or missing. Public.

    Attributes:
        neighbors: k, parties that each party shares masks with.
        others: n - 1, parties that it could share them with.
        colluding: as planned.
        max_dropout: as planned.
        failure_exponent: e, rounded up; up to the planned number the others' masks fall apart
            with probability 2^e at most. None if they can't.
        most_removed: so many may be colluding or missing together before that passes 2^-40.
    """

    neighbors: int
    others: int
    colluding: int
    max_dropout: int
    failure_exponent: int | None
    most_removed: int

    @property
    def is_complete(self) -> bool:
        """True if everybody shares masks with everybody."""
        return self.neighbors == self.others

    @property
    def planned(self) -> int:
        """Return how many parties the plan allows to be colluding or missing."""
        return self.colluding + self.max_dropout

    def to_dict(self) -> dict[str, Any]:
        """Return the fields for JSON."""
        return asdict(self)


def graph_of_job(job: Job) -> MaskGraph | None:
    """Return who shares masks with whom; None where the backend has no masks between pairs.

    Raises:
        PlanError: the job's number of neighbors is not safe.
    """
    if job.aggregation.backend not in MASKED_BACKENDS:
        return None
    count, colluding, max_dropout = (
        job.parties.count,
        job.parties.colluding,
        job.parties.max_dropout,
    )
    chosen = resolve_neighbors(job.aggregation.neighbors, count, colluding, max_dropout)
    neighbors = count - 1 if chosen is None else chosen
    return MaskGraph(
        neighbors=neighbors,
        others=count - 1,
        colluding=colluding,
        max_dropout=max_dropout,
        failure_exponent=failure_exponent(count, colluding + max_dropout, neighbors),
        most_removed=most_removed(count, neighbors),
    )


def graph_words(graph: MaskGraph, private: bool) -> list[str]:
    """Say who shares masks with whom, and who can read a party's vector.

    Args:
        graph: of the job.
        private: whether the parties add noise.
    """
    if graph.is_complete:
        return [
            f"Each party shares masks with all others ({graph.others}). Only all of them together "
            "can read its vector, which the sum tells them anyway."
        ]
    left = "its own noise protects it then (view own-share)" if private else "nothing hides it then"
    sentences = [
        f"Each party shares masks with {graph.neighbors} of {graph.others} others: its neighbors "
        "on a circle in a random order, which all parties draw together once it is settled who "
        "takes part. The work for masks and keys grows with this number only.",
        f"{_planned_words(graph)} {_margin_words(graph)}",
        f"Any {graph.neighbors} parties that are all the neighbors of one party can read its "
        f"vector if they pool what they know; {left}. So all this holds for a coalition that was "
        "formed before the circle was drawn. Once drawn, the circle is public.",
    ]
    if graph.neighbors <= graph.planned + _THIN_MARGIN:
        sentences.append(
            f"Warning: {graph.neighbors} parties in the right places are enough for that, and "
            f"the plan reckons with {graph.planned} colluding or missing as it is. If more may "
            'collude, say so in parties.colluding, or set aggregation.neighbors = "all": then '
            f"only all {graph.others} others together could."
        )
    return sentences


def _planned_words(graph: MaskGraph) -> str:
    planned = f"With up to {graph.colluding} colluding and {graph.max_dropout} missing, the others "
    if graph.failure_exponent is None:
        return (
            f"{planned}stay tied together by their masks for certain, so that only the sum of all "
            "of them can be seen."
        )
    return (
        f"{planned}stay tied together by their masks, so that only the sum of all of them can be "
        f"seen, except with probability 2^{graph.failure_exponent}, rounded up, for each circle "
        f"that is drawn; at most 2^-{FAILURE_BITS} is allowed."
    )


def _margin_words(graph: MaskGraph) -> str:
    margin = graph.most_removed - graph.planned
    if margin == 0:
        return "One more colluding or missing than planned is one too many."
    return (
        f"Up to {graph.most_removed} colluding or missing, {margin} more than planned, that fails "
        f"with probability 2^-{FAILURE_BITS} at most."
    )
