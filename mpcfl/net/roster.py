"""Who takes part, and that all of them mean the same run.

In exchange 0 every rank states the public facts it goes by (version, job digest, plan
fingerprint, model digest) or the reason why it can't start; one difference or one reason
stops all ranks, with the same sentence. The facts are public; nothing private is compared.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

from mpcfl.errors import MpcflError, PartyNotReady, TranscriptMismatch
from mpcfl.hazmat.bits import SystemBits, domain_tag
from mpcfl.net.transport import Transport

_REMEDIES = {
    "version": "install the same version of mpcfl everywhere",
    "job": "give every party the same job file and the same --set options",
    "plan": "install the same versions of mpcfl and dp-accounting everywhere",
    "model": "use the same task code and the same version of torch everywhere",
    "threshold key": "give every party its key share of the same ceremony",
    "checkpoint": "give every party the same copy of the run's folder",
}


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
        facts: what this rank goes by, by kind; a rank that states no fact of a kind (an
            aggregator has no trained model) is not compared in it.
        error: why this rank can't take part, if so.

    Raises:
        PartyNotReady: a rank has an error; the text is its.
        TranscriptMismatch: two ranks differ in a fact; the text names both and the remedy.
    """
    message = {"error": None if error is None else str(error), "facts": dict(facts)}
    statements = [json.loads(m) for m in transport.allgather(json.dumps(message).encode())]
    for rank, statement in enumerate(statements):
        if statement["error"] is not None:
            raise PartyNotReady(_blame(statements, names, rank), rank)
    for kind in _REMEDIES:
        stated = {r: s["facts"][kind] for r, s in enumerate(statements) if kind in s["facts"]}
        first = min(stated, default=0)
        for rank, fact in stated.items():
            if fact != stated[first]:
                raise TranscriptMismatch(
                    f"{_name(names, rank)} has another {kind} than {_name(names, first)}; "
                    f"{_REMEDIES[kind]}"
                )


def agree_run_id(transport: Transport) -> str:
    """Return a fresh name for this run, 32 hex digits, to which every rank contributed."""
    nonces = transport.allgather(SystemBits().words(2).tobytes())
    return hashlib.sha256(domain_tag("run-id") + b"".join(nonces)).hexdigest()[:32]


def agree_to_go_on(
    transport: Transport, objection: str | None, statement: str = ""
) -> tuple[str | None, list[str]]:
    """Ask all ranks whether to go on, and hear what each has to state before it does.

    Args:
        transport: joins all ranks, which call this together.
        objection: why this rank does not want to go on, if so.
        statement: public; what the others should know either way.

    Returns:
        The objection of the lowest rank that has one, and every rank's statement.
    """
    message = json.dumps({"objection": objection, "statement": statement}).encode()
    spoken = [json.loads(text) for text in transport.allgather(message)]
    objections = (words["objection"] for words in spoken if words["objection"] is not None)
    return next(objections, None), [words["statement"] for words in spoken]


def _blame(statements: Sequence[Mapping[str, str]], names: Sequence[str], rank: int) -> str:
    text = statements[rank]["error"]
    if all(statement["error"] == text for statement in statements):
        return text
    return f"{_name(names, rank)}: {text}"


def _name(names: Sequence[str], rank: int) -> str:
    return f"{names[rank]} (rank {rank})" if rank < len(names) else f"rank {rank}"
