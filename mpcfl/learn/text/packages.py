"""Packages of the extra ``text``: where they lie, and what to do where one is missing."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from mpcfl.errors import ConfigError


def package_folder(name: str) -> Path:
    """Return the folder of a package; it is not imported, for some read all they have then.

    Raises:
        ConfigError: it is not installed.
    """
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        raise missing_package(name)
    return Path(spec.origin).parent


def missing_package(name: str) -> ConfigError:
    """Return what to say of a package that is not installed."""
    return ConfigError(f'the package {name} is missing; install it with: pip install "mpcfl[text]"')
