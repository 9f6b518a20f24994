"""Shares of a Paillier key: dealt for one session by rank 0, or brought from a ceremony.

In a session without key files rank 0 deals: it makes the key, sends each rank its share over
a sealed channel and forgets the rest. It is trusted to; the threat model says so. With files
from `mpcfl keygen` the dealer was another process, before.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from mpcfl.errors import ConfigError, KeyFileError, ProtocolError
from mpcfl.hazmat.paillier import PublicKey
from mpcfl.hazmat.threshold_key import KeyShare, ThresholdKey, raw_deal_key
from mpcfl.net.channel import SealedTransport
from mpcfl.net.transport import Transport
from mpcfl.secagg.base import SumSettings
from mpcfl.secagg.ceremony import passphrase_lines
from mpcfl.secagg.custody import KEY_MAKER, resolve_threshold
from mpcfl.secagg.decryption_log import DecryptionLog
from mpcfl.secagg.key_files import load_key_share

LOG_SUFFIX = ".decrypted"
TABLES_NAME = "tables"
_INDEX_BYTES = 4


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class HeldShare:
    """One rank's key share. Secret.

    Attributes:
        share: its own.
        log: of what it has decrypted.
        tables: folder of the tables of its key, which lives longer than a session; else None.
    """

    share: KeyShare
    log: DecryptionLog = field(default_factory=DecryptionLog)
    tables: Path | None = None


def hold_share(path: Path, passphrase: str) -> HeldShare:
    """Open a party's own key share; what it decrypts is noted in a log beside its file.

    Beside it, too, lie tables of the key's powers where making them takes time; they are public.

    Args:
        path: the file from `mpcfl keygen`.
        passphrase: that the file was sealed with.

    Raises:
        KeyFileError: the file or its log is damaged, open to others or in use; or the passphrase
            is wrong.
    """
    path = Path(path)
    share = load_key_share(path, passphrase)
    log = DecryptionLog(path.with_suffix(LOG_SUFFIX))
    return HeldShare(share, log, path.parent / TABLES_NAME)


def held_share_of(secure: object) -> HeldShare | None:
    """Return the key share that a session of sums works with; None where it has none. Secret.

    Args:
        secure: a `SecureSum`, not closed.
    """
    method = getattr(secure, "held_share", None)
    held: HeldShare | None = None if method is None else method()
    return held


def read_own_passphrase(path: Path, rank: int) -> str:
    """Return one party's passphrase from a file with one line for it alone, or one per party.

    Raises:
        KeyFileError: the file can't be read, others may read it, or it has no such line.
    """
    lines = passphrase_lines(path)
    if len(lines) == 1:
        return lines[0]
    if rank >= len(lines):
        raise KeyFileError(
            f"{path}: {len(lines)} lines, and none for rank {rank}; write one line per party, in "
            "the order of their ranks, or one for this party alone"
        )
    return lines[rank]


def deal_shares(transport: Transport, wires: SealedTransport, settings: SumSettings) -> HeldShare:
    """Deal a key for this session; all ranks call it together.

    Raises:
        ConfigError: the threshold is out of range, or what came is no share of its key.
        ProtocolError: what came has not the form of a key share.
    """
    n_ranks, key_bits = transport.n_ranks, settings.key_bits
    threshold = resolve_threshold(settings.threshold, n_ranks)
    if transport.rank != KEY_MAKER:
        message = wires.exchange({}, [KEY_MAKER])[KEY_MAKER]
        shape = _Shape(key_bits, n_ranks, threshold, index=transport.rank + 1)
        return HeldShare(_decode(message, shape))
    _, shares = raw_deal_key(key_bits, n_ranks, threshold)
    outgoing = {share.index - 1: _encode(share) for share in shares if share.index > 1}
    wires.exchange(outgoing, [])
    return HeldShare(shares[0])


def check_share(share: KeyShare, key_bits: int, threshold: int | None) -> None:
    """Refuse a key share that does not suit the settings; local.

    Raises:
        ConfigError: the key or its threshold is not the one of the settings.
    """
    key = share.key
    if key.public_key.key_bits != key_bits:
        raise ConfigError(
            f"the key shares are of a key of {key.public_key.key_bits} bits, key_bits is "
            f"{key_bits}; set key_bits to the former"
        )
    if threshold is not None and threshold != key.threshold:
        raise ConfigError(
            f"{key.threshold} of these key shares decrypt, threshold is {threshold}; set "
            "threshold to the former, or bring shares of another ceremony"
        )


def compare_shares(
    transport: Transport, wires: SealedTransport, share: KeyShare, settings: SumSettings
) -> tuple[int, ...]:
    """Return the number of each rank's key share; all ranks call it together.

    The numbers come sealed: by them a wrong partial is blamed on its author.

    Raises:
        KeyFileError: ranks hold shares of different keys, or the same share twice.
        ConfigError: the key or its threshold is not the one of the settings.
    """
    key = share.key
    check_share(share, settings.key_bits, settings.threshold)
    own = share.index.to_bytes(_INDEX_BYTES, "big") + key.fingerprint.encode()
    ranks = range(transport.n_ranks)
    others = [rank for rank in ranks if rank != transport.rank]
    received = wires.exchange(dict.fromkeys(others, own), others)
    seen = [received.get(rank, own) for rank in ranks]
    indices = tuple(int.from_bytes(message[:_INDEX_BYTES], "big") for message in seen)
    foreign = [r for r, text in enumerate(seen) if text[_INDEX_BYTES:] != seen[0][_INDEX_BYTES:]]
    if foreign:
        raise KeyFileError(
            f"rank {', '.join(map(str, foreign))} holds a share of another key than rank 0; give "
            "each rank its file of the same ceremony"
        )
    if len(set(indices)) != len(indices):
        raise KeyFileError(
            f"the ranks hold the key shares {', '.join(map(str, indices))}; each must have its own"
        )
    return indices


@dataclass(frozen=True, slots=True)
class _Shape:
    """What is known of a share before it comes."""

    key_bits: int
    n_shares: int
    threshold: int
    index: int

    @property
    def widths(self) -> tuple[int, ...]:
        """Bytes of n, v, each v_i and the share, which is below n m < n^2."""
        half = self.key_bits // 8
        return (half, *([2 * half] * (self.n_shares + 2)))


def _encode(share: KeyShare) -> bytes:
    key = share.key
    shape = _Shape(key.public_key.key_bits, key.n_shares, key.threshold, share.index)
    numbers = (
        key.public_key.modulus, key.verification_base, *key.verification_keys, share.raw_value(),
    )  # fmt: skip
    pairs = zip(numbers, shape.widths, strict=True)
    return b"".join(int(number).to_bytes(width, "big") for number, width in pairs)


def _decode(message: bytes, shape: _Shape) -> KeyShare:
    if len(message) != sum(shape.widths):
        raise ProtocolError("the key share that came has the wrong length")
    numbers, at = [], 0
    for width in shape.widths:
        numbers.append(int.from_bytes(message[at : at + width], "big"))
        at += width
    modulus, base, *keys, value = numbers
    if modulus.bit_length() != shape.key_bits:
        raise ProtocolError(f"the key share that came is not of a key of {shape.key_bits} bits")
    public_key = PublicKey(modulus, has_generator=True)
    key = ThresholdKey(public_key, shape.threshold, shape.n_shares, base, tuple(keys))
    share = KeyShare(key, shape.index, value)
    share.check()
    return share
