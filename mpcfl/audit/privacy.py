"""`mpcfl audit dp`: how much an auditor learns from one real run, beside what the plan promises.

The auditor is the planned coalition: it sees every opened sum and what its own parties put in,
and takes the latter off. Canaries, each in the data with probability 1/2, sit at the other
parties. Every stage is the real one (`round.py`), with the job's backend. What the guesses say
about epsilon: `one_run.py`.

Assumes that parties follow the protocol. Does not see: a fault that acts only with other data,
other settings, or less often than canaries can show.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mpcfl.audit.canary import CanaryTask
from mpcfl.audit.one_run import (
    Guesses,
    epsilon_lower_bound,
    gaussian_accuracy,
    gaussian_mu_lower_bound,
    guess_each,
    guess_extremes,
    independent_p_value,
    independent_power,
    largest_accuracy,
)
from mpcfl.audit.session import Seen, watch_rounds
from mpcfl.audit.verdict import FALSE_POSITIVE_RATE, AuditReport, Finding
from mpcfl.config import Clipping, Job, Placement, Unit
from mpcfl.dp.gaussian_curve import curve_epsilon
from mpcfl.dp.plan import NoisePlan
from mpcfl.dp.sampler import poisson_sample
from mpcfl.errors import ConfigError
from mpcfl.learn.registry import load_task
from mpcfl.round import public_state
from mpcfl.secagg.base import centre

# One guess in so many of the canaries; fixed in advance, and each pays its part of the error.
_GUESSED_FRACTIONS = (1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64)
# Where a sampled release's promise is read off; its best line bounds what one guess can know.
_DELTAS = tuple(0.02 * 1.3**step for step in range(15))


@dataclass(frozen=True, slots=True)
class CanarySettings:
    """What `mpcfl audit dp` runs.

    Attributes:
        canaries: m.
        rounds: of the audited run.
        sample_rate: q; without sampling canaries are seen best.
        confidence: of the bound that holds for any run.
    """

    canaries: int = 4000
    rounds: int = 4
    sample_rate: float = 1.0
    confidence: float = 0.95


@dataclass(frozen=True, slots=True, eq=False)
class CanaryRun:
    """One audited run, ready to be judged.

    Attributes:
        plan: of the run.
        scores: one per canary, shape (m,), float64: the sum over rounds of its coordinate, less
            the coalition's own inputs, in units of a clipped gradient.
        included: which canaries were in the data, shape (m,), bool.
    """

    plan: NoisePlan
    scores: NDArray[np.float64]
    included: NDArray[np.bool_]


def audit_privacy(job: Job, settings: CanarySettings | None = None) -> AuditReport:
    """Run the job's protocol with canaries and judge what they betray.

    Args:
        job: gives task, parties, epsilon, delta, clip norm and backend; rounds and sample rate
            come from the settings, and the noise is planned anew for them.
        settings: of the experiment.

    Raises:
        ConfigError: the job promises nothing that this audit can test.
    """
    chosen = CanarySettings() if settings is None else settings
    run = run_with_canaries(job, chosen)
    claimed = run.plan.epsilon(contributors=run.plan.parties)
    findings = (_any_run(run, chosen, claimed), _independent(run, claimed))
    return AuditReport(
        subject=f"epsilon of task {job.task} over backend {job.aggregation.backend}",
        findings=findings,
        settings={
            "canaries": chosen.canaries,
            "rounds": chosen.rounds,
            "sample_rate": chosen.sample_rate,
            "confidence": chosen.confidence,
            "parties": run.plan.parties,
            "colluding": run.plan.colluding,
            "epsilon_claimed": claimed,
            "delta": run.plan.delta,
        },
        notes=(
            "the auditor is the planned coalition: it knows its own parties' noise and sees every "
            "opened sum; canaries are crafted gradients, the strongest adversary.",
        ),
    )


def run_with_canaries(job: Job, settings: CanarySettings) -> CanaryRun:
    """Put canaries into the data of the parties that don't collude, and run all rounds."""
    _check(job, settings)
    audited = _audited_job(job, settings)
    included = np.zeros(settings.canaries, dtype=np.bool_)
    included[poisson_sample(settings.canaries, 0.5)] = True
    honest = range(job.parties.colluding, job.parties.count)
    held: dict[int, list[int]] = {party: [] for party in honest}
    for index in np.flatnonzero(included):
        held[honest[int(index) % len(honest)]].append(int(index))
    trained = load_task(job.task, job.task_options)
    task = CanaryTask(trained, settings.canaries, held, job.privacy.clip_norm)
    publics = [public_state(audited, task) for _ in range(audited.n_ranks)]
    plan = publics[0].plan
    seen = watch_rounds(publics, settings.rounds, set(range(job.parties.colluding)))
    scores = left_for_coalition(seen, plan)[: settings.canaries] / (plan.scale * plan.clip_norm)
    return CanaryRun(plan, scores, included)


def left_for_coalition(seen: Seen, plan: NoisePlan) -> NDArray[np.float64]:
    """Return what is left of all opened sums without the coalition's own inputs, added up.

    Args:
        seen: with exactly the coalition's parties watched.
        plan: gives the ring.
    """
    rest = seen.opened.copy()
    for own in seen.inputs.values():
        rest -= own
    total: NDArray[np.float64] = centre(rest, plan.modulus_bits).astype(np.float64).sum(axis=0)
    return total


