import pytest

from mpcfl.config import Custody
from mpcfl.errors import ConfigError
from mpcfl.secagg.custody import Roles, assign_roles, check_custody, check_key_bits

HOLDER, CLIENTS = Custody.HOLDER, Custody.CLIENTS


def test_holder_is_rank_zero_and_all_ranks_bring_data():
    assert assign_roles(HOLDER, 3) == Roles((0, 1, 2), (0,), None)


def test_aggregator_is_the_last_rank_without_key_and_data():
    assert assign_roles(CLIENTS, 4) == Roles((0, 1, 2), (0, 1, 2), 3)


def test_clients_without_a_rank_for_data_is_refused():
    with pytest.raises(ConfigError, match="aggregator"):
        assign_roles(CLIENTS, 1)


@pytest.mark.parametrize("key_bits", [0, 512, 1024, 2047, 2049, 2100, 8448])
def test_key_sizes_that_are_short_or_odd_are_refused(key_bits):
    with pytest.raises(ConfigError, match="key_bits"):
        check_key_bits(key_bits)


@pytest.mark.parametrize("key_bits", [2048, 3072, 8192])
def test_safe_key_sizes_are_accepted(key_bits):
    check_key_bits(key_bits)


@pytest.mark.parametrize(
    ("n_parties", "colluding", "private"), [(5, 2, True), (5, 2, False), (2, 1, True)]
)
def test_holder_is_refused_where_the_planned_coalition_breaks_it(n_parties, colluding, private):
    with pytest.raises(ConfigError, match="clients"):
        check_custody("phe", HOLDER, n_parties, colluding, private)


@pytest.mark.parametrize(
    ("backend", "how", "n_parties", "colluding", "private"),
    [
        ("phe", HOLDER, 3, 1, True),
        ("phe", HOLDER, 2, 1, False),
        ("phe", HOLDER, 1, 1, True),
        ("phe", CLIENTS, 2, 1, True),
        ("phe", CLIENTS, 5, 3, True),
        ("crypten", HOLDER, 2, 3, True),
    ],
)
def test_sound_custody_is_accepted(backend, how, n_parties, colluding, private):
    check_custody(backend, how, n_parties, colluding, private)
