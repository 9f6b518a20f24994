"""How many neighbors are enough: when each party masks with k others instead of all of them.

The parties stand on a circle in a uniformly random order and each shares masks with the
h = k/2 next ones on either side (k >= n - 1: with everybody). Masks hide a party's vector as
long as it is tied to other honest parties: of each connected part of the graph of the honest
survivors the coalition learns the sum, and no more (`docs/proofs.md`, Lemma 12). So one part
is as good as masks between all pairs, and two parts are a failure. Here is how likely that is,
exactly, in integers.

Assumes that the coalition is fixed before the order is drawn (`secagg/graph.py` draws it after
the roster is fixed), so that the positions of the ``removed`` parties (colluding, or lost) are a
uniformly random set. Not covered: parties that are chosen by somebody who has seen the circle.
Any k neighbors of a party can read it for certain. Parties that are *lost* may be chosen so, but
only since the next roster draws a new circle, of which they are no part: taking d parties off
the circle and closing it keeps every edge that the others had, so k neighbors planned for
``colluding + d`` of n are enough for ``colluding`` of n - d. The bound is for one circle; a run
that draws several adds it up.

Source: the random circulant (Harary) graph of Bell, Bonawitz, Gascon, Lepoint, Raykova 2020 (CCS,
ia.cr/2020/704), section 3; without their secret sharing, so that a graph has to be connected and
no more. The exact probability is our own:

Lemma 13. Let m = n - removed survive and 2h < n - 1. They are disconnected iff at least two of
the m gaps between consecutive survivors hold h or more removed parties ("wide" gaps).
Proof. Next to a gap of g < h stand survivors g + 1 <= h apart: neighbors. If at most one gap is
wide, walking around the circle from its far end passes neighbors only, so all are connected
(m = 0 and m = 1 included; for m = 1 the one gap leads from the survivor to itself). If two are
wide, they cut the survivors into two groups, neither empty. Between members of different groups
lies a wide gap either way around, so they are more than h apart and not neighbors. QED

Lemma 14. The number of disconnecting sets is to that of all as
sum_{j>=2} (-1)^j (j-1) C(m, j) C(n - 1 - j h, m - 1) to C(n - 1, m - 1).
Proof. By symmetry put one survivor at position 0. The others are a uniformly random set of m - 1
among n - 1 positions, which is the same as a uniformly random way to write ``removed`` as an
ordered sum of m gaps >= 0. If j given gaps are wide, taking h off each leaves
C(removed - j h + m - 1, m - 1) ways, and removed + m = n. "At least two of m" has the weights
(-1)^j (j - 1) in inclusion and exclusion. QED
It is 0 for removed < k: two wide gaps need k removed parties. And it falls with k, as gaps of
h + 1 are wide for h too; so the least safe k is found by bisection.

The probability does not always grow with ``removed`` (the survivors of a part may all go), and
fewer may collude or be missing than planned. So safe means: for every number up to the planned one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from fractions import Fraction
from math import comb
from typing import Literal

from mpcfl.errors import PlanError

NeighborChoice = Literal["all", "auto"] | int

# Statistical security in bits, as customary for one-time failures that nobody can repeat offline.
FAILURE_BITS = 40
_LIMIT = Fraction(1, 1 << FAILURE_BITS)


def neighbors_on_circle(order: Sequence[int], rank: int, neighbors: int) -> tuple[int, ...]:
    """Return the ranks that ``rank`` shares masks with, ascending.

    Args:
        order: all ranks, as they stand on the circle.
        rank: whose neighbors.
        neighbors: k, even, or at least n - 1 for all others.
    """
    n_parties, position = len(order), list(order).index(rank)
    if neighbors >= n_parties - 1:
        return tuple(sorted(other for other in order if other != rank))
    steps = range(1, neighbors // 2 + 1)
    return tuple(
        sorted(order[(position + sign * step) % n_parties] for step in steps for sign in (1, -1))
    )


def disconnect_probability(n_parties: int, removed: int, neighbors: int) -> Fraction:
    """Return how likely the survivors fall apart if exactly ``removed`` parties go; exact.

    Args:
        n_parties: n, on the circle.
        removed: 0 to n; at positions that are uniformly random.
        neighbors: k, even, or at least n - 1 for a complete graph, which never falls apart.
    """
    _check_counts(n_parties, removed, 0)
    survivors, half = n_parties - removed, neighbors // 2
    if neighbors >= n_parties - 1 or survivors < 2 or removed < 2 * half:
        return Fraction(0)
    disconnecting = 0
    sets_of_gaps, placements = 1, comb(n_parties - 1, survivors - 1)
    all_placements, top = placements, n_parties - 1
    for wide in range(1, min(survivors, removed // half) + 1):
        sets_of_gaps = sets_of_gaps * (survivors - wide + 1) // wide
        # From C(top, m - 1) to C(top - h, m - 1) in steps of one, each exact: faster than `comb`.
        for _ in range(half):
            placements = placements * (top - survivors + 1) // top
            top -= 1
        disconnecting += (-1) ** wide * (wide - 1) * sets_of_gaps * placements
    return Fraction(disconnecting, all_placements)


def failure_exponent(n_parties: int, removed: int, neighbors: int) -> int | None:
    """Return e, rounded up: the survivors fall apart with probability 2^e at most.

    Args:
        n_parties: n, on the circle.
        removed: as many as may be colluding or missing; fewer are covered.
        neighbors: k, even, or at least n - 1.

    Returns:
        None if it can't happen. Above -40 it bounds the probability of one number of removed
        parties that is unsafe, not of all.
    """
    risk = _risk(n_parties, removed, neighbors)
    return None if risk == 0 else _exponent(risk)


def least_neighbors(n_parties: int, colluding: int, max_dropout: int) -> int:
    """Return the smallest safe k: even, or n - 1 where only a complete graph is safe.

    If ``colluding + max_dropout`` leaves fewer than two honest parties, the sum itself tells the
    coalition what the last one's input is. Smaller coalitions are still to be kept from it,
    so the answer is then n - 1.

    Args:
        n_parties: n, on the circle.
        colluding: parties that may pool what they know.
        max_dropout: parties that may be missing besides.
    """
    _check_counts(n_parties, colluding, max_dropout)
    removed = colluding + max_dropout

    def is_safe(half: int) -> bool:
        return _risk(n_parties, removed, 2 * half) <= _LIMIT

    most = max(n_parties // 2, 1)
    half = 1 + bisect_left(range(1, most), True, key=is_safe)
    return min(2 * half, n_parties - 1)


def most_removed(n_parties: int, neighbors: int) -> int:
    """Return how many parties may be colluding or missing with k neighbors, at most.

    Returns:
        At least k - 1 (below k nothing can happen); n - 1, all others, in a complete graph.
    """
    _check_counts(n_parties, 0, 0)
    if neighbors >= n_parties - 1:
        return n_parties - 1
    numbers = range(neighbors, n_parties)
    return (
        neighbors
        - 1
        + bisect_left(
            numbers, True, key=lambda removed: _risk(n_parties, removed, neighbors) > _LIMIT
        )
    )


def check_neighbors(neighbors: int, n_parties: int, colluding: int, max_dropout: int) -> None:
    """Refuse a number of neighbors that is not safe for the plan.

    Raises:
        PlanError: k is below 2, odd (unless it is n - 1), or too small; the message gives the
            probability, rounded up to a power of two, and the least k that is safe.
    """
    _check_counts(n_parties, colluding, max_dropout)
    if neighbors >= max(n_parties - 1, 1):
        return
    least = least_neighbors(n_parties, colluding, max_dropout)
    remedy = f'take {least} or more, or "auto", which takes the least that is safe'
    if neighbors < 2 or neighbors % 2:
        raise PlanError(
            f"neighbors = {neighbors} must be even and at least 2: half of them stand on either "
            f"side of a party; {remedy}"
        )
    if neighbors < least:
        exponent = failure_exponent(n_parties, colluding + max_dropout, neighbors)
        raise PlanError(
            f"neighbors = {neighbors} is not safe: with up to {colluding} of {n_parties} parties "
            f"colluding and {max_dropout} missing, the masks of the others fall apart with a "
            f"probability of up to 2^{exponent}, and sums of a few parties can then be read; at "
            f"most 2^-{FAILURE_BITS} is allowed: {remedy}"
        )


def resolve_neighbors(
    choice: NeighborChoice, n_parties: int, colluding: int, max_dropout: int
) -> int | None:
    """Return k for a job's choice; None if everybody masks with everybody.

    Args:
        choice: "all"; "auto", the least that is safe; or k itself, where n - 1 and more mean all.
        n_parties: n, parties that hold data.
        colluding: parties that may pool what they know.
        max_dropout: parties that may be missing from a sum.

    Raises:
        PlanError: this k is not safe for the plan.
    """
    if choice == "all":
        return None
    if choice == "auto":
        neighbors = least_neighbors(n_parties, colluding, max_dropout)
    else:
        neighbors = choice
        check_neighbors(neighbors, n_parties, colluding, max_dropout)
    return None if neighbors >= n_parties - 1 else neighbors


def _risk(n_parties: int, removed: int, neighbors: int) -> Fraction:
    """Return the largest probability over 0 to ``removed``, or the first found above the limit."""
    half, worst = neighbors // 2, Fraction(0)
    if neighbors >= n_parties - 1:
        return worst
    for number in range(min(removed, n_parties - 2), neighbors - 1, -1):
        worst = max(worst, disconnect_probability(n_parties, number, neighbors))
        if worst > _LIMIT:
            break
        fewer = number - 1
        # The first term of the sum, an upper bound, grows with ``removed`` up to where the mean
        # gap is h (`docs/proofs.md`, Lemma 15): it then bounds all smaller numbers at once.
        if number <= half * (n_parties - fewer) and _first_term(n_parties, fewer, half) <= worst:
            break
    return worst


def _first_term(n_parties: int, removed: int, half: int) -> Fraction:
    """Return the expected number of pairs of wide gaps, at least the probability of one."""
    survivors, top = n_parties - removed, n_parties - 1
    pairs = comb(survivors, 2) * comb(top - 2 * half, survivors - 1)
    return Fraction(pairs, comb(top, survivors - 1))


def _exponent(probability: Fraction) -> int:
    """Return the smallest e with ``probability <= 2^e``, for a probability in (0, 1]."""
    exponent = probability.numerator.bit_length() - probability.denominator.bit_length()
    # The true one is this or the next, since both lengths are off by less than one.
    fits = probability.numerator << max(-exponent, 0) <= probability.denominator
    return exponent if fits else exponent + 1


def _check_counts(n_parties: int, colluding: int, max_dropout: int) -> None:
    if n_parties < 1 or colluding < 0 or max_dropout < 0:
        raise ValueError(
            f"{n_parties} parties, {colluding} colluding, {max_dropout} missing is not a plan; "
            "numbers of parties are not negative, and there is one at least"
        )
