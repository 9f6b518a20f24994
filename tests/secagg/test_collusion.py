"""Which coalitions can take a party's input apart, by doing it."""

import numpy as np
import pytest
import torch
from scipy import stats

from mpcfl.hazmat.bits import SystemBits, raw_keyed_bits
from mpcfl.net.memory import MemoryTransport, run_parties
from mpcfl.secagg import crypten_sum
from mpcfl.secagg.base import SumSettings, to_offset_binary
from mpcfl.secagg.registry import load_backend

N_PARTIES = 5
VICTIM = 2
NEIGHBOURS = (1, 3)
DIM = 40
SETTINGS = SumSettings(DIM, 32, run_id="11" * 16)


class Tap(MemoryTransport):
    """Keeps what this rank sends into reductions: all of it crosses the network in the clear."""

    def allreduce(self, values):
        self.sent = values.copy()
        return super().allreduce(values)


def vectors():
    words = [SystemBits().words(DIM).view(np.int64) for _ in range(N_PARTIES)]
    return [word >> np.int64(32) for word in words]


def run_sum(backend, inputs, before_sum):
    """Return per rank what ``before_sum`` took from its session and what it sent."""

    def party(transport):
        transport.__class__ = Tap
        session = load_backend(backend)(transport, SETTINGS)
        known = before_sum(session)
        session.open(session.aggregate(session.protect(inputs[transport.rank])))
        return known, transport.sent

    return run_parties(N_PARTIES, party)


def generator_states(session):
    with session._speaking():
        from crypten import generators

        cpu = torch.device("cpu")
        return {name: generators[name][cpu].get_state() for name in ("prev", "next")}


def test_two_neighbours_take_an_input_apart_on_crypten_stock():
    inputs = vectors()
    views = run_sum("crypten-stock", inputs, generator_states)
    left, right = (torch.Generator() for _ in NEIGHBOURS)
    # The left neighbour's "next" stream is the victim's "prev"; on the right it is mirrored.
    left.set_state(views[NEIGHBOURS[0]][0]["next"])
    right.set_state(views[NEIGHBOURS[1]][0]["prev"])

    def draw(generator):
        low, high = -(2**63), (2**64 - 1) // 2
        return torch.randint(low, high, (DIM,), generator=generator, dtype=torch.long).numpy()

    guess = views[VICTIM][1].view(np.int64).copy()
    for _ in range(N_PARTIES):
        guess -= draw(left) - draw(right)
    assert np.array_equal(guess, inputs[VICTIM])


def remove_masks(sent, secrets_by_rank, attackers):
    """Take the attackers' pair masks with the victim off what the victim sent."""
    residue = sent.copy()
    for attacker in attackers:
        key = secrets_by_rank[attacker][VICTIM]
        mask = raw_keyed_bits(key).words(DIM)
        residue = residue - mask if attacker > VICTIM else residue + mask
    return residue


def pair_keys(session):
    purpose = crypten_sum._PURPOSE
    return {peer: session._secrets.key(peer, purpose, 1) for peer in session._secrets.peers}


def attack_crypten(attackers):
    inputs = vectors()
    views = run_sum("crypten", inputs, pair_keys)
    keys = [known for known, _ in views]
    return remove_masks(views[VICTIM][1], keys, attackers), to_offset_binary(inputs[VICTIM], 32)


def test_two_neighbours_learn_nothing_on_crypten():
    residue, truth = attack_crypten(NEIGHBOURS)
    assert not np.any(residue == truth)


@pytest.mark.parametrize("left_out", [0, 1, 3, 4])
def test_any_coalition_that_misses_one_party_learns_nothing_on_crypten(left_out):
    attackers = [r for r in range(N_PARTIES) if r not in (VICTIM, left_out)]
    residue, truth = attack_crypten(attackers)
    assert not np.any(residue == truth)


def test_attack_is_sound_because_all_others_together_do_learn_the_input():
    # As they do from the sum itself; this shows that the attack above removes the right masks.
    residue, truth = attack_crypten([r for r in range(N_PARTIES) if r != VICTIM])
    assert np.array_equal(residue, truth)


@pytest.mark.stat
def test_what_a_rank_sends_is_uniform_over_the_full_ring():
    """Chi-square over each of the 8 byte positions; false-positive rate 1e-9 in all.

    Power: an unmasked byte is constant and rejects with certainty; a bias of 1 % in one
    value out of 256 at 2^17 draws is not resolved, nor meant to be.
    """
    dim = 1 << 17
    chosen = SumSettings(dim, 16, run_id="22" * 16)

    def party(transport):
        transport.__class__ = Tap
        session = load_backend("crypten")(transport, chosen)
        session.open(session.protect(np.full(dim, -1, dtype=np.int64)))
        return transport.sent

    sent = run_parties(2, party)[0]
    for position in sent.view(np.uint8).reshape(dim, 8).T:
        counts = np.bincount(position, minlength=256)
        assert stats.chisquare(counts).pvalue > 1e-9 / 8


def test_masks_are_fresh_for_every_sum():
    def party(transport):
        transport.__class__ = Tap
        session = load_backend("crypten")(transport, SETTINGS)
        sent = []
        for _ in range(2):
            session.open(session.protect(np.zeros(DIM, dtype=np.int64)))
            sent.append(transport.sent)
        return sent

    first, second = run_parties(2, party)[0]
    assert not np.any(first == second)


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
