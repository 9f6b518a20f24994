"""What the tests of texts share: a tiny base, reviews, a cache of their own, tasks."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parent))

from tiny_texts import save_texts, tiny_options

MakeTask = Callable[..., Any]

# The extra `text` is not installed everywhere.
collect_ignore_glob = [] if find_spec("transformers") and find_spec("peft") else ["test_*.py"]


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the base ``tiny``, ``reviews.csv``, and a cache for all tests."""
    return save_texts(tmp_path_factory.mktemp("texts"))


@pytest.fixture(autouse=True)
def cache(texts: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep what is computed in the folder of the tests; nothing in the user's own."""
    path = texts / "cache" / "mpcfl"
    monkeypatch.setenv("XDG_CACHE_HOME", str(path.parent))
    return path


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail a test that asks for any host, even if what it calls takes no for an answer."""
    asked: list[object] = []

    def refuse(host: object, *_: object, **__: object) -> list[object]:
        asked.append(host)
        raise OSError("no test asks for a host")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    yield
    assert not asked


@pytest.fixture
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a cache in which nothing is yet."""
    path = tmp_path / "cache" / "mpcfl"
    monkeypatch.setenv("XDG_CACHE_HOME", str(path.parent))
    return path


@pytest.fixture
def make_task(texts: Path) -> MakeTask:
    """Return a function that makes the task on tiny texts, with some options of its own."""
    from mpcfl.learn.registry import load_task

    return lambda **options: load_task("imdb", {**tiny_options(texts), **options})
