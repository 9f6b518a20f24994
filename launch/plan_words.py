"""The sentences of `mpcfl plan`; they promise what the plan holds and no more."""

from __future__ import annotations

import math

from mpcfl.config import Clipping, Job, Unit, Weighting
from mpcfl.dp.accountant import AccountantKind, Mechanism
from mpcfl.dp.noise_plan import ROTATED, NoisePlan, View
from mpcfl.launch.plan_figures import detection_rate, noise_in_mean, paid_rounds

# The error rate that the example of an attacker is given.
_FALSE_ALARMS = 0.05
# Above this, the bound on what such an attacker finds says next to nothing.
_VOID_RATE = 0.995
_LARGEST_ODDS = 1e6


def promise(job: Job) -> str:
    """Return the job's promise in one sentence."""
    privacy = job.privacy
    if privacy.unit is Unit.NONE or privacy.epsilon is None:
        return f"Task {job.task}: no privacy is asked for; the exact mean is opened every round."
    hidden = "one record" if privacy.unit is Unit.RECORD else "all data of one party"
    return (
        f"Task {job.task}: whether {hidden} took part is hidden with epsilon "
        f"{privacy.epsilon:g} at delta {privacy.delta:g} over {job.training.rounds} rounds of "
        f"{_count(job.parties.count, 'party')}."
    )


def protected(job: Job, plan: NoisePlan) -> list[str]:
    """Say whose presence is hidden, and where the noise comes from."""
    if plan.unit is Unit.PARTY:
        unit = (
            "A party as a whole: whether what it learned from all its data was in the sums, or "
            "nothing in its place. Who takes part is public. Replacing a party's data by other "
            "data is up to twice as visible."
        )
    elif plan.max_parties_per_person == 1:
        unit = (
            "Every record: whether it was in the training data of its party or not. A person "
            "with several records, or with records at several parties, is protected less."
        )
    else:
        unit = (
            f"Every person with one record at each of up to {plan.max_parties_per_person} parties: "
            "whether these records were in the training data or not."
        )
    if plan.is_local:
        steps = _count(plan.local_steps, "local step")
        where = (
            f"Each party adds all the noise itself, at every one of {steps} per round. Its records "
            "are protected by its own noise alone and it needs to trust nobody."
        )
    else:
        where = (
            "Each party adds a share of the noise before anything leaves it; only the sum over "
            "the parties is opened, and the shares add up in it."
        )
    return [unit, where, *_secrets(job)]


def _secrets(job: Job) -> list[str]:
    sentences = []
    if job.privacy.clipping is Clipping.ADAPTIVE:
        sentences.append(
            "The clip norm follows the data. How many updates stayed below it travels in the same "
            "noised sum, within the same epsilon."
        )
    if job.parties.weighting is Weighting.PRIVATE:
        sentences.append(
            "Parties count by their number of records, up to the public "
            f"{job.parties.max_records}. The number stays secret: it travels in the same noised "
            "sum, within the same epsilon."
        )
    if job.parties.weighting is Weighting.PUBLIC:
        sentences.append("Parties count by weights that stand in the job file and are public.")
    return sentences


def meaning(plan: NoisePlan, epsilon: float) -> list[str]:
    """Say what epsilon and delta mean."""
    subject = "that a party took part" if plan.unit is Unit.PARTY else "that a record was used"
    seen = "leaves a party" if plan.is_local else "the planned coalition sees"
    rounds = paid_rounds(plan)
    budget = f" The budget pays for {rounds} of {plan.rounds} rounds." if rounds else ""
    return [
        f"Seeing everything that {seen}, an attacker's odds {subject} change by at most a factor "
        f"e^{epsilon:.4g} = {odds(epsilon)}, except with probability {plan.delta:g}. This holds "
        f"whatever the attacker knew before, and for the whole run.{budget}",
        _as_a_test(plan, epsilon),
    ]


def _as_a_test(plan: NoisePlan, epsilon: float) -> str:
    rate, alarms = detection_rate(plan, epsilon, _FALSE_ALARMS), _percent(_FALSE_ALARMS)
    test = f"As a test: one that is wrong about {alarms} of those who did not take part "
    if rate > _VOID_RATE:
        return (
            test + "may find nearly all of those who did. An epsilon this large rules little out."
        )
    return test + f"finds at most {_percent(rate)} of those who did; guessing finds {alarms}."


def against(plan: NoisePlan) -> list[str]:
    """Introduce the table of views."""
    if plan.is_local:
        return ["Everybody, all other parties together included: they all face the same noise."]
    colluding = _count(plan.colluding, "party")
    return [
        f"The planned coalition of {colluding} pools all that it sees and knows its own noise; "
        "its figure is the one that is held against the budget."
    ]


def viewer(plan: NoisePlan, view: str) -> str:
    """Say who looks in this view."""
    if plan.is_local:
        return {
            View.COALITION: "all other parties together",
            View.SINGLE: "any other party",
            View.OUTSIDER: "somebody who sees the opened sums only",
            View.OWN_SHARE: "somebody who sees a party's noised updates themselves",
        }[View(view)]
    return {
        View.COALITION: f"the planned coalition ({plan.colluding}): what the ledger charges",
        View.SINGLE: "any single party, which knows its own noise",
        View.OUTSIDER: "somebody who sees the opened sums only",
        View.OWN_SHARE: "anybody, if the secure sum itself fails: a party's own noise is left",
    }[View(view)]


