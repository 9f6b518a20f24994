"""How every caller opens a session of secure sums: a backend, checked where that is asked for."""

from __future__ import annotations

from mpcfl.net.transport import Transport
from mpcfl.secagg.base import BackendFactory, SecureSum, SumSettings
from mpcfl.secagg.checked_sum import CheckedSum
from mpcfl.secagg.custody import assign_roles
from mpcfl.secagg.paillier_routes import ClientsSum


def open_sum(
    open_backend: BackendFactory, transport: Transport, settings: SumSettings
) -> SecureSum:
    """Open a backend's session, in a check of its sums if ``settings.checked``.

    All ranks call it together.

    Raises:
        MpcflError: what the backend raises.
    """
    session = open_backend(transport, settings)
    if not settings.checked:
        return session
    try:
        return CheckedSum(session, transport, settings, _data_ranks(session, transport, settings))
    except BaseException:
        # Its keys, and the thread that makes masks ahead, are nobody's any more.
        session.close()
        raise


def backend_of(session: SecureSum) -> SecureSum:
    """Return the backend's own session, for what only that backend can do."""
    return session.inner if isinstance(session, CheckedSum) else session


def _data_ranks(session: SecureSum, transport: Transport, settings: SumSettings) -> tuple[int, ...]:
    """Return who brings a vector; settings of a backend without a key may name any custody."""
    if isinstance(session, ClientsSum):
        return assign_roles(settings.custody, transport.n_ranks).data_ranks
    return tuple(range(transport.n_ranks))
