"""`mpcfl audit masks`: does what a backend sends hide what a party put in?

The real code of a backend runs in this process over tapped transports, in two sessions of
several sums, with the same random levels in all and flat vectors in one more (masks are made
ahead in the second one, where a backend can), and once between two parties alone, where one
mask can't hide the faults of another. Checks then look at the sums and at everything that was
sent, unpacked where words were packed:

* every sum is the sum of its inputs, so masks that do not cancel show too;
* uniform over the ring, bit by bit and byte by byte (`uniformity.py`);
* the same input never under the same mask, no block of a mask twice (`uniformity.py`);
* no input in the clear, in whole or in part (`cleartext.py`);
* session secrets and mask seeds never repeated, of 128 bits or more (`seeds.py`);
* no coalition that leaves two honest parties holds a party's masks (`collusion.py`);
* no owner of a Paillier key receives what decrypts to one party's input (`key_owner.py`);
* no coalition with too few shares of such a key decrypts anything (`key_shares.py`).

`plain` and `crypten-stock` are there for comparison and fail, as they must. A check that does
not apply to a backend is named in a note. Passing shows that these attacks fail; it proves
no security.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from mpcfl.audit.cleartext import check_cleartext, check_correlation, correlation_has_power
from mpcfl.audit.collusion import check_coalitions, check_keys, crypten_stock_pads, has_pads
from mpcfl.audit.key_owner import check_key_owners, decrypt_all_received
from mpcfl.audit.key_shares import check_key_shares, take_share
from mpcfl.audit.observe import (
    Inspector,
    Observation,
    Subject,
    flat_levels,
    observe,
    uniform_levels,
)
from mpcfl.audit.seeds import DEFAULT_SEEDS, check_generator_seed, check_key_lengths, check_seeds
from mpcfl.audit.uniformity import check_repeats, check_reuse, check_uniform
from mpcfl.audit.verdict import AuditReport, Finding
from mpcfl.config import PAILLIER_BACKENDS, Custody
from mpcfl.errors import ConfigError
from mpcfl.net.codec import WordCodec
from mpcfl.secagg.base import (
    MAX_MODULUS_BITS,
    MIN_MODULUS_BITS,
    BackendFactory,
    SumSettings,
    centre,
)
from mpcfl.secagg.custody import MIN_KEY_BITS
from mpcfl.secagg.registry import load_backend

_STOCK = "crypten-stock"
_RING = "ring"
# A ciphertext of phe takes about 10 ms; statistics come from their many bytes. Where values
# share one, so many values fill some twenty of 2048 bits.
_DIM, _PHE_DIM, _PACKED_DIM = 4096, 32, 1024
_MIN_DIM = 16
# 2^8 coalitions, each attacked in thousands of ways.
_MAX_PARTIES = 8


@dataclass(frozen=True, slots=True)
class MaskProbe:
    """What the backend is run with.

    Attributes:
        n_parties: parties that bring levels, 2 to 8; coalitions need 3.
        dim: length of the vectors; None takes 4096, or 1024 for `paillier` and 32 for `phe`.
        rounds: sums per session with the same levels, at least 2.
        modulus_bits: b.
        key_bits: of a Paillier modulus, where there is one.
        custody: of a Paillier key, where there is one.
        threshold: key shares that decrypt, with custody `threshold`; None means more than half.
        seeds: session secrets and mask seeds drawn; below 2^18 a 32-bit seed may stay unseen.
    """

    n_parties: int = 4
    dim: int | None = None
    rounds: int = 2
    modulus_bits: int = 32
    key_bits: int = MIN_KEY_BITS
    custody: Custody = Custody.HOLDER
    seeds: int = DEFAULT_SEEDS
    threshold: int | None = None


def audit_masks(
    backend: str, probe: MaskProbe | None = None, *, factory: BackendFactory | None = None
) -> AuditReport:
    """Run a backend and look for faults in its masks.

    Args:
        backend: its registered name.
        probe: what to run it with.
        factory: opens sessions in place of the registered one, for tests of the audit itself.

    Returns:
        The findings; ``report.passed`` is False if any check shows a fault.

    Raises:
        ConfigError: the probe is out of range.
        BackendUnavailable: no backend has that name, or a package that it needs is missing.
        MpcflError: the backend itself fails.
    """
    probe = _checked(MaskProbe() if probe is None else probe)
    subject = _subject(backend, probe, factory)
    settings = subject.settings
    levels = [uniform_levels(settings.dim, probe.modulus_bits) for _ in range(probe.n_parties)]
    sums = [tuple(levels)] * probe.rounds + [flat_levels(settings.dim, probe.n_parties)]
    ahead = replace(subject, settings=replace(settings, precompute=True))
    sessions = [observe(one, sums) for one in (subject, ahead)]
    # Two parties have a threshold of their own: both.
    pair = replace(subject, settings=replace(settings, threshold=None))
    findings, notes = _check_all(
        subject, probe, sessions, observe(pair, [flat_levels(settings.dim, 2)])
    )
    run_with = asdict(probe) | {"backend": backend, "dim": settings.dim}
    run_with["custody"] = probe.custody.value
    return AuditReport(f"the masks of backend {backend}", tuple(findings), run_with, tuple(notes))


def _subject(backend: str, probe: MaskProbe, factory: BackendFactory | None) -> Subject:
    dim = probe.dim
    if dim is None:
        dim = {"phe": _PHE_DIM, "paillier": _PACKED_DIM}.get(backend, _DIM)
    settings = SumSettings(
        *(dim, probe.modulus_bits, probe.key_bits, probe.custody),
        run_id="audit-masks",
        threshold=probe.threshold,
    )
    return Subject(
        name=backend,
        factory=load_backend(backend) if factory is None else factory,
        settings=settings,
        read_pads=crypten_stock_pads if backend == _STOCK else None,
        inspect=_inspector(backend, probe.custody),
        codec=WordCodec(probe.modulus_bits) if backend == _RING else None,
    )


def _inspector(backend: str, custody: Custody) -> Inspector | None:
    if backend not in PAILLIER_BACKENDS:
        return None
    return take_share if custody is Custody.THRESHOLD else decrypt_all_received


def _check_all(
    subject: Subject, probe: MaskProbe, sessions: list[Observation], pair: Observation
) -> tuple[list[Finding], list[str]]:
    random_sums = range(probe.rounds)
    flat = probe.rounds
    findings = [
        _check_sums([*sessions, pair]),
        check_uniform("uniform-over-the-ring", sessions, flat),
        check_uniform("uniform-between-two", [pair], 0),
        check_reuse(sessions, random_sums),
        check_repeats(sessions),
        check_cleartext(sessions, random_sums),
    ]
    notes = []
    if any(session.inner for session in sessions):
        findings.append(check_repeats(sessions, inner=True))
    if correlation_has_power(subject.settings.dim):
        findings.append(check_correlation(sessions[0], random_sums))
    else:
        notes.append("no-correlation: the vectors are too short for this check to find anything")
    for more, why_not in (_check_keys(sessions[0], probe), check_seeds(subject, probe.seeds)):
        findings += more
        notes += why_not
    if subject.name == _STOCK:
        findings.append(check_generator_seed())
    return findings, notes


def _check_sums(sessions: Sequence[Observation]) -> Finding:
    """Check that every opened sum is the sum of its inputs, centred mod 2^b."""
    sums = [(session, number) for session in sessions for number in range(len(session.inputs))]
    wrong = sum(
        not np.array_equal(
            session.totals[number],
            centre(np.sum(np.stack(session.inputs[number]), axis=0), session.settings.modulus_bits),
        )
        for session, number in sums
    )
    detail = f"{wrong} of {len(sums)} opened sums differ from the sum of their inputs; none may"
    return Finding("sums-are-right", wrong == 0, detail, {"sums": len(sums), "wrong": wrong})


def _check_keys(session: Observation, probe: MaskProbe) -> tuple[list[Finding], list[str]]:
    findings, notes = [], []
    if session.keys:
        findings += [check_key_lengths(session), check_keys(session, 0)]
    if session.inspected and probe.custody is Custody.THRESHOLD:
        findings.append(check_key_shares(session))
        notes.append("coalitions: rank 0, which deals the key shares, was taken to forget the rest")
    elif session.inspected:
        findings.append(check_key_owners(session))
        notes.append("coalitions: the key's owner with a rank on a ciphertext's way was not tried")
    elif session.inner:
        notes.append("coalitions: everything goes under sealed channels, not under masks")
    elif probe.n_parties < 3:
        notes.append("coalitions: with two parties each learns the other's input from the sum")
    elif not has_pads(session):
        notes.append("coalitions: this backend derives no mask key, so only vectors were combined")
    if not session.inner and probe.n_parties >= 3:
        findings.append(check_coalitions(session, 0))
    return findings, notes


def _checked(probe: MaskProbe) -> MaskProbe:
    ranges = (
        ("n_parties", probe.n_parties, 2, _MAX_PARTIES),
        ("dim", _DIM if probe.dim is None else probe.dim, _MIN_DIM, 1 << 20),
        ("rounds", probe.rounds, 2, 16),
        ("modulus_bits", probe.modulus_bits, MIN_MODULUS_BITS, MAX_MODULUS_BITS),
        ("seeds", probe.seeds, 2, 1 << 24),
    )
    for name, value, low, high in ranges:
        if not low <= value <= high:
            raise ConfigError(f"{name} is {value}; the audit of masks takes {low} to {high}")
    return probe
