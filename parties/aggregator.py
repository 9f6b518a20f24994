"""A rank without data and without key: it multiplies ciphertexts and passes the product on."""

from __future__ import annotations

from mpcfl.net.roster import agree_to_go_on, check_in
from mpcfl.net.transport import Transport
from mpcfl.parties.data_party import agree_on_totals, bytes_so_far
from mpcfl.secagg.base import SecureSum


def run_aggregator(rounds: int, secure: SecureSum, transport: Transport) -> None:
    """Serve every round until the last, or until a data party has a reason to stop."""
    for _ in range(rounds):
        if agree_to_go_on(transport, None)[0] is not None:
            return
        before = bytes_so_far(transport)
        secure.open(secure.aggregate(secure.protect(None)))
        agree_on_totals(transport, before)


def agree_without_model(transport: Transport, names: tuple[str, ...]) -> None:
    """Take part in the parties' comparison of their final models without stating one."""
    check_in(transport, names, {})
