"""`mpcfl` as a user types it, but its ranks are warm (`warm_ranks.py`).

python warm_command.py SOCKET run JOB ...
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import mpcfl.launch.run_command
import mpcfl.parties
from mpcfl.launch.cli import main

sys.path.append(str(Path(__file__).parent))

from jobs import WarmServer

if __name__ == "__main__":
    server = WarmServer(Path(sys.argv.pop(1)), 0)
    compose = mpcfl.launch.run_command.compose
    parties = Path(mpcfl.parties.__file__).parent / "__main__.py"

    def compose_warm(n_ranks: int, program: Sequence[str]) -> list[str]:
        """Have ranks of a job forked off the server; nothing else is started by `mpcfl run`."""
        assert list(program[:2]) == ["-m", "mpcfl.parties"]
        return compose(n_ranks, server.stub([parties, *program[2:]]))

    mpcfl.launch.run_command.compose = compose_warm
    main()
