"""Exchange 0: one difference or one reason stops all ranks with the same sentence."""

from __future__ import annotations

import pytest

from mpcfl.errors import ConfigError, PartyNotReady, ProtocolError, TranscriptMismatch
from mpcfl.net.memory import run_parties
from mpcfl.net.roster import agree_run_id, agree_to_go_on, check_in, library_versions
from mpcfl.net.transport import Transport

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


@pytest.mark.parametrize("kind", ["version", "job", "plan", "model", "checkpoint"])
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


def test_other_libraries_are_named_with_both_versions() -> None:
    at_most = "crypten==0.4.1 numpy==2.1.0 torch==2.5.1"
    found = outcomes(lambda r: {"libraries": at_most.replace("2.1", "2.2") if r == 2 else at_most})
    assert {str(error) for error in found} == {
        "east (rank 2) has other libraries (numpy 2.2.0 instead of 2.1.0) than north (rank 0); "
        "install the same versions of these packages everywhere: see constraints.txt"
    }


@pytest.mark.parametrize(
    ("odd", "difference"),
    [
        ("numpy==2.1", "phe none instead of 1.5"),
        ("gmpy2==2 numpy==2.1 phe==1.5", "gmpy2 2 instead of none"),
        ("numpy phe==1.5", "numpy  instead of 2.1"),
        ("", "numpy none instead of 2.1"),
        ("phe==1.5 numpy==2.1", "the same ones in another form"),
    ],
)
def test_a_library_that_one_party_lacks_is_named(odd: str, difference: str) -> None:
    found = outcomes(lambda rank: {"libraries": odd if rank == 1 else "numpy==2.1 phe==1.5"})
    assert {str(error).split(";")[0] for error in found} == {
        f"south (rank 1) has other libraries ({difference}) than north (rank 0)"
    }


def test_libraries_are_blamed_before_what_they_change() -> None:
    found = outcomes(lambda r: {"plan": str(r), "model": str(r), "libraries": f"torch=={r}"})
    assert all("other libraries (torch 1 instead of 0)" in str(error) for error in found)


def test_versions_are_those_that_are_installed() -> None:
    stated = library_versions(["pytest", "no-such-package-of-mpcfl"])
    assert stated == f"no-such-package-of-mpcfl==none pytest=={pytest.__version__}"


def test_a_reason_of_any_length_and_letters_is_heard() -> None:
    reason = "file \udcff is damaged: " + 5000 * "ß€🙂"
    found = outcomes(lambda r: {}, lambda r: ConfigError(reason) if r == 2 else None)
    assert all(isinstance(error, PartyNotReady) for error in found)
    (words,) = {str(error) for error in found}
    assert words.startswith("east (rank 2): file ? is damaged: ß€🙂")
    assert words.endswith("...")
    heard = run_parties(2, lambda t: agree_to_go_on(t, reason if t.rank else None)[0])
    assert heard[0] == heard[1] == words.removeprefix("east (rank 2): ")


def test_a_reason_without_words_is_one() -> None:
    found = outcomes(lambda r: {}, lambda r: ConfigError() if r == 1 else None)
    assert {str(error) for error in found} == {"south (rank 1): "}


def test_a_fact_that_nobody_compares_is_not_stated() -> None:
    def party(transport: Transport) -> None:
        with pytest.raises(ValueError, match=r"no rank compares .'jobs'.*job"):
            check_in(transport, NAMES, {"jobs": "a"})

    run_parties(2, party)


@pytest.mark.parametrize("said", [b"", b'{"error": null, "facts": {}}', bytes(200_000)])
@pytest.mark.parametrize(
    ("expected", "talk"),
    [
        ("a statement message from south (rank 1)", lambda t: check_in(t, NAMES, {})),
        ("a run-nonce message from rank 1", agree_run_id),
        ("a go-on message from rank 1", lambda t: agree_to_go_on(t, None)),
    ],
)
def test_whoever_says_something_else_is_named_by_all_others(said, expected, talk) -> None:
    def party(transport: Transport) -> str:
        if transport.rank == 1:
            transport.allgather(said)
            return ""
        with pytest.raises(ProtocolError) as refused:
            talk(transport)
        return str(refused.value)

    for words in run_parties(3, party)[::2]:
        assert words.startswith(f"{expected} was expected, and what came ")


ESCAPES = "bad \x1b[2Kdisk\nrank 0: all is well\r\u202e"
SHOWN = "bad ?[2Kdisk?rank 0: all is well??"


def test_a_peers_reason_can_not_write_lines_of_its_own() -> None:
    found = outcomes(lambda r: {}, lambda r: ConfigError(ESCAPES) if r == 1 else None)
    assert {str(error) for error in found} == {f"south (rank 1): {SHOWN}"}
    found = outcomes(lambda r: {}, lambda r: ConfigError(ESCAPES))
    assert {str(error) for error in found} == {SHOWN}


def test_a_peers_objection_can_not_write_lines_of_its_own() -> None:
    heard = run_parties(2, lambda t: agree_to_go_on(t, ESCAPES if t.rank else None, ESCAPES))
    # A statement is a document, and not shown.
    assert heard == [(SHOWN, [ESCAPES, ESCAPES])] * 2


def test_a_peers_versions_can_not_write_lines_of_their_own() -> None:
    found = outcomes(lambda r: {"libraries": "numpy==1\x1b[2K" if r else "numpy==1"})
    assert all("(numpy 1?[2K instead of 1)" in str(error) for error in found)
