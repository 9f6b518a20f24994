"""Which coalitions can take a party's input apart, by doing it."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy import stats

from mpcfl.hazmat.bits import SystemBits, raw_keyed_bits
from mpcfl.net.codec import WordCodec
from mpcfl.net.memory import MemoryTransport, run_parties
from mpcfl.secagg.base import SumSettings, to_offset_binary
from mpcfl.secagg.neighbors import neighbors_on_circle
from mpcfl.secagg.registry import load_backend

N_PARTIES = 5
VICTIM = 2
NEIGHBORS = (1, 3)
DIM = 40
RUN_ID = "11" * 16
FALSE_POSITIVE_RATE = 1e-9


class Tap(MemoryTransport):
    """Keeps what this rank puts into reductions: all of it crosses the network in the clear."""

    def begin_scatter(self, blocks, inbox):
        self.blocks = [block.copy() for block in blocks]
        return super().begin_scatter(blocks, inbox)

    def begin_allreduce(self, words):
        self.blocks = [words.copy()]
        return super().begin_allreduce(words)


def words_of(blocks, codec, dim):
    """Return the words in some packed blocks, or the words, shape (dim,), uint64."""
    if blocks[0].dtype != np.uint8:
        return blocks[0].astype(np.uint64)
    words = []
    for block in blocks:
        groups = len(block) // codec.packed_bytes(8)
        words.append(np.empty(8 * groups or len(block) // codec.dtype.itemsize, codec.dtype))
        if codec.is_identity:
            words[-1] = block.view(codec.dtype)
        else:
            codec.unpack(block, words[-1])
    return np.concatenate(words)[:dim].astype(np.uint64)


@dataclass(frozen=True)
class Masked:
    """A backend with masks between pairs.

    Attributes:
        backend: its name.
        bits: of the ring of the inputs.
        word_bits: of the words that it sends.
        purpose: of its keys.
    """

    backend: str
    bits: int
    word_bits: int
    purpose: str

    @property
    def codec(self):
        return WordCodec(self.word_bits)

    def encoded(self, levels):
        """Return levels as they are put under masks, uint64."""
        words = to_offset_binary(levels, self.bits) if self.backend == "crypten" else levels
        return words.view(np.uint64) & np.uint64((1 << self.word_bits) - 1)


SUBJECTS = {
    "crypten": Masked("crypten", 32, 64, "crypten-mask"),
    "ring-20": Masked("ring", 20, 20, "ring-mask"),
    "ring-32": Masked("ring", 32, 32, "ring-mask"),
    "ring-64": Masked("ring", 64, 64, "ring-mask"),
}


@pytest.fixture(params=SUBJECTS.values(), ids=SUBJECTS)
def subject(request):
    return request.param


def vectors(bits=32, n_parties=N_PARTIES):
    words = [SystemBits().words(DIM).view(np.int64) for _ in range(n_parties)]
    return [word >> np.int64(64 - bits) for word in words]


def run_sum(backend, inputs, before_sum, settings):
    """Return per rank what ``before_sum`` took from its session, and the blocks that it sent."""

    def party(transport):
        transport.__class__ = Tap
        session = load_backend(backend)(transport, settings)
        known = before_sum(session)
        session.open(session.aggregate(session.protect(inputs[transport.rank])))
        return known, transport.blocks

    return run_parties(len(inputs), party)


def generator_states(session):
    with session._speaking():
        from crypten import generators

        cpu = torch.device("cpu")
        return {name: generators[name][cpu].get_state() for name in ("prev", "next")}


def test_two_neighbors_take_an_input_apart_on_crypten_stock():
    inputs = vectors()
    views = run_sum("crypten-stock", inputs, generator_states, SumSettings(DIM, 32, run_id=RUN_ID))
    left, right = (torch.Generator() for _ in NEIGHBORS)
    # The left neighbor's "next" stream is the victim's "prev"; on the right it is mirrored.
    left.set_state(views[NEIGHBORS[0]][0]["next"])
    right.set_state(views[NEIGHBORS[1]][0]["prev"])

    def draw(generator):
        low, high = -(2**63), (2**64 - 1) // 2
        return torch.randint(low, high, (DIM,), generator=generator, dtype=torch.long).numpy()

    guess = words_of(views[VICTIM][1], WordCodec(64), DIM).view(np.int64)
    for _ in range(N_PARTIES):
        guess -= draw(left) - draw(right)
    assert np.array_equal(guess, inputs[VICTIM])


class Attack:
    """One sum, and what is left of the honest parties' vectors for a coalition."""

    def __init__(self, subject, n_parties=N_PARTIES, neighbors=None):
        self.subject = subject
        self.inputs = vectors(subject.bits, n_parties)
        self.ranks = range(n_parties)
        settings = SumSettings(DIM, subject.bits, run_id=RUN_ID, neighbors=neighbors)
        views = run_sum(subject.backend, self.inputs, self._pair_keys, settings)
        self.keys = [known for known, _ in views]
        self.sent = [words_of(blocks, subject.codec, DIM) for _, blocks in views]

    def _pair_keys(self, session):
        secrets = session._masks.pairs._secrets
        # Round 0, attempt 0, chunk 0.
        return {peer: secrets.key(peer, self.subject.purpose, 0, 0, 0) for peer in secrets.peers}

    def residue(self, victim, coalition):
        """Take the masks that the coalition knows off what the victim sent."""
        left = self.sent[victim].copy()
        for attacker in set(coalition) & set(self.keys[victim]):
            mask = np.empty(DIM, dtype=self.subject.codec.dtype)
            raw_keyed_bits(self.keys[attacker][victim]).fill(mask)
            mask = mask.astype(np.uint64)
            left = left - mask if attacker > victim else left + mask
        return self._reduced(left)

    def reads(self, parties, coalition):
        """Tell whether the coalition gets the sum of some honest parties' inputs."""
        left = sum(self.residue(rank, coalition) for rank in parties)
        truth = sum(self.subject.encoded(self.inputs[rank]) for rank in parties)
        match = self._reduced(left) == self._reduced(truth)
        # Of 40 words of b >= 20 bits not one agrees by chance in a million runs; a part of a
        # vector in the clear would not pass for none of it.
        assert match.all() or match.sum() < 4
        return bool(match.all())

    def known_sums(self, coalition):
        """Return all sets of honest parties whose sum the coalition gets from masked vectors."""
        honest = [rank for rank in self.ranks if rank not in coalition]
        sets = (itertools.combinations(honest, size) for size in range(1, len(honest) + 1))
        return {parties for of_one_size in sets for parties in of_one_size
                if self.reads(parties, coalition)}  # fmt: skip

    def _reduced(self, words):
        return words & np.uint64((1 << self.subject.word_bits) - 1)


