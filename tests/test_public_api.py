"""What others may rely on, written down: a change of it is seen, and must be meant.

`tests/public_api.txt` has every public name with its signature, every command with its options,
every key of a job and of `run.json`. After a change that is meant:

    python tests/test_public_api.py

and describe the change in CHANGELOG.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import enum
import importlib
import inspect
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import typer

ROOT = Path(__file__).parent.parent
WRITTEN = ROOT / "tests" / "public_api.txt"
REMEDY = (
    "the public interface has changed; if that is meant, run `python tests/test_public_api.py` and "
    "describe the change in CHANGELOG.md"
)
# Modules whose named classes are what other packages build upon.
PLUG_POINTS = {
    "mpcfl.learn.task": (
        "Task",
        "CountsExamples",
        "DescribesModel",
        "HasExamples",
        "MeasuresItself",
        "MeasuresOwnMetrics",
        "Prepares",
        "SavesModel",
        "TrainsItself",
    ),
    "mpcfl.secagg.base": ("BackendFactory", "SecureSum", "Stages", "SumId", "SumSettings"),
    "mpcfl.secagg.session": ("SecureSumSession",),
    "mpcfl.net.transport": ("Pending", "Transport"),
}
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def public_names() -> dict[str, Any]:
    """Return everything public that Python code can import, by its full name."""
    found: dict[str, Any] = {}
    for module in map(importlib.import_module, ("mpcfl", "mpcfl.dp")):
        names = (name for name in module.__all__ if name != "__version__")
        found |= {f"{module.__name__}.{name}": getattr(module, name) for name in names}
    errors = importlib.import_module("mpcfl.errors")
    found |= {
        f"mpcfl.errors.{name}": value
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.MpcflError)
    }
    for path, names in PLUG_POINTS.items():
        found |= {f"{path}.{name}": getattr(importlib.import_module(path), name) for name in names}
    return dict(sorted(found.items()))


def _signature(value: Any) -> str:
    return _ADDRESS.sub("", str(inspect.signature(value)))


def _class_lines(name: str, cls: type) -> Iterator[str]:
    bases = [base.__name__ for base in cls.__bases__ if base is not object]
    yield f"class {name}({', '.join(bases)})"
    if issubclass(cls, enum.Enum):
        yield from (f"    {member.name} = {member.value!r}" for member in cls)
        return
    if "__init__" in vars(cls) and "Protocol" not in bases:
        yield f"    __init__{_signature(cls.__init__)}"
    for attribute, kind in inspect.get_annotations(cls).items():
        if not attribute.startswith("_") and not dataclasses.is_dataclass(cls):
            yield f"    {attribute}: {kind}"
    for method, value in sorted(vars(cls).items()):
        if method.startswith("_") and method != "__call__":
            continue
        if isinstance(value, property):
            yield f"    {method} -> {inspect.get_annotations(value.fget).get('return')}"
        elif isinstance(value, classmethod | staticmethod):
            yield f"    {method}{_signature(value.__func__)}"
        elif inspect.isfunction(value):
            yield f"    {method}{_signature(value)}"


def _python_lines() -> Iterator[str]:
    for name, value in public_names().items():
        if isinstance(value, ModuleType):
            yield f"module {name}"
        elif isinstance(value, type):
            yield from _class_lines(name, value)
        else:
            yield f"def {name}{_signature(value)}"


def _table_lines(table: Any, prefix: str = "") -> Iterator[str]:
    for name, field in sorted(table.model_fields.items()):
        if hasattr(field.annotation, "model_fields"):
            yield from _table_lines(field.annotation, f"{prefix}{name}.")
        elif field.is_required():
            yield f"{prefix}{name}"
        else:
            default = field.get_default(call_default_factory=True)
            shown = str(default) if isinstance(default, enum.Enum) else repr(default)
            yield f"{prefix}{name} = {shown}"


def _record_lines() -> Iterator[str]:
    from mpcfl.report import run_record

    kinds = {
        "": run_record.RunRecord,
        "model.": run_record.ModelRecord,
        "privacy.": run_record.PrivacyRecord,
        "rounds[].": run_record.RoundRecord,
    }
    yield f"schema {run_record.SCHEMA}"
    for prefix, kind in kinds.items():
        yield from (f"{prefix}{field.name}: {field.type}" for field in dataclasses.fields(kind))


def _command_lines(command: Any, words: str) -> Iterator[str]:
    inner = getattr(command, "commands", None)
    if inner is None:
        yield words
    for parameter in command.params:
        if "--help" in parameter.opts:
            continue
        spelt = "/".join([*parameter.opts, *parameter.secondary_opts])
        takes = "" if getattr(parameter, "is_flag", False) else f" {parameter.metavar or 'VALUE'}"
        again = " ..." if parameter.multiple else ""
        is_argument = parameter.param_type_name == "argument"
        yield f"{words} {parameter.name.upper() if is_argument else spelt + takes + again}"
    for name, following in sorted((inner or {}).items()):
        yield from _command_lines(following, f"{words} {name}")


def _rank_lines() -> Iterator[str]:
    from mpcfl.parties.__main__ import _parser

    for action in _parser()._actions:
        if not isinstance(action, argparse._HelpAction):
            yield "/".join(action.option_strings) or action.dest


def _entry_point_lines() -> Iterator[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for group, entries in sorted(project["entry-points"].items()):
        yield from (f"{group}: {name}" for name in sorted(entries))
    yield from (f"extra {name}" for name in sorted(project["optional-dependencies"]))


def interface() -> str:
    """Return the whole public interface as text."""
    from mpcfl.config import Job
    from mpcfl.launch.cli import app

    sections = {
        "Python": _python_lines(),
        "mpcfl": _command_lines(typer.main.get_command(app), "mpcfl"),
        "python -m mpcfl.parties": _rank_lines(),
        "Job file": _table_lines(Job),
        "run.json": _record_lines(),
        "Entry points and extras": _entry_point_lines(),
    }
    return (
        "\n\n".join("\n".join([f"# {title}", "", *lines]) for title, lines in sections.items())
        + "\n"
    )


def test_the_public_interface_is_the_one_that_is_written_down() -> None:
    written, now = WRITTEN.read_text(encoding="utf-8").splitlines(), interface().splitlines()
    changes = difflib.unified_diff(written, now, "written down", "now", lineterm="", n=0)
    assert written == now, "\n".join([REMEDY, *changes])


def test_every_public_name_has_a_docstring() -> None:
    missing = []
    for name, value in public_names().items():
        if not inspect.getdoc(value):
            missing.append(name)
        for method, function in vars(value).items() if isinstance(value, type) else ():
            if not method.startswith("_") and inspect.isfunction(function):
                missing += [] if function.__doc__ else [f"{name}.{method}"]
    assert not missing


def test_every_public_name_is_in_the_documentation() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    # Their page is made of the whole module.
    assert "\n::: mpcfl.errors\n" in text
    missing = [
        name
        for name in public_names()
        if not name.startswith("mpcfl.errors.")
        and not re.search(rf"\b{name.rpartition('.')[2]}\b", text)
    ]
    assert not missing


def main() -> None:
    """Write the present interface down."""
    WRITTEN.write_text(interface(), encoding="utf-8")
    sys.stdout.write(f"{WRITTEN} holds the interface; describe what changed in CHANGELOG.md\n")


if __name__ == "__main__":
    main()
