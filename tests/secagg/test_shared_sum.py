"""A sum that stays shared: right answers, nothing else opened, and every opening charged first."""

import numpy as np
import pytest
import torch

import mpcfl
from mpcfl.config import Unit
from mpcfl.dp.ledger import Budget, Ledger
from mpcfl.dp.plan import make_plan
from mpcfl.errors import (
    BudgetExceeded,
    ConfigError,
    OutOfOrder,
    PartyLost,
    ProtocolError,
    TranscriptMismatch,
)
from mpcfl.net.memory import MemoryTransport, run_parties
from mpcfl.secagg import crypten_bridge
from mpcfl.secagg.base import SumSettings
from mpcfl.secagg.crypten_bridge import crypten
from mpcfl.secagg.crypten_communicator import TransportCommunicator
from mpcfl.secagg.crypten_sum import open_crypten_sum
from mpcfl.secagg.shared_sum import Charged

RUN_ID = "66" * 16
EPSILON, DELTA = 1.0, 1e-5
PUBLIC = Unit.NONE
# By rank r of n: sums of both signs, zero from zeros, zero from opposites, and next to zero.
SUMS = np.array([0, 0, 1, -1, 123_456_789_012, -123_456_789_012, 2])
DIM = len(SUMS)
# CrypTen's default number of bits after the point.
FRACTIONS = 16


@pytest.fixture(autouse=True)
def pairwise_maximum():
    """CrypTen's other methods change its settings for a moment, which threads would share."""
    with crypten.cfg.temp_override({"functions.max_method": "pairwise"}):
        yield


def summand(rank, n_ranks, total=SUMS):
    """Return vectors that add up to ``total``; the first coordinate is zero at every rank."""
    own = np.arange(len(total)) * (rank + 1) * 1_000_003
    return (
        own if rank < n_ranks - 1 else total - sum(summand(r, n_ranks, total) for r in range(rank))
    )


def session_of(transport, bits=40):
    return open_crypten_sum(transport, SumSettings(DIM, bits, run_id=RUN_ID))


def each(n_ranks, work, **options):
    """Share SUMS without privacy at every rank and return what ``work`` makes of it."""

    def party(transport):
        session = session_of(transport)
        own = summand(transport.rank, n_ranks)
        with session.share_sum(own, PUBLIC, **options) as shared, shared.computing() as total:
            return shared.open(work(total))

    results = run_parties(n_ranks, party)
    assert all(torch.equal(result, results[0]) for result in results)
    return results[0]


@pytest.mark.parametrize("n_ranks", [1, 2, 3, 5])
def test_comparisons_are_right_for_both_signs_and_at_zero(n_ranks):
    answers = each(n_ranks, lambda x: crypten.stack([x > 0, x >= 0, x < 0, x <= 0, x > 1]))
    expected = [SUMS > 0, SUMS >= 0, SUMS < 0, SUMS <= 0, SUMS > 1]
    assert np.array_equal(answers.numpy(), np.array(expected))


@pytest.mark.parametrize("n_ranks", [2, 3, 5])
def test_largest_coordinate_is_found(n_ranks):
    assert int(each(n_ranks, lambda x: x.argmax(one_hot=False))) == SUMS.argmax()
    assert int(each(n_ranks, lambda x: x.argmin(one_hot=False))) == SUMS.argmin()


@pytest.mark.parametrize("n_ranks", [2, 3])
def test_precision_makes_fixed_point_numbers_of_the_sum(n_ranks):
    above = each(n_ranks, lambda x: x > 0.5, precision=FRACTIONS)
    assert np.array_equal(above.numpy(), SUMS > 0.5)
    zero = each(n_ranks, lambda x: x.eq(0), precision=FRACTIONS)
    assert np.array_equal(zero.numpy(), SUMS == 0)
    halves = each(n_ranks, lambda x: x[:4] * 0.5, precision=FRACTIONS)
    # CrypTen's division of shares is off by one unit of the last place per rank at most.
    assert np.abs(halves.numpy() - SUMS[:4] / 2).max() <= n_ranks * 2.0**-FRACTIONS


def test_opened_sum_is_the_sum_with_its_sign_and_the_input_is_left_alone():
    def party(transport):
        session = session_of(transport)
        own = summand(transport.rank, 3)
        own.setflags(write=False)
        shared = session.share_sum(own, PUBLIC)
        with shared.computing() as total:
            total += 5  # on a copy
        with shared.computing() as total:
            return shared.open(total).tolist()

    assert run_parties(3, party) == [SUMS.tolist()] * 3