def test_two_neighbors_learn_nothing(subject):
    assert not Attack(subject).reads([VICTIM], NEIGHBORS)


def test_every_coalition_learns_the_sum_of_the_honest_and_no_other(subject):
    """With masks between all pairs; of 5 parties, all coalitions of up to 3."""
    attack = Attack(subject)
    for size in range(N_PARTIES - 1):
        for coalition in itertools.combinations(attack.ranks, size):
            honest = tuple(rank for rank in attack.ranks if rank not in coalition)
            assert attack.known_sums(coalition) == {honest}


def test_attack_is_sound_because_all_others_together_do_learn_the_input(subject):
    # As they do from the sum itself; this shows that the attack above removes the right masks.
    attack = Attack(subject)
    for victim in attack.ranks:
        assert attack.reads([victim], [rank for rank in attack.ranks if rank != victim])


def test_all_others_together_learn_the_input_from_the_sum_alone(subject):
    inputs = vectors(subject.bits)
    settings = SumSettings(DIM, subject.bits, run_id=RUN_ID)

    def party(transport):
        session = load_backend(subject.backend)(transport, settings)
        return session.open(session.aggregate(session.protect(inputs[transport.rank])))

    opened = run_parties(N_PARTIES, party)[0]
    left = opened - sum(v for rank, v in enumerate(inputs) if rank != VICTIM)
    spare = np.int64(64 - subject.bits)
    assert np.array_equal(left << spare >> spare, inputs[VICTIM])


