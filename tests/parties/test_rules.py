"""What a job must not ask for, and how events survive the pipe."""

from __future__ import annotations

import pytest

from mpcfl.config import Job, parse_job
from mpcfl.errors import BackendUnavailable, ConfigError
from mpcfl.parties.events import Ended, Failed, RoundDone, Started, Stopped, from_json, to_json
from mpcfl.parties.rules import check_job, check_ranks, rank_names


def job(backend: str = "crypten", *, count: int = 4, unit: str = "party", **more: object) -> Job:
    privacy = {"unit": unit} | ({} if unit == "none" else {"epsilon": 2.0})
    return parse_job(
        {
            "task": "digits",
            "parties": {"count": count, "colluding": more.pop("colluding", 1)},
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
    check_ranks(job(), 4)
    with pytest.raises(ConfigError, match=r"4 data parties, but MPI started 3.*start 4"):
        check_ranks(job(), 3)
    served = job("phe", custody="clients")
    check_ranks(served, 5)
    with pytest.raises(ConfigError, match="one aggregator, but MPI started 4"):
        check_ranks(served, 4)
    assert rank_names(served)[-1] == "aggregator"


@pytest.mark.parametrize(
    "event",
    [
        Started("t", "plain", "none", ("a", "b"), 3, 10, None, False, 1e-5, "out"),
        RoundDone(2, 3, 2, None, None, {"loss": 0.5}, {"train": 0.1}, 10),
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
