"""Exchange 0: one difference or one reason stops all ranks with the same sentence."""

from __future__ import annotations

import pytest

from mpcfl.errors import ConfigError, PartyNotReady, TranscriptMismatch
from mpcfl.net.memory import run_parties
from mpcfl.net.roster import agree_run_id, agree_to_go_on, check_in

NAMES = ("north", "south", "east")


def outcomes(facts_of, error_of=lambda rank: None) -> list[Exception | None]:
    def party(transport):
        try:
            check_in(transport, NAMES, facts_of(transport.rank), error_of(transport.rank))
        except (PartyNotReady, TranscriptMismatch) as error:
            return error
        return None

    return run_parties(3, party)


def test_equal_facts_pass() -> None:
    assert outcomes(lambda rank: {"job": "a", "version": "1"}) == [None] * 3


def test_an_aggregator_that_states_no_model_is_not_compared() -> None:
    assert outcomes(lambda rank: {} if rank == 2 else {"model": "m"}) == [None] * 3


@pytest.mark.parametrize("kind", ["version", "job", "plan", "model"])
@pytest.mark.parametrize("odd", [0, 1, 2])
def test_one_difference_stops_all_with_one_text(kind: str, odd: int) -> None:
    found = outcomes(lambda rank: {kind: "other" if rank == odd else "same"})
    assert all(isinstance(error, TranscriptMismatch) for error in found)
    assert len({str(error) for error in found}) == 1
    named = NAMES[odd] if odd else "south"
    assert f"{named} (rank {odd or 1}) has another {kind}" in str(found[0])


def test_one_reason_stops_all_and_names_the_party() -> None:
    found = outcomes(lambda r: {"job": "a"}, lambda r: ConfigError("no data") if r == 1 else None)
    assert all(isinstance(error, PartyNotReady) for error in found)
    assert {str(error) for error in found} == {"south (rank 1): no data"}
    assert {error.rank for error in found} == {1}


def test_a_reason_that_all_have_names_nobody() -> None:
    found = outcomes(lambda r: {}, lambda r: ConfigError("job.toml: unknown key x"))
    assert {str(error) for error in found} == {"job.toml: unknown key x"}


def test_run_ids_agree_and_are_fresh() -> None:
    first, second = run_parties(3, agree_run_id), run_parties(3, agree_run_id)
    assert len(set(first)) == len(set(second)) == 1
    assert first[0] != second[0]
    assert len(first[0]) == 32


def test_the_first_objection_and_every_statement_are_heard_by_all() -> None:
    said = {0: None, 1: "budget", 2: "other"}
    heard = run_parties(3, lambda t: agree_to_go_on(t, said[t.rank], f"I am {t.rank}"))
    assert heard == [("budget", ["I am 0", "I am 1", "I am 2"])] * 3
    assert run_parties(3, lambda t: agree_to_go_on(t, None)) == [(None, ["", "", ""])] * 3


def test_an_objection_without_words_is_one() -> None:
    said = {0: None, 1: "", 2: None}
    assert [stop for stop, _ in run_parties(3, lambda t: agree_to_go_on(t, said[t.rank]))] == [
        ""
    ] * 3
