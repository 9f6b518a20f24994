"""A party of a job that notes how much memory it came to need.

    python peak_rank.py FOLDER ARGUMENTS OF mpcfl.parties...

`FOLDER/peak-RANK.json` has the resident size once the public state was loaded, and the highest one
of the process' whole life, in bytes, as Linux counts them; a rank that did not come through its
rounds leaves none.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mpcfl.parties.program
import mpcfl.parties.setup
from mpcfl.parties.__main__ import main

_FOLDER = Path(sys.argv[1])
_RANK = os.environ["PMIX_RANK"]
_noted: dict[str, int] = {}


def status_bytes(name: str) -> int:
    """Return a size from what the system says of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def after(owner: Any, name: str, then: Callable[[], None]) -> None:
    """Call ``then`` after every call of a function."""
    original = getattr(owner, name)

    def wrapped(*arguments: Any, **named: Any) -> Any:
        result = original(*arguments, **named)
        then()
        return result

    setattr(owner, name, wrapped)


def loaded() -> None:
    """Note the size before the round."""
    gc.collect()
    _noted["loaded"] = status_bytes("VmRSS")


def finished() -> None:
    """Write both sizes down."""
    _noted["peak"] = status_bytes("VmHWM")
    (_FOLDER / f"peak-{_RANK}.json").write_text(json.dumps(_noted))


if __name__ == "__main__":
    after(mpcfl.parties.setup, "public_state", loaded)
    after(mpcfl.parties.program, "take_part", finished)
    sys.exit(main(sys.argv[2:]))
