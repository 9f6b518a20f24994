"""The architecture as a test: who may import whom, how long things are, what is banned."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ORDER = [
    {"errors"},
    {"config"},
    {"hazmat"},
    {"dp", "net"},
    {"secagg"},
    {"learn"},
    {"round"},
    {"report", "audit", "bench"},
    {"parties"},
    {"launch"},
]
LEVEL = {layer: level for level, layers in enumerate(ORDER) for layer in layers}
MAY_USE_HAZMAT = {"hazmat", "dp", "net", "secagg"}
# mpi4py's lower-case calls pickle what they send.
PICKLING = re.compile(
    r"(?:comm|COMM_WORLD|COMM_SELF)\w*\.(?:i?send|i?recv|bcast|gather|scatter|allgather|alltoall|reduce"
    r"|allreduce|sendrecv|scan|exscan)\("
)


def modules() -> list[Path]:
    found = [p for top in ("mpcfl", "parties", "launch") for p in (ROOT / top).rglob("*.py")]
    assert len(found) > 40
    return sorted(found)


def layer_of(path: Path) -> str | None:
    parts = path.relative_to(ROOT).with_suffix("").parts
    if parts[0] in {"parties", "launch"}:
        return parts[0]
    return None if parts == ("mpcfl", "__init__") else parts[1]


def imports_of(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    layer = layer_of(path)
    if layer is None:
        return
    for name in imports_of(path):
        parts = name.split(".")
        if parts[0] != "mpcfl" or len(parts) < 2 or parts[1] not in LEVEL:
            continue
        assert LEVEL[parts[1]] <= LEVEL[layer], f"{path.name} ({layer}) imports {name}"
        if parts[1] == "hazmat":
            assert layer in MAY_USE_HAZMAT, f"{path.name} ({layer}) imports {name}"


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_module_and_functions_are_short(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 500
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            if body:
                lines = (body[-1].end_lineno or 0) - body[0].lineno + 1
                assert lines <= 40, f"{node.name} has {lines} lines"


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_no_pickle_and_no_gpl_outside_its_backend(path: Path) -> None:
    text = path.read_text()
    assert not PICKLING.search(text)
    names = set(imports_of(path))
    assert not any(
        name.split(".")[0] in {"pickle", "random", "shelve", "marshal"} for name in names
    )
    if any(name.split(".")[0] == "phe" for name in names):
        assert path.name == "phe_sum.py"


def test_environment_is_read_in_launch_only() -> None:
    """Ranks may limit threads before numpy loads; CrypTen as shipped is configured that way."""
    allowed = {"mpcfl/bench/cell.py", "parties/__main__.py", "mpcfl/secagg/crypten_stock_sum.py"}
    for path in modules():
        name = str(path.relative_to(ROOT))
        if "os.environ" in path.read_text() or "os.getenv" in path.read_text():
            assert name in allowed or name.startswith("launch/"), name


def test_importing_the_package_loads_nothing_heavy_and_prints_nothing() -> None:
    code = (
        "import sys, mpcfl; "
        "bad = {'torch', 'crypten', 'mpi4py', 'numpy'} & set(sys.modules); "
        "sys.exit(str(bad) if bad else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
