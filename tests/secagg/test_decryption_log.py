import json
import multiprocessing
import os
import subprocess
import sys
import threading

import pytest

from mpcfl.errors import KeyFileError, OutOfOrder
from mpcfl.secagg.base import SumId
from mpcfl.secagg.decryption_log import DecryptionLog

RUN = "aa" * 16
DIGEST = "bb" * 32


@pytest.fixture
def path(tmp_path):
    return tmp_path / "party-0.decrypted"


@pytest.fixture(params=["file", "memory"])
def log(request, path):
    made = DecryptionLog(path if request.param == "file" else None)
    yield made
    made.close()


def test_each_chunk_is_decrypted_once_and_other_names_are_other_chunks(log):
    names = [
        (run, SumId(round_id, attempt), chunk)
        for run in (RUN, "cc" * 16)
        for round_id in (0, 1)
        for attempt in (0, 1)
        for chunk in (0, 1)
    ]
    for name in names:
        log.spend(*name, DIGEST)
    for name in names:
        with pytest.raises(OutOfOrder, match="has decrypted chunk"):
            log.spend(*name, DIGEST)


def test_other_product_under_the_same_name_is_refused(log):
    log.spend(RUN, SumId(3), 0, DIGEST)
    with pytest.raises(OutOfOrder, match="round 3, attempt 0"):
        log.spend(RUN, SumId(3), 0, "dd" * 32)


def test_what_was_spent_stays_spent_after_a_restart(path):
    log = DecryptionLog(path)
    log.spend(RUN, SumId(0), 7, DIGEST)
    log.close()
    again = DecryptionLog(path)
    with pytest.raises(OutOfOrder):
        again.spend(RUN, SumId(0), 7, DIGEST)
    again.spend(RUN, SumId(0), 8, DIGEST)
    again.close()
    assert [json.loads(line)["chunk"] for line in path.read_text().splitlines()] == [7, 8]


def test_entry_is_on_the_disk_before_the_partial_can_be_made(path, monkeypatch):
    synced = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(path.read_bytes()) or fsync(fd))
    log = DecryptionLog(path)
    log.spend(RUN, SumId(0), 0, DIGEST)
    log.close()
    assert synced[-1].endswith(b"}\n")


def test_disk_that_refuses_stops_the_decryption(path, monkeypatch):
    log = DecryptionLog(path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(KeyFileError, match="No space"):
        log.spend(RUN, SumId(0), 0, DIGEST)
    monkeypatch.undo()
    # What the disk holds now is not known to this object; the file itself is in order.
    with pytest.raises(OutOfOrder, match="load it again"):
        log.spend(RUN, SumId(0), 0, DIGEST)
    again = DecryptionLog(path)
    again.spend(RUN, SumId(0), 0, DIGEST)
    again.close()


def test_line_that_a_crash_cut_short_was_never_acted_on(path):
    log = DecryptionLog(path)
    log.spend(RUN, SumId(0), 0, DIGEST)
    log.close()
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:20])
    again = DecryptionLog(path)
    again.spend(RUN, SumId(0), 1, DIGEST)
    again.close()
    assert len(path.read_bytes().splitlines()) == 2
    DecryptionLog(path).close()


@pytest.mark.parametrize(
    "line",
    [b"", b"{}", b"[1]", b"null", b'{"run": 1, "round": 0, "attempt": 0, "chunk": 0}',
     b'{"run": "a", "round": true, "attempt": 0, "chunk": 0}', b"\xff"],
)  # fmt: skip
def test_damaged_line_is_refused_with_the_file_and_the_line(path, line):
    log = DecryptionLog(path)
    log.spend(RUN, SumId(0), 0, DIGEST)
    log.close()
    path.write_bytes(path.read_bytes() + line + b"\n")
    with pytest.raises(KeyFileError, match=rf"{path}, line 2 is damaged"):
        DecryptionLog(path)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_log_that_others_could_change_is_refused(path, mode):
    path.touch(mode=0o600)
    path.chmod(mode)
    with pytest.raises(KeyFileError, match="chmod 600"):
        DecryptionLog(path)


def test_log_is_made_for_its_owner_alone(path):
    DecryptionLog(path).close()
    assert path.stat().st_mode & 0o777 == 0o600


def test_second_process_with_the_same_share_is_refused_until_the_first_ends(path):
    log = DecryptionLog(path)
    program = (
        "import sys; from pathlib import Path\n"
        "from mpcfl.secagg.decryption_log import DecryptionLog\n"
        "DecryptionLog(Path(sys.argv[1])).close()"
    )

    def other():
        command = [sys.executable, "-c", program, str(path)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    refused = other()
    assert refused.returncode != 0
    assert "is in use" in refused.stderr
    log.close()
    assert other().returncode == 0


def test_interrupt_while_writing_leaves_a_log_that_opens(path, monkeypatch):
    log = DecryptionLog(path)
    log.spend(RUN, SumId(0), 0, DIGEST)

    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        log.spend(RUN, SumId(0), 1, DIGEST)
    monkeypatch.undo()
    with pytest.raises(OutOfOrder):
        log.spend(RUN, SumId(0), 2, DIGEST)
    again = DecryptionLog(path)
    again.spend(RUN, SumId(0), 1, DIGEST)
    again.close()
    DecryptionLog(path).close()


def test_two_threads_never_spend_the_same_name(path):
    log = DecryptionLog(path)
    spent = []

    def spend_all():
        for chunk in range(60):
            try:
                log.spend(RUN, SumId(0), chunk, DIGEST)
            except OutOfOrder:
                continue
            spent.append(chunk)

    threads = [threading.Thread(target=spend_all) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()
    assert sorted(spent) == list(range(60))
    DecryptionLog(path).close()


def test_child_process_does_not_go_on_with_its_parents_share(log):
    log.spend(RUN, SumId(0), 0, DIGEST)
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()

    def child():
        try:
            log.spend(RUN, SumId(0), 1, DIGEST)
        except OutOfOrder:
            results.put("refused")
        else:
            results.put("spent")

    process = context.Process(target=child)
    process.start()
    assert results.get() == "refused"
    process.join()
    log.spend(RUN, SumId(0), 1, DIGEST)


def test_folder_that_is_not_there_is_an_error_about_the_log(tmp_path):
    with pytest.raises(KeyFileError, match=r"party\.decrypted: can't note there"):
        DecryptionLog(tmp_path / "nowhere" / "party.decrypted")