def test_shared_and_opened_sums_take_turns_in_one_session():
    def party(transport):
        session = session_of(transport)
        own, results = summand(transport.rank, 3), []
        for _ in range(2):
            results.append(session.open(session.aggregate(session.protect(own))).tolist())
            with session.share_sum(own, PUBLIC) as shared, shared.computing() as total:
                results.append(shared.open(total).tolist())
        return results

    assert run_parties(3, party) == [[SUMS.tolist()] * 4] * 3


def test_only_the_bits_are_opened(monkeypatch):
    """Everything that all ranks learn from reductions, the sum's offset form included."""
    learned = {}
    fold = TransportCommunicator._fold_everywhere

    def noting(self, flat, op):
        result = fold(self, flat, op)
        learned.setdefault(self.get_rank(), []).append(result.clone())
        return result

    monkeypatch.setattr(TransportCommunicator, "_fold_everywhere", noting)
    each(3, lambda x: x > 0)
    seen = set(torch.cat(learned.pop(0)).tolist())
    secret = {int(s) for s in SUMS if abs(s) > 2}
    offset = 3 << 39
    assert not seen & {f for s in secret for f in (s, -s, s + offset, s ^ -(2**63))}
    # The tap sees what is opened: here the sum itself.
    learned.clear()
    each(3, lambda x: x)
    assert secret <= set(torch.cat(learned[0]).tolist())


def plan_for(n_ranks, dim=DIM, bits=40):
    return make_plan(
        epsilon=EPSILON,
        delta=DELTA,
        rounds=1,
        parties=n_ranks,
        dim=dim,
        clip_norm=1.0,
        modulus_bits=bits,
    )


def ledger_of(folder, rank, epsilon=EPSILON):
    path = folder / f"party-{rank}.jsonl"
    return Ledger.open(path, identity=f"party {rank}", budget=Budget(epsilon, DELTA))


def test_charge_is_on_disk_before_the_first_byte_leaves(tmp_path):
    plan = plan_for(3)

    class Watched(MemoryTransport):
        path = None

        def note(self):
            if self.path is not None:
                self.reserved.append('"reserve"' in self.path.read_text())

        def exchange(self, outgoing, sources):
            self.note()
            return super().exchange(outgoing, sources)

        def _begin(self, kind, outgoing, inbox):
            self.note()
            return super()._begin(kind, outgoing, inbox)

    def party(transport):
        transport.__class__ = Watched
        transport.reserved = []
        session, rank = session_of(transport), transport.rank
        with ledger_of(tmp_path, rank) as ledger:
            transport.path = tmp_path / f"party-{rank}.jsonl"
            with session.share_sum(summand(rank, 3), Charged(ledger, plan)) as shared:
                before = ledger.epsilon()
                with shared.computing() as total:
                    shared.open(total > 0)
            return transport.reserved, before, ledger.epsilon(), ledger.charges

    for reserved, before, after, charges in run_parties(3, party):
        assert reserved
        assert all(reserved)
        assert 0 < before <= EPSILON
        assert (after, charges) == (before, 1)


def test_further_openings_of_the_same_sum_are_post_processing(tmp_path):
    plan = plan_for(2)

    def party(transport):
        session, rank = session_of(transport), transport.rank
        with ledger_of(tmp_path, rank) as ledger:
            shared = session.share_sum(summand(rank, 2), Charged(ledger, plan))
            with shared.computing() as total:
                shared.open(total > 0)
                once = (ledger.epsilon(), ledger.charges)
                shared.open(total > 1)
                shared.open(total)
            shared.close()
            lines = (tmp_path / f"party-{rank}.jsonl").read_text()
            return once == (ledger.epsilon(), ledger.charges), lines

    for unchanged, lines in run_parties(2, party):
        assert unchanged
        assert [lines.count(f'"{kind}"') for kind in ("open", "commit", "abandon")] == [1, 1, 0]
        assert '"shared-sum"' in lines


def test_second_shared_sum_is_a_second_charge_which_the_budget_refuses(tmp_path):
    plan = plan_for(2)

    def party(transport):
        session, rank = session_of(transport), transport.rank
        with ledger_of(tmp_path, rank) as ledger:
            session.share_sum(summand(rank, 2), Charged(ledger, plan)).close()
            with pytest.raises(BudgetExceeded):
                session.share_sum(summand(rank, 2), Charged(ledger, plan, round_id=1))

    run_parties(2, party)


