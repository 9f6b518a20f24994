"""What a job must not ask for, and how events survive the pipe."""

from __future__ import annotations

import pytest

from mpcfl.config import Job, parse_job
from mpcfl.errors import BackendUnavailable, ConfigError, QuorumLost
from mpcfl.parties.events import (
    Ended,
    Failed,
    Lost,
    RoundDone,
    Started,
    Stopped,
    from_json,
    to_json,
)
from mpcfl.parties.rules import check_job, rank_names, require_quorum, seats


def job(backend: str = "crypten", *, count: int = 4, unit: str = "party", **more: object) -> Job:
    privacy = {"unit": unit} | ({} if unit == "none" else {"epsilon": 2.0})
    parties = {key: more.pop(key) for key in ("colluding", "max_dropout") if key in more}
    return parse_job(
        {
            "task": "digits",
            "parties": {"count": count, **parties},
            "privacy": privacy,
            "training": {"rounds": 1},
            "aggregation": {"backend": backend, **more},
        },
        "inline",
    )


@pytest.mark.parametrize("backend", ["plain", "crypten-stock"])
def test_a_backend_that_shows_inputs_needs_insecure_or_no_privacy(backend: str) -> None:
    with pytest.raises(ConfigError, match=f"backend '{backend}' lets others see.*--insecure"):
        check_job(job(backend), insecure=False)
    check_job(job(backend), insecure=True)
    check_job(job(backend, unit="none"), insecure=False)


def test_an_unknown_backend_is_named_with_a_guess() -> None:
    with pytest.raises(BackendUnavailable, match="no backend 'cryptn'; did you mean 'crypten'"):
        check_job(job("cryptn"), insecure=False)


@pytest.mark.parametrize("more", [{"count": 2}, {"colluding": 2}])
def test_holder_custody_is_refused_where_the_holder_would_learn_inputs(more: dict) -> None:
    with pytest.raises(ConfigError, match="clients"):
        check_job(job("phe", **more), insecure=False)
    check_job(job("phe", custody="clients", **more), insecure=False)


def test_ranks_must_fit_and_an_aggregator_counts() -> None:
    assert seats(job(), 4) == (0, 1, 2, 3)
    with pytest.raises(ConfigError, match=r"4 data parties, but MPI started 3.*start 4"):
        seats(job(), 3)
    served = job("phe", custody="clients")
    assert seats(served, 5) == (0, 1, 2, 3, 4)
    with pytest.raises(ConfigError, match="one aggregator, but MPI started 4"):
        seats(served, 4)
    assert rank_names(served)[-1] == "aggregator"


def test_absent_parties_leave_no_seat_and_the_others_keep_their_numbers() -> None:
    spare = {"max_dropout": 1}
    assert seats(job(**spare), 3, ["party-1"]) == (0, 2, 3)
    assert seats(job("phe", custody="clients", **spare), 4, ["party-0"]) == (1, 2, 3, 4)
    with pytest.raises(ConfigError, match=r"without party-1 has 3 data parties.*start 3"):
        seats(job(**spare), 4, ["party-1"])


@pytest.mark.parametrize("name", ["nobody", "aggregator"])
def test_only_a_data_party_of_the_job_can_be_absent(name: str) -> None:
    with pytest.raises(ConfigError, match=f"--without {name}: the job has no such party.*party-3"):
        seats(job("phe", custody="clients", max_dropout=1), 4, [name])


def test_more_absent_parties_than_planned_are_refused_by_name() -> None:
    with pytest.raises(QuorumLost, match=r"party-2 was lost: 3 of 4.*max_dropout = 0"):
        seats(job(), 3, ["party-2"])
    with pytest.raises(QuorumLost, match=r"party-0, party-2 were lost: 2 of 4.*max_dropout = 1"):
        seats(job(max_dropout=1), 2, ["party-2", "party-0"])


def test_a_quorum_is_of_data_parties_and_needs_the_aggregator() -> None:
    served = job("phe", custody="clients", max_dropout=1)
    require_quorum(served, (0, 1, 2, 4))
    with pytest.raises(QuorumLost, match="aggregator was lost, and nothing is summed"):
        require_quorum(served, (0, 1, 2, 3))
    with pytest.raises(QuorumLost, match="party-0, party-1 were lost: 2 of 4"):
        require_quorum(served, (2, 3, 4))


def test_a_holder_is_not_left_with_so_few_that_it_learns_inputs() -> None:
    """With 3 parties the holder and one colluder know all inputs but one, hence that one."""
    held = job("paillier", count=3, custody="holder", max_dropout=1)
    require_quorum(held, (0, 1, 2))
    with pytest.raises(ConfigError, match="clients"):
        require_quorum(held, (0, 2))
    require_quorum(job("paillier", count=3, unit="none", custody="holder", max_dropout=1), (0, 2))


@pytest.mark.parametrize(
    "event",
    [
        Started("t", "plain", "none", ("a", "b"), 3, 10, None, False, 1e-5, "out"),
        RoundDone(2, 3, 2, None, None, {"loss": 0.5}, {"train": 0.1}, 10),
        Lost(2, ("a",), ("b", "c")),
        Stopped("why"),
        Ended(3, 1.0, 2.0, 1e-5, {"accuracy": 1.0}, "out"),
        Failed("no", "more"),
    ],
)
def test_events_survive_the_pipe(event) -> None:
    again = from_json(to_json(event))
    assert again is not None
    assert again.line() == event.line()


def test_other_lines_are_no_events() -> None:
    assert from_json("epoch 3") is None
    assert from_json('{"loss": 3}') is None
