"""How a failed run ends: one sentence, and how to go on if there is something to go on from."""

from __future__ import annotations

from pathlib import Path

import pytest

from mpcfl.errors import MpcflError
from mpcfl.launch.mpirun import Outcome
from mpcfl.launch.run_command import _raise_failure
from mpcfl.parties.events import Failed
from mpcfl.report.checkpoint import FILE_NAME


@pytest.mark.parametrize("failures", [[], [Failed("south (rank 1) died during the run")]])
@pytest.mark.parametrize("checkpoint", [False, True])
def test_the_way_to_go_on_is_named_if_there_is_a_checkpoint(
    tmp_path: Path, failures: list[Failed], checkpoint: bool
) -> None:
    if checkpoint:
        (tmp_path / "checkpoint").mkdir()
        (tmp_path / "checkpoint" / FILE_NAME).write_text("{}")
    with pytest.raises(MpcflError) as caught:
        _raise_failure(Outcome(0, ()), failures, tmp_path, ended=False)
    assert (f"continue it with: mpcfl run --resume {tmp_path}" in str(caught.value)) is checkpoint
    assert ("south" in str(caught.value)) is bool(failures)
