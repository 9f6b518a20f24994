from __future__ import annotations

import numpy as np
import pytest

from mpcfl.config import Optimizer, ServerTable
from mpcfl.learn.apply import ServerState, apply_mean, initial_state

FEDAVG = ServerTable()
FEDADAM = ServerTable(
    optimizer=Optimizer.FEDADAM, learning_rate=0.5, beta1=0.5, beta2=0.75, adaptivity=2.0
)


def test_fedavg_adds_the_mean() -> None:
    parameters, _ = apply_mean(
        np.array([1.0, 2.0]), np.array([0.25, -0.5]), initial_state(2, FEDAVG), FEDAVG
    )
    assert parameters.tolist() == [1.25, 1.5]


def test_fedavg_momentum_follows_its_recursion() -> None:
    server = ServerTable(learning_rate=0.5, momentum=0.5)
    parameters, state = np.array([0.0]), initial_state(1, server)
    seen = []
    for _ in range(3):
        parameters, state = apply_mean(parameters, np.array([4.0]), state, server)
        seen.append(parameters[0])
    # Momentum 4, 4 + 2, 4 + 3; half of each is added.
    assert seen == [2.0, 5.0, 8.5]


def test_fedadam_known_answer_of_two_steps() -> None:
    """By hand from Reddi et al., Algorithm 2, with m = 0 and v = tau^2 = 4 before round 0.

    Round 0, mean 8: m = 4, v = 3/4 * 4 + 1/4 * 64 = 19, x = 1 + 0.5 * 4 / (sqrt(19) + 2).
    Round 1, mean -2: m = 2 - 1 = 1, v = 14.25 + 1 = 15.25, x += 0.5 / (sqrt(15.25) + 2).
    """
    parameters, state = apply_mean(
        np.array([1.0]), np.array([8.0]), initial_state(1, FEDADAM), FEDADAM
    )
    assert (state.first_moment[0], state.second_moment[0]) == (4.0, 19.0)
    assert parameters[0] == 1.0 + 2.0 / (19.0**0.5 + 2.0)
    parameters, state = apply_mean(parameters, np.array([-2.0]), state, FEDADAM)
    assert (state.first_moment[0], state.second_moment[0]) == (1.0, 15.25)
    assert parameters[0] == 1.0 + 2.0 / (19.0**0.5 + 2.0) + 0.5 / (15.25**0.5 + 2.0)


@pytest.mark.parametrize("server", [FEDAVG, FEDADAM])
def test_apply_changes_no_argument(server: ServerTable) -> None:
    parameters, mean, state = np.ones(3), np.full(3, 0.5), initial_state(3, server)
    first = apply_mean(parameters, mean, state, server)
    second = apply_mean(parameters, mean, state, server)
    assert np.array_equal(first[0], second[0])
    assert parameters.tolist() == [1.0] * 3
    assert mean.tolist() == [0.5] * 3


@pytest.mark.parametrize("server", [FEDAVG, FEDADAM])
def test_result_does_not_depend_on_the_length_of_the_vector(server: ServerTable) -> None:
    """Vectorized loops treat heads and tails apart; each value must come out the same."""
    values = np.sin(np.arange(1003.0))
    whole, _ = apply_mean(values, values[::-1].copy(), initial_state(1003, server), server)
    for index in (0, 500, 1002):
        alone, _ = apply_mean(
            values[[index]], values[::-1][[index]], initial_state(1, server), server
        )
        assert alone[0] == whole[index]


def test_shapes_that_differ_are_a_caller_bug() -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        apply_mean(np.zeros(3), np.zeros(1), initial_state(3, FEDAVG), FEDAVG)


@pytest.mark.parametrize("server", [FEDAVG, ServerTable(momentum=0.5), FEDADAM])
def test_long_vectors_are_applied_in_pieces_to_the_same_bits(
    server: ServerTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.sin(np.arange(1003.0))
    means = [np.cos(np.arange(1003.0) * k) for k in (2, 3)]

    def steps() -> tuple[np.ndarray, ServerState]:
        parameters, state = values, initial_state(1003, server)
        for mean in means:
            parameters, state = apply_mean(parameters, mean.copy(), state, server)
        return parameters, state

    whole, remembered = steps()
    monkeypatch.setattr("mpcfl.dp.pieces.PIECE_VALUES", 100)
    applied, state = steps()
    assert applied.tobytes() == whole.tobytes()
    assert state.first_moment.tobytes() == remembered.first_moment.tobytes()
    assert state.second_moment.tobytes() == remembered.second_moment.tobytes()
    np.testing.assert_array_equal(values, np.sin(np.arange(1003.0)))


def test_only_what_a_step_needs_is_remembered() -> None:
    def sizes(server: ServerTable) -> tuple[int, int]:
        _, state = apply_mean(np.zeros(3), np.ones(3), initial_state(3, server), server)
        return state.first_moment.size, state.second_moment.size

    assert sizes(FEDAVG) == (0, 0)
    assert sizes(ServerTable(momentum=0.9)) == (3, 0)
    assert sizes(FEDADAM) == (3, 3)


def test_what_an_earlier_version_remembered_without_need_changes_nothing() -> None:
    kept = ServerState(np.full(3, 7.0), np.full(3, 1e-6))
    with_it, state = apply_mean(np.ones(3), np.full(3, 0.5), kept, FEDAVG)
    without, _ = apply_mean(np.ones(3), np.full(3, 0.5), initial_state(3, FEDAVG), FEDAVG)
    assert with_it.tobytes() == without.tobytes()
    assert state.first_moment.size == 0
    momentum = ServerTable(momentum=0.5)
    assert apply_mean(np.ones(3), np.zeros(3), kept, momentum)[0].tolist() == [4.5] * 3


@pytest.mark.parametrize("server", [ServerTable(momentum=0.5), FEDADAM])
def test_a_state_without_what_the_step_needs_is_a_caller_bug(server: ServerTable) -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        apply_mean(np.zeros(3), np.zeros(3), initial_state(3, FEDAVG), server)
