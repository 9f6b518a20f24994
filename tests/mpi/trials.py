"""Who is killed where: the trials of `chaos.py` and of `test_rank_lost.py`."""

from __future__ import annotations

import hashlib
import json
import signal
from dataclasses import dataclass
from typing import Any

NAMES = ("ada", "ben", "cyd", "dan")
ROUNDS = 3
# Of key shares; small, and quick to decrypt with.
KEY_BITS, THRESHOLD = 2048, 3
JOB = f"""
task = "small_task:SmallTask"

[parties]
count = {len(NAMES)}
names = {json.dumps(NAMES)}
max_dropout = 1

[privacy]
unit = "record"
epsilon = 14.0
records = 80
sample_rate = 0.5
spare_attempts = 3

[training]
rounds = {ROUNDS}

[aggregation]
backend = "ring"
key_bits = {KEY_BITS}
deadline_s = 20
"""


@dataclass(frozen=True)
class Kind:
    """A way to protect the sum."""

    name: str
    settings: tuple[str, ...]
    has_key_files: bool = False
    has_aggregator: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of all ranks."""
        return (*NAMES, "aggregator") if self.has_aggregator else NAMES


KINDS = (
    Kind("ring", ('aggregation.backend="ring"',)),
    Kind("crypten", ('aggregation.backend="crypten"',)),
    Kind("holder", ('aggregation.backend="paillier"', 'aggregation.custody="holder"')),
    Kind(
        "threshold",
        (
            'aggregation.backend="paillier"',
            'aggregation.custody="threshold"',
            f"aggregation.threshold={THRESHOLD}",
        ),
        has_key_files=True,
    ),
)
# With a fifth rank, which has no data.
CLIENTS = Kind(
    "clients",
    ('aggregation.backend="paillier"', 'aggregation.custody="clients"'),
    has_aggregator=True,
)
ALL_KINDS = (*KINDS, CLIENTS)


@dataclass(frozen=True)
class Point:
    """Where a party is killed: as a stage begins or ends, or before a message in it.

    Attributes:
        stage: its name.
        event: "enter", "leave" or "message".
        count: number of the message.
        stands_under: kinds under which all survivors have the round's sum by then, or all that
            they need to open it, and must not ask for it again.
    """

    stage: str
    event: str
    count: int = 0
    stands_under: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Return a name for people."""
        return f"{self.stage}-{self.event}{self.count or ''}"


_ALL_NAMES = tuple(kind.name for kind in ALL_KINDS)
POINTS = (
    # Each of the eight stages, as it begins.
    *(
        Point(stage, "enter")
        for stage in ("train", "clip", "quantize", "noise", "protect", "aggregate", "open")
    ),
    Point("apply", "enter", stands_under=_ALL_NAMES),
    # Charged, and nobody knows; one of three others has heard that it goes on.
    Point("reserve", "leave"),
    Point("agree", "message", 2),
    # In the middle of its tags, of its slices, and of the sum of its own slice, where there are
    # slices; elsewhere in the middle of what there is, or at the end.
    Point("aggregate", "message", 2),
    Point("aggregate", "message", 5),
    Point("aggregate", "message", 8),
    # Under ring the sum is open here, and is being compared; it was, under all; it is in the model
    # and in the ledger.
    Point("open", "message", 2, stands_under=("ring",)),
    Point("open", "leave", stands_under=_ALL_NAMES),
    Point("commit", "leave", stands_under=_ALL_NAMES),
)

# For chaos alone: as the parties sign that they begin, as they open a session, as they agree on the
# model, and as they leave. By the round that began last.
_BEFORE_AND_AFTER = (
    (Point("view", "message", 2), 0),
    (Point("session", "message", 2), 0),
    # Under crypten all exchanges are in this stage: slices, sums of them, and the comparison.
    (Point("open", "message", 8, stands_under=("ring", "crypten")), 2),
    (Point("finish", "enter"), ROUNDS),
    (Point("finish", "message", 2), ROUNDS),
    (Point("finish", "message", 5), ROUNDS),
)
_OF_AN_AGGREGATOR = (
    (Point("view", "message", 2), 0),
    (Point("agree", "message", 2), 1),
    (Point("aggregate", "enter"), 2),
    (Point("aggregate", "message", 2), 3),
    (Point("finish", "enter"), ROUNDS),
    (Point("finish", "message", 2), ROUNDS),
    (Point("finish", "message", 6), ROUNDS),
)


