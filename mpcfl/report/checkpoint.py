"""The checkpoint of a run: the public state after its last applied round, and nothing else.

One party of each folder writes it after each round is applied and before it is committed, so
that a model that was paid for is never lost. It holds what every rank knows anyway: the
parameters, the state of the server step, the clip norm and what opened counts have told. It
never holds noise, masks, keys, a batch or an update, and no attempt number: what was spent is
the ledgers' to say, and no checkpoint takes it back.

A checkpoint that was damaged, or is of another job, plan or model, is refused. It is not
signed: whoever may write into the run's folder can put another public state there.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mpcfl.dp.counts import CountState
from mpcfl.errors import ConfigError
from mpcfl.learn.apply import ServerState, is_fitting
from mpcfl.learn.model import Vector, load_flat_parameters, model_digest
from mpcfl.report.atomic import open_atomically, write_atomically
from mpcfl.round import PublicState

SCHEMA = "mpcfl.checkpoint/1"
FILE_NAME = "checkpoint.json"
_ARRAYS = ("parameters", "first_moment", "second_moment")
_DIGEST_TAG = b"mpcfl/v1 checkpoint"


@dataclass(frozen=True, slots=True)
class CheckpointFacts:
    """What a checkpoint is of.

    Attributes:
        next_round: the round to go on with, from 0.
        clip_norm: as the last round left it, written exactly (`float.hex`).
        weight_sum: of `CountState`, written in the same way.
        weight_rounds: of `CountState`.
        job_digest: of the job, hex.
        plan_fingerprint: of the noise plan.
        model_digest: of the whole model with these parameters, hex.
        arrays_name: the file beside this one that holds the vectors.
        arrays_sha256: of that file.
    """

    next_round: int
    clip_norm: str
    weight_sum: str
    weight_rounds: int
    job_digest: str
    plan_fingerprint: str
    model_digest: str
    arrays_name: str
    arrays_sha256: str

    def digest(self) -> str:
        """Return the SHA-256 of all fields, hex; the file of vectors is among them."""
        text = json.dumps([SCHEMA, asdict(self)], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(_DIGEST_TAG + text.encode()).hexdigest()


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """A checkpoint as it was read and checked; `restore` puts it in place."""

    facts: CheckpointFacts
    parameters: Vector
    server: ServerState


def save_checkpoint(folder: Path, public: PublicState, next_round: int) -> None:
    """Write the public state; it is on the disk, whole, when this returns.

    Args:
        folder: of checkpoints; made if it is not there. The one before stays until this is whole.
        public: the state after round ``next_round - 1``.
        next_round: the round to go on with, from 0.

    Raises:
        ConfigError: the disk refuses; the checkpoint before is still there.
    """
    try:
        folder.mkdir(exist_ok=True)
        # A name of its own, so that the file before stays valid until the facts move.
        name = _arrays_name(next_round)
        facts = _facts(public, next_round, _write_vectors(folder / name, public))
        _write_facts(folder, facts)
    except OSError as error:
        raise ConfigError(
            f"{folder}: can't write the checkpoint: {error.strerror}; free space, then resume"
        ) from None


def _facts(public: PublicState, next_round: int, arrays_sha256: str) -> CheckpointFacts:
    return CheckpointFacts(
        next_round=next_round,
        clip_norm=float(public.counted.clip_norm).hex(),
        weight_sum=float(public.counted.weight_sum).hex(),
        weight_rounds=public.counted.weight_rounds,
        job_digest=public.job.digest().hex(),
        plan_fingerprint=public.plan.fingerprint(),
        model_digest=model_digest(public.model).hex(),
        arrays_name=_arrays_name(next_round),
        arrays_sha256=arrays_sha256,
    )


class _Hashed(io.RawIOBase):
    """Writes to a stream, front to back, and hashes what it wrote; nothing is kept."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.sha256 = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        self.sha256.update(content)
        return self._stream.write(content)


def _write_vectors(path: Path, public: PublicState) -> str:
    """Write the vectors; return the SHA-256 of the file, hex."""
    server = public.server
    with open_atomically(path) as stream:
        hashed = _Hashed(stream)
        np.savez(
            hashed,
            parameters=public.parameters,
            first_moment=server.first_moment,
            second_moment=server.second_moment,
        )
    return hashed.sha256.hexdigest()


def _write_facts(folder: Path, facts: CheckpointFacts) -> None:
    document = {"schema": SCHEMA, **asdict(facts), "digest": facts.digest()}
    write_atomically(folder / FILE_NAME, json.dumps(document, indent=2) + "\n")
    _remove_old(folder, facts.arrays_name)


