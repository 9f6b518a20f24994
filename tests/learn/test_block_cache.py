"""Arrays kept on disk: made once by all together, whole, private, and made again where torn."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpcfl.errors import ConfigError
from mpcfl.learn.block_cache import (
    BlockCache,
    cache_key,
    cache_root,
    file_digest,
    ignore_progress,
    whole_array,
)

N_ROWS, BLOCK_ROWS = 22, 3
N_BLOCKS = 8
LIMIT_S = 60.0

# A process that notes each block that it makes, and waits in some until the file "go" is there or,
# in its first, until others are at other blocks.
WORKER = f"""
import os, sys, time
from pathlib import Path
import numpy as np
from mpcfl.learn.block_cache import BlockCache, ignore_progress

folder, log = map(Path, sys.argv[1:3])
waits_in, n_workers = sys.argv[3], int(sys.argv[4])

def makers():
    return {{line.split()[1] for line in log.read_text().splitlines()}}

def make(start, stop):
    with log.open("a") as stream:
        stream.write(f"{{start}} {{os.getpid()}}\\n")
    end = time.monotonic() + {LIMIT_S / 2}
    while len(makers()) < n_workers or str(start) == waits_in:
        assert time.monotonic() < end, "nobody else takes a block"
        time.sleep(0.002)
    return np.arange(start, stop)[:, np.newaxis] * np.array([1, 10])

