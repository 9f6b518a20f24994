"""Changed messages: refused with one kind of error, or well formed, and nothing in between.

Samples and changes are made for every format that the package declares, from the types of its
fields. All choices come from a `Draw`, a function that returns an integer in [0, bound): from a
keystream whose key is fresh, and printed on failure, or from hypothesis.
"""

from __future__ import annotations

import ast
import os
import struct
import tracemalloc
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from mpcfl.errors import ProtocolError
from mpcfl.hazmat.bits import KEY_BYTES, raw_keyed_bits
from mpcfl.net import fields
from mpcfl.net.handshake import Authenticated, HandshakeContext, authenticate
from mpcfl.net.identity import Identity
from mpcfl.net.memory import run_parties
from mpcfl.net.meter import Meter
from mpcfl.net.transport import Transport
from mpcfl.net.wire import (
    F64,
    FLAG,
    U8,
    U32,
    U64,
    Format,
    Kind,
    ascending,
    blob,
    fixed,
    listing,
    optional,
    record,
    text,
)

ROOT = Path(__file__).parent.parent.parent
N_CHANGED = 100_000
CLAIM = struct.pack(">I", 2**32 - 1)
Draw = Callable[[int], int]
HEADER_BYTES = 10
# Numbers at the edges; the two NaNs are of one form once they were written.
EDGES = {
    ">B": (0, 1, 255),
    ">I": (0, 1, 2**31, 2**32 - 1),
    ">Q": (0, 1, 2**63, 2**64 - 1),
    ">d": (0.0, -0.0, 1.5, -1e308, 5e-324, float("inf"), float("nan"), -float("nan")),
}
LETTERS = "aZ09 \n\x00\x7fäß漢🙂"

# Every type of field, with limits that a message of a few bytes could claim to reach.
ZOO = Format(
    Kind.HOLDINGS,
    small=U8,
    middle=U32,
    large=U64,
    real=F64,
    flag=FLAG,
    key=fixed(32),
    nothing=fixed(0),
    content=blob(1 << 29),
    words=optional(text(1 << 29)),
    members=ascending(U32, 1 << 20),
    names=ascending(text(20), 1 << 20),
    rows=listing(record(number=U64, held=optional(listing(U8, 1 << 10)), flag=FLAG), 1 << 10),
    rest=listing(blob(8), 1 << 20),
)
# Formats that a session makes, with a length of its own: an example, by the file they are in.
OF_A_SESSION = {
    "checked_sum.py": Format(Kind.TAGS, round_id=U64, attempt=U32, tags=fixed(3 * 8)),
}
NAMES = ("north", "south", "east")
CONTEXT = HandshakeContext("job digest", NAMES, ("numpy==2.1",))
IDENTITIES = tuple(Identity.new() for _ in NAMES)
N_HANDSHAKES = 4_000


def declared_formats() -> list[tuple[str, Format]]:
    """Return every format at the top of a module of the package, with where it is."""
    found = []
    for top in ("mpcfl", "parties"):
        for path in sorted((ROOT / top).rglob("*.py")):
            if "Format(" in path.read_text() and path.name != "wire.py":
                parts = path.relative_to(ROOT).with_suffix("").parts
                module = import_module(".".join(parts if top == "mpcfl" else ("mpcfl", *parts)))
                found += [
                    (f"{path.name}:{name}", value)
                    for name, value in vars(module).items()
                    if isinstance(value, Format) and name in names_assigned(path)
                ]
    return found


def names_assigned(path: Path) -> list[str]:
    """Return the names at the top of a module to which it assigns a new format."""
    return [
        target.id
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.Assign) and is_new_format(node.value)
        for target in node.targets
        if isinstance(target, ast.Name)
    ]


def is_new_format(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Format"
    )


def sample(field: fields.Field, draw: Draw) -> Any:
    """Return a value that the field takes; short, as the limits of formats are wide."""
    match field:
        case fields._Number():
            return EDGES[field.code][draw(len(EDGES[field.code]))]
        case fields._Flag():
            return draw(2) == 1
        case fields._Fixed():
            few = bytes(draw(256) for _ in range(min(field.min_bytes, 4)))
            return few.ljust(field.min_bytes, b"f")
        case fields._Blob():
            return bytes(draw(256) for _ in range(draw(min(field.limit, 12) + 1)))
        case fields._Text():
            most = min(field.content.limit, 12) // 4
            return "".join(LETTERS[draw(len(LETTERS))] for _ in range(draw(most + 1)))
        case fields._Optional():
            return None if draw(2) else sample(field.item, draw)
        case fields._Listing():
            items = [sample(field.item, draw) for _ in range(draw(min(field.max_items, 3) + 1))]
            return tuple(sorted(set(items))) if field.is_ascending else tuple(items)
        case fields._Record():
            return {name: sample(part, draw) for name, part in field.fields.items()}
    raise TypeError(f"{type(field).__name__} has no samples; add some here")


