"""What is said of a case, and of a backend, that two sets of records have both."""

from __future__ import annotations

from dataclasses import dataclass

from mpcfl.bench.record import Parameters

# Of one interval to miss; of a whole table to hold one false verdict, and one false alarm.
SIGNIFICANCE = 0.05
# A slowdown below this share is real at best and never worth a red build.
TOLERANCE = 0.05
# Cases and backends are asked separately, and share the chance of a false alarm.
ALARM = SIGNIFICANCE / 2


@dataclass(frozen=True, slots=True)
class CaseChange:
    """One case in both sets of records.

    Attributes:
        ratio: B over A, the median of the ratios of all pairs of launches; None if either
            side has no measurement.
        low: lower end of the ratio's interval; 0 where there are too few launches.
        high: upper end; infinite where there are too few launches.
        p_different: that nothing changed here, adjusted for all cases of the table; 1 if the case
            takes no part.
        p_slower: that B is slower by no more than the tolerance, adjusted likewise.
        newly_failed: B has a failed launch where A has none.
        obstacle: why the times can't be compared; empty if they can.
    """

    parameters: Parameters
    n_runs: tuple[int, int]
    ratio: float | None = None
    low: float = 0.0
    high: float = float("inf")
    p_different: float = 1.0
    p_slower: float = 1.0
    newly_failed: bool = False
    obstacle: str = ""

    @property
    def significant(self) -> bool:
        """True if the case stands out among all cases of the table."""
        return self.p_different <= SIGNIFICANCE

    @property
    def regressed(self) -> bool:
        """True if B fails, or is surely slower by more than the tolerance."""
        return self.newly_failed or self.p_slower <= ALARM

    @property
    def verdict(self) -> str:
        """One phrase for people."""
        if self.newly_failed:
            return "failed in B"
        if self.obstacle:
            return f"not comparable: {self.obstacle}"
        if self.ratio is None:
            return "not measured in both"
        if self.significant:
            return "slower" if self.ratio > 1 else "faster"
        if self.low == 0:
            return "not significant, too few runs"
        alone = self.low > 1 or self.high < 1
        return "not significant" + (" among so many cases" if alone else "")


@dataclass(frozen=True, slots=True)
class BackendChange:
    """All cases of one backend, key and graph together, since what slows one slows the others.

    Attributes:
        variant: as `Parameters.variant` has it.
        n_cases: that were measured on both sides.
        ratio: median of the ratios of the cases.
        p_slower: that none of the cases got slower by more than the tolerance, adjusted for all
            backends of the table.
        p_faster: that none got faster by more than that, likewise.
    """

    variant: str
    n_cases: int
    ratio: float
    p_slower: float
    p_faster: float

    @property
    def regressed(self) -> bool:
        """True if the backend surely got slower by more than the tolerance in some case."""
        return self.p_slower <= ALARM

    @property
    def verdict(self) -> str:
        """One phrase for people."""
        faster = self.p_faster <= ALARM
        if self.regressed and faster:
            return "slower in some cases, faster in others"
        if self.regressed or faster:
            return "slower" if self.regressed else "faster"
        return "not significant"


@dataclass(frozen=True, slots=True)
class Comparison:
    """What is said of two sets of records."""

    cases: tuple[CaseChange, ...]
    backends: tuple[BackendChange, ...]
    remarks: tuple[str, ...]
