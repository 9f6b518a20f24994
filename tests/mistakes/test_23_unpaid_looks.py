"""Mistake 23: evaluation and the search for hyper-parameters look at private data unpaid.

Who made it: nearly everybody; no published run that we know of charges them. What goes wrong:
an accuracy on private records is a release, and a grid of 100 candidates is 100 releases. What
would have to break here: a metric depends on some party's own records, a sum is opened without
an entry in the ledger, or the constants of a packaged job were chosen on its test data.
"""

from __future__ import annotations

import ast

import numpy as np
import pytest
import torch

from mpcfl.learn.evaluate import evaluate


@pytest.fixture
def guarded_task(line_task):
    """A task that notes who asks for private records."""

    class Guarded(line_task):
        asked: list[int] = []  # noqa: RUF012 - one list for all ranks on purpose

        def party_data(self, party, n_parties):
            self.asked.append(party)
            return super().party_data(party, n_parties)

        def test_data(self):
            return torch.eye(2), torch.ones(2, 1)

    return Guarded


def test_metrics_need_no_private_record(guarded_task):
    task = guarded_task()
    evaluate(task.model(), task)
    assert task.asked == []


@pytest.fixture
def looks(job_of, guarded_task, run_job):
    """Return who asked for private records in a run of two rounds."""

    def run() -> list[int]:
        guarded_task.asked.clear()
        ran = run_job(job_of(guarded_task))
        assert ran.error is None
        assert ran.rounds == [0, 1]
        return sorted(guarded_task.asked)

    return run


def test_every_party_loads_its_own_records_once_and_nothing_else(looks, sabotage):
    assert looks() == [0, 1, 2]

    def on_private_data(right, model, task, *_, **__):
        inputs, targets = task.party_data(0, 3)
        return {"loss": float(task.loss(model(inputs), targets).detach())}

    with sabotage("mpcfl.parties.recorder:evaluate", on_private_data):
        assert looks() != [0, 1, 2]


@pytest.fixture
def metrics_of_equal_models(line_task):
    """Tell whether the metrics of one model are equal under two sets of private records."""

    class Other(line_task):
        def party_data(self, party, n_parties):
            inputs, targets = super().party_data(party, n_parties)
            return inputs, 2 * targets

        def test_data(self):
            return line_task().test_data()

    def equal(measure) -> bool:
        model = line_task().model()
        return measure(model, line_task()) == measure(model, Other())

    return equal


def test_equal_models_have_equal_metrics_whatever_the_private_data(metrics_of_equal_models):
    assert metrics_of_equal_models(evaluate)

    def on_private_data(model, task):
        inputs, targets = task.party_data(1, 3)
        return float(task.loss(model(inputs), targets).detach())

    assert not metrics_of_equal_models(on_private_data)


@pytest.fixture
def all_is_paid_for(job_of, line_task, run_job):
    """Tell whether a run opens as many sums as its ledgers charge."""

    def check() -> bool:
        # Unchecked: a checked session refuses a sum that has no name of its own.
        job = job_of(line_task, training={"rounds": 3}, aggregation={"checked": False})
        ran = run_job(job)
        assert ran.error is None
        return all(ran.openings == len(ran.reserves(party)) for party in range(3))

    return check


def test_no_sum_is_opened_unpaid(all_is_paid_for, sabotage):
    assert all_is_paid_for()

    def evaluates_together(right, public, party, secure, *more):
        norm = np.full(public.plan.dim, len(party.records[0]), dtype=np.int64)
        secure.open(secure.aggregate(secure.protect(norm)))
        return right(public, party, secure, *more)

    with sabotage("mpcfl.parties.data_party:protected_sum", evaluates_together):
        assert not all_is_paid_for()


def reads_test_data_only_when_asked(source: str) -> bool:
    """The test set is read inside branches on ``--test`` only."""

    class Finder(ast.NodeVisitor):
        guarded = 0
        loose = 0

        def visit_If(self, node):
            asked = "test" in {n.attr for n in ast.walk(node.test) if isinstance(n, ast.Attribute)}
            self.guarded += asked
            for child in node.body:
                self.visit(child)
            self.guarded -= asked
            for child in node.orelse:
                self.visit(child)

        def visit_Attribute(self, node):
            self.loose += node.attr == "test_data" and not self.guarded
            self.generic_visit(node)

    finder = Finder()
    finder.visit(ast.parse(source))
    return finder.loose == 0 and ".test_data" in source


def test_constants_are_tuned_on_validation_folds(repository):
    source = (repository / "benchmarks" / "tune_digits.py").read_text(encoding="utf-8")
    assert reads_test_data_only_when_asked(source)
    loose = source.replace("DigitsTask().party_data(0, 1)", "DigitsTask().test_data()")
    assert not reads_test_data_only_when_asked(loose)
