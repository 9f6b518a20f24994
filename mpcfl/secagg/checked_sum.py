"""A sum that is checked: any backend, with tags around it that a changed sum does not have.

Before anything is aggregated, every data party sends a masked tag for each part of its vector
(`sum_tags.py`) to all the others. The tags add up to that of the true sum, as integers and not
mod 2^b. Once the sum is open, data party number k mod n checks part k; then all compare a digest
of what they hold, under a key that nobody knew while the sum was opened, and their verdicts. A
vector that was changed, dropped, put in twice or replayed is found, and so is a sum of which
parties were told different versions; all ranks stop with one error, and nobody uses the sum.

Adversary: the network, which may read and change everything; parties follow the protocol. For a
true sum in [-2^(b-1), 2^(b-1)) a wrong one passes with probability below 2^-62 (2^-125 for
b = 64), see `docs/proofs.md`. A true sum outside of that range fails too: `CheckFailed` says so.
An aggregator without data knows no key, sees no tag, and hears the verdict.

Does not protect against: a party that puts in something wrong, or a party that tells others a
wrong sum which it fitted to the tags. A sum that fails has been opened: its attempt is spent. Who
knows the tag of a sum and no part of it yet knows one linear equation mod p per part.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpcfl.errors import OutOfOrder, WrapDetected
from mpcfl.hazmat.linear_tag import DIGEST_BYTES
from mpcfl.net.channel import SealedTransport, agree_pair_secrets
from mpcfl.net.transport import Transport
from mpcfl.net.wire import U32, U64, Format, Kind, fixed
from mpcfl.secagg.base import (
    Levels,
    SecureSum,
    SumId,
    SumSettings,
    check_levels,
    check_range,
    next_sum,
)
from mpcfl.secagg.key_dealing import open_wires
from mpcfl.secagg.salvage import Salvage, UnopenedProduct, nothing_in, parts_of, salvage_of
from mpcfl.secagg.sum_tags import SumTags, agree_group_key
from mpcfl.secagg.verdicts import (
    Circle,
    Verdict,
    exchange_nonces,
    exchange_verdicts,
    failure,
    judge,
    name_of,
    require_same_sum,
)

_PURPOSE = "checked-sum"


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class _Protected:
    """What the backend made of this rank's vector, and its masked tags; none at an aggregator."""

    inner: Any
    sum_id: SumId
    tags: bytes