def sample_message(form: Format, draw: Draw) -> bytes:
    """Return a message of a format."""
    return form.encode(**sample(form.body, draw))


def restate(form: Format, message: bytes) -> bytes:
    """Give whatever comes after the header the header that fits it."""
    body = message[HEADER_BYTES:]
    return struct.pack(">4sBBI", b"mpfl", 1, form.kind, len(body)) + body


def change(message: bytes, other: bytes, draw: Draw) -> bytes:
    """Return what an attacker might make of a message, who has another one at hand as well."""
    place, length = draw(len(message)), len(message)
    match draw(7):
        case 0:
            flipped = message[place] ^ (1 << draw(8))
            return message[:place] + bytes([flipped]) + message[place + 1 :]
        case 1:
            return message[:place]
        case 2:
            return message + bytes(draw(256) for _ in range(1 + draw(8)))
        case 3:
            return message[:place] + other[draw(len(other)) :]
        case 4:
            length_made_up = (2**32 - 1 - draw(3)) if draw(2) else draw(2**32)
            return message[:place] + length_made_up.to_bytes(4, "big") + message[place + 4 :]
        case 5:
            return message[:place] + message[place + 1 + draw(length - place) :]
    return bytes(draw(256) for _ in range(draw(2 * length)))


def keystream(key: bytes) -> Draw:
    """Return a draw from a keystream; a bound's bias of 2^-32 or less is of no matter here."""
    source, pool = raw_keyed_bits(key), []

    def draw(bound: int) -> int:
        if not pool:
            pool.extend(source.words(1 << 12).tolist())
        return pool.pop() % bound

    return draw


def is_refused(form: Format, message: bytes) -> bool:
    """Read a message; one that is accepted must be what its own values encode to."""
    try:
        values = form.decode(message, "south")
    except ProtocolError as error:
        words = str(error)
    else:
        assert form.encode(**values) == message
        return False
    assert words.startswith(f"a {form.kind.words} message from south was expected")
    return True


FORMATS = [("zoo", ZOO), *OF_A_SESSION.items(), *declared_formats()]
every_format = pytest.mark.parametrize(
    "form", [form for _, form in FORMATS], ids=[name for name, _ in FORMATS]
)


def test_every_format_of_the_package_is_tried_here() -> None:
    paths = [path for top in ("mpcfl", "parties") for path in (ROOT / top).rglob("*.py")]
    texts = [(path.name, path.read_text()) for path in paths]
    trees = [(name, ast.parse(text)) for name, text in texts if "Format(" in text]
    nodes = [(name, node) for name, tree in trees for node in ast.walk(tree)]
    found = sorted(name for name, node in nodes if is_new_format(node))
    assert found == sorted(name.split(":")[0] for name, _ in FORMATS if name != "zoo")
    assert len(found) > 3


def test_every_kind_has_one_format() -> None:
    assert sorted(form.kind for name, form in FORMATS if name != "zoo") == sorted(Kind)


@every_format
@given(data=st.data())
@settings(max_examples=30, deadline=None, phases=(Phase.generate,))
def test_values_come_back_and_their_message_has_one_form(form: Format, data: st.DataObject) -> None:
    def draw(bound: int) -> int:
        return data.draw(st.integers(0, bound - 1))

    values = sample(form.body, draw)
    message = form.encode(**values)
    # As text, where a NaN equals itself.
    assert repr(form.decode(message)) == repr(values)
    assert not is_refused(form, message)
    assert form.body.min_bytes <= len(message) - HEADER_BYTES <= form.body.max_bytes
    is_refused(form, change(message, message, draw))


