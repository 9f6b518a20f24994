"""What the tests of whole parties share."""

from __future__ import annotations

import pytest


@pytest.fixture
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the page for people: drawing it would be most of the time."""
    monkeypatch.setattr("mpcfl.report.html.write_run_report", lambda *_: None)
