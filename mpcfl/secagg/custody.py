"""Who holds the Paillier private key, who sums, and which settings are refused.

`holder`: rank 0 owns the key and brings data like every rank. The others form the product
of their ciphertexts along a chain that ends at rank 0, so it never receives the ciphertext
of one party. It breaks if the holder colludes with a rank of the chain.

`clients`: every data party owns the key; the last rank is an aggregator without key and
without data. It breaks if the aggregator colludes with any data party.

`threshold`: every rank brings data and has one share of the key; t of them decrypt. It breaks
if t ranks collude, or if who dealt the shares kept the key.
"""

from __future__ import annotations

from dataclasses import dataclass

from mpcfl.config import PAILLIER_BACKENDS, Custody, Job, Unit
from mpcfl.errors import ConfigError

# Below 2048 bits a modulus is factored too cheaply (NIST SP 800-57 part 1, table 2).
MIN_KEY_BITS = 2048
MAX_KEY_BITS = 8192
DEFAULT_KEY_BITS = 3072
KEY_MAKER = 0


@dataclass(frozen=True, slots=True)
class Roles:
    """Which rank does what. Public.

    Attributes:
        data_ranks: ranks that bring a vector.
        key_ranks: ranks that own the whole private key; all of them bring data.
        aggregator: rank that multiplies without key and data; None but under `clients`.
        shared_key: every data rank has a share of the private key, and nobody the whole.
    """

    data_ranks: tuple[int, ...]
    key_ranks: tuple[int, ...]
    aggregator: int | None
    shared_key: bool = False

    @property
    def encrypting_ranks(self) -> tuple[int, ...]:
        """Ranks that make ciphertexts.

        A holder among three or more adds its own values to what it decrypts, so that no
        ciphertext of them exists; a rank that is alone has nobody to hide from.
        """
        if self.aggregator is not None or self.shared_key or len(self.data_ranks) == 2:
            return self.data_ranks
        return tuple(rank for rank in self.data_ranks if rank not in self.key_ranks)


def assign_roles(custody: Custody, n_ranks: int) -> Roles:
    """Return the roles of ``n_ranks`` ranks.

    Raises:
        ConfigError: `clients` without a rank left for data.
    """
    if custody is Custody.HOLDER:
        return Roles(tuple(range(n_ranks)), (KEY_MAKER,), None)
    if custody is Custody.THRESHOLD:
        return Roles(tuple(range(n_ranks)), (), None, shared_key=True)
    if n_ranks < 2:
        raise ConfigError(
            'custody = "clients" needs an aggregator rank beside the data parties; start one '
            'more rank or set custody = "holder"'
        )
    data_ranks = tuple(range(n_ranks - 1))
    return Roles(data_ranks, data_ranks, n_ranks - 1)


def resolve_threshold(threshold: int | None, n_ranks: int) -> int:
    """Return t, the key shares that decrypt: as asked for, or by default more than half.

    Raises:
        ConfigError: it is not in 2 to ``n_ranks``.
    """
    if threshold is None:
        return n_ranks // 2 + 1
    if not 2 <= threshold <= n_ranks:
        raise ConfigError(
            f"threshold = {threshold} is no number of {n_ranks} key shares; leave it out for "
            f"{n_ranks // 2 + 1}, more than half"
        )
    return threshold


def check_key_bits(key_bits: int) -> None:
    """Refuse Paillier moduli that are too short to protect anything, or oddly sized.

    Raises:
        ConfigError: the size is out of range.
    """
    if not MIN_KEY_BITS <= key_bits <= MAX_KEY_BITS or key_bits % 256:
        raise ConfigError(
            f"key_bits = {key_bits} is not a multiple of 256 from {MIN_KEY_BITS} to "
            f"{MAX_KEY_BITS}; {DEFAULT_KEY_BITS} is the default"
        )


def check_custody(job: Job) -> None:
    """Refuse a custody that the planned coalition would break.

    Backends other than Paillier's have no custody.

    Raises:
        ConfigError: names the reason and the remedy.
    """
    custody, colluding = job.aggregation.custody, job.parties.colluding
    if job.aggregation.backend not in PAILLIER_BACKENDS:
        return
    if custody is Custody.HOLDER:
        check_holder(job.parties.count, colluding, private=job.privacy.unit is not Unit.NONE)
    if custody is Custody.THRESHOLD:
        _check_threshold(job)


def _check_threshold(job: Job) -> None:
    parties = job.parties
    threshold = resolve_threshold(job.aggregation.threshold, parties.count)
    live = parties.count - parties.max_dropout
    if parties.colluding >= threshold:
        raise ConfigError(
            f"aggregation.threshold = {threshold} key shares decrypt, and parties.colluding = "
            f"{parties.colluding} would have as many; set a threshold above it"
        )
    if threshold > live:
        raise ConfigError(
            f"aggregation.threshold = {threshold} is more than the {live} parties that are left "
            "when parties.max_dropout are missing; set a lower one"
        )


def check_holder(n_parties: int, colluding: int, *, private: bool) -> None:
    """Refuse custody `holder` where the key holder could read a party's update.

    Raises:
        ConfigError: too many collude, or only two parties are there.
    """
    if colluding > 1:
        raise ConfigError(
            f'aggregation.custody = "holder" can\'t stand colluding = {colluding}: the key holder '
            "and one rank of the chain open another party's update; set "
            'aggregation.custody = "clients"'
        )
    if private and n_parties == 2:
        raise ConfigError(
            'aggregation.custody = "holder" with two parties lets the key holder read the '
            'other\'s update; set aggregation.custody = "clients"'
        )
