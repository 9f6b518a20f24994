"""The audit of masks passes the healthy backend and finds each fault that a backend can have.

Every statistical check has a false-positive rate of 1e-9 by construction. Power against the
faults here: each rejects by a factor of two or more of its bound, except repeated seeds,
where none of the expected 128 (16 bits, 2^12 draws) or 32 (32 bits, 2^19 draws) repetitions
comes with a probability below 2e-14.
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mpcfl.audit.masks import MaskProbe, audit_masks
from mpcfl.audit.observe import Subject, observe
from mpcfl.audit.seeds import check_seeds
from mpcfl.audit.tap import Message, Stage
from mpcfl.audit.verdict import AuditReport, Finding
from mpcfl.config import Custody
from mpcfl.errors import BackendUnavailable, ConfigError
from mpcfl.hazmat.bits import SystemBits
from mpcfl.net.channel import PairSecrets, SealedTransport
from mpcfl.secagg.base import SumSettings
from mpcfl.secagg.crypten_sum import open_crypten_sum
from mpcfl.secagg.plain_sum import open_plain_sum

# The tests are imported without a package, so that a plain import does not find the faults.
_spec = importlib.util.spec_from_file_location("faults", Path(__file__).with_name("conftest.py"))
faults = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(faults)

pytestmark = pytest.mark.stat
QUICK = MaskProbe(dim=1024, seeds=1 << 12)
WITHOUT_SEEDS = MaskProbe(dim=512, n_parties=3, seeds=2)
CHECKS = {
    "uniform-over-the-ring",
    "uniform-between-two",
    "mask-reuse",
    "mask-repeats",
    "nothing-in-the-clear",
    "no-correlation",
    "mask-keys",
    "key-for-every-pair",
    "session-secrets",
    "mask-seeds",
}
NEEDS_THREE = {"no-coalition-strips-a-mask"}


def failed(report):
    return {finding.check for finding in report.findings if not finding.passed}


def audit_faulty(factory, probe=QUICK):
    return failed(audit_masks("crypten", probe, factory=factory))


@pytest.mark.parametrize(
    "probe",
    [
        QUICK,
        MaskProbe(n_parties=3, dim=512, modulus_bits=16, seeds=256),
        MaskProbe(n_parties=5, dim=256, modulus_bits=64, rounds=3, seeds=256),
        MaskProbe(n_parties=2, dim=256, modulus_bits=8, seeds=256),
    ],
    ids=["four", "three", "five", "two"],
)
def test_crypten_shows_no_fault(probe):
    report = audit_masks("crypten", probe)
    assert report.passed, report.lines()
    checks = [finding.check for finding in report.findings]
    assert sorted(checks) == sorted(CHECKS | (NEEDS_THREE if probe.n_parties > 2 else set()))


def test_plain_fails_every_check_that_looks_at_what_it_sends():
    report = audit_masks("plain", MaskProbe(dim=512))
    assert not report.passed
    assert failed(report) == {
        "uniform-over-the-ring",
        "uniform-between-two",
        "mask-reuse",
        "mask-repeats",
        "nothing-in-the-clear",
        "no-correlation",
        "no-coalition-strips-a-mask",
    }


@pytest.mark.parametrize("n_parties", [3, 4])
def test_crypten_stock_fails_by_its_neighbors_and_its_generator(n_parties):
    report = audit_masks("crypten-stock", MaskProbe(dim=512, n_parties=n_parties))
    expected = {"generator-seed"}
    if n_parties > 3:  # with three parties two neighbors are all others
        expected.add("no-coalition-strips-a-mask")
    assert failed(report) == expected
    attack = next(f for f in report.findings if f.check == "no-coalition-strips-a-mask")
    assert attack.figures["control_won"] == 1
    # Each of four parties is read by its two neighbors, and by no other two.
    assert attack.figures["won"] == (4 if n_parties == 4 else 0)


PHE = MaskProbe(n_parties=3, dim=16, key_bits=512, seeds=256)


@pytest.mark.parametrize("custody", Custody)
def test_phe_shows_no_fault(small_keys, custody):
    report = audit_masks("phe", replace(PHE, custody=custody))
    assert report.passed, report.lines()
    checks = {finding.check for finding in report.findings}
    assert {"ciphertext-repeats", "key-owner-reads-sums-only"} <= checks


def test_a_randomizer_used_for_all_ciphertexts_is_found(small_keys):
    report = audit_masks("phe", PHE, factory=faults.open_phe_with_one_randomizer)
    assert failed(report) == {"ciphertext-repeats"}


def test_a_single_ciphertext_that_reaches_the_key_owner_is_found(small_keys):
    report = audit_masks("phe", PHE, factory=faults.open_phe_with_a_detour)
    assert "key-owner-reads-sums-only" in failed(report)


def test_a_mask_whose_top_bit_is_zero_is_found():
    found = audit_faulty(faults.opener(faults.TopBitZero))
    assert {"uniform-between-two", "uniform-over-the-ring"} <= found


def test_one_biased_bit_of_a_mask_is_found():
    assert "uniform-between-two" in audit_faulty(faults.opener(faults.OneBitBiased))


def test_bits_of_a_mask_that_are_fair_but_not_independent_are_found():
    assert "uniform-between-two" in audit_faulty(faults.opener(faults.TwinBits))


def test_a_mask_used_for_every_sum_of_a_session_is_found():
    found = audit_faulty(faults.opener(faults.SameMaskInEverySum))
    assert {"mask-reuse", "mask-repeats", "mask-keys", "mask-seeds"} <= found


def test_masks_used_again_in_another_session_are_found():
    found = audit_faulty(faults.open_with_the_same_secrets, MaskProbe(dim=512, seeds=16))
    assert {"mask-reuse", "mask-repeats"} <= found


def test_a_block_that_repeats_within_a_mask_is_found():
    assert "mask-repeats" in audit_faulty(faults.opener(faults.RepeatedBlock))


def test_masks_from_two_neighbors_only_are_found_and_taken_off():
    report = audit_masks("crypten", QUICK, factory=faults.opener(faults.TwoNeighborsOnly))
    assert failed(report) == {"key-for-every-pair", "no-coalition-strips-a-mask"}
    attack = next(f for f in report.findings if f.check == "no-coalition-strips-a-mask")
    assert attack.figures["won"] == 4


def test_short_session_secrets_are_found():
    assert audit_faulty(faults.open_with_short_secrets) >= {"session-secrets"}


def test_short_mask_seeds_are_found():
    assert audit_faulty(faults.opener(faults.ShortMaskSeeds)) == {"mask-seeds"}


def test_seeds_of_32_bits_are_found_by_enough_draws():
    settings = SumSettings(16, 32)
    subject = Subject("hashed", faults.open_with_hashed_32_bit_seeds, settings)
    findings, _ = check_seeds(subject, 1 << 19)
    assert not findings[0].passed
    assert findings[0].figures["repeated"] > 0
    assert findings[0].figures["biased_bits"] == 0


def low_byte(levels):
    return levels.astype("<i8").tobytes()[::8]


TELLERS = {
    "int64": lambda levels: levels.astype("<i8").tobytes(),
    "int32-big-endian": lambda levels: levels.astype(">i4").tobytes(),
    "offset-binary": lambda levels: (levels + (1 << 31)).astype("<u4").tobytes(),
    "float32": lambda levels: levels.astype("<f4").tobytes(),
    "float64-fraction": lambda levels: (levels / 2.0**31).astype(">f8").tobytes(),
    "text": lambda levels: b"v=" + ",".join(map(str, levels.tolist())).encode(),
    "after-a-header": lambda levels: b"odd" + levels.astype("<i8").tobytes(),
    "last-quarter": lambda levels: levels[-128:].astype("<i8").tobytes(),
}


@pytest.mark.parametrize("tell", TELLERS.values(), ids=TELLERS.keys())
def test_levels_in_a_plain_encoding_are_found(tell):
    def factory(transport, settings):
        return faults.opener(lambda *given: faults.Telling(*given, tell))(transport, settings)

    assert "nothing-in-the-clear" in audit_faulty(factory, WITHOUT_SEEDS)


PARTIAL = {
    "scaled": lambda levels: (levels / 1234.5).astype("<f8").tobytes(),
    "low-byte": low_byte,
    "delayed": lambda levels: os_bytes(24) + (levels * 3).astype("<i8").tobytes(),
}


def os_bytes(count):
    return SystemBits().words(count // 8).tobytes()


@pytest.mark.parametrize("tell", PARTIAL.values(), ids=PARTIAL.keys())
def test_levels_that_show_in_part_or_scaled_are_found(tell):
    def factory(transport, settings):
        return faults.opener(lambda *given: faults.Telling(*given, tell))(transport, settings)

    assert "no-correlation" in audit_faulty(factory, WITHOUT_SEEDS)


def test_watching_ends_with_the_session():
    before = PairSecrets.key, SealedTransport.exchange
    subject = Subject("crypten", open_crypten_sum, SumSettings(16, 32))
    observation = observe(subject, [(np.zeros(16, np.int64),) * 2])
    assert (PairSecrets.key, SealedTransport.exchange) == before
    assert {key.rank for key in observation.keys} == {0, 1}
    assert repr(observation.keys[0].key) not in repr(observation)


def test_tap_notes_who_sent_what_to_whom_and_when():
    subject = Subject("plain", open_plain_sum, SumSettings(16, 32))
    inputs = tuple(np.arange(16, dtype=np.int64) + 100 * rank for rank in range(3))
    wire = observe(subject, [inputs]).wire
    assert sorted(wire, key=lambda message: message.sender) == [
        Message(rank, others, Stage.AGGREGATE, 0, inputs[rank].tobytes())
        for rank, others in enumerate([(1, 2), (0, 2), (0, 1)])
    ]


@pytest.mark.parametrize(
    "probe",
    [MaskProbe(n_parties=1), MaskProbe(n_parties=9), MaskProbe(rounds=1), MaskProbe(dim=8)],
)
def test_probes_out_of_range_are_refused(probe):
    with pytest.raises(ConfigError, match="the audit of masks takes"):
        audit_masks("crypten", probe)


def test_unknown_backend_is_refused():
    with pytest.raises(BackendUnavailable):
        audit_masks("nothing")


def test_report_says_what_it_is_and_is_json():
    findings = (Finding("a", True, "fine", {"x": 1.0}), Finding("b", False, "bad", {"y": np.inf}))
    report = AuditReport("masks", findings, {"dim": 3}, ("not looked at",))
    document = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert document["passed"] is False
    assert document["findings"][1]["figures"] == {"y": None}
    assert "can't prove" in document["caveat"]
    assert report.lines()[-1] == document["caveat"]
    assert "1 of 2 failed" in report.lines()[0]
    assert not AuditReport("nothing was checked", ()).passed
