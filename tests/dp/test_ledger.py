from __future__ import annotations

import dataclasses
import json
import math
import os
import stat
import time
from pathlib import Path
from typing import Any

import pytest

from mpcfl.config import Placement, Unit
from mpcfl.dp import (
    Budget,
    Charge,
    Ledger,
    NoisePlan,
    gaussian_epsilon,
    planned_charge,
    realised_charge,
    verify_ledger,
)
from mpcfl.dp.ledger import Token
from mpcfl.errors import BudgetExceeded, LedgerError, OutOfOrder

BUDGET = Budget(epsilon=8.0, delta=1e-5)


def opened(path: Path, **changes: Any) -> Ledger:
    return Ledger.open(path, **{"identity": "north/digits", "budget": BUDGET, **changes})


def full_epsilon(noise_multiplier: float, rounds: int, sample_rate: float = 1.0) -> float:
    return gaussian_epsilon(
        noise_multiplier=noise_multiplier, sample_rate=sample_rate, rounds=rounds, delta=1e-5
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "party-0.jsonl"


@pytest.fixture
def written(path: Path, charge: Charge) -> Path:
    """A ledger with a committed, an abandoned and an unresolved charge: header + 3 + 2 + 1."""
    with opened(path) as ledger:
        token = ledger.reserve(charge)
        ledger.opened(token)
        ledger.commit(token, None)
        ledger.abandon(ledger.reserve(dataclasses.replace(charge, round_id=1)))
        ledger.reserve(dataclasses.replace(charge, round_id=1, attempt=1))
    return path


def test_every_reserve_counts_whatever_became_of_it(written: Path) -> None:
    report = verify_ledger(written)
    assert report.epsilon == full_epsilon(2.0, 3)
    assert (report.entries, report.unresolved, report.torn_last_line) == (7, 1, False)
    assert (report.identity, report.budget) == ("north/digits", BUDGET)
    with opened(written) as ledger:
        assert ledger.epsilon() == report.epsilon
        assert ledger.next_attempt(1) == 2
        assert ledger.next_attempt(7) == 0


def test_a_charge_over_the_budget_is_refused_before_anything_is_written(
    path: Path, charge: Charge
) -> None:
    affordable = next(n for n in range(1, 100) if full_epsilon(2.0, n + 1) > BUDGET.epsilon)
    with opened(path) as ledger:
        for _ in range(affordable):
            ledger.reserve(charge)
        before = path.read_bytes()
        with pytest.raises(BudgetExceeded) as caught:
            ledger.reserve(charge)
        assert path.read_bytes() == before
        assert ledger.epsilon() <= BUDGET.epsilon < caught.value.epsilon_after


def test_a_plan_can_be_spent_to_its_last_round_and_no_further(
    path: Path, party_plan: NoisePlan
) -> None:
    with opened(path) as ledger:
        for round_id in range(party_plan.rounds):
            token = ledger.reserve(planned_charge(party_plan, round_id))
            ledger.opened(token)
            ledger.commit(token, None)
        assert ledger.epsilon() == pytest.approx(party_plan.epsilon(), rel=1e-12)
        with pytest.raises(BudgetExceeded):
            ledger.reserve(planned_charge(party_plan, 10))


def test_a_reserve_is_on_disk_before_it_returns(path: Path, charge: Charge) -> None:
    with opened(path) as ledger:
        ledger.reserve(charge)
        assert json.loads(path.read_bytes().splitlines()[-1])["kind"] == "reserve"
        assert verify_ledger(path).unresolved == 1


def test_without_sampling_the_realised_noise_replaces_the_planned(
    path: Path, party_plan: NoisePlan
) -> None:
    plan = dataclasses.replace(party_plan, max_dropout=2)
    with opened(path) as ledger:
        planned = planned_charge(plan, 0)
        token = ledger.reserve(planned)
        ledger.opened(token)
        realised = realised_charge(plan, planned, contributors=10)
        ledger.commit(token, realised)
        assert realised.noise_multiplier > planned.noise_multiplier
        assert ledger.epsilon() == full_epsilon(realised.noise_multiplier, 1)
    assert verify_ledger(path).epsilon == full_epsilon(realised.noise_multiplier, 1)


@pytest.mark.parametrize("name", ["party_plan", "record_plan"])
def test_a_run_that_shows_single_inputs_is_charged_with_a_partys_own_share(
    path: Path, name: str, request: pytest.FixtureRequest
) -> None:
    plan: NoisePlan = request.getfixturevalue(name)
    behind = planned_charge(plan, 3, 1)
    bare = planned_charge(plan, 3, 1, view="own-share")
    assert behind.noise_multiplier == plan.multiplier()
    assert bare.noise_multiplier == plan.multiplier(view="own-share") < behind.noise_multiplier
    alone = math.sqrt(plan.local_sigma**2 - 4) / plan.l2_sensitivity
    assert bare.noise_multiplier == pytest.approx(alone, rel=1e-12)
    assert dataclasses.replace(bare, noise_multiplier=behind.noise_multiplier) == behind
    # Nobody else's noise helps, so more contributors change nothing.
    assert realised_charge(plan, bare, plan.parties, view="own-share") == bare
    budget = Budget(1000.0, 1e-5)
    with opened(path, budget=budget) as ledger:
        token = ledger.reserve(bare)
        ledger.opened(token)
        ledger.commit(token, realised_charge(plan, bare, plan.parties, view="own-share"))
        assert ledger.epsilon() == pytest.approx(plan.epsilon(rounds=1, view="own-share"))


@pytest.mark.parametrize(
    ("changes", "stands"),
    [
        ({}, False),
        ({"sample_rate": 0.1}, True),
        ({"mechanism": "skellam"}, True),
        ({"mechanism": "skellam", "sample_rate": 0.1}, True),
    ],
)
def test_only_gaussian_noise_without_sampling_is_charged_as_realised(
    path: Path, charge: Charge, changes: dict[str, Any], stands: bool
) -> None:
    planned = dataclasses.replace(charge, **changes)
    with opened(path) as ledger:
        token = ledger.reserve(planned)
        reserved = ledger.epsilon()
        ledger.opened(token)
        ledger.commit(token, dataclasses.replace(planned, noise_multiplier=4.0))
        assert (ledger.epsilon() == reserved) is stands
        assert ledger.epsilon() <= reserved
        assert verify_ledger(path).epsilon == ledger.epsilon()


@pytest.mark.parametrize("change", [{"times": 2}, {"mechanism": "skellam"}, {"sample_rate": 0.5}])
def test_what_was_realised_is_of_the_kind_that_was_reserved(
    path: Path, charge: Charge, change: dict[str, Any]
) -> None:
    with opened(path) as ledger:
        token = ledger.reserve(charge)
        ledger.opened(token)
        with pytest.raises(LedgerError, match="sample rate, mechanism or number of releases"):
            ledger.commit(token, dataclasses.replace(charge, **change))


def test_a_charge_of_several_releases_costs_as_many_charges_of_one(
    path: Path, charge: Charge
) -> None:
    sampled = dataclasses.replace(charge, sample_rate=0.1)
    with opened(path) as ledger:
        ledger.reserve(dataclasses.replace(sampled, times=5))
        assert ledger.epsilon() == full_epsilon(2.0, 5, 0.1)
        assert ledger.charges == 1
        token = ledger.reserve(dataclasses.replace(charge, times=3))
        both = ledger.epsilon()
        ledger.opened(token)
        ledger.commit(token, dataclasses.replace(charge, times=3))
        assert ledger.epsilon() == both
    one_by_one = path.with_name("one.jsonl")
    with opened(one_by_one) as ledger:
        for kind, times in ((sampled, 5), (charge, 3)):
            for _ in range(times):
                ledger.reserve(kind)
        assert ledger.epsilon() == both


def test_a_budget_counts_every_release_of_a_charge(path: Path, charge: Charge) -> None:
    affordable = next(n for n in range(1, 100) if full_epsilon(2.0, n + 1) > BUDGET.epsilon)
    with opened(path) as ledger:
        with pytest.raises(BudgetExceeded):
            ledger.reserve(dataclasses.replace(charge, times=affordable + 1))
        ledger.reserve(dataclasses.replace(charge, times=affordable))


def test_skellam_noise_is_not_composed_as_gaussian(path: Path, charge: Charge) -> None:
    with opened(path) as ledger:
        ledger.reserve(dataclasses.replace(charge, mechanism="skellam"))
        assert ledger.epsilon() > full_epsilon(2.0, 1)


@pytest.mark.parametrize(
    "change", [{"times": 0}, {"times": 1.5}, {"times": True}, {"mechanism": "laplace"}]
)
def test_a_charge_that_could_not_be_composed_is_refused(
    charge: Charge, change: dict[str, Any]
) -> None:
    with pytest.raises(LedgerError, match="a charge"):
        dataclasses.replace(charge, **change)


def test_noise_inside_each_party_is_charged_by_step_and_person(record_plan: NoisePlan) -> None:
    local = dataclasses.replace(
        record_plan, placement=Placement.LOCAL, local_steps=7, max_parties_per_person=2
    )
    reserved = planned_charge(local, 3, 1)
    assert (reserved.times, reserved.mechanism) == (14, "discrete-gaussian")
    # Its own noise protects a party's records, whoever else takes part.
    assert realised_charge(local, reserved, contributors=1) == reserved
    assert planned_charge(record_plan, 3).times == 1


def test_with_sampling_the_planned_worst_case_stands(path: Path, charge: Charge) -> None:
    sampled = dataclasses.replace(charge, sample_rate=0.1)
    with opened(path) as ledger:
        token = ledger.reserve(sampled)
        ledger.opened(token)
        ledger.commit(token, dataclasses.replace(sampled, noise_multiplier=4.0))
        assert ledger.epsilon() == full_epsilon(2.0, 1, 0.1)


def test_two_jobs_on_one_data_set_share_one_budget(path: Path, charge: Charge) -> None:
    for purpose in ("first", "second"):
        with opened(path) as ledger:
            ledger.reserve(dataclasses.replace(charge, purpose=purpose))
    assert verify_ledger(path).epsilon == full_epsilon(2.0, 2)


def test_stages_out_of_order_are_refused(path: Path, charge: Charge) -> None:
    with opened(path) as ledger:
        token = ledger.reserve(charge)
        with pytest.raises(OutOfOrder, match="opened before it is committed"):
            ledger.commit(token, None)
        ledger.opened(token)
        with pytest.raises(OutOfOrder, match="one opening"):
            ledger.opened(token)
        other_rate = dataclasses.replace(charge, sample_rate=0.5)
        with pytest.raises(LedgerError, match="sample rate"):
            ledger.commit(token, other_rate)
        ledger.commit(token, None)
        for act in (ledger.opened, ledger.commit, ledger.abandon):
            with pytest.raises(OutOfOrder, match="over"):
                act(token)
        with pytest.raises(OutOfOrder):
            ledger.abandon(Token(99))


def test_a_pending_attempt_can_be_resolved_after_reopening(path: Path, charge: Charge) -> None:
    with opened(path) as ledger:
        token = ledger.reserve(charge)
    with opened(path) as ledger:
        ledger.abandon(token)
    assert verify_ledger(path).unresolved == 0


def test_the_file_is_private_and_locked(path: Path) -> None:
    with opened(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with pytest.raises(LedgerError, match="in use"):
            opened(path)
    opened(path).close()


@pytest.mark.parametrize(
    "changes",
    [
        {"identity": "south/digits"},
        {"budget": Budget(80.0, 1e-5)},
        {"budget": Budget(8.0, 1e-4)},
        {"budget": None},
        {"accountant": "rdp"},
    ],
)
def test_another_identity_or_budget_is_refused_and_changes_nothing(
    written: Path, changes: dict[str, Any]
) -> None:
    before = written.read_bytes()
    with pytest.raises(LedgerError, match=next(iter(changes))):
        opened(written, **changes)
    assert written.read_bytes() == before
    opened(written).close()


def test_without_privacy_there_is_nothing_to_charge(path: Path, charge: Charge) -> None:
    with opened(path, budget=None) as ledger:
        assert ledger.epsilon() == 0.0
        with pytest.raises(LedgerError, match="without a budget"):
            ledger.reserve(charge)
    assert verify_ledger(path).epsilon == 0.0


def test_a_torn_last_line_is_reported_and_mended_at_every_byte(
    written: Path, tmp_path: Path
) -> None:
    content = written.read_bytes()
    start = content[:-1].rfind(b"\n") + 1
    torn_path = tmp_path / "torn.jsonl"
    (tmp_path / "torn.key").write_bytes(written.with_suffix(".key").read_bytes())
    for cut in range(start + 1, len(content), 37):
        torn_path.write_bytes(content[:cut])
        report = verify_ledger(torn_path)
        assert (report.entries, report.torn_last_line) == (6, True)
        # The unfinished line may have been a reserve, so it counts as one.
        assert report.epsilon == full_epsilon(2.0, 3)
        with opened(torn_path) as ledger:
            assert ledger.epsilon() == report.epsilon
        mended = verify_ledger(torn_path)
        assert (mended.torn_last_line, mended.epsilon) == (False, report.epsilon)


def tear(path: Path, kept: int) -> None:
    """Keep so many bytes of the last line, as a crash would."""
    content = path.read_bytes()
    path.write_bytes(content[: content[:-1].rfind(b"\n") + 1 + kept])


def after_recovery(path: Path) -> float:
    """Return epsilon of a torn ledger, which mending must not change."""
    report = verify_ledger(path)
    assert report.torn_last_line
    with opened(path) as ledger:
        assert ledger.epsilon() == report.epsilon
    assert verify_ledger(path).epsilon == report.epsilon
    return report.epsilon


@pytest.mark.parametrize("kept", [1, 30, 60, 300])
def test_a_torn_reserve_counts_though_an_old_one_is_pending(
    path: Path, charge: Charge, kept: int
) -> None:
    with opened(path) as ledger:
        ledger.reserve(charge)
    with opened(path) as ledger:
        ledger.reserve(dataclasses.replace(charge, round_id=1))
    tear(path, kept)
    assert after_recovery(path) == full_epsilon(2.0, 2)


@pytest.mark.parametrize(("kept", "releases"), [(20, 2), (60, 1)])
def test_a_torn_line_that_names_another_event_costs_nothing(
    path: Path, charge: Charge, kept: int, releases: int
) -> None:
    with opened(path) as ledger:
        ledger.opened(ledger.reserve(charge))
    tear(path, kept)
    assert after_recovery(path) == full_epsilon(2.0, releases)


def test_a_crash_while_mending_loses_no_charge(path: Path, charge: Charge) -> None:
    with opened(path) as ledger:
        ledger.reserve(charge)
        ledger.reserve(charge)
    tear(path, 60)
    opened(path).close()
    tear(path, 60)
    assert after_recovery(path) == full_epsilon(2.0, 2)


def test_a_torn_first_reserve_is_charged_with_the_first_that_follows(
    path: Path, charge: Charge
) -> None:
    for _ in range(2):
        with opened(path) as ledger:
            ledger.reserve(charge)
        tear(path, 60)
    with opened(path) as ledger:
        ledger.reserve(charge)
        assert (ledger.epsilon(), ledger.charges) == (full_epsilon(2.0, 3), 3)
        ledger.reserve(charge)
    assert verify_ledger(path).epsilon == full_epsilon(2.0, 4)


def test_what_is_owed_can_pass_the_budget(path: Path, charge: Charge) -> None:
    with opened(path) as ledger:
        ledger.reserve(charge)
    tear(path, 60)
    once = next(z for z in (0.7, 0.8, 0.9) if full_epsilon(z, 1) < 8.0 < full_epsilon(z, 2))
    with opened(path) as ledger, pytest.raises(BudgetExceeded):
        ledger.reserve(dataclasses.replace(charge, noise_multiplier=once))


def test_a_torn_header_leaves_an_empty_ledger(path: Path) -> None:
    path.write_bytes(b'{"schema":1')
    assert verify_ledger(path).entries == 0
    with opened(path) as ledger:
        assert ledger.epsilon() == 0.0
    assert [json.loads(line)["kind"] for line in path.read_bytes().splitlines()] == [
        "header",
        "torn",
    ]


def test_ten_crashes_never_lower_epsilon(path: Path, charge: Charge) -> None:
    spent = 0.0
    for crash in range(10):
        with opened(path, budget=Budget(100.0, 1e-5)) as ledger:
            assert ledger.epsilon() >= spent
            ledger.reserve(dataclasses.replace(charge, round_id=crash))
            spent = ledger.epsilon()
        with path.open("ab") as file:
            file.write(b"{" * crash)
    assert verify_ledger(path).epsilon >= spent


def lines_of(content: bytes) -> list[bytes]:
    return content.splitlines(keepends=True)


TAMPERINGS = {
    "a changed digit": lambda c: c.replace(b'"noise_multiplier":2.0', b'"noise_multiplier":9.0', 1),
    "a changed budget": lambda c: c.replace(b'"epsilon":8.0', b'"epsilon":9.0', 1),
    "a line removed": lambda c: b"".join(lines_of(c)[:2] + lines_of(c)[3:]),
    "the header removed": lambda c: b"".join(lines_of(c)[1:]),
    "two lines swapped": lambda c: b"".join([*lines_of(c)[:1], *lines_of(c)[2:0:-1]]),
    "a line doubled": lambda c: c + lines_of(c)[-1],
    "a changed link": lambda c: c.replace(b'"previous":"0', b'"previous":"1', 1),
    "an empty line": lambda c: c + b"\n",
    "garbage": lambda c: c + b"garbage\n",
    "not an object": lambda c: c + b"[1]\n",
    "another schema": lambda c: c.replace(b'"schema":1', b'"schema":2', 1),
    "a torn line in the middle": lambda c: c[:-20] + b"\n" + lines_of(c)[-1],
    "zeros in the middle": lambda c: b"\0" * 10 + c[10:],
}


@pytest.mark.parametrize("name", TAMPERINGS)
def test_a_tampered_ledger_is_refused_with_file_line_and_reason(name: str, written: Path) -> None:
    written.write_bytes(TAMPERINGS[name](written.read_bytes()))
    before = written.read_bytes()
    with pytest.raises(LedgerError, match=r"party-0\.jsonl: line \d+: "):
        verify_ledger(written)
    with pytest.raises(LedgerError, match="line"):
        opened(written)
    assert written.read_bytes() == before


def test_a_chain_of_events_that_make_no_sense_is_refused(path: Path, charge: Charge) -> None:
    from mpcfl.dp.chain import ChainFile

    nonsense: list[tuple[str, dict[str, Any]]] = [
        ("commit", {"reserve": 5, "realised": None}),
        ("open", {"reserve": 5}),
        ("header", {}),
        ("gift", {}),
        ("reserve", {"charge": {**dataclasses.asdict(charge), "noise_multiplier": 0.0}}),
        ("reserve", {"charge": {}}),
    ]
    for number, (kind, body) in enumerate(nonsense):
        forged = path.with_name(f"forged-{number}.jsonl")
        opened(forged).close()
        chain = ChainFile(forged)
        chain.append(kind, body)
        chain.close()
        with pytest.raises(LedgerError, match="line 2"):
            verify_ledger(forged)


def test_a_cut_at_a_line_end_moves_the_head_that_peers_remember(written: Path) -> None:
    with opened(written) as ledger:
        length, digest = ledger.head
    written.write_bytes(b"".join(lines_of(written.read_bytes())[:-1]))
    assert verify_ledger(written).entries == length - 1
    with opened(written) as ledger:
        assert ledger.head != (length, digest)


def test_what_is_not_a_ledger_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="can't read"):
        verify_ledger(tmp_path / "missing")
    (tmp_path / "empty").touch()
    with pytest.raises(LedgerError, match="empty"):
        verify_ledger(tmp_path / "empty")
    with pytest.raises(LedgerError, match="can't open"):
        opened(tmp_path / "no" / "folder")
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    with pytest.raises(LedgerError, match="can't open"):
        opened(tmp_path / "link")


def test_a_closed_ledger_takes_no_charge(path: Path, charge: Charge) -> None:
    ledger = opened(path)
    ledger.close()
    with pytest.raises(LedgerError, match="closed"):
        ledger.reserve(charge)


def test_a_full_disk_is_an_error_and_leaves_a_torn_line(
    path: Path, charge: Charge, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = opened(path)
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, line: write(descriptor, line[:-9]))
    with pytest.raises(LedgerError, match="disk is full"):
        ledger.reserve(charge)
    monkeypatch.undo()
    assert verify_ledger(path).torn_last_line

    def refuse(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    ledger = opened(path)
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(LedgerError, match="Input/output error"):
        ledger.reserve(charge)


def test_the_next_attempt_is_one_more_than_the_largest(path: Path, charge: Charge) -> None:
    with opened(path) as ledger:
        # The peers had tried twice before this party reserved for the first time.
        ledger.abandon(ledger.reserve(dataclasses.replace(charge, round_id=4, attempt=2)))
        assert ledger.next_attempt(4) == 3
        ledger.reserve(dataclasses.replace(charge, round_id=4, attempt=1))
        ledger.reserve(dataclasses.replace(charge, round_id=5))
        assert ledger.next_attempts == {4: 3, 5: 1}
        assert ledger.next_attempt(6) == 0
    with opened(path) as ledger:
        assert (ledger.next_attempt(4), ledger.charges) == (3, 3)


def test_a_retried_sampled_round_costs_two_draws(path: Path, charge: Charge) -> None:
    with opened(path) as ledger:
        one = dataclasses.replace(charge, noise_multiplier=1.0, sample_rate=0.01)
        ledger.abandon(ledger.reserve(one))
        ledger.reserve(dataclasses.replace(one, attempt=1))
        assert ledger.epsilon() == full_epsilon(1.0, 2, 0.01)


def test_a_thousand_retried_rounds_cost_what_independent_draws_cost(
    path: Path, charge: Charge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """q = 0.01, z = 1. With one sample for both attempts each round would have half the noise.

    `tests/mpi/test_resume.py` shows that a retry draws a sample of its own.
    """
    from mpcfl.dp.chain import ChainFile

    opened(path).close()
    # Entry by entry as a ledger writes them, without its composition after each.
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    chain = ChainFile(path)
    one = dataclasses.replace(charge, noise_multiplier=1.0, sample_rate=0.01)
    for round_id, attempt in ((r, a) for r in range(1000) for a in (0, 1)):
        named = dataclasses.replace(one, round_id=round_id, attempt=attempt)
        reserve = chain.append("reserve", {"charge": dataclasses.asdict(named)}).sequence
        if attempt == 1:
            chain.append("open", {"reserve": reserve})
            chain.append("commit", {"reserve": reserve, "realised": dataclasses.asdict(named)})
    chain.close()
    report = verify_ledger(path)
    independent = full_epsilon(1.0, 2000, 0.01)
    same_sample = full_epsilon(1.0 / math.sqrt(2), 1000, 0.01)
    assert report.epsilon == independent
    assert (report.rounds, report.attempts, report.unresolved) == (1000, 2000, 1000)
    assert (round(independent, 2), round(same_sample, 2)) == (2.58, 4.48)


def test_many_equal_charges_stay_cheap(path: Path, charge: Charge) -> None:
    light = dataclasses.replace(charge, noise_multiplier=100.0)
    started = time.process_time()
    with opened(path) as ledger:
        for round_id in range(300):
            ledger.reserve(dataclasses.replace(light, round_id=round_id))
    # Composing event by event would take minutes; a CPU second is ten times what it takes.
    assert time.process_time() - started < 3.0


def test_a_ledger_line_holds_public_facts_only(written: Path) -> None:
    charge_keys = {field.name for field in dataclasses.fields(Charge)}
    for line in written.read_bytes().splitlines():
        record = json.loads(line)
        if record["kind"] == "reserve":
            assert set(record["body"]["charge"]) == charge_keys


def test_charges_for_two_units_dont_share_a_ledger(tmp_path: Path, charge: Charge) -> None:
    other = dataclasses.replace(charge, unit=Unit.RECORD)
    assert charge.unit is Unit.PARTY
    with Ledger.open(tmp_path / "l.jsonl", identity="x/y", budget=Budget(50.0, 1e-5)) as ledger:
        ledger.reserve(charge)
        before = ledger.epsilon()
        with pytest.raises(LedgerError, match="keep a ledger for each unit"):
            ledger.reserve(other)
        assert ledger.epsilon() == before
