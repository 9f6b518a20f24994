"""An attack by too few holders of key shares: pool them, and decrypt what one party sent.

Under custody `threshold` every rank sees every party's ciphertext; that nobody has the key is
what protects it. The auditor takes the shares out of the sessions and tries all coalitions
below the threshold, each against the first ciphertext of a party outside of it: it interpolates
the key as if its shares were enough (Damgard, Jurik 2001, section 4.1; written here a second
time, independently of `hazmat`). That as many shares as the threshold says do decrypt, by the
same way, shows that the attack knows the shares rightly.

Not tried: who dealt the shares and kept the key, coalitions that reach the threshold, and
anything but interpolation.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from mpcfl.audit.key_owner import is_read, received_ciphertexts, slot_words
from mpcfl.audit.observe import Observation, Words
from mpcfl.audit.tap import Recorder
from mpcfl.audit.verdict import Finding
from mpcfl.secagg.base import SecureSum


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class ShareHolder:
    """One rank's key share and what it received. Secret.

    Attributes:
        index: i, number of the share, from 1 on.
        exponent: Delta s_i.
        delta: Delta, the factorial of the number of shares.
        threshold: t.
        modulus: n.
        ciphertexts: the first one that came from each other rank.
        read: turns plaintexts into the values in them.
    """

    index: int
    exponent: int
    delta: int
    threshold: int
    modulus: int
    ciphertexts: Mapping[int, int]
    read: Callable[[Sequence[int]], Words]


def take_share(session: SecureSum, rank: int, recorder: Recorder) -> ShareHolder:
    """Return a rank's key share and the ciphertexts that it received first; see `Inspector`.

    Args:
        session: of custody `threshold`, not closed yet.
        rank: of the session.
        recorder: has all messages of the sums that this rank has finished.
    """
    route: Any = session
    share, ops = route._held.share, route._link.ops
    first: dict[int, int] = {}
    for message, ciphertexts in received_ciphertexts(ops, rank, recorder):
        first.setdefault(message.sender, ciphertexts[0])
    return ShareHolder(
        index=share.index,
        exponent=share.raw_exponent(),
        delta=share.key.delta,
        threshold=share.key.threshold,
        modulus=int(share.key.public_key.modulus),
        ciphertexts=first,
        read=partial(slot_words, ops),
    )


def check_key_shares(observation: Observation) -> Finding:
    """Check that no coalition below the threshold decrypts, and that one at it does.

    Args:
        observation: of a session whose first sum had inputs uniform over the ring.
    """
    holders: list[ShareHolder] = [
        observation.inspected[rank] for rank in range(observation.n_parties)
    ]
    threshold, ranks = holders[0].threshold, range(len(holders))
    attack = _Attack(holders)
    coalitions = [
        coalition
        for size in range(1, threshold)
        for coalition in itertools.combinations(ranks, size)
    ]
    # A coalition attacks the first party that it can't see into.
    victims = [min(set(ranks) - set(coalition)) for coalition in coalitions]
    opened = sum(
        attack.decrypt(coalition, victim) is not None
        for coalition, victim in zip(coalitions, victims, strict=True)
    )
    victim = len(holders) - 1
    plain = attack.decrypt(tuple(ranks[:threshold]), victim)
    levels = observation.inputs[0][victim]
    control = plain is not None and is_read([plain], levels, observation.settings.modulus_bits)
    detail = (
        f"{opened} of {len(coalitions)} coalitions with fewer than {threshold} key shares "
        f"decrypted another party's ciphertext, none may; {threshold} shares "
        f"{'did, as they must' if control else 'did not, so that the attack is in doubt'}"
    )
    figures = {"tried": len(coalitions), "opened": opened, "control_won": float(control)}
    return Finding("too-few-key-shares-open-nothing", not opened and control, detail, figures)


class _Attack:
    """Decrypts by interpolation; keeps each share's power of each ciphertext."""

    def __init__(self, holders: Sequence[ShareHolder]) -> None:
        self._holders = holders
        self._square = holders[0].modulus ** 2
        self._power = cache(self._raise)

    def decrypt(self, coalition: Sequence[int], victim: int) -> Words | None:
        """Return what a coalition makes of a party's ciphertext; None where it is no plaintext."""
        members = [self._holders[rank] for rank in coalition]
        key = members[0]
        power = 1
        for rank, member in zip(coalition, members, strict=True):
            others = [other.index for other in members if other is not member]
            divisor = math.prod(index - member.index for index in others)
            # Whole, because Delta is a multiple of every such divisor.
            coefficient = key.delta * math.prod(others) // divisor
            raised = pow(self._power(rank, victim), 4 * coefficient, self._square)
            power = power * raised % self._square
        quotient, rest = divmod(power - 1, key.modulus)
        if rest:
            return None
        unlock = pow(4 * key.delta**2, -1, key.modulus)
        return key.read([quotient * unlock % key.modulus])

    def _raise(self, rank: int, victim: int) -> int:
        """Return the ciphertext of ``victim`` to the power of a rank's share."""
        holder = self._holders[rank]
        # All ranks see the same ciphertexts; a rank does not send itself its own.
        seen = holder if victim != rank else self._holders[0]
        return pow(seen.ciphertexts[victim], holder.exponent, self._square)