def _remove_old(folder: Path, newest: str) -> None:
    for old in folder.glob("state-*.npz"):
        if old.name != newest:
            old.unlink()


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        ConfigError: there is none, or it is not what was written.
    """
    path = folder / FILE_NAME
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        facts = _facts_from(document)
        with (folder / facts.arrays_name).open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        name = path if error.filename is None else error.filename
        raise ConfigError(
            f"{name}: can't read the checkpoint: {error.strerror}; restore the folder from a copy"
        ) from None
    except (ValueError, TypeError) as error:
        raise _damaged(path, error) from None
    if found != facts.arrays_sha256:
        raise _damaged(folder / facts.arrays_name, "it is not the file that was written")
    try:
        parameters, first, second = _vectors(folder / facts.arrays_name)
    except (ValueError, KeyError, zipfile.BadZipFile, EOFError) as error:
        raise _damaged(folder / facts.arrays_name, error) from None
    return Checkpoint(facts, parameters, ServerState(first, second))


def stored_checkpoint(folder: Path) -> tuple[Path, Path]:
    """Return the files of a checkpoint that `load_checkpoint` took: its vectors, its facts."""
    facts = folder / FILE_NAME
    return folder / json.loads(facts.read_text(encoding="utf-8"))["arrays_name"], facts


@dataclass(slots=True)
class IncomingCheckpoint:
    """Takes the files of a checkpoint of another host.

    Attributes:
        vectors: to be written to, front to back.
        facts: the file of facts.
    """

    vectors: BinaryIO
    facts: str = ""


@contextmanager
def incoming_checkpoint(folder: Path, next_round: int) -> Iterator[IncomingCheckpoint]:
    """Put a checkpoint that comes in parts in the place of an older one, once all of it is there.

    It may be anything: `load_checkpoint` and `restore` tell.

    Raises:
        ConfigError: the disk refuses; the checkpoint before is still there.
    """
    try:
        with open_atomically(folder / _arrays_name(next_round)) as vectors:
            incoming = IncomingCheckpoint(vectors)
            yield incoming
        write_atomically(folder / FILE_NAME, incoming.facts)
        _remove_old(folder, _arrays_name(next_round))
    except OSError as error:
        raise ConfigError(
            f"{folder}: can't write the checkpoint: {error.strerror}; free space, then resume"
        ) from None


def restore(public: PublicState, checkpoint: Checkpoint) -> None:
    """Put a checkpoint in the place of the initial state.

    Raises:
        ConfigError: it is of another job, plan or model.
    """
    facts = checkpoint.facts
    dim = public.parameters.size
    if checkpoint.parameters.size != dim:
        raise _other("model", "use the task code of the run")
    if facts.job_digest != public.job.digest().hex():
        raise _other("job", "use the folder of this job, and the version of mpcfl that wrote it")
    if facts.plan_fingerprint != public.plan.fingerprint():
        raise _other("noise plan", "use the versions of mpcfl and dp-accounting that wrote it")
    if not 0 <= facts.next_round <= public.job.training.rounds:
        raise _other("number of rounds", "use the folder of this job")
    if not is_fitting(checkpoint.server, dim, public.job.server):
        raise _other("optimizer", "use the folder of this job")
    load_flat_parameters(public.model, checkpoint.parameters)
    if model_digest(public.model).hex() != facts.model_digest:
        raise _other("model", "use the task code and the version of torch that wrote it")
    public.parameters, public.server = checkpoint.parameters, checkpoint.server
    public.counted = CountState(
        float.fromhex(facts.clip_norm), float.fromhex(facts.weight_sum), facts.weight_rounds
    )


def _facts_from(document: Any) -> CheckpointFacts:
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise ValueError(f"its schema is not {SCHEMA}")
    fields = {key: value for key, value in document.items() if key not in {"schema", "digest"}}
    facts = CheckpointFacts(**fields)
    if type(facts.next_round) is not int or document.get("digest") != facts.digest():
        raise ValueError("its digest does not match its content")
    if facts.arrays_name != _arrays_name(facts.next_round):
        raise ValueError("it names a file of vectors that no checkpoint has")
    return facts


def _arrays_name(next_round: int) -> str:
    return f"state-{next_round:06d}.npz"


def _vectors(path: Path) -> list[Vector]:
    with np.load(path, allow_pickle=False) as arrays:
        vectors = [arrays[name] for name in _ARRAYS]
    dim = vectors[0].size
    if any(v.dtype != np.float64 or v.ndim != 1 or v.size not in (0, dim) for v in vectors):
        raise ValueError("it does not hold three vectors of float64 of one length, or empty ones")
    return vectors


def _damaged(path: Path, reason: object) -> ConfigError:
    return ConfigError(
        f"{path}: the checkpoint is damaged: {reason}; restore the folder from a copy, or start "
        "the job again with a new --out"
    )


def _other(what: str, remedy: str) -> ConfigError:
    return ConfigError(f"the checkpoint is of another {what} than this run; {remedy}")
