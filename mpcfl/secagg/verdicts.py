"""How the parties of a checked sum compare what they opened, and refuse it together.

Two exchanges follow the opening. First each data party shows a nonce, drawn once its own vector
is open; then a digest of its vector under a key that takes all nonces and the group key, with its
verdict on the parts that it checked. All hear all of them, and so come to the same end. Nobody
can have told two parties different vectors with one digest, as nobody knew its key in time.

Assumes that parties say what they found. An aggregator, which knows no sum and no group key,
hears verdicts and digests; the latter tell it nothing but whether they are equal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mpcfl.errors import CheckFailed, ProtocolError
from mpcfl.hazmat.bits import KEY_BYTES, SystemBits
from mpcfl.hazmat.linear_tag import DIGEST_BYTES
from mpcfl.net.channel import SealedTransport
from mpcfl.net.wire import FLAG, U32, U64, Format, Kind, fixed
from mpcfl.secagg.base import SumId

_NONCE_WORDS = KEY_BYTES // 8
_NONCE = Format(Kind.NONCE, nonce=fixed(KEY_BYTES))
_VERDICT = Format(Kind.VERDICT, round_id=U64, attempt=U32, passed=FLAG, digest=fixed(DIGEST_BYTES))


@dataclass(frozen=True, slots=True)
class Circle:
    """Ranks that compare what they opened.

    Attributes:
        wires: sealed channels between all of them.
        rank: this one.
        data_ranks: those that know the sum, ascending.
        n_ranks: all, an aggregator included.
    """

    wires: SealedTransport
    rank: int
    data_ranks: tuple[int, ...]
    n_ranks: int

    @property
    def other_data_ranks(self) -> list[int]:
        """Ranks that know the sum, without this one; the next one first."""
        own = sum(rank <= self.rank for rank in self.data_ranks)
        return [r for r in self.data_ranks[own:] + self.data_ranks[:own] if r != self.rank]

    def tell(self, message: bytes) -> dict[int, bytes]:
        """Send to all other data ranks and return what each of them sends."""
        others = self.other_data_ranks
        return self.wires.exchange(dict.fromkeys(others, message), others)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one data party says of a sum.

    Attributes:
        sum_id: which sum.
        passed: the form of the vector was right, and the parts that this party checked.
        digest: of the whole vector as this party holds it; zeros where it did not pass.
    """

    sum_id: SumId
    passed: bool
    digest: bytes


def exchange_nonces(circle: Circle) -> list[bytes]:
    """Return the nonces of all data ranks, in order; called once this rank's vector is open.

    Raises:
        ProtocolError: a rank sent something else.
    """
    own = SystemBits().words(_NONCE_WORDS).tobytes()
    nonces = {circle.rank: own}
    for source, text in circle.tell(_NONCE.encode(nonce=own)).items():
        nonces[source] = _NONCE.decode(text, f"rank {source}")["nonce"]
    return [nonces[rank] for rank in circle.data_ranks]


def exchange_verdicts(circle: Circle, own: Verdict | None) -> dict[int, Verdict]:
    """Tell all ranks this one's verdict and return those of all data ranks, by rank.

    Args:
        circle: who takes part.
        own: None at an aggregator.

    Raises:
        ProtocolError: a rank sent something else, or speaks of another sum.
    """
    verdicts: dict[int, Verdict] = {}
    message = b""
    if own is not None:
        verdicts[circle.rank] = own
        message = _VERDICT.encode(**name_of(own.sum_id), passed=own.passed, digest=own.digest)
    hearers = [rank for rank in range(circle.n_ranks) if rank != circle.rank]
    outgoing = {} if own is None else dict.fromkeys(hearers, message)
    received = circle.wires.exchange(outgoing, circle.other_data_ranks)
    for source, text in received.items():
        if own is not None and text == message:
            # As nearly always.
            verdicts[source] = own
            continue
        stated = _VERDICT.decode(text, f"rank {source}")
        sum_id = SumId(stated["round_id"], stated["attempt"])
        if own is not None:
            require_same_sum(source, stated, own.sum_id)
        verdicts[source] = Verdict(sum_id, stated["passed"], stated["digest"])
    return verdicts


def name_of(sum_id: SumId) -> dict[str, int]:
    """Return which sum a message speaks of, as its fields."""
    return {"round_id": sum_id.round_id, "attempt": sum_id.attempt}


def require_same_sum(source: int, stated: Mapping[str, Any], expected: SumId) -> None:
    """Refuse a message that speaks of another sum.

    Raises:
        ProtocolError: names the rank, and both sums.
    """
    found = SumId(stated["round_id"], stated["attempt"])
    if found != expected:
        raise ProtocolError(
            f"rank {source} is at round {found.round_id}, attempt {found.attempt}, this rank at "
            f"round {expected.round_id}, attempt {expected.attempt}; give all ranks the same sums "
            "in the same order"
        )


def judge(verdicts: Mapping[int, Verdict], modulus_bits: int) -> None:
    """Refuse a sum that any rank found wrong, or that is not the same for all ranks.

    Raises:
        CheckFailed: names the rank that noticed.
    """
    first, *others = sorted(verdicts)
    sum_id, half = verdicts[first].sum_id, modulus_bits - 1
    for rank in (first, *others):
        if not verdicts[rank].passed:
            raise failure(
                sum_id,
                f"rank {rank} found that it is not the sum of what all parties put in, or that "
                f"this sum left [-2^{half}, 2^{half}) and needs more modulus_bits",
            )
    for rank in others:
        if verdicts[rank].digest != verdicts[first].digest:
            raise failure(sum_id, f"rank {rank} was told another one than rank {first}")


def failure(sum_id: SumId, reason: str) -> CheckFailed:
    """Return the error of a sum that must not be used; ``reason`` is public."""
    return CheckFailed(
        f"round {sum_id.round_id}, attempt {sum_id.attempt}: the sum failed its check in stage "
        f"open: {reason}; it was not used, and the attempt stays spent: open a new session over a "
        "network that changes nothing"
    )