print(BlockCache(folder, {N_ROWS}, {BLOCK_ROWS}, "rows").rows(make, ignore_progress).sum())
"""


def make_rows(start: int, stop: int) -> np.ndarray:
    return np.arange(start, stop)[:, np.newaxis] * np.array([1, 10])


def never(start: int, stop: int) -> np.ndarray:
    raise AssertionError(f"rows {start} to {stop} were made again")


WHOLE = make_rows(0, N_ROWS)


@pytest.fixture
def cache(tmp_path: Path) -> BlockCache:
    return BlockCache(tmp_path / "root" / "array", N_ROWS, BLOCK_ROWS, "rows of a test")


Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start_worker(tmp_path: Path, cache: BlockCache) -> Iterator[Start]:
    """Return a function that starts a process which wants the array."""
    started: list[subprocess.Popen[str]] = []

    def start(waits_in: object = "none", n_workers: int = 1) -> subprocess.Popen[str]:
        arguments = [cache.folder, tmp_path / "log", waits_in, n_workers]
        command = [sys.executable, "-c", WORKER, *map(str, arguments)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def ended(process: subprocess.Popen[str]) -> int:
    """Return the sum of the array that a process found."""
    return int(process.communicate(timeout=LIMIT_S)[0])


def made(log: Path) -> list[tuple[int, int]]:
    """Return which blocks were made, and by which process, in order."""
    return [(int(a), int(b)) for a, b in (line.split() for line in log.read_text().splitlines())]


def test_processes_share_the_work_and_make_each_block_once(
    start_worker: Start, tmp_path: Path
) -> None:
    workers = [start_worker(n_workers=3) for _ in range(3)]
    assert {ended(worker) for worker in workers} == {WHOLE.sum()}
    blocks = Counter(start for start, _ in made(tmp_path / "log"))
    assert blocks == dict.fromkeys(range(0, N_ROWS, BLOCK_ROWS), 1)
    assert {pid for _, pid in made(tmp_path / "log")} == {worker.pid for worker in workers}


def test_a_process_that_is_killed_loses_the_block_it_was_at_and_no_other(
    start_worker: Start, tmp_path: Path, cache: BlockCache
) -> None:
    log, at = tmp_path / "log", 2 * BLOCK_ROWS
    doomed = start_worker(waits_in=at)
    wait_for(lambda: log.exists() and (at, doomed.pid) in made(log))
    heir = start_worker()
    # All but the one that is held; then it waits for that.
    wait_for(lambda: len(made(log)) == N_BLOCKS)
    assert heir.poll() is None
    doomed.send_signal(signal.SIGKILL)
    assert ended(heir) == WHOLE.sum()
    by_doomed = [start for start, pid in made(log) if pid == doomed.pid]
    assert by_doomed == [0, BLOCK_ROWS, at]
    by_heir = sorted(start for start, pid in made(log) if pid == heir.pid)
    assert by_heir == list(range(at, N_ROWS, BLOCK_ROWS))


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_the_array_is_whole_and_the_second_time_it_is_read(cache: BlockCache) -> None:
    assert not cache.is_complete()
    first = cache.rows(make_rows, ignore_progress)
    assert cache.is_complete()
    second = cache.rows(never, ignore_progress)
    for found in (first, second):
        assert np.array_equal(found, WHOLE)
        assert found.dtype == WHOLE.dtype


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"text", "cut", "one byte short"])
def test_a_file_that_is_torn_is_made_again_alone(cache: BlockCache, content: object) -> None:
    cache.rows(make_rows, ignore_progress)
    path = sorted(cache.folder.glob("*.npy"))[2]
    whole = path.read_bytes()
    torn = {"cut": whole[:-20], "one byte short": whole[:-1]}.get(str(content), content)
    path.write_bytes(torn)
    asked: list[int] = []

    def make(start: int, stop: int) -> np.ndarray:
        asked.append(start)
        return make_rows(start, stop)

    assert np.array_equal(cache.rows(make, ignore_progress), WHOLE)
    assert asked == [2 * BLOCK_ROWS]
    assert path.read_bytes() == whole


def test_a_file_that_would_run_code_is_not_loaded(cache: BlockCache) -> None:
    cache.rows(make_rows, ignore_progress)
    path = sorted(cache.folder.glob("*.npy"))[0]
    np.save(path, np.array([{"an": "object"}], dtype=object), allow_pickle=True)
    assert np.array_equal(cache.rows(make_rows, ignore_progress), WHOLE)


def test_progress_is_told_up_to_the_end(cache: BlockCache) -> None:
    told: list[tuple[str, int, int]] = []
    cache.rows(make_rows, lambda *words: told.append(words))
    assert {(what, total) for what, _, total in told} == {("rows of a test", N_BLOCKS)}
    done = [done for _, done, _ in told]
    assert done == sorted(done)
    assert (done[0], done[-1]) == (1, N_BLOCKS)


def test_folder_and_files_are_ours_alone_whatever_the_umask(cache: BlockCache) -> None:
    old = os.umask(0)
    try:
        cache.rows(make_rows, ignore_progress)
    finally:
        os.umask(old)
    assert cache.folder.stat().st_mode & 0o777 == 0o700
    files = list(cache.folder.iterdir())
    assert len([path for path in files if path.suffix == ".npy"]) == N_BLOCKS
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}


def test_a_folder_that_can_not_be_made_names_the_variable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = BlockCache(tmp_path / "file" / "array", N_ROWS, BLOCK_ROWS, "rows of a test")
    with pytest.raises(
        ConfigError, match=r"file/array: can't keep rows of a test: .*; .* XDG_CACHE_HOME"
    ):
        cache.rows(never, ignore_progress)


def test_a_full_disk_names_the_variable_and_leaves_nothing_behind(
    cache: BlockCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(stream: Any, *_: object, **__: object) -> None:
        stream.write(b"a part")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", refuse)
    with pytest.raises(ConfigError, match=r"No space left on device; free space, .*XDG_CACHE_HOME"):
        cache.rows(make_rows, ignore_progress)
    assert {path.suffix for path in cache.folder.iterdir()} == {".lock"}


def test_an_array_made_in_one_go_is_made_once(tmp_path: Path) -> None:
    for make in (lambda: WHOLE, lambda: never(0, N_ROWS)):
        found = whole_array(tmp_path / "array", "rows", make)
        assert np.array_equal(found, WHOLE)


def test_the_root_is_chosen_by_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert cache_root() == Path("/elsewhere/mpcfl")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_root() == Path.home() / ".cache" / "mpcfl"


def test_a_key_depends_on_every_part_and_where_it_ends() -> None:
    keys = {cache_key(*parts) for parts in (("ab", "c"), ("a", "bc"), ("abc",), ("ab", "c", ""))}
    assert len(keys) == 4
    assert cache_key("a", 1) == cache_key("a", 1)


def test_the_digest_of_files_depends_on_names_and_contents(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"ab")
    two.write_bytes(b"c")
    first = file_digest(one, two)
    assert first == file_digest(one, two)
    one.write_bytes(b"a")
    two.write_bytes(b"bc")
    assert file_digest(one, two) != first
    one.rename(tmp_path / "three")
    assert file_digest(tmp_path / "three", two) != file_digest(two)