def _check(job: Job, settings: CanarySettings) -> None:
    privacy = job.privacy
    if privacy.unit is not Unit.RECORD or privacy.placement is not Placement.DISTRIBUTED:
        raise ConfigError(
            f'the job has privacy.unit = "{privacy.unit}" and placement = "{privacy.placement}"; '
            'this audit tests the promise for records with distributed noise: set unit = "record" '
            'and placement = "distributed"'
        )
    if privacy.rotation != "none":
        raise ConfigError(
            'the job has privacy.rotation = "hadamard", which spreads a canary over all '
            'coordinates; set rotation = "none" for the audit'
        )
    if privacy.clipping is not Clipping.FIXED:
        raise ConfigError(
            'the job has privacy.clipping = "adaptive", which moves a canary from round to round; '
            'set clipping = "fixed" for the audit'
        )
    if settings.canaries < 64 or settings.rounds < 1:
        raise ConfigError(
            f"{settings.canaries} canaries and {settings.rounds} rounds; an audit needs at least "
            "64 canaries and one round"
        )


def _audited_job(job: Job, settings: CanarySettings) -> Job:
    records = (job.privacy.records or 0) + settings.canaries
    sampled = {"sample_rate": settings.sample_rate, "records": records, "spare_attempts": 0}
    return job.model_copy(
        update={
            "privacy": job.privacy.model_copy(update=sampled),
            "training": job.training.model_copy(update={"rounds": settings.rounds}),
        }
    )


def _any_run(run: CanaryRun, settings: CanarySettings, claimed: float) -> Finding:
    """Judge by the bound that assumes nothing about the run."""
    outcomes = [
        guess_extremes(run.scores, run.included, int(settings.canaries * fraction))
        for fraction in _GUESSED_FRACTIONS
    ]
    bound = epsilon_lower_bound(outcomes, run.plan.delta, settings.confidence)
    best = max(outcomes, key=lambda o: epsilon_lower_bound([o], run.plan.delta, 0.95))
    return Finding(
        check="epsilon-of-any-run",
        passed=bound <= claimed,
        detail=(
            f"{best.correct} of {best.made} guesses about {best.canaries} canaries were right (the "
            f"most telling of {len(outcomes)} numbers of guesses): epsilon is at least "
            f"{bound:.3f} at delta {run.plan.delta:g} (confidence {settings.confidence:.0%}, "
            f"whatever the run did); the plan promises {claimed:.3f}"
        ),
        figures={
            "epsilon_lower_bound": bound,
            "epsilon_claimed": claimed,
            "canaries": best.canaries,
            "guesses": best.made,
            "correct": best.correct,
        },
    )


def _independent(run: CanaryRun, claimed: float) -> Finding:
    """Judge by guesses that each look at one canary's own coordinate: sharp."""
    plan = run.plan
    guesses = guess_each(run.scores, run.included, plan.rounds * plan.sample_rate / 2)
    accuracy, bound = _accuracy_and_bound(plan, guesses)
    chance = independent_p_value(guesses, accuracy)
    figures = {
        "guesses": guesses.made,
        "correct": guesses.correct,
        "correct_expected_at_most": accuracy * guesses.made,
        "p_value": chance,
        "epsilon_claimed": claimed,
    }
    words = ""
    if bound is not None:
        power = _power(plan, guesses.made, accuracy)
        figures |= {"epsilon_lower_bound": bound, "power_against_sigma_over_sqrt_n": power}
        words = (
            f"; if the noise is Gaussian, of any size, epsilon is at least {bound:.3f}; noise of "
            f"sigma/sqrt(n) is seen with probability {math.floor(power * 1e6) / 1e6:.6f}"
        )
    return Finding(
        check="epsilon-of-independent-canaries",
        passed=chance >= FALSE_POSITIVE_RATE,
        detail=(
            f"{guesses.correct} of {guesses.made} canaries guessed right, each by its own "
            f"coordinate; a run that keeps epsilon {claimed:.3f} averages at most "
            f"{accuracy * guesses.made:.0f}, and gets there with probability {chance:.2g} "
            f"(fails below {FALSE_POSITIVE_RATE:g}){words}"
        ),
        figures=figures,
    )


def _accuracy_and_bound(plan: NoisePlan, guesses: Guesses) -> tuple[float, float | None]:
    """Return the most accuracy that the plan allows; and, for one Gaussian, a bound on epsilon."""
    if not _is_one_gaussian(plan):
        points = [(replace(plan, delta=d).epsilon(contributors=plan.parties), d) for d in _DELTAS]
        return largest_accuracy(points), None
    mu = gaussian_mu_lower_bound(guesses, FALSE_POSITIVE_RATE)
    return gaussian_accuracy(_mu(plan)), curve_epsilon(mu, plan.delta) if mu else 0.0


def _is_one_gaussian(plan: NoisePlan) -> bool:
    return plan.sample_rate == 1.0 and plan.mechanism == "discrete-gaussian"


def _mu(plan: NoisePlan) -> float:
    return math.sqrt(plan.rounds) / plan.multiplier(plan.parties)


def _power(plan: NoisePlan, n_guesses: int, accuracy: float) -> float:
    """Return the chance to see a build whose shares are all smaller by sqrt(n)."""
    real = gaussian_accuracy(_mu(plan) * math.sqrt(plan.parties))
    return independent_power(n_guesses, accuracy, real, FALSE_POSITIVE_RATE)
