"""Hold the files of all parties of a run against each other: was anything opened twice?

The oracle of recovery. It reads what every party wrote of its attempts (`dp/attempt_events.py`)
and the privacy ledgers, of a run that came through or broke off, those of dead parties included,
and names every violation of "one opening per attempt": two rosters, an attempt that a contributor
did not pay for, a part asked for again though a member held it, two values for one coordinate.
It shares no rule with the guard that runs beside a party (`dp/attempts.py`), only the file.

Order between files is not known and not needed: a member has charged an attempt before anybody
begins it, so what counts as held is what its own file names before that charge. Assumes that
parties wrote down what they did. A party of which nothing lies in the folder is passed over.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mpcfl.audit.spent import Spent, read_spent
from mpcfl.audit.verdict import AuditReport, Finding
from mpcfl.config import Job
from mpcfl.dp.attempt_events import AttemptEvent, EventKind, Spans, overlap, read_log, union
from mpcfl.errors import ConfigError, LedgerError
from mpcfl.report.run_folder import RunFolder

AttemptId = tuple[int, int]
# What all who begin an attempt must agree on: session, epoch, roster, coordinates.
_Terms = tuple[str, int, tuple[int, ...], Spans]


@dataclass(slots=True)
class _Session:
    """What one process of one party did, from its start to its end.

    Attributes:
        party: its original number.
        name: digest of its first view, the same at all who made that handshake together.
        views: the roster and digest of each epoch.
        charged: what each attempt was for, and in which epoch and roster.
        held: what was known of the round before an attempt was charged.
        begun: attempts that were begun.
        opened: coordinates that became known, by attempt.
        settled: rounds of which all is known.
        failed: true if an attempt ended without its sum.
    """

    party: int
    name: str = ""
    views: dict[int, tuple[tuple[int, ...], str]] = field(default_factory=dict)
    charged: dict[AttemptId, _Terms] = field(default_factory=dict)
    held: dict[AttemptId, Spans] = field(default_factory=dict)
    begun: set[AttemptId] = field(default_factory=set)
    opened: dict[AttemptId, Spans] = field(default_factory=dict)
    settled: set[int] = field(default_factory=set)
    failed: bool = False

    def known(self, round_id: int) -> Spans:
        """Return what is known of a round."""
        spans: Spans = ()
        for (of, _), found in self.opened.items():
            spans = union(spans, found) if of == round_id else spans
        return spans


@dataclass(slots=True)
class _Run:
    """All that the files of a run say."""

    quorum: int
    n_parties: int
    sessions: list[_Session] = field(default_factory=list)
    digests: dict[tuple[AttemptId, Spans], str] = field(default_factory=dict)
    told: list[tuple[_Session, AttemptEvent]] = field(default_factory=list)


def audit_transcript(folder: Path) -> AuditReport:
    """Return what `check_run` finds, as a report.

    Args:
        folder: of a run that has ended, however it ended.

    Raises:
        ConfigError: the folder holds no job, or no transcript.
    """
    found = check_run(folder)
    files = len(list(folder.glob("transcript/party-*.jsonl")))
    if not files:
        raise ConfigError(
            f"{folder} holds no transcript, so there is nothing to check; name the folder of a run "
            "whose rounds had begun"
        )
    findings = [Finding("one-opening-per-attempt", False, text) for text in found]
    fine = f"{files} parties wrote nothing that contradicts it, and their ledgers cover it"
    return AuditReport(
        f"the transcript of {folder}",
        tuple(findings or [Finding("one-opening-per-attempt", True, fine)]),
    )


def check_run(folder: Path) -> list[str]:
    """Return the violations in a run folder, one sentence each; none if all is well.

    Args:
        folder: of a run that has ended, however it ended.

    Raises:
        ConfigError: the folder holds no job.
    """
    run_folder = RunFolder(folder)
    job = run_folder.read_job()
    run = _Run(job.parties.count - job.parties.max_dropout, job.parties.count)
    found: list[str] = []
    for party in range(job.parties.count + 1):
        path = folder / "transcript" / f"party-{party}.jsonl"
        if path.exists():
            try:
                events = read_log(path)
            except LedgerError as error:
                found.append(str(error))
                continue
            found += [f"party {party}: {text}" for text in _read(run, party, events)]
    found += _check_views(run)
    found += _check_attempts(run)
    found += _check_gifts(run)
    found += _check_models(run)
    found += _check_ledgers(run, job, folder)
    return found


def _read(run: _Run, party: int, events: Sequence[AttemptEvent]) -> Iterator[str]:
    """Take in one party's file; what it alone gives away is a violation."""
    session = _Session(party)
    numbers: dict[int, int] = {}
    for event in events:
        if event.kind is EventKind.START:
            session = _Session(party)
            run.sessions.append(session)
            if event.party != party:
                yield f"its file was written by party {event.party}"
        elif not run.sessions or run.sessions[-1] is not session:
            yield "its file does not begin with a start"
            run.sessions.append(session)
        yield from _take(run, session, event, numbers)