def test_budget_of_one_rank_stops_all_and_what_others_reserved_stays_spent(tmp_path):
    plan = plan_for(3)

    def party(transport):
        session, rank = session_of(transport), transport.rank
        own = summand(rank, 3)
        with ledger_of(tmp_path, rank, EPSILON if rank != 1 else EPSILON / 9) as ledger:
            wanted = BudgetExceeded if rank == 1 else ProtocolError
            with pytest.raises(wanted) as caught:
                session.share_sum(own, Charged(ledger, plan))
            spent = ledger.epsilon()
        # All ranks know, so the session goes on.
        return str(caught.value), spent, session.open(session.protect(own)).tolist()

    said, spent, sums = zip(*run_parties(3, party), strict=True)
    assert spent[1] == 0 < spent[0] == spent[2]
    assert said[0] == said[2]
    assert "rank 1 refused" in said[0]
    for rank in range(3):
        lines = (tmp_path / f"party-{rank}.jsonl").read_text()
        assert [lines.count('"reserve"') > 0, lines.count('"abandon"')] == [rank != 1] * 2
    assert sums == (SUMS.tolist(),) * 3


def refusal(expected, match, share, n_ranks=2):
    """Call ``share(session, own, rank)`` at all ranks: some raise, and the session goes on."""

    def party(transport):
        session, own = session_of(transport), summand(transport.rank, n_ranks)
        with pytest.raises(expected, match=match):
            share(session, own, transport.rank)
        return session.open(session.protect(own)).tolist()

    assert run_parties(n_ranks, party) == [SUMS.tolist()] * n_ranks


@pytest.mark.parametrize("release", [None, False, "none", 1.0])
def test_opening_without_a_charge_is_refused_unless_said_so(release):
    refusal(TypeError, "charge", lambda session, own, _: session.share_sum(own, release))


def test_plan_of_another_sum_is_refused(tmp_path):
    for plan in (plan_for(3), plan_for(2, dim=8), plan_for(2, bits=32)):

        def share(session, own, rank, plan=plan):
            with ledger_of(tmp_path, rank) as ledger:
                try:
                    session.share_sum(own, Charged(ledger, plan))
                finally:
                    assert ledger.charges == 0

        refusal(ConfigError, "plan is for", share)


def test_ranks_that_charge_otherwise_stop_all(tmp_path):
    plan = plan_for(2)

    def share(session, own, rank):
        if rank == 0:
            session.share_sum(own, PUBLIC)
        with ledger_of(tmp_path, rank) as ledger:
            session.share_sum(own, Charged(ledger, plan))

    refusal(TranscriptMismatch, "rank", share)


@pytest.mark.parametrize("said", [b"", b"ready sum 0.0", 100_000 * b"x"])
def test_rank_that_says_something_else_is_named_and_the_charge_stays_spent(tmp_path, said):
    plan = plan_for(2)

    def party(transport):
        session = session_of(transport)
        if transport.rank == 1:
            transport.allgather(said)
            return
        with ledger_of(tmp_path, 0) as ledger:
            with pytest.raises(ProtocolError, match=r"^a shared-sum message from rank 1 was"):
                session.share_sum(summand(0, 2), Charged(ledger, plan))
            assert (ledger.charges, ledger.epsilon() > 0) == (1, True)
        assert (tmp_path / "party-0.jsonl").read_text().count('"abandon"') == 1

    run_parties(2, party)


@pytest.mark.parametrize("precision", [-1, 8, 32])
def test_precision_at_which_crypten_compares_wrongly_is_refused(precision):
    def share(session, own, _):
        session.share_sum(own, PUBLIC, precision=precision)

    refusal(ConfigError, "precision", share)


@pytest.mark.parametrize(("bits", "precision"), [(46, FRACTIONS), (62, 0)])
def test_sum_that_would_wrap_in_a_comparison_is_refused(bits, precision):
    """Differences of sums of two values of b bits take b + 1 bits and a sign."""
    ends = np.array([1, -1, 1, -1, 1, -1, 1]) * ((1 << (bits - 1)) - 1)

    def party(transport):
        session = session_of(transport, bits)
        shared = session.share_sum(ends, PUBLIC, precision=precision)
        with shared.computing() as total:
            larger = shared.open(total[:-1] > total[1:])
        tight = session_of(transport, bits + 1)
        with pytest.raises(ConfigError, match="fit"):
            tight.share_sum(ends, PUBLIC, precision=precision)
        return larger.tolist()

    assert run_parties(2, party) == [[1, 0, 1, 0, 1, 0]] * 2


def test_value_that_one_rank_refuses_stops_all():
    def party(transport):
        session = session_of(transport)
        own = np.full(len(SUMS), 1 << 39 if transport.rank == 1 else 1)
        with pytest.raises(Exception, match="outside" if transport.rank == 1 else "rank 1 refused"):
            session.share_sum(own, PUBLIC)

    run_parties(3, party)