class CheckedSum:
    """A session of checked sums; implements `SecureSum`.

    All ranks make it together.

    Args:
        inner: an open session of any backend.
        transport: which that session uses.
        settings: of the session.
        data_ranks: ranks that bring a vector, ascending.

    Attributes:
        inner: as above.
        parts: how the opened vector falls into parts, each with a tag of its own.
    """

    def __init__(
        self,
        inner: SecureSum,
        transport: Transport,
        settings: SumSettings,
        data_ranks: Sequence[int],
    ) -> None:
        self.inner = inner
        self.parts = parts_of(inner, settings.dim)
        self._settings = settings
        secrets = agree_pair_secrets(transport, f"{settings.run_id}/{_PURPOSE}")
        wires = SealedTransport(transport, secrets, _PURPOSE)
        self._circle = Circle(wires, transport.rank, tuple(data_ranks), transport.n_ranks)
        self._tags: SumTags | None = None
        if transport.rank in data_ranks:
            group_key = agree_group_key(wires, transport.rank, data_ranks, settings.run_id)
            secrets.keep(data_ranks)
            self._tags = SumTags(group_key, secrets, settings, self.parts)
        else:
            secrets.forget()
        width = 0 if self._tags is None else self._tags.width
        self._format = Format(
            Kind.TAGS, round_id=U64, attempt=U32, tags=fixed(len(self.parts) * width)
        )
        self._last: SumId | None = None
        # Of the sum that was aggregated last, and its tag for each part.
        self._current: SumId | None = None
        self._totals: list[int] = []
        self._refusal: str | None = None

    def protect(self, levels: Levels | None, sum_id: SumId | None = None) -> _Protected:
        """See `SecureSum.protect`; also makes the tags of this rank's vector."""
        self._check_open()
        wanted = next_sum(self._last, sum_id)
        # The backend refuses what it does not take before anything is used up.
        inner = self.inner.protect(levels, sum_id)
        self._last = wanted
        if self._tags is None:
            return _Protected(inner, wanted, b"")
        vector = check_levels(levels, self._settings)
        return _Protected(inner, wanted, self._tags.masked(vector, wanted, self._circle.rank))

    def aggregate(self, protected: _Protected) -> Any:
        """See `SecureSum.aggregate`; the tags of all data parties come first.

        So whoever opens a part of the sum, in whatever way, can check it.
        """
        with self._exchange():
            if self._tags is not None:
                totals = self._tags.add_up(self._exchange_tags(protected))
                self._current, self._totals = protected.sum_id, totals
            return self.inner.aggregate(protected.inner)

    def open(self, aggregated: Any) -> Levels:
        """See `SecureSum.open`.

        Raises:
            CheckFailed: it is not the sum of what the data parties put in, or not the same for
                all of them, or it left the ring; the session has ended. All ranks raise it.
        """
        with self._exchange():
            opened = self.inner.open(aggregated)
            self._confirm(self._circle, opened)
        if self._tags is not None:
            self._tags.put_away()
        return opened

    def prepare(self) -> None:
        """See `SecureSum.prepare`."""
        self.inner.prepare()

    def close(self) -> None:
        """Forget all keys; see `SecureSum.close`."""
        self._refusal = "this session was closed"
        self.inner.close()
        self._circle.wires.close()
        if self._tags is not None:
            self._tags.forget()

    def salvage(self) -> Salvage | None:
        """Return the parts of the last sum that this rank knows and that pass their check.

        Its product, if there is one, is checked when it is opened.
        """
        if self._tags is not None and (self._current is None or self._current != self._last):
            # Its aggregation has not begun: what the backend knows is of the sum before.
            return Salvage(self.parts, nothing_in(self.parts))
        found = salvage_of(self.inner)
        if found is None or self._tags is None:
            return found
        known = {
            number: values
            for number, values in found.known.items()
            if values.size == 0 or self._is_right(number, values)
        }
        product = None if found.product is None else CheckedProduct(found.product, self)
        return Salvage(found.parts, known, product)

    @property
    def current(self) -> SumId | None:
        """Return which sum this rank has the tags of, if of any."""
        return self._current

    def require_part(self, number: int, values: Levels) -> None:
        """Refuse what another rank says a part of the last sum was, unless it was that.

        Raises:
            CheckFailed: it has another tag.
            OutOfOrder: no sum was aggregated in this session.
        """
        if not self._is_right(number, values):
            raise failure(self._require_current(), "a part that was handed over is not of it")

    def confirm_over(self, transport: Transport, opened: Levels) -> None:
        """Check the last sum with the ranks of another transport, who all opened it there.

        Raises:
            CheckFailed: as `open`.
        """
        wires = open_wires(transport, self._settings, f"{_PURPOSE}-again")
        everybody = tuple(range(transport.n_ranks))
        try:
            self._confirm(Circle(wires, transport.rank, everybody, len(everybody)), opened)
        finally:
            wires.close()

    def __repr__(self) -> str:
        return f"CheckedSum({type(self.inner).__name__}, <redacted>)"

    def _check_open(self) -> None:
        if self._refusal is not None:
            raise OutOfOrder(f"{self._refusal}; open a new session")

    @contextmanager
    def _exchange(self) -> Iterator[None]:
        """End the session if the block, in which ranks talk to each other, doesn't come through."""
        self._check_open()
        self._refusal = "a sum broke off in this session"
        yield
        self._refusal = None

    def _exchange_tags(self, protected: _Protected) -> list[bytes]:
        """Return the masked tags of all data ranks, this one's included."""
        own = self._format.encode(**name_of(protected.sum_id), tags=protected.tags)
        messages = [protected.tags]
        for source, text in self._circle.tell(own).items():
            values = self._format.decode(text, f"rank {source}")
            require_same_sum(source, values, protected.sum_id)
            messages.append(values["tags"])
        return messages

    def _confirm(self, circle: Circle, opened: Levels) -> None:
        """Check, compare, and hear from all others; see `open`."""
        own = None if self._tags is None else self._own_verdict(circle, self._tags, opened)
        judge(exchange_verdicts(circle, own), self._settings.modulus_bits)

    def _own_verdict(self, circle: Circle, tags: SumTags, opened: Levels) -> Verdict:
        sum_id = self._require_current()
        passed = self._passes(circle, opened)
        nonces = exchange_nonces(circle)
        digest = tags.digest(sum_id, nonces, opened) if passed else bytes(DIGEST_BYTES)
        return Verdict(sum_id, passed, digest)

    def _passes(self, circle: Circle, opened: Levels) -> bool:
        """Check the form of the whole vector, and the tags of this rank's parts of it."""
        if opened.shape != (self._settings.dim,) or opened.dtype not in (np.int32, np.int64):
            return False
        try:
            # Beyond the ring, two vectors could look alike to the digest.
            check_range(opened, self._settings.modulus_bits)
        except WrapDetected:
            return False
        first, step = circle.data_ranks.index(circle.rank), len(circle.data_ranks)
        numbers = range(first, len(self.parts), step)
        return all(self._is_right(number, opened[self.parts[number]]) for number in numbers)

    def _is_right(self, number: int, values: Levels) -> bool:
        sum_id = self._require_current()
        if self._tags is None:
            raise OutOfOrder("an aggregator knows no tag and checks nothing")
        return self._tags.is_tag_of(self._totals[number], sum_id, number, values)

    def _require_current(self) -> SumId:
        if self._current is None:
            raise OutOfOrder("no sum was aggregated in this session; there is none to check")
        return self._current


class CheckedProduct:
    """A sum that lies encrypted here and is checked once it is open; an `UnopenedProduct`."""

    def __init__(self, product: UnopenedProduct, checked: CheckedSum) -> None:
        self._product = product
        self._checked = checked

    @property
    def digest(self) -> str:
        """See `UnopenedProduct.digest`."""
        return self._product.digest

    def open_over(self, transport: Transport) -> Levels:
        """See `UnopenedProduct.open_over`.

        Raises:
            CheckFailed: see `CheckedSum.open`.
        """
        opened = self._product.open_over(transport)
        self._checked.confirm_over(transport, opened)
        return opened
