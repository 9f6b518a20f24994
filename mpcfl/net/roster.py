"""Who takes part, and that all of them mean the same run.

In exchange 0 every rank states the public facts it goes by (version, job digest, versions of
libraries, plan fingerprint, model digest) or the reason why it can't start; one difference or
one reason stops all ranks, with the same sentence. The facts are public; nothing private is
compared. Assumes that the transport delivers what was sent; a rank may state what it likes, and
what is shown of it holds no control characters.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version

from mpcfl.errors import MpcflError, PartyNotReady, TranscriptMismatch
from mpcfl.hazmat.bits import SystemBits, domain_tag
from mpcfl.net.transport import Transport
from mpcfl.net.wire import Format, Kind, cut, fixed, optional, printable, record, text

_LIBRARIES = "libraries"
_REMEDIES = {
    "version": "install the same version of mpcfl everywhere",
    "job": "give every party the same job file and the same --set options",
    # Before the facts that depend on them.
    _LIBRARIES: "install the same versions of these packages everywhere: see constraints.txt",
    "plan": "install the same versions of mpcfl and dp-accounting everywhere",
    "model": "use the same task code and the same version of torch everywhere",
    "threshold key": "give every party its key share of the same ceremony",
    "checkpoint": "give every party the same copy of the run's folder",
}

# Room for a sentence or for a signed document; a longer reason is cut, a longer fact is a bug.
_TEXT_BYTES = 1 << 14
_NONCE_WORDS = 2
_STATEMENT = Format(
    Kind.STATEMENT,
    error=optional(text(_TEXT_BYTES)),
    facts=record(**{kind: optional(text(_TEXT_BYTES)) for kind in _REMEDIES}),
)
_RUN_NONCE = Format(Kind.RUN_NONCE, nonce=fixed(8 * _NONCE_WORDS))
_GO_ON = Format(Kind.GO_ON, objection=optional(text(_TEXT_BYTES)), statement=text(_TEXT_BYTES))


def check_in(
    transport: Transport,
    names: Sequence[str],
    facts: Mapping[str, str],
    error: MpcflError | None = None,
) -> None:
    """Compare public facts with all ranks; all ranks call it together.

    Args:
        transport: joins all ranks.
        names: a name per rank, for errors.
        facts: what this rank goes by, by kind: version, job, libraries (see
            `library_versions`), plan, model, threshold key, checkpoint. A rank that states no
            fact of a kind (an aggregator has no trained model) is not compared in it.
        error: why this rank can't take part, if so.

    Raises:
        PartyNotReady: a rank has an error; the text is its.
        TranscriptMismatch: two ranks differ in a fact; the text names both and the remedy.
        ProtocolError: a rank said something else than a statement.
        ValueError: there is no such kind of fact, or one is longer than 16 KiB.
    """
    unknown = facts.keys() - _REMEDIES.keys()
    if unknown:
        raise ValueError(f"no rank compares {sorted(unknown)}; state {list(_REMEDIES)} only")
    message = _STATEMENT.encode(error=_reason(error), facts=dict.fromkeys(_REMEDIES) | dict(facts))
    statements = [
        _STATEMENT.decode(answer, _name(names, rank))
        for rank, answer in enumerate(transport.allgather(message))
    ]
    errors = [_shown(statement["error"]) for statement in statements]
    for rank, reason in enumerate(errors):
        if reason is not None:
            raise PartyNotReady(_blame(errors, names, rank), rank)
    for kind in _REMEDIES:
        _compare(kind, [statement["facts"][kind] for statement in statements], names)


def library_versions(packages: Iterable[str]) -> str:
    """Return the fact "libraries": ``name==version`` for each package, between spaces."""
    return " ".join(f"{package}=={_version(package)}" for package in sorted(packages))


def agree_run_id(transport: Transport) -> str:
    """Return a fresh name for this run, 32 hex digits, to which every rank contributed.

    Raises:
        ProtocolError: a rank contributed something else than 16 bytes.
    """
    own = _RUN_NONCE.encode(nonce=SystemBits().words(_NONCE_WORDS).tobytes())
    answers = enumerate(transport.allgather(own))
    nonces = [_RUN_NONCE.decode(answer, _name((), rank))["nonce"] for rank, answer in answers]
    return hashlib.sha256(domain_tag("run-id") + b"".join(nonces)).hexdigest()[:32]


def agree_to_go_on(
    transport: Transport, objection: str | None, statement: str = ""
) -> tuple[str | None, list[str]]:
    """Ask all ranks whether to go on, and hear what each has to state before it does.

    Args:
        transport: joins all ranks, which call this together.
        objection: why this rank does not want to go on, if so; cut at 16 KiB.
        statement: public; what the others should know either way; 16 KiB at most.

    Returns:
        The objection of the lowest rank that has one, to be shown, and every rank's statement,
        as it came.

    Raises:
        ProtocolError: a rank said something else.
    """
    words = None if objection is None else cut(objection, _TEXT_BYTES)
    own = _GO_ON.encode(objection=words, statement=statement)
    answers = enumerate(transport.allgather(own))
    spoken = [_GO_ON.decode(answer, _name((), rank)) for rank, answer in answers]
    objections = (answer["objection"] for answer in spoken if answer["objection"] is not None)
    return _shown(next(objections, None)), [answer["statement"] for answer in spoken]


def _compare(kind: str, facts: Sequence[str | None], names: Sequence[str]) -> None:
    stated = {rank: fact for rank, fact in enumerate(facts) if fact is not None}
    first = min(stated, default=0)
    for rank, fact in stated.items():
        if fact != stated[first]:
            other = f"another {kind}"
            if kind == _LIBRARIES:
                other = f"other {kind} ({_difference(fact, stated[first])})"
            raise TranscriptMismatch(
                f"{_name(names, rank)} has {other} than {_name(names, first)}; {_REMEDIES[kind]}"
            )


def _difference(libraries: str, expected: str) -> str:
    """Name the first package that two facts differ in, with both versions."""
    here, there = (
        dict(package.partition("==")[::2] for package in fact.split())
        for fact in (libraries, expected)
    )
    for package in sorted(here | there):
        versions = here.get(package, "none"), there.get(package, "none")
        if versions[0] != versions[1]:
            return printable(f"{package} {versions[0]} instead of {versions[1]}")
    return "the same ones in another form"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def _reason(error: MpcflError | None) -> str | None:
    return None if error is None else cut(str(error), _TEXT_BYTES)


def _shown(words: str | None) -> str | None:
    return None if words is None else printable(words)


def _blame(errors: Sequence[str | None], names: Sequence[str], rank: int) -> str:
    reason = str(errors[rank])
    if all(error == reason for error in errors):
        return reason
    return f"{_name(names, rank)}: {reason}"


def _name(names: Sequence[str], rank: int) -> str:
    return f"{names[rank]} (rank {rank})" if rank < len(names) else f"rank {rank}"
