"""Pages whose commands can be typed: their blocks, and a shell that types them.

In a `console` block a line that begins with `$ ` is a command, and the lines up to the next one
are what it prints, `...` standing for any text in a line, and alone in a line for any lines. A
block with a `title` is a file that the page tells to save.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

_BLOCK = re.compile(
    r'^```(?P<language>\w*)(?: title="(?P<title>[^"]+)")?\n(?P<text>.*?)^```$',
    re.DOTALL | re.MULTILINE,
)
_PROMPT = "$ "
# A page says by this that its command fails.
_FAILS = "mpcfl: error: "
_LIMIT_S = 180
_PIP_OPTIONS = "--no-index --disable-pip-version-check --root-user-action=ignore"


@dataclass(frozen=True)
class Block:
    """A fenced block of a page; the title is the name of the file to save, or empty."""

    language: str
    title: str
    text: str


@dataclass(frozen=True)
class Step:
    """A command and what the page says that it prints."""

    command: str
    output: tuple[str, ...]

    @property
    def fails(self) -> bool:
        return any(line.startswith(_FAILS) for line in self.output)


def blocks(page: str) -> list[Block]:
    """Return all fenced blocks of a page; every fence belongs to one of them."""
    found = [
        Block(match["language"], match["title"] or "", match["text"])
        for match in _BLOCK.finditer(page)
    ]
    fences = len(re.findall(r"^\s*(?:```|~~~)", page, re.MULTILINE))
    assert fences == 2 * len(found), "a fence that is indented, or of another form"
    return found


def steps(block: Block) -> list[Step]:
    """Return the commands of a console block."""
    found: list[Step] = []
    for line in block.text.splitlines():
        if line.startswith(_PROMPT):
            found.append(Step(line.removeprefix(_PROMPT), ()))
        else:
            assert found, f"{line!r} is the output of no command"
            found[-1] = Step(found[-1].command, (*found[-1].output, line))
    return found


def matches(output: tuple[str, ...], printed: str) -> bool:
    """Tell whether a page's output stands for what was printed, spaces at line ends aside."""
    pattern = "".join(
        r"(?:.*\n)*?" if line.strip() == "..." else _line_pattern(line) for line in output
    )
    lines = "".join(line.rstrip() + "\n" for line in printed.splitlines())
    return re.fullmatch(pattern, lines) is not None


def _line_pattern(line: str) -> str:
    return ".*".join(re.escape(part) for part in line.rstrip().split("...")) + r"\n"


class Shell:
    """Types commands in one folder, on a path where `mpcfl`, `python` and `mpirun` are ours."""

    def __init__(self, folder: Path, programs: Path, warm: tuple[Path, Path] | None) -> None:
        """Prepare a shell.

        Args:
            folder: where commands are typed.
            programs: a folder for the programs that stand in front of all others.
            warm: the warm `mpcfl run` and its socket (`tests/mpi/warm_command.py`), or None.
        """
        self.folder = folder
        programs.mkdir(parents=True, exist_ok=True)
        cold = f'exec "{sys.executable}" -m mpcfl.launch "$@"\n'
        if warm is not None:
            run = " ".join(f'"{part}"' for part in (sys.executable, *warm))
            cold = f'if [ "$1" = run ]; then exec {run} "$@"; fi\n' + cold
        python = f'exec "{sys.executable}"'
        # Nothing is fetched, and what a page installs is gone with its folder.
        pip = f'shift\n{python} -m pip install {_PIP_OPTIONS} --target "{folder}" "$@"\n'
        for name, line in {"mpcfl": cold, "python": f'{python} "$@"\n', "pip": pip}.items():
            (programs / name).write_text("#!/bin/sh\n" + line)
            (programs / name).chmod(0o755)
        path = [str(programs), str(Path(sys.executable).parent), os.environ["PATH"]]
        self._environment = os.environ | {
            "PATH": os.pathsep.join(path),
            "PYTHONPATH": str(folder),
            "PYTHONUNBUFFERED": "1",
            # Whoever runs the tests may be root.
            "OMPI_ALLOW_RUN_AS_ROOT": "1",
            "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        }

    def type(self, command: str) -> tuple[int, str]:
        """Run a command to its end; return its exit code and all that it printed."""
        with subprocess.Popen(
            ["/bin/bash", "-c", command],
            cwd=self.folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as process:
            try:
                printed, _ = process.communicate(timeout=_LIMIT_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGINT)
                printed, _ = process.communicate(timeout=10)
                raise AssertionError(f"hung: {command}\n{printed}") from None
        return process.returncode, printed

    def follow(self, page: str) -> list[str]:
        """Save every file of a page and type every command, in order; compare what is printed.

        Returns:
            The commands that were typed.
        """
        typed = []
        for block in blocks(page):
            if block.title:
                file = self.folder / block.title
                file.parent.mkdir(exist_ok=True)
                file.write_text(block.text)
            for step in steps(block) if block.language == "console" else ():
                code, printed = self.type(step.command)
                said = f"$ {step.command}\n{printed}"
                assert (code != 0) == step.fails, f"exit code {code}\n{said}"
                expected = "\n".join(step.output)
                assert matches(step.output, printed), f"{said}\nThe page says:\n{expected}"
                typed.append(step.command)
        return typed
