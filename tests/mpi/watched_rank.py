"""A party of a job that notes every secret that it comes to hold, in a folder of its own.

    python watched_rank.py FOLDER FATE ARGUMENTS OF mpcfl.parties...

The files are what a capture of the traffic is searched for: `NAME-RANK-NUMBER.npy`, what came of
the party's data; `keys-RANK.txt`, a key per line in hex; `sent-RANK.txt`, public keys, which are
on the wire; `kinds-RANK.txt`, the names of the messages. They are whole if the party is killed,
which FATE is about (`doomed_rank.py`).
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric import ed25519, x25519
from doomed_rank import await_fate

import mpcfl.round
from mpcfl.hazmat import bits, paillier, threshold_key
from mpcfl.net import wire
from mpcfl.parties.__main__ import main

_FOLDER = Path(sys.argv[1])
_RANK = os.environ["PMIX_RANK"]
_count = itertools.count()


def note_value(name: str, value: Any) -> None:
    """Write an array down."""
    np.save(_FOLDER / f"{name}-{_RANK}-{next(_count)}.npy", np.asarray(value))


def note_key(key: bytes, kind: str = "keys") -> None:
    """Write a key down at once: whoever is killed has sent some."""
    with (_FOLDER / f"{kind}-{_RANK}.txt").open("a") as file:
        file.write(key.hex() + "\n")


def note_numbers(*values: int) -> None:
    """Write secret numbers down."""
    for value in map(int, values):
        note_key(value.to_bytes(-(-value.bit_length() // 8), "big"))


def wrap(owner: Any, name: str, note: Callable[..., None]) -> None:
    """Call ``note`` with the result and the arguments of every call, whoever imported the name."""
    original = getattr(owner, name)

    def wrapped(*arguments: Any, **named: Any) -> Any:
        result = original(*arguments, **named)
        note(result, *arguments)
        return result

    ours = [module for key, module in list(sys.modules.items()) if key.startswith("mpcfl")]
    for holder in (owner, *ours):
        if getattr(holder, name, None) is original:
            setattr(holder, name, wrapped)


def watch_values() -> None:
    """Note what the party computes from its data, from its records to what it protects."""
    own: list[Any] = []

    def noised(result: Any, levels: Any, _: Any) -> None:
        note_value("levels", levels)
        note_value("noise", result - levels)
        note_value("noised", result)
        note_metrics(*own)

    wrap(mpcfl.round, "party_data", lambda data, public, *_: own.extend((public, data)))
    wrap(mpcfl.round, "add_noise", noised)
    wrap(mpcfl.round, "clip_rows", lambda _, rows, __: note_value("gradients", rows[:2]))


def note_metrics(public: Any, data: Any) -> None:
    """Note how well the model does on the party's own records, which nobody may learn."""
    inputs, targets = data.records
    with torch.no_grad():
        outputs = public.model(inputs)
        losses = torch.nn.functional.binary_cross_entropy_with_logits(
            outputs, targets, reduction="none"
        )
    note_value("records", inputs[:4])
    note_value("losses", losses.double().ravel())
    note_value("metrics", [losses.double().mean(), (outputs.sum() / 7).double()])


def watch_keys() -> None:
    """Note what keys are made of and what comes out, wherever they are made."""

    def derived(key: bytes, secret: bytes, tag: bytes) -> None:
        note_key(key)
        # The one that everybody may know is made of the name of the run.
        if b"crypten-public-seed" not in tag:
            note_key(secret)

    wrap(bits, "derive_key", derived)
    begin = bits.KeystreamBits.__init__

    def keyed(self: Any, key: bytes) -> None:
        note_key(key)
        begin(self, key)

    bits.KeystreamBits.__init__ = keyed  # type: ignore[method-assign]
    for kind in (x25519.X25519PrivateKey, ed25519.Ed25519PrivateKey):
        watch_private(kind)
    # The primes of a key; and a share of one, after its key and its number.
    wrap(paillier.PrivateKey, "__init__", lambda _, __, *primes: note_numbers(*primes))
    wrap(threshold_key.KeyShare, "__init__", lambda _, __, ___, ____, share: note_numbers(share))


def watch_private(kind: Any) -> None:
    """Note private keys of a kind, and the public ones that go with them."""
    original = kind.from_private_bytes

    def from_private_bytes(data: bytes) -> Any:
        key = original(data)
        note_key(data)
        note_key(key.public_key().public_bytes_raw(), "sent")
        return key

    kind.from_private_bytes = staticmethod(from_private_bytes)


def watch_messages() -> None:
    """Note the kind of every message, so that a test can tell which ones there were."""

    def note(_: bytes, form: wire.Format, **__: Any) -> None:
        note_key(form.kind.name.encode(), "kinds")

    wrap(wire.Format, "encode", note)


if __name__ == "__main__":
    watch_values()
    watch_keys()
    watch_messages()
    await_fate(sys.argv[2])
    sys.exit(main(sys.argv[3:]))
