"""Pairwise masks: which words they are, that they cancel, and that each is used once."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from mpcfl.errors import OutOfOrder
from mpcfl.hazmat.bits import SystemBits
from mpcfl.net.channel import PairSecrets
from mpcfl.net.reduction import Chunks
from mpcfl.secagg import masks
from mpcfl.secagg.base import FIRST_SUM, SumId
from mpcfl.secagg.masks import MaskedSource, MaskPreparation, PairMasks

DTYPES = (np.uint8, np.uint16, np.uint32, np.uint64)
SUM = SumId(3, 1)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(masks, "_PIECE_BYTES", 64)


def secrets_of(n_ranks, pairs=None):
    """Return one `PairSecrets` per rank, with a secret for all pairs or for some."""
    pairs = {(i, j) for j in range(n_ranks) for i in range(j)} if pairs is None else pairs
    secret = {pair: SystemBits().words(4).tobytes() for pair in sorted(pairs)}
    return [
        PairSecrets(
            rank,
            {sum(pair) - rank: secret[pair] for pair in pairs if rank in pair},
        )
        for rank in range(n_ranks)
    ]


def masks_of(n_ranks, pairs=None):
    return [
        PairMasks(rank, secrets, "test-mask")
        for rank, secrets in enumerate(secrets_of(n_ranks, pairs))
    ]


def written(own, dtype, size, sum_id=SUM, number=0):
    out = np.full(size, 77, dtype=dtype)
    own.write(sum_id, number, out)
    return out


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [0, 1, 7, 1000])
def test_masks_cancel_in_the_sum_of_all_and_of_no_fewer(dtype, size):
    all_masks = masks_of(4)
    words = [written(own, dtype, size) for own in all_masks]
    assert not np.sum(words, axis=0, dtype=np.uint64).astype(dtype).any()
    if size == 1000:
        for left_out in range(4):
            some = sum(w.astype(np.uint64) for rank, w in enumerate(words) if rank != left_out)
            assert np.mean(some.astype(dtype) == 0) < 0.05


def test_masks_of_a_sparse_graph_cancel():
    pairs = {(0, 1), (1, 2), (2, 3), (0, 3), (3, 4), (0, 4)}
    all_masks = masks_of(5, pairs)
    assert [own.n_peers for own in all_masks] == [3, 2, 2, 3, 2]
    total = sum(written(own, np.uint64, 100) for own in all_masks)
    assert not total.any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_words_are_those_of_aes_256_ctr_under_the_pairs_key(dtype):
    """The lower rank adds; little-endian words of the machine type, from one stream per chunk."""
    secrets = secrets_of(3)
    size = 100
    expected = np.zeros(size, dtype=dtype)
    for peer, sign in ((0, -1), (2, 1)):
        key = secrets[1].key(peer, "test-mask", SUM.round_id, SUM.attempt, 5)
        stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
        words = np.frombuffer(stream.update(bytes(size * expected.itemsize)), dtype)
        expected += words if sign > 0 else -words
    own = PairMasks(1, secrets[1], "test-mask")
    assert np.array_equal(written(own, dtype, size, number=5), expected)


def test_masks_differ_by_round_attempt_chunk_purpose_and_pair():
    secrets = secrets_of(3)
    uses = [
        (FIRST_SUM, 0, "a"), (SumId(1), 0, "a"), (SumId(0, 1), 0, "a"), (FIRST_SUM, 1, "a"),
        (SumId(1, 0), 1, "a"), (SumId(0, 1), 1, "a"), (FIRST_SUM, 0, "b"),
    ]  # fmt: skip
    found = {
        written(PairMasks(rank, secrets[rank], purpose), np.uint64, 2, sum_id, number).tobytes()
        for rank in range(3)
        for sum_id, number, purpose in uses
    }
    assert len(found) == 3 * len(uses)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("levels_dtype", [np.int32, np.int64])
def test_levels_come_out_modulo_the_word_when_masks_are_added_up(dtype, levels_dtype):
    n_ranks, size = 3, 300
    chunks = Chunks(size, n_ranks, 120)
    levels = [SystemBits().words(size).view(np.int64).astype(levels_dtype) for _ in range(n_ranks)]
    for ahead in (False, True):
        total = np.zeros(size, dtype=dtype)
        for rank, own in enumerate(masks_of(n_ranks)):
            prepared = None
            if ahead:
                parts = [
                    written(own, dtype, len(range(size)[chunks.chunk(number)]), number=number)
                    for number in range(len(chunks))
                ]
                prepared = np.concatenate(parts)
            source = MaskedSource(levels[rank], SUM, own, chunks, prepared)
            for number in range(len(chunks)):
                out = np.empty(len(range(size)[chunks.chunk(number)]), dtype=dtype)
                source(number, out)
                total[chunks.chunk(number)] += out
        assert np.array_equal(total, sum(v.astype(np.int64) for v in levels).astype(dtype))


@pytest.mark.parametrize("order", [(0, 0), (1,), (0, 2), (0, 1, 0), (0, 1, 2, 2)])
def test_chunks_are_made_once_and_in_order(order):
    source = MaskedSource(np.zeros(120, np.int64), SUM, masks_of(2)[0], Chunks(120, 2, 40))
    for number in order[:-1]:
        source(number, np.empty(40, np.uint32))
    with pytest.raises(OutOfOrder, match="asked for twice"):
        source(order[-1], np.empty(40, np.uint32))


def test_forgotten_secrets_make_no_more_masks():
    own = masks_of(2)[0]
    own.forget()
    with pytest.raises(OutOfOrder):
        written(own, np.uint32, 4)


@pytest.fixture
def executor():
    with ThreadPoolExecutor(1) as pool:
        yield pool


def test_prepared_masks_are_those_that_would_be_made_and_handed_over_once(executor):
    own, chunks = masks_of(3)[0], Chunks(100, 3, 48)
    preparation = MaskPreparation(own, chunks, executor)
    preparation.start(SUM, np.dtype(np.uint32))
    preparation.wait()
    words = preparation.take(SUM)
    expected = [
        written(own, np.uint32, len(range(100)[chunks.chunk(number)]), number=number)
        for number in range(len(chunks))
    ]
    assert np.array_equal(words, np.concatenate(expected))
    assert preparation.take(SUM) is None
    preparation.wait()


@pytest.mark.parametrize("other", [SumId(3), SumId(3, 2), SumId(4, 1)])
def test_masks_of_another_sum_are_thrown_away_for_good(executor, other):
    preparation = MaskPreparation(masks_of(2)[0], Chunks(10, 2, 16), executor)
    preparation.start(SUM, np.dtype(np.uint32))
    assert preparation.take(other) is None
    assert preparation.take(SUM) is None


def test_making_stops_soon_after_the_masks_are_dropped(executor):
    made, go_on = [], threading.Event()

    class Slow(PairMasks):
        def write(self, sum_id, number, out):
            made.append(number)
            go_on.wait(5)

    own = Slow(0, secrets_of(2)[0], "test-mask")
    preparation = MaskPreparation(own, Chunks(1000, 2, 16), executor)
    preparation.start(SUM, np.dtype(np.uint32))
    while not made:
        time.sleep(1e-3)
    preparation.drop()
    go_on.set()
    executor.shutdown(wait=True)
    assert len(made) <= 2, "62 chunks were to be made"


def test_failure_in_the_background_is_an_error_where_masks_are_taken(executor):
    own = masks_of(2)[0]
    own.forget()
    preparation = MaskPreparation(own, Chunks(10, 2, 16), executor)
    preparation.start(SUM, np.dtype(np.uint32))
    preparation.wait()
    with pytest.raises(OutOfOrder):
        preparation.take(SUM)