SPARSE = [SUBJECTS["ring-20"], SUBJECTS["crypten"]]


def circle_of(attack):
    """Return the ranks in the order of the circle that they drew, from who has whom as peers.

    With k = 4 the next ranks on the circle are those that share three peers or themselves.
    """
    near = [set(keys) | {rank} for rank, keys in enumerate(attack.keys)]
    order = [0]
    while len(order) < len(near):
        step = [r for r in near[order[-1]] if len(near[r] & near[order[-1]]) == 4]
        order.append(next(rank for rank in step if rank not in order[-2:]))
    return order


@pytest.mark.parametrize("subject", SPARSE, ids=lambda s: s.backend)
def test_sparse_graph_hides_what_a_coalition_does_not_cut_off(subject):
    attack = Attack(subject, n_parties=9, neighbors=4)
    circle = circle_of(attack)
    for rank, keys in enumerate(attack.keys):
        assert tuple(sorted(keys)) == neighbors_on_circle(circle, rank, 4)
    # Two gaps of one and one of two side by side: no more than one wide gap.
    for places in ((0, 2), (0, 1), (0, 1, 3), (0, 1, 3, 5)):
        coalition = [circle[place] for place in places]
        honest = tuple(rank for rank in attack.ranks if rank not in coalition)
        assert attack.known_sums(coalition) == {honest}


@pytest.mark.parametrize("subject", SPARSE, ids=lambda s: s.backend)
def test_all_neighbors_of_a_party_read_it_on_a_sparse_graph(subject):
    attack = Attack(subject, n_parties=9, neighbors=4)
    for victim in attack.ranks:
        coalition = tuple(attack.keys[victim])
        assert len(coalition) == 4
        assert attack.reads([victim], coalition)
        others = tuple(r for r in attack.ranks if r != victim and r not in coalition)
        honest = tuple(sorted((victim, *others)))
        assert attack.known_sums(coalition) == {(victim,), others, honest}


@pytest.mark.parametrize("subject", SPARSE, ids=lambda s: s.backend)
def test_one_neighbor_less_does_not_read_it(subject):
    attack = Attack(subject, n_parties=9, neighbors=4)
    for left_out in attack.keys[VICTIM]:
        coalition = [rank for rank in attack.keys[VICTIM] if rank != left_out]
        assert not attack.reads([VICTIM], coalition)


def same_words(subject, dim, levels):
    """Return what rank 0 of two sends for one level over and over, shape (dim,), uint64."""
    settings = SumSettings(dim, subject.bits, run_id=RUN_ID)

    def party(transport):
        transport.__class__ = Tap
        session = load_backend(subject.backend)(transport, settings)
        session.open(session.aggregate(session.protect(np.full(dim, levels))))
        return transport.blocks

    return words_of(run_parties(2, party)[0], subject.codec, dim)


def least_p_value(words, word_bits):
    """Return the smallest p-value of tests for uniform words, times the number of tests.

    Pearson's chi-square on 256 cells for every eight neighboring bits, and the exact binomial
    law (by Hoeffding's bound, hence never too small) for whether any two bits agree.
    """
    count = len(words)
    p_values = []
    for lowest in range(word_bits - 7):
        cells = np.bincount(
            (words >> np.uint64(lowest) & np.uint64(255)).astype(int), minlength=256
        )
        p_values.append(stats.chisquare(cells).pvalue)
    bits = (words[:, None] >> np.arange(word_bits, dtype=np.uint64) & np.uint64(1)).astype(
        np.float32
    )
    signs = 1 - 2 * bits
    for sums in (signs.sum(axis=0), (signs.T @ signs)[np.triu_indices(word_bits, 1)]):
        p_values += list(np.minimum(1.0, 2 * np.exp(-(sums.astype(float) ** 2) / (2 * count))))
    return min(p_values) * len(p_values)


