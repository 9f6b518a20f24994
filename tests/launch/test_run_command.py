"""How a failed run ends: one sentence, and how to go on if there is something to go on from."""

from __future__ import annotations

from pathlib import Path

import pytest

from mpcfl.errors import MpcflError
from mpcfl.launch.mpirun import Outcome
from mpcfl.launch.run_command import RunOptions, _program, _raise_failure, _resume_command
from mpcfl.parties.events import Failed


@pytest.mark.parametrize("failures", [[], [Failed("south (rank 1) died during the run")]])
@pytest.mark.parametrize("began", [False, True])
def test_the_way_to_go_on_is_named_if_the_run_had_begun(
    tmp_path: Path, failures: list[Failed], began: bool
) -> None:
    resume = _resume_command(RunOptions("toy"), tmp_path) if began else None
    with pytest.raises(MpcflError) as caught:
        _raise_failure(Outcome(0, ()), failures, resume, ended=False)
    assert (f"continue it with: mpcfl run --resume {tmp_path}" in str(caught.value)) is began
    assert ("south" in str(caught.value)) is bool(failures)


def test_way_to_go_on_names_the_key_files_again(tmp_path: Path) -> None:
    options = RunOptions("toy", keys=Path("my keys"), passphrases=Path("phrases"))
    command = _resume_command(options, tmp_path)
    assert command == f"mpcfl run --resume {tmp_path} --keys 'my keys' --passphrases phrases"


def test_way_to_go_on_names_the_party_files_again(tmp_path: Path) -> None:
    options = RunOptions("toy", party_files=Path("my parties"))
    command = _resume_command(options, tmp_path)
    assert command == f"mpcfl run --resume {tmp_path} --party-files 'my parties'"
    assert "--party mine.toml" in _resume_command(
        RunOptions("toy", party=Path("mine.toml")), Path()
    )


def test_ranks_hear_who_they_are_and_who_is_absent(tmp_path: Path) -> None:
    options = RunOptions(
        None,
        resume=tmp_path,
        party_files=Path("parties"),
        without=("ben", "cyd"),
        insecure=True,
    )
    program = _program(options, tmp_path)
    assert program[:4] == ["-m", "mpcfl.parties", "--resume", str(tmp_path)]
    assert program[-1] == "--events"
    text = " ".join(program)
    assert "--party-files parties" in text
    assert "--without ben --without cyd" in text
    assert "--insecure" in program
    assert "--party" not in program


def test_a_run_that_ended_is_no_failure_whatever_mpirun_says() -> None:
    """It ends badly for a party that the others did without."""
    _raise_failure(Outcome(137, ()), [], None, ended=True)
    with pytest.raises(MpcflError, match="south died"):
        _raise_failure(Outcome(0, ()), [Failed("south died")], None, ended=True)
