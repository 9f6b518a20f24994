import pytest

from mpcfl.config import Custody, Job
from mpcfl.errors import ConfigError
from mpcfl.secagg.custody import (
    Roles,
    assign_roles,
    check_custody,
    check_key_bits,
    resolve_threshold,
)

HOLDER, CLIENTS, THRESHOLD = Custody.HOLDER, Custody.CLIENTS, Custody.THRESHOLD


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


def job(backend, how, n_parties, colluding, private, **more):
    parties = {"count": n_parties, "colluding": colluding, "max_dropout": more.pop("missing", 0)}
    privacy = {"unit": "party", "epsilon": 4.0} if private else {"unit": "none"}
    aggregation = {"backend": backend, "custody": how, **more}
    tables = {"parties": parties, "privacy": privacy, "training": {"rounds": 1}}
    return Job(task="toy", aggregation=aggregation, **tables)


@pytest.mark.parametrize("backend", ["phe", "paillier"])
@pytest.mark.parametrize(
    ("n_parties", "colluding", "private"), [(5, 2, True), (5, 2, False), (2, 1, True)]
)
def test_holder_is_refused_where_the_planned_coalition_breaks_it(
    backend, n_parties, colluding, private
):
    with pytest.raises(ConfigError, match="clients"):
        check_custody(job(backend, HOLDER, n_parties, colluding, private))


@pytest.mark.parametrize(
    ("backend", "how", "n_parties", "colluding", "private"),
    [
        ("phe", HOLDER, 3, 1, True),
        ("paillier", HOLDER, 3, 1, True),
        ("phe", HOLDER, 2, 1, False),
        ("phe", CLIENTS, 2, 1, True),
        ("paillier", CLIENTS, 5, 3, True),
        ("crypten", HOLDER, 5, 3, True),
        ("paillier", THRESHOLD, 5, 2, True),
        ("paillier", THRESHOLD, 2, 1, True),
    ],
)
def test_sound_custody_is_accepted(backend, how, n_parties, colluding, private):
    check_custody(job(backend, how, n_parties, colluding, private))


@pytest.mark.parametrize(("threshold", "colluding"), [(2, 2), (2, 3), (3, 3), (None, 3)])
def test_coalition_that_could_decrypt_is_refused(threshold, colluding):
    with pytest.raises(ConfigError, match=f"colluding = {colluding} would have as many"):
        check_custody(job("paillier", THRESHOLD, 5, colluding, True, threshold=threshold))


@pytest.mark.parametrize(("threshold", "missing"), [(5, 1), (4, 2)])
def test_threshold_that_a_planned_dropout_makes_unreachable_is_refused(threshold, missing):
    with pytest.raises(ConfigError, match=f"more than the {5 - missing} parties that are left"):
        check_custody(job("paillier", THRESHOLD, 5, 1, True, threshold=threshold, missing=missing))


def test_every_threshold_in_between_is_accepted():
    for threshold in (3, 4):
        check_custody(job("paillier", THRESHOLD, 5, 2, True, threshold=threshold, missing=1))


@pytest.mark.parametrize(("asked", "n_ranks", "used"), [(None, 2, 2), (None, 5, 3), (4, 5, 4)])
def test_more_than_half_decrypt_unless_told_otherwise(asked, n_ranks, used):
    assert resolve_threshold(asked, n_ranks) == used


@pytest.mark.parametrize("threshold", [0, 1, 6])
def test_threshold_out_of_range_is_refused(threshold):
    with pytest.raises(ConfigError, match="no number of 5 key shares"):
        resolve_threshold(threshold, 5)


@pytest.mark.parametrize("backend", ["phe", "ring"])
def test_job_with_threshold_keys_for_a_backend_without_them_is_refused(backend):
    with pytest.raises(ValueError, match='needs backend = "paillier"'):
        job(backend, THRESHOLD, 4, 1, True)


def test_job_with_a_threshold_but_no_key_shares_is_refused():
    with pytest.raises(ValueError, match='needs custody = "threshold"'):
        job("paillier", CLIENTS, 4, 1, True, threshold=2)


def test_roles_of_threshold_have_no_owner_of_the_key():
    assert assign_roles(THRESHOLD, 3) == Roles((0, 1, 2), (), None, shared_key=True)
