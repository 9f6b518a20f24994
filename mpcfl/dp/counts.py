"""Secret counts that travel with the update, noised and summed as further coordinates of it.

Two of them exist. *How many rows met the clip norm* moves the clip norm from round to round
towards a quantile of the norms (adaptive clipping). *The weight of a party*, its number of
records up to a public cap, turns the sum of weighted updates into a weighted mean. Neither is
ever seen but as a noised sum: a count in the clear would tell what the noise hides, and noise
that a server adds would ask for a trusted server. They share one joint L2 bound with the model's
coordinates (`quantize.py`), so that they are charged with the release and cost nothing more.

The clip norm moves, the grid scales with it: sigma, the integer bound and the ring stay.

Source: Andrew, Thakkar, McMahan, Ramaswamy 2021 (arXiv 1905.03871), Algorithm 1, for the
geometric step; McMahan, Ramage, Talwar, Zhang 2018 (arXiv 1710.06963), for bounded weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mpcfl.config import Clipping, Job, PartiesTable, PrivacyTable, Weighting
from mpcfl.dp.pieces import is_long
from mpcfl.dp.quantize import Opened

Matrix = NDArray[np.float64]

# Keeps a clip norm that noise drives away within float64, in units of the first one.
_CLIP_RANGE = 2.0**20


@dataclass(frozen=True, slots=True)
class CountState:
    """What the opened counts have taught so far: public, equal at all parties.

    Attributes:
        clip_norm: C of the next round, float space.
        weight_sum: all opened weights per contributor, added up over ``weight_rounds`` rounds.
        weight_rounds: how many rounds opened a weight.
    """

    clip_norm: float
    weight_sum: float = 0.0
    weight_rounds: int = 0


def party_weight(parties: PartiesTable, party: int, n_records: int) -> float:
    """Return how much a party's update counts, in [0, 1].

    Args:
        parties: says whether weights are uniform, public constants or private counts.
        party: index of the party.
        n_records: the party's own number of records. Secret under private weighting, as is
            the result then.
    """
    if parties.weighting is Weighting.PUBLIC:
        return parties.weights[party] / max(parties.weights)
    if parties.weighting is Weighting.PRIVATE and parties.max_records is not None:
        return min(n_records, parties.max_records) / parties.max_records
    return 1.0


def count_rows(rows: Matrix, clip_norm: float, job: Job, weight: float) -> Matrix:
    """Return each row's counts, shape (k, plan.counts), float64, in [-1, 1]. Secret.

    Args:
        rows: unclipped updates or gradients, shape (k, dim), float64.
        clip_norm: C of this round.
        job: says which counts there are: first the one of clipping, then the weight.
        weight: of this party.
    """
    columns = []
    if job.privacy.clipping is Clipping.ADAPTIVE:
        with np.errstate(over="ignore", invalid="ignore"):
            norms = np.sqrt(np.einsum("ij,ij->i", rows, rows))
        # NaN compares as false: a row that is not finite counts as one that was clipped.
        columns.append(np.where(norms <= clip_norm, 1.0, -1.0))
    if job.parties.weighting is Weighting.PRIVATE:
        columns.append(np.full(len(rows), weight))
    return np.stack(columns, axis=1) if columns else np.empty((len(rows), 0))


def weigh_rows(rows: Matrix, weight: float) -> Matrix:
    """Scale clipped rows by the party's weight, in [0, 1], so that no norm grows.

    Long rows are scaled where they lie.
    """
    if weight == 1.0:
        return rows
    return np.multiply(rows, weight, out=rows if is_long(rows.shape[1]) else None)


def opened_mean(
    opened: Opened, expected_rows: float, job: Job, roster: Sequence[int], state: CountState
) -> tuple[NDArray[np.float64], CountState]:
    """Take in the counts of an opened sum and divide it. Public: post-processing.

    Args:
        opened: values and counts of the sum, not yet divided; long values are divided where they
            lie.
        expected_rows: `NoisePlan.denominator`: contributors, or expected sampled records.
        job: says what the counts mean and how parties are weighted.
        roster: indices of the data parties in the sum.
        state: before this round.

    Returns:
        The mean, shape (dim,), float64, and the state for the next round.
    """
    after = learn_from_counts(state, opened.counts, job, expected_rows)
    values, divisor = opened.values, denominator(job, roster, expected_rows, after)
    return np.divide(values, divisor, out=values if is_long(values.size) else None), after


def denominator(job: Job, roster: Sequence[int], expected_rows: float, state: CountState) -> float:
    """Return what the opened sum is divided by. Public: post-processing of opened sums.

    Args:
        job: says how parties are weighted.
        roster: indices of the data parties in the sum.
        expected_rows: `NoisePlan.denominator`: contributors, or expected sampled records.
        state: after this round's counts were taken in.
    """
    parties = job.parties
    if parties.weighting is Weighting.PUBLIC:
        return math.fsum(party_weight(parties, party, 0) for party in roster)
    if parties.weighting is Weighting.PRIVATE and parties.max_records is not None:
        mean = state.weight_sum / max(1, state.weight_rounds)
        # A party has one record at least and never counts more than one; noise may say else.
        return expected_rows * min(max(mean, 1 / parties.max_records), 1.0)
    return expected_rows


def learn_from_counts(
    state: CountState, counts: NDArray[np.float64], job: Job, expected_rows: float
) -> CountState:
    """Take in the counts that a round opened.

    Args:
        state: before the round.
        counts: opened and noised, shape (plan.counts,), float64, in the order of `count_rows`.
        job: says what they mean.
        expected_rows: `NoisePlan.denominator`, what each count would be if every row counted one.
    """
    means = list(counts / expected_rows)
    clip_norm, weight_sum, weight_rounds = state.clip_norm, state.weight_sum, state.weight_rounds
    if job.privacy.clipping is Clipping.ADAPTIVE:
        clip_norm = _next_clip_norm(clip_norm, (means.pop(0) + 1) / 2, job.privacy)
    if job.parties.weighting is Weighting.PRIVATE:
        # Weights don't change from round to round, so that their mean over rounds has less noise.
        weight_sum, weight_rounds = weight_sum + means.pop(0), weight_rounds + 1
    return CountState(clip_norm, weight_sum, weight_rounds)


def _next_clip_norm(clip_norm: float, met: float, privacy: PrivacyTable) -> float:
    """Take the geometric step C exp(-rate (met - quantile)), with the fraction kept in [0, 1]."""
    fraction = min(max(met, 0.0), 1.0)
    step = math.exp(-privacy.clip_learning_rate * (fraction - privacy.clip_quantile))
    low, high = privacy.clip_norm / _CLIP_RANGE, privacy.clip_norm * _CLIP_RANGE
    return min(max(clip_norm * step, low), high)