def test_a_hundred_thousand_changed_messages_are_refused_or_well_formed() -> None:
    key = os.urandom(KEY_BYTES)
    draw = keystream(key)
    stock = [sample_message(form, draw) for _, form in FORMATS for _ in range(20)]
    n_each = -(-N_CHANGED // len(FORMATS))
    try:
        for _, form in FORMATS:
            own = [sample_message(form, draw) for _ in range(50)]
            n_refused = 0
            for _ in range(n_each):
                message = own[draw(len(own))]
                other = stock[draw(len(stock))] if draw(2) else own[draw(len(own))]
                changed = change(message, other, draw)
                # Otherwise the header alone would give most of them away.
                n_refused += is_refused(form, restate(form, changed) if draw(2) else changed)
            # Of each format, too few changes would lead to a message, and too few to none.
            assert 0.1 * n_each < n_refused < n_each
    except BaseException:
        print(f"key of the draws: {key.hex()}")
        raise


@every_format
def test_a_length_that_is_made_up_allocates_nothing(form: Format) -> None:
    """Peaks stay far below the 2^32 bytes that are claimed, and below any limit of the zoo."""
    draw = keystream(bytes(KEY_BYTES))
    for _ in range(3):
        message = sample_message(form, draw)
        for claim in (CLAIM, struct.pack(">I", 1 << 29), struct.pack(">I", 1 << 20)):
            for place in range(len(message) - 3):
                changed = message[:place] + claim + message[place + 4 :]
                forged = restate(form, changed) if place >= HEADER_BYTES else changed
                tracemalloc.start()
                is_refused(form, forged)
                peak = tracemalloc.get_traced_memory()[1]
                tracemalloc.stop()
                assert peak < 64 * 1024 + 64 * len(message)


class Scripted:
    """What rank 0 hears in a handshake, whatever it says."""

    rank, n_ranks = 0, len(NAMES)

    def __init__(self, rounds: list[list[bytes]]) -> None:
        self.meter = Meter()
        self._rounds = iter(rounds)

    def allgather(self, _message: bytes) -> list[bytes]:
        return next(self._rounds)

    def exchange(self, _outgoing: Any, sources: Any) -> dict[int, bytes]:
        assert not sources
        return {}


class Recording:
    """A transport that keeps what it delivers."""

    def __init__(self, transport: Transport) -> None:
        self.rank, self.n_ranks, self.meter = transport.rank, transport.n_ranks, transport.meter
        self.heard: list[list[bytes]] = []
        self._transport = transport

    def allgather(self, message: bytes) -> list[bytes]:
        self.heard.append(self._transport.allgather(message))
        return self.heard[-1]


def shake(transport: Any, pinned: bool) -> Authenticated:
    """Take part with bits that are always the same, so that a script can answer them."""
    own = transport.rank
    pins = {r: i.public_key for r, i in enumerate(IDENTITIES) if r != own} if pinned else None
    bits = raw_keyed_bits(bytes([own]) * KEY_BYTES)
    return authenticate(transport, IDENTITIES[own], pins, CONTEXT, bits)


@pytest.fixture(scope="module")
def honest() -> tuple[list[list[bytes]], str]:
    """Return what rank 0 heard in a handshake, and the name of that run."""

    def party(transport: Transport) -> tuple[list[list[bytes]], str]:
        recording = Recording(transport)
        return recording.heard, shake(recording, True).run_id

    return run_parties(len(NAMES), party)[0]


@pytest.mark.parametrize("pinned", [True, False])
def test_a_handshake_with_any_changed_message_is_refused(honest, pinned: bool) -> None:
    """Whoever is in the middle may also make the header fit, and mix in the other messages."""
    heard, run_id = honest
    assert shake(Scripted(heard), pinned).run_id == run_id
    key = os.urandom(KEY_BYTES)
    draw = keystream(key)
    try:
        for _ in range(N_HANDSHAKES // 2):
            rounds = [list(messages) for messages in heard]
            # Hellos or signatures; a rank does not look at its own signature.
            number = draw(2)
            rank = draw(3) if number == 0 else 1 + draw(2)
            changed = change(heard[number][rank], heard[draw(2)][draw(3)], draw)
            kind = Kind.SIGNATURE if number else Kind.HELLO
            form = next(form for _, form in FORMATS if form.kind is kind)
            rounds[number][rank] = restate(form, changed) if draw(2) else changed
            if rounds == heard:
                continue
            with pytest.raises(ProtocolError):
                shake(Scripted(rounds), pinned)
    except BaseException:
        print(f"key of the draws: {key.hex()}")
        raise
