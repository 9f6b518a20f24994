"""Every state of the model of recovery keeps the invariants, and each broken rule breaks one.

`MPCFL_WIDE_SEARCH=1` also visits the states with a death and a silence together, which takes some
minutes and 2 GiB.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest

_spec = importlib.util.spec_from_file_location(
    "recovery_model", Path(__file__).with_name("recovery_model.py")
)
assert _spec is not None
assert _spec.loader is not None
model = importlib.util.module_from_spec(_spec)
# Dataclasses look their module up by its name.
sys.modules[_spec.name] = model
_spec.loader.exec_module(model)
Bounds, Violation, explore = model.Bounds, model.Violation, model.explore


def test_a_run_without_failures_comes_through_in_every_order() -> None:
    seen = explore(Bounds(crashes=0, slow=0))
    assert seen.finished == seen.ends > 0
    assert seen.retried == 0


def test_every_death_of_one_party_ends_well() -> None:
    """One loss is what the plan allows, so the survivors always finish."""
    seen = explore(Bounds(crashes=1, slow=0))
    assert seen.finished == seen.ends
    assert seen.retried > 0


def test_two_deaths_at_any_time_open_nothing_twice() -> None:
    seen = explore(Bounds(crashes=2, slow=0))
    assert seen.states > 50_000
    assert 0 < seen.finished < seen.ends


def test_a_party_that_is_only_silent_opens_nothing_twice() -> None:
    seen = explore(Bounds(crashes=0, slow=1, rounds=1))
    assert seen.finished == seen.ends
    assert seen.retried > 0


WIDE = [
    Bounds(crashes=0, slow=1),
    Bounds(crashes=1, slow=1, rounds=1),
    Bounds(crashes=2, slow=0, spare_attempts=0),
    Bounds(crashes=2, slow=0, spare_attempts=1),
    Bounds(crashes=2, slow=0, rounds=3, spare_attempts=3),
    Bounds(crashes=2, slow=0, max_dropout=0),
]


# These take minutes.
if "MPCFL_WIDE_SEARCH" in os.environ:

    @pytest.mark.parametrize("bounds", WIDE, ids=str)
    def test_wider_bounds(bounds: object) -> None:
        assert explore(bounds).states > 1000


_STUCK = "somebody waits for a message that nobody will send"
BROKEN = {
    "retries free of charge": "an attempt begins that a member has not charged",
    "begins alone": "an attempt begins that a member has not charged",
    "retries what is held": "an attempt begins for a part that a member holds",
    "opens late": "an attempt begins for a part that a member holds",
    "forgets the round before": _STUCK,
    "counts its own attempts": _STUCK,
    "tells nobody where it went": _STUCK,
    "answers nothing it had before it went": _STUCK,
    "finishes alone": "two parties finish with different models",
    "signs twice": "a party signs two views of one epoch",
}
# These need a party that is doubted and lives.
_DOUBTED = {
    "tells nobody where it went",
    "answers nothing it had before it went",
    "finishes alone",
    "signs twice",
}


@pytest.mark.parametrize("rule", BROKEN)
def test_a_broken_rule_breaks_an_invariant(rule: str) -> None:
    slow = int(rule in _DOUBTED)
    bounds = Bounds(
        crashes=1 - (rule == "finishes alone"), slow=slow, rounds=2 - slow, broken=frozenset({rule})
    )
    with pytest.raises(Violation, match=BROKEN[rule]):
        explore(bounds)