def missing(plan: NoisePlan) -> list[str]:
    """Introduce the table of missing parties."""
    if plan.is_local:
        return [
            "Nothing changes: a party's noise is its own. "
            f"Sums of fewer than {plan.quorum} parties are refused all the same."
        ]
    planned = f"Up to {plan.max_dropout} missing are" if plan.max_dropout else "None missing is"
    charged = (
        " The ledger charges the last figure that is planned even if more are there, since the "
        "records are sampled."
        if plan.sample_rate < 1.0 and plan.max_dropout
        else ""
    )
    return [
        f"A party that is missing takes its noise with it. {planned} planned for.{charged} "
        "Epsilon of the coalition, if so many were missing from every round:"
    ]


def noise(job: Job, plan: NoisePlan) -> list[str]:
    """Say how much noise there is, in units of the model."""
    deviation = noise_in_mean(plan)
    what = "a party's gradient at every local step" if plan.is_local else "the opened mean"
    row = "update" if plan.unit is Unit.PARTY else "record's gradient"
    share = plan.clip_norm / plan.denominator(plan.parties)
    sentences = [
        f"Every coordinate of {what} carries noise of standard deviation {deviation:.4g}, in units "
        f"of the model; over all {plan.dim} coordinates the noise has a length of about "
        f"{deviation * math.sqrt(plan.dim):.3g}. One {row} is clipped to {plan.clip_norm:g} and "
        f"moves it by {share:.3g} at most.",
        _next_to_a_server(plan),
    ]
    if job.privacy.clipping is Clipping.ADAPTIVE:
        sentences.append(
            "These figures are for the first round; the noise moves with the clip norm."
        )
    if job.parties.weighting is not Weighting.UNIFORM:
        sentences.append("They hold for equal weights; unequal ones leave more noise in the mean.")
    return sentences


def _next_to_a_server(plan: NoisePlan) -> str:
    if plan.is_local:
        return (
            f"In the mean over all parties that is {plan.overhead_vs_central:.2f} times the noise "
            "that a server would add which everybody trusts with the bare gradients."
        )
    return (
        "A server that everybody trusts with the bare updates would add "
        f"{100 / plan.overhead_vs_central:.1f} % of this noise."
    )


def accounting(plan: NoisePlan) -> list[str]:
    """Name the theorems that epsilon rests on."""
    kind = "discrete Gaussian" if plan.mechanism == Mechanism.DISCRETE_GAUSSIAN else "Skellam"
    sampled = (
        "" if plan.sample_rate == 1.0 else f", on records sampled in secret ({plan.sample_rate:g})"
    )
    composed = f"The noise is {kind}{sampled}. "
    if plan.mechanism == Mechanism.SKELLAM:
        theorem = (
            "Renyi divergences at integer orders (Agarwal, Kairouz, Liu 2021; the bound that is "
            "used is proved in docs/proofs.md), added up over all releases."
        )
    elif plan.accountant is AccountantKind.RDP:
        theorem = "Renyi divergences (Mironov 2017), added up over all releases."
    elif plan.sample_rate == 1.0:
        theorem = (
            "All releases together are one Gaussian mechanism (Dong, Roth, Su 2022), whose epsilon "
            "has a closed form (Balle, Wang 2018, Theorem 8)."
        )
    else:
        theorem = (
            "Privacy loss distributions, rounded against us (dp-accounting), or Renyi divergences "
            "(Mironov, Talwar, Zhang 2019) where these give less, for the whole run."
        )
    lemma = (
        " The step from continuous to discrete noise is the rounding lemma (docs/proofs.md)."
        if plan.mechanism == Mechanism.DISCRETE_GAUSSIAN
        else ""
    )
    low_bit = (
        " Updates are rotated at random and rounded at random to fit the small ring; the integer "
        "bound is checked in integers (Kairouz, Liu, Steinke 2021)."
        if plan.rotation == ROTATED
        else ""
    )
    return [composed + theorem + lemma + low_bit]


def not_covered(job: Job, plan: NoisePlan) -> list[str]:
    """Return what this plan in particular does not cover."""
    sentences = [
        "What is true without any one of those protected: facts about a whole population.",
        "Search for hyper-parameters, and evaluation on private data, unless it is charged too.",
    ]
    if plan.unit is Unit.RECORD and plan.max_parties_per_person == 1:
        sentences.append("A person with records at several parties, unless the job says so.")
    if not plan.is_local:
        sentences.append(
            f"More than {_count(plan.colluding, 'party')} colluding, and a secure sum that is "
            "broken: the table above says what is left then."
        )
    if job.privacy.noise_multiplier is not None:
        sentences.append("Rounds beyond the budget: the noise was given, and the run stops there.")
    return sentences


def odds(epsilon: float) -> str:
    """Return e^epsilon, rounded up to three digits."""
    if epsilon > math.log(_LARGEST_ODDS):
        return "above 1e6"
    factor = math.exp(epsilon)
    digits = max(0, 2 - math.floor(math.log10(factor)))
    return f"{math.ceil(factor * 10**digits) / 10**digits:.{digits}f}"


def _percent(rate: float) -> str:
    """Return a rate in percent, rounded up to one digit."""
    return f"{math.ceil(rate * 1000 - 1e-9) / 10:g} %"


def _count(number: int, noun: str) -> str:
    plural = noun[:-1] + "ies" if noun.endswith("y") else noun + "s"
    return f"{number} {noun if number == 1 else plural}"
