"""Ranks of MPI jobs without the seconds of importing: forked off a process that has imported all.

mpirun starts a small program per rank (`stub`), which has the server fork a rank and hand it the
stub's standard streams, environment, folder, arguments, and network and UTS namespaces. MPI is
initialized in the rank itself, as in any other program. The stub dies as its rank dies, by the
same signal, and a rank is killed once its stub is gone; so for mpirun the two are one process.

    python warm_ranks.py serve SOCKET            what `WarmRanks` starts
    python -S -E warm_ranks.py stub SOCKET ...   what mpirun starts: a script and its arguments
"""

from __future__ import annotations

import array
import json
import os
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

_HEADER_BYTES = 8
_MAX_FDS = 6
# Names an open file by its number.
_INHERITED = ("PMI_FD",)


def stub(path: str, arguments: list[str]) -> int:
    """Have the server run a script as this rank; return its exit code, or die as it died."""
    order = {"arguments": arguments, "environment": dict(os.environ), "folder": str(Path.cwd())}
    message = json.dumps(order).encode()
    namespaces = [os.open(f"/proc/self/ns/{kind}", os.O_RDONLY) for kind in ("net", "uts")]
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.connect(path)
        header = len(message).to_bytes(_HEADER_BYTES, "big")
        # MPICH's mpirun talks to a rank through a socket that it inherits.
        inherited = [int(os.environ[name]) for name in _INHERITED if name in os.environ]
        fds = array.array("i", [0, 1, 2, *namespaces, *inherited])
        server.sendmsg([header], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
        server.sendall(message)
        # Only the rank has the streams from now on, so that they end when it does.
        for number in (0, 1, 2):
            os.close(number)
        status = _read(server, _HEADER_BYTES)
    code = os.waitstatus_to_exitcode(int.from_bytes(status, "big")) if status else 1
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


def _read(source: socket.socket, n_bytes: int) -> bytes:
    data = b""
    while len(data) < n_bytes:
        piece = source.recv(n_bytes - len(data))
        if not piece:
            return b""
        data += piece
    return data


class _Server:
    """Forks ranks, tells their stubs how they ended, and ends those whose stub is gone."""

    def __init__(self, path: str) -> None:
        import selectors

        self._selector = selectors.DefaultSelector()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(path)
        self._listener.listen(64)
        self._selector.register(self._listener, selectors.EVENT_READ, None)
        self._selector.register(sys.stdin, selectors.EVENT_READ, "end")
        self._stubs: dict[int, socket.socket] = {}

    def serve(self) -> dict[str, Any] | None:
        """Serve until standard input ends; return an order in the rank that is to fulfill it."""
        while True:
            for key, _ in self._selector.select():
                if key.data is None:
                    order = self._accept()
                    if order is not None:
                        return order
                elif key.data == "end":
                    for pid in self._stubs:
                        os.kill(pid, signal.SIGKILL)
                    return None
                else:
                    self._ended(key.fileobj, *key.data)

    def _accept(self) -> dict[str, Any] | None:
        import selectors

        stub_end, _ = self._listener.accept()
        fds = array.array("i")
        header, ancillary, _, _ = stub_end.recvmsg(
            _HEADER_BYTES, socket.CMSG_LEN(_MAX_FDS * fds.itemsize), socket.MSG_WAITALL
        )
        for _, _, data in ancillary:
            fds.frombytes(data)
        order: dict[str, Any] = json.loads(_read(stub_end, int.from_bytes(header, "big")))
        pid = os.fork()
        if pid == 0:
            for other in (self._listener, stub_end, *self._stubs.values()):
                other.close()
            self._selector.close()
            return order | {"fds": list(fds)}
        for fd in fds:
            os.close(fd)
        self._stubs[pid] = stub_end
        pidfd = os.pidfd_open(pid)
        self._selector.register(pidfd, selectors.EVENT_READ, (pid, pidfd))
        self._selector.register(stub_end, selectors.EVENT_READ, (pid, pidfd))
        return None

    def _ended(self, which: object, pid: int, pidfd: int) -> None:
        if pid not in self._stubs:
            return
        if which is self._stubs[pid]:
            # The stub says nothing after its order, so it is gone; the rank follows.
            self._selector.unregister(self._stubs[pid])
            os.kill(pid, signal.SIGKILL)
            return
        _, status = os.waitpid(pid, 0)
        stub_end = self._stubs.pop(pid)
        with suppress(KeyError):
            self._selector.unregister(stub_end)
        self._selector.unregister(pidfd)
        os.close(pidfd)
        with suppress(OSError):
            stub_end.sendall(status.to_bytes(_HEADER_BYTES, "big"))
        stub_end.close()


def _become(order: dict[str, Any]) -> None:
    """Turn a fork of the server into the rank: namespaces, streams, environment, folder."""
    import ctypes

    *streams, net, uts = order["fds"][:5]
    for target, fd in enumerate(streams):
        os.dup2(fd, target)
        os.close(fd)
    libc = ctypes.CDLL(None, use_errno=True)
    for fd, kind in ((net, "net"), (uts, "uts")):
        # Entering needs root, also where the rank is there already.
        is_there = os.fstat(fd).st_ino == Path(f"/proc/self/ns/{kind}").stat().st_ino
        if not is_there and libc.setns(fd, 0):
            raise OSError(ctypes.get_errno(), f"can't enter the {kind} namespace")
        os.close(fd)
    os.environ.clear()
    os.environ.update(order["environment"])
    inherited = [name for name in _INHERITED if name in os.environ]
    for name, fd in zip(inherited, order["fds"][5:], strict=True):
        os.environ[name] = str(fd)
    if "PMI_RANK" in os.environ:
        # What Open MPI calls it, for scripts that ask before MPI is there.
        os.environ["PMIX_RANK"] = os.environ["PMI_RANK"]
    os.chdir(order["folder"])
    # Signals that the test run ignores reach a rank.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def _run(arguments: list[str]) -> NoReturn:
    """Run a script as Python does; leave without taking apart what the server has imported."""
    import atexit
    import ctypes
    import runpy
    import traceback

    from mpi4py import MPI

    sys.argv = arguments
    sys.path[:0] = [str(Path(arguments[0]).resolve().parent), str(Path.cwd())]
    code: object = 0
    try:
        MPI.Init_thread(MPI.THREAD_MULTIPLE)
        runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as end:
        code = end.code
    except BaseException:  # noqa: BLE001 - the end of the process, as Python's own
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    if not MPI.Is_finalized():
        MPI.Finalize()
    status = code if isinstance(code, int) else int(code is not None)
    if "PMI_FD" in os.environ:
        # MPICH takes leave of its mpirun only here, and who goes without is taken for dead.
        ctypes.CDLL(None).exit(status)
    os._exit(status)


def _import_all() -> None:
    """Import what a job of any backend needs, also what it would import in its course."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    import mpi4py

    mpi4py.rc.initialize = False
    mpi4py.rc.finalize = True
    import torch

    import mpcfl.parties.__main__
    import mpcfl.round
    from mpcfl.config import parse_job
    from mpcfl.report.chart import line_chart

    for backend in ("plain", "ring", "crypten", "paillier"):
        job = {
            "task": "toy",
            "parties": {"count": 4},
            "privacy": {"unit": "record", "epsilon": 5.0, "records": 4, "sample_rate": 0.5},
            "training": {"rounds": 1},
            "aggregation": {"backend": backend, "key_bits": 2048, "custody": "holder"},
        }
        mpcfl.round.run_round(parse_job(job, "warm"))
    line_chart([1, 2], {"warm": [1.0, 2.0]}, ("x", "y"))
    torch.set_num_threads(1)


if __name__ == "__main__":
    if sys.argv[1] == "stub":
        sys.exit(stub(sys.argv[2], sys.argv[3:]))
    _import_all()
    server = _Server(sys.argv[2])
    print("ready", flush=True)
    its_order = server.serve()
    if its_order is not None:
        _become(its_order)
        _run(its_order["arguments"])
