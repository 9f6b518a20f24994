"""The threat model in words: who can learn what, with which backend, and what is out of scope.

The sentences stand in every run report. They promise no more than the code of this
version does; a change of a protocol changes its sentence in the same commit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mpcfl.config import Custody, parse_job
from mpcfl.report.units import epsilon_text
from mpcfl.secagg.custody import resolve_threshold
from mpcfl.secagg.neighbors import resolve_neighbors

ADVERSARY = (
    "The parties follow the protocol, but a planned number of them (the job's colluding) may pool "
    "everything that they see. The privacy guarantee holds against that coalition, which is why "
    "the noise is sized as if its members had added none."
)

# How masks are shared between pairs of parties: all pairs, or neighbors on a circle.
_ALL_PAIRS = (
    " Every party shares masks with every other one, so only all other parties together can learn "
    "an honest party's input; the sum is the only value that is opened."
)
_SPARSE = (
    " Each party shares masks with {neighbors} others only: its neighbors on a circle in a random "
    "order, which all parties draw together once it is settled who takes part. The planned "
    "coalition, formed before that, learns nothing but the opened sum, except with probability "
    "2^-40 for each circle; the planned number of missing parties is allowed for. Any "
    "{neighbors} parties that are all the neighbors of one party can learn its input if they pool "
    "what they know, and the circle is public once it is drawn."
)
_RING = (
    "Each party adds masks from a cryptographic generator to its integers, mod 2^b; they are "
    "agreed between pairs of parties and cancel in the sum."
)
_CRYPTEN = (
    "Each party's integers are split into CrypTen's additive shares in Z_2^64 with masks from a "
    "cryptographic generator, agreed between pairs of parties."
)
_CRYPTEN_TRIPLES = (
    " A sum that is handed on to CrypTen unopened is CrypTen's to protect, and its default "
    "provider of multiplication triples trusts rank 0: that party can learn the sum, noise "
    "included, which is why opening anything computed from the sum is charged like the sum itself."
)
_HOLDER = (
    "One party, the holder, owns the Paillier private key. It receives only the product of the "
    "ciphertexts, which the other parties form among themselves along a chain that never passes "
    "a single party's ciphertext to it. This breaks if the holder colludes with a party on the "
    "chain, and then an honest party's input can be decrypted."
)
_CLIENTS = (
    "Every data party owns the Paillier private key; a separate aggregator rank, which has "
    "neither key nor data, multiplies the ciphertexts. The aggregator is assumed not to collude "
    "with any data party; together they can decrypt an honest party's input."
)
_THRESHOLD = (
    "Nobody owns the Paillier private key: every party has one share of it, and {decrypt} decrypt "
    "together. Every party sees all ciphertexts and multiplies them itself, and decrypts its part "
    "of that product only, once. {few} nothing but the opened sum; {many} that pool their "
    "shares can decrypt every honest party's input. Whoever dealt the shares is trusted to have "
    "forgotten the key: the process that ran mpcfl keygen or, in a run without key files, rank 0. "
    "A wrong partial decryption is refused with its author's name. Parties are assumed to follow "
    "the protocol else: one that tells a wrong sum after it combined them is not found, nor one "
    "that shows what it made of another party's earlier ciphertexts as its own."
)
_DCR = " Ciphertexts hide what is in them under the decisional composite residuosity assumption"
_SHORT_EXPONENTS = (
    _DCR + " and, because they are blinded with short powers of one generator, as long as powers "
    "by exponents of half the modulus' length can't be told from powers by longer ones (Damgard, "
    "Jurik, Nielsen 2010, section 4.2)."
)
_BACKENDS: Mapping[str, str] = {
    "plain": (
        "No protection: the integers travel in the clear, and everybody who takes part or listens "
        "learns every party's input. It is a baseline for measurements only."
    ),
    "crypten-stock": (
        "CrypTen as shipped, for comparison only. Its zero sharing uses seeds that a party has in "
        "common with its two ring neighbors, so those two together remove a party's mask when a "
        "sum is opened; its generators keep 32 bits of the seed, which a search of 2^32 finds."
    ),
}
_CUSTODIES: Mapping[str, str] = {"holder": _HOLDER, "clients": _CLIENTS, "threshold": _THRESHOLD}
# What custody's sentences rest on.
_KEYED: Mapping[str, str] = {"phe": _DCR + ".", "paillier": _SHORT_EXPONENTS}

# Before and after the sentence on who shares masks with whom.
_PAIRWISE: Mapping[str, tuple[str, str]] = {
    "crypten": (_CRYPTEN, _CRYPTEN_TRIPLES),
    "ring": (_RING, ""),
}

EPSILON_VIEWS: tuple[tuple[str, str, str], ...] = (
    (
        "epsilon_outsider",
        "outsider",
        "Somebody who sees the opened sums and the models but took no part: all noise counts.",
    ),
    (
        "epsilon_single",
        "single party",
        "One party that subtracts its own noise from the opened sum: everybody else's counts.",
    ),
    (
        "epsilon",
        "coalition",
        "The planned coalition of colluding parties, which subtracts the noise of all its "
        "members. This is the figure that is held against the budget.",
    ),
    (
        "epsilon_own_share",
        "own share only",
        "What remains if the aggregation itself fails and a party's noised input is seen alone: "
        "only its own share of the noise protects it.",
    ),
)

OUT_OF_SCOPE: tuple[str, ...] = (
    "Poisoned updates: a party may send any values, and the model follows them.",
    "More parties than the planned coalition that omit their noise: the sum then carries less "
    "than planned.",
    "Traffic analysis: who talks to whom, when and how much is visible.",
    "Side channels of the host: timing, caches, power, and whoever can read a process' memory.",
    "Runs without party files: their identities are made for one run and prove nothing, so that "
    "who controls the machine or the launcher can stand in for a party. Several hosts need party "
    "files.",
    "Parties that tell the others wrong sums on purpose: a sum is checked against changes by the "
    "network, not against its own parties.",
)


def backend_words(
    backend: str,
    custody: str | None,
    neighbors: int | None = None,
    threshold: tuple[int, int] | None = None,
) -> str:
    """Return what a backend protects against and who can learn an honest party's input.

    Args:
        backend: its name.
        custody: who holds the Paillier key, where there is one.
        neighbors: k, the parties that each shares masks with, where there are masks; None
            means all others. See `neighbors_of`.
        threshold: key shares that decrypt, and all of them, where a key is shared; None where
            they are not known. See `threshold_of`.
    """
    if backend in _PAIRWISE:
        before, after = _PAIRWISE[backend]
        shared = _ALL_PAIRS if neighbors is None else _SPARSE.format(neighbors=neighbors)
        return before + shared + after
    if backend in _BACKENDS:
        return _BACKENDS[backend]
    custody_words = _CUSTODIES.get(custody or "holder")
    if backend in _KEYED and custody_words is not None:
        return custody_words.format(**_counts(threshold)) + _KEYED[backend]
    return (
        f"The backend {backend!r} comes from another package; its documentation says who can "
        "learn an honest party's input."
    )


def _counts(threshold: tuple[int, int] | None) -> dict[str, str]:
    """Return how many shares decrypt, in words for `_THRESHOLD`."""
    if threshold is None:
        return {"decrypt": "a threshold of them", "few": "Fewer learn", "many": "as many"}
    needed, everybody = threshold
    few = "A single party learns" if needed == 2 else f"Up to {needed - 1} parties together learn"
    return {
        "decrypt": f"any {needed} of the {everybody} shares",
        "few": few,
        "many": f"any {needed} parties",
    }


def broken_words(unit: str, epsilon_own_share: float | None) -> str:
    """Return what is left where a key's custody is broken and single inputs are decrypted.

    Args:
        unit: of the privacy guarantee.
        epsilon_own_share: what a party's own noise gives over the run; None is no guarantee.
    """
    if unit == "none":
        return "What somebody does decrypt of a single party is its bare input: there is no noise."
    hidden = "What somebody does decrypt of a single party is hidden by its own share of noise only"
    if epsilon_own_share is None:
        return hidden + ", which gives no guarantee in this run."
    return (
        f"{hidden}: epsilon {epsilon_text(epsilon_own_share)} over this run (the view "
        '"own share only").'
    )


def has_custody(backend: str) -> bool:
    """Tell whether who holds a key decides who can learn an input."""
    return backend in _KEYED


def neighbors_of(job: Mapping[str, Any]) -> int | None:
    """Return k of a job document as a report holds it; None where all share masks with all.

    Raises:
        ConfigError: this is not a job.
        PlanError: its number of neighbors is not safe; no run has such a job.
    """
    aggregation = job.get("aggregation")
    if not isinstance(aggregation, Mapping) or aggregation.get("neighbors", "all") == "all":
        return None
    checked = parse_job(job, "the job of the report")
    parties = checked.parties
    return resolve_neighbors(
        checked.aggregation.neighbors, parties.count, parties.colluding, parties.max_dropout
    )


def threshold_of(job: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return how many key shares decrypt, and how many there are; None where no key is shared.

    Args:
        job: as a report holds it.

    Raises:
        ConfigError: this is not a job.
    """
    aggregation = job.get("aggregation")
    if not isinstance(aggregation, Mapping) or aggregation.get("custody") != Custody.THRESHOLD:
        return None
    checked = parse_job(job, "the job of the report")
    count = checked.parties.count
    return resolve_threshold(checked.aggregation.threshold, count), count


def noise_words(unit: str, placement: str = "distributed") -> str:
    """Return what the noise hides, by privacy unit, and who adds it."""
    if unit == "none":
        return (
            "This run adds no noise: the opened sums and the model may reveal records of any "
            "party. The backend protects single inputs only."
        )
    hidden = {
        "record": "the presence of any single record at any party",
        "party": "the presence of any whole party",
    }.get(unit, f"one {unit}")
    if placement == "local":
        return (
            f"The noise hides {hidden} from everybody who sees the sums or the model, and from "
            "all other parties together: each party adds all of it to every step of its own "
            "training, so that its update needs no further protection. What the backend adds is "
            "that no single update is seen at all."
        )
    return (
        f"The noise hides {hidden} from everybody who sees the sums or the model. Each party adds "
        "its own share of discrete noise before its input is protected, so no party and no server "
        "ever holds a sum without noise."
    )
