"""Times one library when it is told to: ``python paillier_worker.py SUBJECT KEY_BITS``.

A process of its own per subject, on one core. It says on standard output, as one line of JSON, that
it is ready, and then answers every line of standard input, which names an operation, by the
seconds of a single one, of the processor and of the clock. What libraries print goes to
standard error.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, TextIO

# Read by numpy's libraries when they load.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"

from paillier_libraries import Heu, Library, Ours, Phe, Pypaillier  # noqa: E402 - see above


def make(subject: str, key_bits: int) -> Library:
    """Make the library, or the steps of ours, that a subject names.

    Raises:
        ImportError: it is not installed.
    """
    from ckks_steps import Ckks
    from paillier_steps import Flashe, Packing, ThresholdSteps

    # "NAME, 65536 values" is NAME for vectors of another length.
    name, _, length = subject.removesuffix(" values").rpartition(", ")
    if length.isdecimal():
        count = int(length)
        if name == "CKKS by TenSEAL":
            return Ckks(count)
        kernel = name.endswith("kernel")
        return Flashe(key_bits, kernel=kernel, n_values=count)

    makers: dict[str, Callable[[int], Library]] = {
        "phe": Phe,
        "HEU ZPaillier": Heu,
        "pypaillier": Pypaillier,
        "packing": Packing,
    }
    for name, kernel in (("gmpy2", False), ("kernel", True)):
        makers[f"mpcfl, {name}"] = partial(Ours, kernel=kernel)
        makers[f"threshold, {name}"] = partial(ThresholdSteps, kernel=kernel)
        makers[f"FLASHE's setting, {name}"] = partial(Flashe, kernel=kernel)
    return makers[subject](key_bits)


def visit(library: Library, operation: str, visit_s: float) -> dict[str, float]:
    """Return the seconds of one of an operation's items, over at least one batch.

    Those of the processor, all threads together, and those of the clock on the wall.
    """
    call, batches = library.operations[operation], 0
    cpu_start, start = time.process_time(), time.perf_counter()
    while batches == 0 or time.process_time() - cpu_start < visit_s:
        call()
        batches += 1
    cpu_seconds, seconds = time.process_time() - cpu_start, time.perf_counter() - start
    items = batches * library.batch
    return {"cpu_seconds": cpu_seconds / items, "seconds": seconds / items}


def serve(library: Library, requests: Iterable[str], answers: TextIO) -> None:
    """Answer requests until there are no more."""
    for line in requests:
        operation, visit_s = json.loads(line)
        _say(answers, visit(library, operation, visit_s))


def _say(answers: TextIO, message: dict[str, Any]) -> None:
    answers.write(json.dumps(message) + "\n")
    answers.flush()


def main(arguments: list[str]) -> int:
    """Make a library ready, check it and serve; return the exit status."""
    subject, key_bits = arguments[0], int(arguments[1])
    # Thread pools are as large as what a process may use when they are made.
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    start = time.perf_counter()
    try:
        library = make(subject, key_bits)
    except ImportError as error:
        _say(answers, {"missing": str(error.name)})
        return 0
    if not library.check():
        raise SystemExit(f"{subject}: a decrypted sum is not the sum; nothing was timed")
    setup_s = time.perf_counter() - start
    _say(answers, {"operations": list(library.operations), "setup_s": setup_s})
    serve(library, sys.stdin, answers)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
