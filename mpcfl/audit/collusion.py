"""Attacks by coalitions: do some parties together hold what masks another party's input?

A coalition pools the vectors that its members and others sent, its own inputs, and every pad
that its members hold. The attack adds and subtracts each subset of these to the victim's
vector; it has won where what is left differs from the victim's input by a constant (as offset
encodings do). All coalitions that leave at least two honest parties are tried, pairs of
neighbors among them. All others together win against every scheme: that they do so here by the
masks alone, where there are mask keys, shows that the attack knows the masks rightly.

Assumes: pads come from keys that `net/channel.py` derived, by AES-256 in counter mode (run
here a second time, independently of `hazmat`), or from the reader of `Subject.read_pads`.
Only sums and differences are tried: another way to combine what a coalition knows is not.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from mpcfl.audit.observe import Observation, Words
from mpcfl.audit.uniformity import word_bits, words_of
from mpcfl.audit.verdict import Finding
from mpcfl.net.codec import WordCodec
from mpcfl.secagg.base import SecureSum

# Coordinates attacked: half of them differing alike by chance has a probability below 2^-180.
_COORDINATES = 64
# 3^9 = 19,683 combinations.
_MAX_VECTORS = 9
Coalition = tuple[int, ...]
# How a backend may cut words of its ring out of a keystream; all are tried.
_PadWords = Callable[[bytes, int], Words]


def _low_bits(stream: bytes, width: int) -> Words:
    return np.frombuffer(stream, "<u8") & _mask(width)


def _high_bits(stream: bytes, width: int) -> Words:
    return np.frombuffer(stream, "<u8") >> np.uint64(64 - width)


def _low_bits_of_containers(stream: bytes, width: int) -> Words:
    """Cut words of the smallest machine type that holds ``width`` bits."""
    dtype = WordCodec(width).dtype.newbyteorder("<")
    words = np.frombuffer(stream, dtype, _COORDINATES).astype(np.uint64)
    return words & _mask(width)


def _back_to_back(stream: bytes, width: int) -> Words:
    return words_of(stream[: _COORDINATES * width // 8], _COORDINATES)


_PAD_WORDS: tuple[_PadWords, ...] = (
    _low_bits,
    _low_bits_of_containers,
    _high_bits,
    _back_to_back,
)


def _mask(width: int) -> np.uint64:
    return np.uint64((1 << width) - 1)


def _coalitions(n_parties: int, victim: int, size: int) -> Iterator[Coalition]:
    """Yield the coalitions of ``size`` parties without the victim."""
    others = [rank for rank in range(n_parties) if rank != victim]
    return itertools.combinations(others, size)


def check_keys(observation: Observation, number: int) -> Finding:
    """Check that any two parties use a mask key in this sum that nobody else derived."""
    n_parties = observation.n_parties
    held = [_keys_of(observation, rank, number) for rank in range(n_parties)]
    lacking = []
    for one, two in itertools.combinations(range(n_parties), 2):
        others = set().union(*(held[r] for r in range(n_parties) if r not in (one, two)))
        if not (held[one] & held[two]) - others:
            lacking.append((one, two))
    n_pairs = n_parties * (n_parties - 1) // 2
    detail = (
        f"{n_pairs - len(lacking)} of {n_pairs} pairs of parties use a mask key that only these "
        "two hold; all must, so that no coalition has all keys of an honest party"
    )
    figures = {"pairs": n_pairs, "pairs_without_own_key": len(lacking)}
    return Finding("key-for-every-pair", not lacking, detail, figures)


def _keys_of(observation: Observation, rank: int, number: int) -> set[bytes]:
    """Return the mask keys of a rank in one sum; all of its session's, if it derives ahead."""
    own = [derived for derived in observation.keys if derived.rank == rank]
    return {d.key for d in own if d.number == number} or {d.key for d in own}


def has_pads(observation: Observation) -> bool:
    """Tell whether the auditor knows the pads of this backend."""
    return bool(observation.keys or observation.pads)


def check_coalitions(observation: Observation, number: int) -> Finding:
    """Attack every party by every coalition that leaves two honest parties.

    Args:
        observation: one session with three or more parties.
        number: of a sum whose inputs are uniform over the ring.
    """
    n_parties = observation.n_parties
    decode = _decoding_that_works(observation, number)
    won, tried = [], 0
    for victim in range(n_parties):
        for size in range(1, n_parties - 1):
            for coalition in _coalitions(n_parties, victim, size):
                tried += 1
                if _attack(observation, number, (victim, coalition), decode or _low_bits):
                    won.append((victim, coalition))
    examples = "".join(f"; parties {c} read party {v}" for v, c in won[:1])
    sound = decode is not None or not has_pads(observation)
    detail = (
        f"{len(won)} of {tried} attacks by coalitions of up to {n_parties - 2} took an input "
        f"apart{examples}; none may"
    )
    if not sound:
        detail += " (not to be relied on: even all others together did not, so pads are unknown)"
    figures = {"attacks": tried, "won": len(won), "control_won": float(decode is not None)}
    return Finding("no-coalition-strips-a-mask", sound and not won, detail, figures)


def _decoding_that_works(observation: Observation, number: int) -> _PadWords | None:
    """Return the reading of keystreams by which all others together read every party.

    With mask keys they have to do so by the masks alone: all vectors with all inputs would
    give every party away whatever is known of the masks.
    """
    n_parties = observation.n_parties
    by_vectors = not observation.keys
    for decode in _PAD_WORDS:
        attacks = (
            (v, c) for v in range(n_parties) for c in _coalitions(n_parties, v, n_parties - 1)
        )
        if all(_attack(observation, number, a, decode, by_vectors=by_vectors) for a in attacks):
            return decode
    return None


