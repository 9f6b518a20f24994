"""Every error that mpcfl raises on purpose, as one tree.

    MpcflError
    |-- ConfigError            a job, an option or an argument is wrong
    |   `-- KeyFileError       a key file is damaged, unsafe or not the one that is needed
    |-- PlanError              no noise plan meets the request
    |-- QuantizeError          a value does not fit the integer grid
    |-- LedgerError            a privacy ledger is damaged or not this party's
    |   `-- BudgetExceeded     one more release would pass the privacy budget
    |-- ProtocolError          a party said what the protocol does not allow
    |   |-- PartyNotReady      a party can't start or go on; all ranks raise it alike
    |   |-- OutOfOrder         a single-use object or a stage was used twice
    |   |-- WrongPartial       a partial decryption is not what its key share gives
    |   |-- CheckFailed        an opened sum is not the sum of what the parties put in
    |   |-- TranscriptMismatch two parties do not agree on a public fact
    |   `-- AuthenticationError a message was not made by its claimed sender
    |-- PartyLost              a party died or fell silent
    |   `-- QuorumLost         fewer live parties than the plan allows
    |       |-- LeftOut        the other parties have gone on without this one
    |       `-- RunOver        another party has seen the end of the run, and left
    |-- WrapDetected           a value left the range of the ring
    `-- BackendUnavailable     a backend or its package is not there

A message says what was found, what was expected and what to do. It never holds
a secret, a share, a key or a value of one party.
"""

from __future__ import annotations

from collections.abc import Iterable


class MpcflError(Exception):
    """Base of all errors raised by mpcfl; ``str(error)`` is one sentence for the user."""


class ConfigError(MpcflError):
    """A job file, an option or an argument is wrong; the message names the key and the remedy."""


class KeyFileError(ConfigError):
    """A key file is damaged, unsafe or not the one that is needed; the message names the file."""


class PlanError(MpcflError):
    """No noise plan meets the request; the message names the nearest one that works."""


class QuantizeError(MpcflError):
    """A value does not fit the integer grid, or no rounding meets the norm bound."""


class LedgerError(MpcflError):
    """A privacy ledger is damaged, is not this party's, or can't be written."""


class BudgetExceeded(LedgerError):
    """One more release would pass the privacy budget.

    Attributes:
        epsilon_after: epsilon if the release were made, rounded up.
        epsilon_budget: the budget.
    """

    def __init__(self, epsilon_after: float, epsilon_budget: float) -> None:
        super().__init__(
            f"the next round would raise epsilon to {epsilon_after:.4f}, above the budget of "
            f"{epsilon_budget:.4f}; the run stops here and keeps the model"
        )
        self.epsilon_after = epsilon_after
        self.epsilon_budget = epsilon_budget


class TotalBudgetExceeded(BudgetExceeded):
    """One more release would pass what a party allows for its data set over all of its runs."""

    def __init__(self, epsilon_after: float, epsilon_budget: float) -> None:
        super().__init__(epsilon_after, epsilon_budget)
        self.args = (
            # All parties read this; what a party has spent elsewhere is for its own eyes.
            "the next round would pass what a party allows for its data set over all of its runs; "
            "the run stops here and keeps the model",
        )


class ProtocolError(MpcflError):
    """A party said something that the protocol does not allow."""


class PartyNotReady(ProtocolError):
    """A party can't start, or can't go on; every rank raises it with the same text.

    Attributes:
        rank: the lowest rank that can't.
    """

    def __init__(self, message: str, rank: int) -> None:
        super().__init__(message)
        self.rank = rank


class OutOfOrder(ProtocolError):
    """A single-use object was used twice, or a stage came out of order."""


class WrongPartial(ProtocolError):
    """A partial decryption is not what its author's key share gives, or its proof does not hold.

    Attributes:
        index: number of the key share, from 1 on.
    """

    def __init__(self, message: str, index: int) -> None:
        super().__init__(message)
        self.index = index


class TranscriptMismatch(ProtocolError):
    """Two parties do not agree on a public fact; the message names the parties and the fact."""


class CheckFailed(ProtocolError):
    """An opened sum failed its check; it was not used, and its attempt stays spent."""


class AuthenticationError(ProtocolError):
    """A message was not made by its claimed sender, or was changed; one text for every cause.

    Attributes:
        peer: the claimed sender's name, where it is known.
        stage: what the message was for, where it is known.
    """

    def __init__(self, peer: str = "", stage: str = "") -> None:
        sender = f" from {peer}" if peer else ""
        where = f" in stage {stage}" if stage else ""
        super().__init__(
            f"a message{sender} failed authentication{where}; the channel is not safe and the run "
            "stops"
        )
        self.peer, self.stage = peer, stage


class PartyLost(MpcflError):
    """A party died or fell silent.

    Attributes:
        ranks: ranks of the lost parties, where known.
        awaited: by rank, the seconds that this party had waited for others when it was told.
    """

    def __init__(self, message: str, ranks: tuple[int, ...] = ()) -> None:
        super().__init__(message)
        self.ranks = ranks
        self.awaited: dict[int, float] = {}


def first_line(error: BaseException) -> str:
    """Return what an error of another package says, in one line.

    To be shown only where it can't hold data of a party: on public records, files and settings.
    """
    return str(error).strip().partition("\n")[0]


def were_lost(names: Iterable[str]) -> str:
    """Return the beginning of a sentence about parties that were lost."""
    listed = list(names)
    return f"{', '.join(listed)} {'was' if len(listed) == 1 else 'were'} lost"


class QuorumLost(PartyLost):
    """Fewer live parties than the plan allows."""


class LeftOut(QuorumLost):
    """The other parties lost touch with this one and have gone on without it."""


class RunOver(QuorumLost):
    """Another party has seen the end of the run, and left; there is nothing to wait for."""


class WrapDetected(MpcflError):
    """A value left the range of the ring."""


class BackendUnavailable(MpcflError):
    """A backend is not registered, or a package that it needs is not installed."""