def _take(
    run: _Run, session: _Session, event: AttemptEvent, numbers: dict[int, int]
) -> Iterator[str]:
    attempt = (event.round_id, event.attempt)
    name = f"round {event.round_id}, attempt {event.attempt}"
    match event.kind:
        case EventKind.VIEW:
            yield from _take_view(session, event)
        case EventKind.CHARGE:
            if event.attempt < numbers.get(event.round_id, 0):
                yield f"{name} is charged after a later attempt, or twice"
            numbers[event.round_id] = event.attempt + 1
            session.charged[attempt] = (session.name, event.epoch, event.roster, event.spans)
            session.held[attempt] = session.known(event.round_id)
        case EventKind.BEGIN:
            yield from _take_begin(session, event)
        case EventKind.OPEN:
            yield from _take_open(run, session, event)
        case EventKind.SETTLE:
            session.settled.add(event.round_id)
            asked = [terms[3] for (of, _), terms in session.charged.items() if of == event.round_id]
            if not asked or session.known(event.round_id) != asked[0]:
                yield f"round {event.round_id} is settled, but not all of it is known"
        case EventKind.FAIL:
            session.failed = True


def _take_view(session: _Session, event: AttemptEvent) -> Iterator[str]:
    if session.views:
        epoch = max(session.views)
        if event.epoch <= epoch:
            yield f"epoch {event.epoch} is entered after epoch {epoch}"
        if not set(event.roster) <= set(session.views[epoch][0]):
            yield f"epoch {event.epoch} has a member that epoch {epoch} had not"
    else:
        session.name = event.digest
    if session.party not in event.roster:
        yield f"epoch {event.epoch} is entered by a party that is not in its roster"
    session.views[event.epoch] = (event.roster, event.digest)


def _take_begin(session: _Session, event: AttemptEvent) -> Iterator[str]:
    attempt = (event.round_id, event.attempt)
    name = f"round {event.round_id}, attempt {event.attempt}"
    if attempt in session.begun:
        yield f"{name} is begun twice"
    session.begun.add(attempt)
    if event.round_id in session.settled:
        yield f"{name} is begun, but its round is settled"
    terms = session.charged.get(attempt)
    if terms is None:
        yield f"{name} is begun, but was not charged"
    elif terms[1] != max(session.views, default=-1):
        yield f"{name} is begun in another epoch than it was charged in"
    elif overlap(terms[3], session.known(event.round_id)):
        yield f"{name} is begun for coordinates that the party knows"


def _take_open(run: _Run, session: _Session, event: AttemptEvent) -> Iterator[str]:
    attempt = (event.round_id, event.attempt)
    name = f"round {event.round_id}, attempt {event.attempt}"
    if attempt not in session.begun:
        yield f"{name} is opened, but was not begun"
    terms = session.charged.get(attempt)
    if terms is not None and overlap(event.spans, terms[3]) != event.spans:
        yield f"{name} is opened for coordinates that it was not charged for"
    for (of, number), found in session.opened.items():
        if of == event.round_id and number != event.attempt and overlap(found, event.spans):
            yield f"{name} opens coordinates that attempt {number} has opened"
    session.opened[attempt] = union(session.opened.get(attempt, ()), event.spans)
    if run.digests.setdefault((attempt, event.spans), event.digest) != event.digest:
        yield f"{name} has two values for the same coordinates"
    if event.source is not None:
        run.told.append((session, event))


def _check_views(run: _Run) -> Iterator[str]:
    """One roster and one signed view per epoch, and a quorum in each."""
    seen: dict[tuple[str, int], tuple[tuple[int, ...], str]] = {}
    for session in run.sessions:
        for epoch, (roster, digest) in session.views.items():
            if seen.setdefault((session.name, epoch), (roster, digest)) != (roster, digest):
                yield f"epoch {epoch}: two views of it were entered"
            if len([party for party in roster if party < run.n_parties]) < run.quorum:
                yield f"epoch {epoch}: {len(roster)} members are fewer than a quorum"