def test_nothing_is_opened_outside_of_computing():
    def party(transport):
        session = session_of(transport)
        shared = session.share_sum(summand(transport.rank, 2), PUBLIC)
        assert "unopened" in repr(shared)
        with shared.computing() as total:
            kept = total > 0
        before = transport.meter.bytes_sent
        with pytest.raises(Exception):  # noqa: B017 - whatever CrypTen says without network
            kept.get_plain_text()
        assert transport.meter.bytes_sent == before
        return shared.open(kept).tolist()

    assert run_parties(2, party) == [(SUMS > 0).tolist()] * 2


def test_closed_shared_sum_or_session_is_refused_and_an_unused_charge_stays_spent(tmp_path):
    plan = plan_for(2)

    def party(transport):
        session, rank = session_of(transport), transport.rank
        with ledger_of(tmp_path, rank) as ledger:
            shared = session.share_sum(summand(rank, 2), Charged(ledger, plan))
            spent = ledger.epsilon()
            shared.close()
            shared.close()
            assert ledger.epsilon() == spent > 0
        other = session.share_sum(summand(rank, 2), PUBLIC)
        session.close()
        for one in (shared, other):
            with pytest.raises(OutOfOrder), one.computing():
                pass
        with pytest.raises(OutOfOrder):
            session.share_sum(summand(rank, 2), PUBLIC)
        assert '"abandon"' in (tmp_path / f"party-{rank}.jsonl").read_text()

    run_parties(2, party)


def test_computation_that_broke_off_can_not_go_on():
    def party(transport):
        shared = session_of(transport).share_sum(summand(transport.rank, 2), PUBLIC)
        with pytest.raises(ZeroDivisionError), shared.computing():
            raise ZeroDivisionError
        with pytest.raises(OutOfOrder), shared.computing():
            pass

    run_parties(2, party)


def test_other_provider_of_triples_and_other_types_are_refused(monkeypatch):
    shared = run_parties(1, lambda t: session_of(t).share_sum(SUMS, PUBLIC))[0]
    with pytest.raises(TypeError, match="shared tensors"):
        shared.open(np.zeros(3))
    with (
        crypten.cfg.temp_override({"mpc.provider": "HE"}),
        pytest.raises(ConfigError, match="TFP"),
        shared.computing(),
    ):
        pass
    with shared.computing() as total:
        assert crypten_bridge.crypten.communicator.is_initialized()
        assert total.size() == (len(SUMS),)


@pytest.mark.mpi
def test_case_answers_over_mpi_and_charges_once(repository, tmp_path):
    import json
    import subprocess
    import sys

    case = repository / "benchmarks/cases/shared_sum.py"
    command = [sys.executable, str(case), "--json", "--parties", "2"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["charges"] == 1
    assert 0 < found["epsilon_charged_first"] == found["epsilon_charged"] <= found["epsilon"]
    # Noise of some 30 scans moves no more than a few of the 64 counts over the threshold.
    assert found["above_agreement"] > 0.8
    assert found["truly_darkest_scans"] - found["darkest_scans"] < 12 * found["noise_in_scans"]
    assert found["costs"]["compare"]["bytes_sent"] > found["costs"]["open the sum"]["bytes_sent"]


def test_the_python_session_hands_its_sum_on_between_other_sums():
    def party(transport):
        own = summand(transport.rank, 3)
        with mpcfl.open_secure_sum(
            comm=transport, backend="crypten", dim=DIM, modulus_bits=40
        ) as session:
            before = session.sum(own)
            with session.share_sum(torch.from_numpy(own), PUBLIC) as shared:
                with shared.computing() as total:
                    positive = total > 0
                signs = shared.open(positive)
            with pytest.raises((TypeError, ProtocolError)):
                session.share_sum(own, PUBLIC if transport.rank else None)
            return before.tolist(), signs.tolist(), session.sum(own).tolist()

    for before, signs, after in run_parties(3, party):
        assert before == after == SUMS.tolist()
        assert signs == [float(x > 0) for x in SUMS]


def test_a_session_in_which_a_rank_never_came_to_share_is_at_its_end():
    def party(transport):
        session = mpcfl.open_secure_sum(comm=transport, backend="crypten", dim=DIM, modulus_bits=40)
        if transport.rank:
            return
        with pytest.raises(PartyLost):
            session.share_sum(np.zeros(DIM, np.int64), PUBLIC)
        with pytest.raises(OutOfOrder, match="broke off"):
            session.sum(np.zeros(DIM, np.int64))

    run_parties(2, party, deadline_s=0.5)