UNIFORM_DIM = 1 << 16


@pytest.mark.stat
@pytest.mark.parametrize(
    "subject",
    [SUBJECTS["crypten"], *(Masked("ring", b, b, "ring-mask") for b in (8, 16, 20, 32, 64))],
    ids=lambda s: f"{s.backend}-{s.word_bits}",
)
def test_what_a_rank_sends_is_uniform_over_the_full_ring(subject):
    """False-positive rate 1e-9 per subject, by Bonferroni over all tests of `least_p_value`.

    Power at 2^16 words: a bit, or the agreement of two bits, with a probability 0.027 away from
    one half is found but for 1e-9; so are all faults of the next test, by far.
    """
    words = same_words(subject, UNIFORM_DIM, -1)
    assert int(words.max()) < 1 << subject.word_bits
    assert least_p_value(words, subject.word_bits) > FALSE_POSITIVE_RATE


FAULTS = {
    "top-bit-missing": lambda words, bits: words & np.uint64((1 << (bits - 1)) - 1),
    "low-half-only": lambda words, bits: words & np.uint64((1 << bits // 2) - 1),
    "halves-alike": lambda words, bits: (
        (words & np.uint64((1 << bits // 2) - 1)) * np.uint64(1 + (1 << bits // 2))
    ),
    # Bit 0 is one in five eighths of all words.
    "one-bit-biased": lambda words, bits: (
        words | (words >> np.uint64(5) & words >> np.uint64(6) & np.uint64(1))
    ),
    "less-one-value-in-256": lambda words, bits: np.where(
        words >> np.uint64(bits - 8) == 77, words ^ np.uint64(1 << (bits - 1)), words
    ),
}


@pytest.mark.stat
@pytest.mark.parametrize("bits", [8, 16, 20, 32, 64])
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_the_check_of_uniformity_sees_masks_that_are_not(fault, bits):
    """By far: each of these is a deviation of more than 15 standard deviations somewhere."""
    uniform = SystemBits().words(UNIFORM_DIM) & np.uint64((1 << bits) - 1)
    assert least_p_value(uniform, bits) > FALSE_POSITIVE_RATE
    assert least_p_value(fault(uniform, bits), bits) < FALSE_POSITIVE_RATE**2


def test_masks_are_fresh_for_every_sum(subject):
    settings = SumSettings(DIM, subject.bits, run_id=RUN_ID)

    def party(transport):
        transport.__class__ = Tap
        session = load_backend(subject.backend)(transport, settings)
        sent = []
        for _ in range(3):
            session.open(session.aggregate(session.protect(np.zeros(DIM, dtype=np.int64))))
            sent.append(words_of(transport.blocks, subject.codec, DIM))
        return sent

    for first, second in itertools.combinations(run_parties(2, party)[0], 2):
        assert np.sum(first == second) < 4


@pytest.mark.parametrize("n_negative", [0, 1, 3])
def test_opened_value_does_not_show_how_many_inputs_were_negative(n_negative):
    # Same sum each time, from inputs with 0, 1 or 3 negative summands.
    summands = {0: (2, 2, 2), 1: (-4, 5, 5), 3: (-2, -3, 11)}[n_negative]
    chosen = SumSettings(1, 16, run_id="33" * 16)

    def party(transport):
        session = load_backend("crypten")(transport, chosen)
        shared = session.protect(np.array([summands[transport.rank]], dtype=np.int64))
        total = session._communicator.all_reduce(shared.share)
        return int(total.numpy().view(np.uint64)[0])

    # True sum plus the public constant 3 * 2^15, as an integer of Z_2^64: no carries.
    assert set(run_parties(3, party)) == {6 + 3 * (1 << 15)}
