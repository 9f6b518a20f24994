"""Who holds the Paillier private key, who sums, and which settings are refused.

`holder`: rank 0 owns the key and brings data like every rank. The others form the product
of their ciphertexts along a chain that ends at rank 0, so it never receives the ciphertext
of one party. It breaks if the holder colludes with a rank of the chain.

`clients`: every data party owns the key; the last rank is an aggregator without key and
without data. It breaks if the aggregator colludes with any data party.
"""

from __future__ import annotations

from dataclasses import dataclass

from mpcfl.config import Custody
from mpcfl.errors import ConfigError

# Below 2048 bits a modulus is factored too cheaply (NIST SP 800-57 part 1, table 2).
MIN_KEY_BITS = 2048
MAX_KEY_BITS = 8192
DEFAULT_KEY_BITS = 3072
# The backends for whose keys custody has a meaning.
PAILLIER_BACKENDS = frozenset({"phe", "paillier"})
KEY_MAKER = 0


@dataclass(frozen=True, slots=True)
class Roles:
    """Which rank does what. Public.

    Attributes:
        data_ranks: ranks that bring a vector.
        key_ranks: ranks that own the whole private key; all of them bring data.
        aggregator: rank that multiplies without key and data; None under `holder`.
    """

    data_ranks: tuple[int, ...]
    key_ranks: tuple[int, ...]
    aggregator: int | None


def assign_roles(custody: Custody, n_ranks: int) -> Roles:
    """Return the roles of ``n_ranks`` ranks.

    Raises:
        ConfigError: `clients` without a rank left for data.
    """
    if custody is Custody.HOLDER:
        return Roles(tuple(range(n_ranks)), (KEY_MAKER,), None)
    if n_ranks < 2:
        raise ConfigError(
            'custody = "clients" needs an aggregator rank beside the data parties; start one '
            'more rank or set custody = "holder"'
        )
    data_ranks = tuple(range(n_ranks - 1))
    return Roles(data_ranks, data_ranks, n_ranks - 1)


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


def check_custody(
    job_backend: str, custody: Custody, n_parties: int, colluding: int, private: bool
) -> None:
    """Refuse a custody that the planned coalition would break.

    Args:
        job_backend: name of the backend; others than Paillier's have no custody.
        custody: as in the job.
        n_parties: number of data parties.
        colluding: data parties that the plan assumes to work together.
        private: True if the run promises privacy (privacy.unit is not "none").

    Raises:
        ConfigError: names the reason and the remedy.
    """
    if job_backend not in PAILLIER_BACKENDS or custody is not Custody.HOLDER:
        return
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
