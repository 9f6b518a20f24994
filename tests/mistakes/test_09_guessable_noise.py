"""Mistake 9: noise that is seeded, guessable, or shared by parties or processes.

Who made it: TensorFlow Federated seeds its noise with a time stamp; Flower draws from the global
numpy generator (PR #7225 adds a seed); fedbiomed#973; IBM diffprivlib#31 on correlated noise.
What goes wrong: who knows the seed subtracts the noise; n equal shares do not add up as n
independent ones; a forked child repeats its parent's stream. What would have to break here: a
seed, a global generator or the clock reaches the noise, or two shares have bits in common.
"""

from __future__ import annotations

import os
import time

import numpy as np
import pytest
import torch

from mpcfl.dp import draw_noise_share, sample_discrete_gaussian
from mpcfl.hazmat.bits import KeystreamBits, SystemBits


@pytest.fixture
def shares(job_of, silent_task, opened, sabotage):
    """Return the noise that each party of a real run adds, under one user's seeds everywhere."""

    def run() -> list[np.ndarray]:
        np.random.seed(7)  # noqa: TID251, NPY002 - the seed of a careless user
        torch.manual_seed(7)  # noqa: TID251 - the same
        seen: list[np.ndarray] = []

        def watched(right, levels, share):
            noised = right(levels, share)
            seen.append(noised - levels)
            return noised

        with sabotage("mpcfl.round:add_noise", watched):
            # A checked sum would already refuse keys that are not fresh.
            job = job_of(silent_task, training={"seed": 7}, aggregation={"checked": False})
            opened(job)
        assert len(seen) == 3
        return seen

    return run


@pytest.fixture
def all_independent(shares, independent):
    """Tell whether no two shares of two runs with the same seeds have anything in common."""

    def check() -> bool:
        noise = [*shares(), *shares()]
        return all(independent(a, b) for i, a in enumerate(noise) for b in noise[:i])

    return check


def seeded(right, plan, bits=None):
    """The mistake: the job's seed makes the noise."""
    return right(plan, KeystreamBits((7).to_bytes(32, "big")))


def from_the_clock(right, plan, bits=None):
    """The mistake: whole seconds make the noise."""
    return right(plan, KeystreamBits(int(time.time() / 3600).to_bytes(32, "big")))


def from_numpy(right, plan, bits=None):
    """The mistake: a global generator that somebody has seeded makes the noise."""
    np.random.seed(7)  # noqa: TID251, NPY002 - the mistake
    return right(plan, KeystreamBits(np.random.bytes(32)))  # noqa: TID251, NPY002 - the mistake


@pytest.mark.stat
def test_no_seed_makes_two_shares_alike(all_independent):
    assert all_independent()


@pytest.mark.stat
@pytest.mark.parametrize("mistake", [seeded, from_the_clock, from_numpy])
def test_the_check_fires_on_noise_that_can_be_guessed(mistake, all_independent, sabotage):
    with sabotage("mpcfl.round:draw_noise_share", mistake):
        assert not all_independent()


def test_the_check_fires_if_the_systems_generator_gives_the_same_to_all(
    all_independent, monkeypatch
):
    monkeypatch.setattr("mpcfl.hazmat.bits.os.urandom", bytes)
    assert not all_independent()


@pytest.mark.parametrize("name", ["seed", "random_state", "generator", "rng"])
def test_nothing_public_takes_a_seed(name):
    with pytest.raises(TypeError):
        sample_discrete_gaussian(sigma=8, size=1, **{name: 1})


def child_draws(source) -> bytes:
    """Return 32 words that a forked child draws; empty if it refuses."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writing, source().words(32).tobytes())
        except RuntimeError:
            pass
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        drawn = stream.read()
    os.waitpid(child, 0)
    return drawn


class ForkedBits(KeystreamBits):
    """The mistake: a source that goes on in a child where its parent was."""

    __slots__ = ()

    def fill(self, out):
        self._process_id = os.getpid()
        super().fill(out)


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_forked_processes_never_repeat_a_stream():
    def repeats(source) -> bool:
        drawn = [child_draws(lambda: source), child_draws(lambda: source)]
        return drawn[0] == drawn[1] != b""

    assert not repeats(SystemBits())
    assert repeats(ForkedBits(bytes(32)))
    fresh = [child_draws(SystemBits) for _ in range(2)]
    assert len(fresh[0]) == len(fresh[1]) == 32 * 8
    assert fresh[0] != fresh[1]


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_a_share_that_crossed_a_fork_is_dead(plan_of):
    share = draw_noise_share(plan_of())
    child = os.fork()
    if child == 0:
        try:
            share.take()
        except Exception:  # noqa: BLE001 - the child's only answer is its exit code
            os._exit(0)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