def _check_attempts(run: _Run) -> Iterator[str]:
    """All who begin an attempt agree on it, all its members paid, and none held a part of it."""
    terms: dict[AttemptId, _Terms] = {}
    paid: dict[AttemptId, dict[int, _Session]] = defaultdict(dict)
    for session in run.sessions:
        for attempt in session.charged:
            paid[attempt][session.party] = session
        for attempt in session.begun & set(session.charged):
            if terms.setdefault(attempt, session.charged[attempt]) != session.charged[attempt]:
                yield f"{_name(attempt)} has two rosters, two epochs or two sets of coordinates"
    recorded = {session.party for session in run.sessions}
    for attempt, agreed in sorted(terms.items()):
        _, _, roster, spans = agreed
        for member in sorted(recorded.intersection(roster)):
            payer = paid[attempt].get(member)
            if payer is None or payer.charged[attempt] != agreed:
                yield f"{_name(attempt)} began, but party {member} did not charge it so"
            elif overlap(payer.held[attempt], spans):
                yield f"{_name(attempt)} is for coordinates that party {member} held"


def _check_gifts(run: _Run) -> Iterator[str]:
    """Whoever told a value had it, from the same attempt."""
    recorded = {session.party for session in run.sessions}
    for receiver, event in run.told:
        attempt = (event.round_id, event.attempt)
        had: Spans = ()
        for session in run.sessions:
            if session.party == event.source and session.name == receiver.name:
                had = union(had, session.opened.get(attempt, ()))
        if event.source in recorded and overlap(had, event.spans) != event.spans:
            yield f"{_name(attempt)}: party {event.source} told values that it had not opened"


def _check_models(run: _Run) -> Iterator[str]:
    """Who is still together at the end has every coordinate from the same attempt."""
    last: dict[str, int] = {}
    for session in run.sessions:
        last[session.name] = max([last.get(session.name, -1), *session.views])
    composed: dict[tuple[str, int], dict[AttemptId, Spans]] = {}
    for session in run.sessions:
        if last[session.name] not in session.views:
            continue
        for round_id in sorted(session.settled):
            own = {attempt: s for attempt, s in session.opened.items() if attempt[0] == round_id}
            if composed.setdefault((session.name, round_id), own) != own:
                yield f"round {round_id}: two parties settled it from different attempts"


def _check_ledgers(run: _Run, job: Job, folder: Path) -> Iterator[str]:
    """Every ledger paid for what began with its party, and for no more where nothing failed."""
    began: dict[AttemptId, tuple[int, ...]] = {}
    for session in run.sessions:
        for attempt in session.begun & set(session.charged):
            began[attempt] = session.charged[attempt][2]
    unbroken = not any(session.failed for session in run.sessions) and all(
        {of for of, _ in session.charged} == session.settled for session in run.sessions
    )
    for party in range(job.parties.count):
        path = folder / "ledger" / f"party-{party}.jsonl"
        if not path.exists():
            continue
        try:
            spent = read_spent(path)
        except LedgerError as error:
            yield str(error)
            continue
        if spent is not None:
            own = {attempt: roster for attempt, roster in began.items() if party in roster}
            yield from _check_ledger(spent, own, run.n_parties, unbroken=unbroken)


def _check_ledger(
    spent: Spent, began: dict[AttemptId, tuple[int, ...]], n_parties: int, *, unbroken: bool
) -> Iterator[str]:
    for attempt, roster in sorted(began.items()):
        contributors = sum(party < n_parties for party in roster)
        if attempt not in spent.reserves:
            yield f"{spent.path}: {_name(attempt)} began, but this ledger did not pay for it"
        if spent.contributors.get(attempt, 0) > contributors:
            yield f"{spent.path}: {_name(attempt)} is paid as if more parties had contributed"
    owed = spent.epsilon_of([attempt for attempt in began if attempt in spent.reserves])
    if spent.epsilon < owed:
        yield f"{spent.path}: epsilon {spent.epsilon} is below {owed}, of what began"
    if unbroken and spent.epsilon != owed:
        yield f"{spent.path}: epsilon {spent.epsilon} is not {owed}, though no attempt failed"


def _name(attempt: AttemptId) -> str:
    return f"round {attempt[0]}, attempt {attempt[1]}"