def _attack(
    observation: Observation,
    number: int,
    attack: tuple[int, Coalition],
    decode: _PadWords,
    *,
    by_vectors: bool = True,
) -> bool:
    """Try to strip the victim's mask with what the coalition has; say whether it worked.

    Args:
        observation: of a session.
        number: of the sum.
        attack: victim and coalition.
        decode: reads keystreams.
        by_vectors: combine what other ranks sent, too, and not only pads.
    """
    victim, coalition = attack
    n_parties = observation.n_parties
    sent = {rank: _vector(observation, rank, number) for rank in range(n_parties)}
    if victim not in sent or sent[victim] is None:
        return False
    pads = _pads(observation, number, attack, decode)
    vectors = []
    for rank in range(n_parties):
        vector = sent[rank]
        if by_vectors and rank != victim and vector is not None:
            known = _truth(observation, rank, number) if rank in coalition else np.uint64(0)
            vectors.append(vector - known)
    target = sent[victim] - _truth(observation, victim, number)
    width = _width(observation, victim, number)
    # All together where that is feasible, else pads and vectors each by themselves.
    together = len(pads) + len(vectors) <= _MAX_VECTORS
    choices = [pads + vectors] if together else [pads[:_MAX_VECTORS], vectors[:_MAX_VECTORS]]
    return any(_constant_remains(target, choice, width) for choice in choices)


def _constant_remains(target: Words, vectors: list[Words], width: int) -> bool:
    """Tell whether target plus some of +-vectors is constant in half of the coordinates."""
    signs = np.array(list(itertools.product((0, 1, -1), repeat=len(vectors))), dtype=np.int64)
    combined = np.broadcast_to(target, (len(signs), len(target))).copy()
    for column, vector in enumerate(vectors):
        combined += signs[:, column, None].view(np.uint64) * vector
    combined &= _mask(width)
    alike = np.sum(combined == combined[:, :1], axis=1)
    return bool(np.any(2 * alike >= len(target)))


def _streams_of(observation: Observation, rank: int, number: int) -> bytes:
    streams = observation.streams(number)
    return max((s for (sender, _), s in streams.items() if sender == rank), key=len, default=b"")


def _width(observation: Observation, rank: int, number: int) -> int:
    return word_bits(_streams_of(observation, rank, number), observation.settings.dim)


def _vector(observation: Observation, rank: int, number: int) -> Any:
    """Return the first words of the vector that a rank sent, or None if it sent none."""
    dim = observation.settings.dim
    stream = _streams_of(observation, rank, number)
    words = words_of(stream, dim) if 8 * len(stream) >= 8 * dim else np.zeros(0, np.uint64)
    return words[:_COORDINATES] if len(words) == dim else None


def _truth(observation: Observation, rank: int, number: int) -> Words:
    return observation.inputs[number][rank][:_COORDINATES].view(np.uint64)


def _pads(
    observation: Observation, number: int, attack: tuple[int, Coalition], decode: _PadWords
) -> list[Words]:
    """Return the pads that the coalition holds and that may be in the victim's mask."""
    victim, coalition = attack
    width = _width(observation, victim, number)
    pads = [pad[:_COORDINATES] for r in coalition for pad in observation.pads.get((number, r), [])]
    of_victim = _keys_of(observation, victim, number)
    shared = [sorted(_keys_of(observation, r, number) & of_victim) for r in coalition]
    if sum(map(len, shared)) > _MAX_VECTORS:
        # Masks of long vectors have a key per chunk; the first one lies over these coordinates.
        shared = [_first_keys(observation, victim, rank, number) for rank in coalition]
    keys = sorted({key for keys in shared for key in keys})
    return pads + [decode(_keystream(key), width) for key in keys]


def _first_keys(observation: Observation, rank: int, peer: int, number: int) -> list[bytes]:
    """Return the mask key that a rank derived first with a peer in a sum, if any."""
    pair = (d for d in observation.keys if (d.rank, d.peer, d.number) == (rank, peer, number))
    first = next(pair, None)
    return [] if first is None else [first.key]


def _keystream(key: bytes) -> bytes:
    encryptor = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
    return encryptor.update(bytes(8 * _COORDINATES))


def crypten_stock_pads(session: SecureSum, dim: int) -> list[Words]:
    """Read from a `crypten-stock` session the two pads of its next sum; see `PadReader`.

    CrypTen adds a stream shared with one ring neighbor and subtracts one shared with the
    other, once for the input of each rank.
    """
    # Only here is CrypTen known to be installed.
    from mpcfl.secagg.crypten_bridge import crypten

    stock: Any = session
    cpu = torch.device("cpu")
    with stock._speaking():
        states = [crypten.generators[name][cpu].get_state() for name in ("prev", "next")]
    return [_sum_of_draws(state, dim, stock._n_ranks) for state in states]


def _sum_of_draws(state: torch.Tensor, dim: int, draws: int) -> Words:
    generator = torch.Generator()
    generator.set_state(state)
    total = np.zeros(dim, dtype=np.uint64)
    for _ in range(draws):
        # The range in which CrypTen 0.4.1 draws words of its ring.
        drawn = torch.randint(-(2**63), 2**63 - 1, (dim,), generator=generator, dtype=torch.long)
        total += drawn.numpy().view(np.uint64)
    return total