@dataclass(frozen=True)
class Trial:
    """One job and who is killed in it.

    Attributes:
        kind: how the sum is protected.
        rank: who is killed.
        point: where; None where it is a matter of time.
        round_id: in which round, from 1 on.
        after_s: when, if there is no point; since the party's start or its first round.
        from_round: the latter.
        number: steers what else varies.
        signal: what it is killed with.
        with_it: others to whom the same happens.
        settings: further ones of the job.
    """

    kind: Kind
    rank: int
    point: Point | None = None
    round_id: int = 0
    after_s: float = 0.0
    from_round: bool = False
    number: int = 0
    signal: int = signal.SIGKILL
    with_it: tuple[int, ...] = ()
    settings: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Return a name for people, and for the log."""
        since = "round" if self.from_round else "start"
        where = f"random-{self.after_s:.3f}s-of-{since}"
        if self.point is not None:
            where = f"{self.point.name}-round{self.round_id}"
        return f"{where}-{self.kind.name}-{self.victim}"

    @property
    def victim(self) -> str:
        """Return the name of who is killed."""
        return self.kind.names[self.rank]

    @property
    def is_needed(self) -> bool:
        """Tell whether nobody can go on without it."""
        return self.rank >= len(NAMES)

    def fate(self) -> str:
        """Return what `doomed_rank.py` reads."""
        fate: dict[str, Any] = {"ranks": [self.rank, *self.with_it], "signal": int(self.signal)}
        if self.point is None:
            fate |= {"after_s": self.after_s, "from_round": self.from_round}
        else:
            fate |= {"stage": self.point.stage, "event": self.point.event}
            fate |= {"count": self.point.count, "round": self.round_id}
        return json.dumps(fate)


def at_points() -> list[Trial]:
    """Return every point with every rank and every kind; rounds vary.

    An aggregator has few stages of its own, and is killed in those.
    """
    pairs = [(kind, rank) for kind in ALL_KINDS for rank in range(len(NAMES))]
    in_rounds = [
        Trial(kind, rank, point, 1 + (index + rank) % ROUNDS, number=index + rank)
        for index, point in enumerate(POINTS)
        for kind, rank in pairs
    ]
    return (
        in_rounds
        + [
            Trial(kind, rank, point, round_id, number=rank)
            for point, round_id in _BEFORE_AND_AFTER
            for kind, rank in pairs
        ]
        + [
            Trial(CLIENTS, len(NAMES), point, round_id, number=round_id)
            for point, round_id in _OF_AN_AGGREGATOR
        ]
    )


def one_per_point() -> list[Trial]:
    """Return one trial for each point, with ranks and kinds by turns; all pairs of both occur."""
    return [
        Trial(
            KINDS[(index + index // len(KINDS)) % len(KINDS)],
            index % len(NAMES),
            point,
            1 + index % ROUNDS,
            number=index,
        )
        for index, point in enumerate(POINTS)
    ]


def at_random_times(count: int, seed: str, longest_s: float) -> list[Trial]:
    """Return trials in which anybody may die at any time: one in four while the job starts.

    Args:
        count: how many.
        seed: of all choices.
        longest_s: that a job is expected to take for its rounds.
    """

    def draw(number: int, what: str, below: int) -> int:
        digest = hashlib.sha256(f"{seed} {number} {what}".encode()).digest()
        return int.from_bytes(digest, "big") % below

    trials = []
    for number in range(count):
        kind = ALL_KINDS[draw(number, "kind", len(ALL_KINDS))]
        trials.append(
            Trial(
                kind,
                draw(number, "rank", len(kind.names)),
                after_s=draw(number, "time", 10_000) / 10_000 * longest_s,
                from_round=number % 4 > 0,
                number=number,
            )
        )
    return trials
