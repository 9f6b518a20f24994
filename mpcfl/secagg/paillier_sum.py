"""The `paillier` backend: packed, short-exponent, table-driven Paillier.

Many values share a ciphertext (`hazmat/packing.py`), randomizers are short powers of one
generator, from a table (`hazmat/randomizers.py`; Damgard, Jurik, Nielsen 2010, section 4.2),
and whoever owns the key decrypts by the Chinese remainder theorem. Carries: values go into
their slots as v + 2^(b-1) and are added as plain integers that a slot always holds, so what is
decrypted is the true sum plus a public constant, whatever the signs.

Who learns an input: by custody. `holder` and `clients`: whoever owns the private key and sees
a single ciphertext; nobody does both, unless ranks collude as `custody.py` says. `threshold`:
t ranks together, or who dealt the key shares. Ranks are assumed to follow the protocol; only
wrong partial decryptions are found, and their author is named.
"""

from __future__ import annotations

from mpcfl.config import Custody
from mpcfl.errors import ConfigError
from mpcfl.hazmat.modular import kernel_name
from mpcfl.hazmat.packing import SlotLayout
from mpcfl.hazmat.paillier import PrivateKey, PublicKey, raw_generate_key
from mpcfl.hazmat.randomizers import Randomizers
from mpcfl.net.transport import Transport
from mpcfl.secagg.base import SecureSum, SumSettings
from mpcfl.secagg.custody import assign_roles, check_key_bits
from mpcfl.secagg.key_dealing import deal_primes, open_wires
from mpcfl.secagg.key_holding import HeldShare, deal_shares
from mpcfl.secagg.paillier_ops import PackedOps
from mpcfl.secagg.paillier_routes import ClientsSum, HolderSum
from mpcfl.secagg.randomizer_pool import RandomizerPool
from mpcfl.secagg.threshold_sum import ThresholdSum

# A session is opened for more than one sum; the table of powers is sized for so many.
_SUMS_AHEAD = 16
# Under custody `threshold` partial decryptions take nearly all of the time, and a rank holds the
# whole product besides: a table for at most so many takes a third of the memory of a large one.
_THRESHOLD_ENCRYPTIONS_AHEAD = 1000


def open_paillier_sum(
    transport: Transport, settings: SumSettings, *, held: HeldShare | None = None
) -> SecureSum:
    """Make and hand out keys, or take this rank's share of one, and open a session.

    Args:
        transport: joins the ranks.
        settings: of the session.
        held: this rank's key share, from a ceremony or from a session that lost ranks
            (`held_share_of`), for custody `threshold` only; there may be more shares than ranks.
            Without it, rank 0 deals shares for this session, sealed, and forgets the key.

    Raises:
        ConfigError: the key size or the custody is refused, or the sum does not fit a slot.
        KeyFileError: a key share is not one of this session's key.
    """
    check_key_bits(settings.key_bits)
    roles = assign_roles(settings.custody, transport.n_ranks)
    if held is not None and not roles.shared_key:
        raise ConfigError('a key share is only of use with custody = "threshold"')
    layout = SlotLayout(settings.modulus_bits, len(roles.data_ranks), settings.key_bits - 1)
    if roles.shared_key and (transport.n_ranks > 1 or held is not None):
        return _open_threshold(transport, settings, layout, held)
    if roles.shared_key:
        # A program that is tried alone has nobody to share a key with.
        roles = assign_roles(Custody.HOLDER, 1)
    wires = open_wires(transport, settings, "paillier")
    dealt = deal_primes(transport.rank, wires, settings.key_bits, roles, _make_primes)
    private_key = None if dealt.primes is None else PrivateKey(*dealt.primes, has_generator=True)
    public_key = PublicKey(dealt.modulus, has_generator=True)
    encrypts = transport.rank in roles.encrypting_ranks
    n_ahead = layout.n_plaintexts(settings.dim) * _SUMS_AHEAD
    source = Randomizers(public_key, private_key, n_ahead=n_ahead) if encrypts else None
    pool = None if source is None else _open_pool(source, layout, settings)
    ops = PackedOps(public_key, private_key, layout, pool)
    if roles.aggregator is None:
        session: SecureSum = HolderSum(transport, wires, ops, settings)
    else:
        session = ClientsSum(transport, wires, ops, settings, roles.data_ranks)
    # Nothing is made ahead before there is a session that can be closed.
    ops.finish()
    return session


def _open_threshold(
    transport: Transport, settings: SumSettings, layout: SlotLayout, held: HeldShare | None
) -> ThresholdSum:
    wires = open_wires(transport, settings, "paillier")
    if held is None:
        held = deal_shares(transport, wires, settings)
    public_key = held.share.key.public_key
    # The kernel makes a table as fast as it would read one.
    tables = held.tables if kernel_name() == "gmpy2" else None
    n_ahead = min(layout.n_plaintexts(settings.dim) * _SUMS_AHEAD, _THRESHOLD_ENCRYPTIONS_AHEAD)
    source = Randomizers(public_key, n_ahead=n_ahead, cache=tables)
    pool = _open_pool(source, layout, settings)
    share = _chunk_share(held.share.key.threshold)
    ops = PackedOps(public_key, None, layout, pool, chunk_share=share)
    session = ThresholdSum(transport, wires, ops, settings, held)
    ops.finish()
    return session


def _chunk_share(threshold: int) -> int:
    """Return how much shorter chunks are when t key shares decrypt; equal at all ranks.

    A partial decryption costs seven times as much as decryption by the owner of the key, and
    each rank makes t of them in every turn, which must stay far below the deadline. A proof
    costs as much as a dozen partials, so that much shorter chunks would be dearer.
    """
    return max(2, -(-2 * threshold // 3))


def _make_primes(key_bits: int) -> tuple[int, int]:
    return raw_generate_key(key_bits).raw_primes()


def _open_pool(source: Randomizers, layout: SlotLayout, settings: SumSettings) -> RandomizerPool:
    n_ahead = layout.n_plaintexts(settings.dim) if settings.precompute else 0
    return RandomizerPool(source, n_ahead, 2 * source.public_key.key_bits // 8)
