"""The audit of masks passes the healthy backend and finds each fault that a backend can have.

Every statistical check has a false-positive rate of 1e-9 by construction. Power against the
faults here: each rejects by a factor of two or more of its bound, except repeated seeds,
where none of the expected 128 (16 bits, 2^12 draws) or 32 (32 bits, 2^19 draws) repetitions
comes with a probability below 2e-14.
"""

from __future__ import annotations

import importlib.util
import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import gmpy2
import numpy as np
import pytest

from mpcfl.audit.key_owner import is_read, slot_words
from mpcfl.audit.masks import MaskProbe, audit_masks
from mpcfl.audit.observe import Subject, observe
from mpcfl.audit.seeds import check_seeds
from mpcfl.audit.tap import Message, Stage, Via
from mpcfl.audit.verdict import AuditReport, Finding
from mpcfl.config import Custody
from mpcfl.errors import BackendUnavailable, ConfigError
from mpcfl.hazmat.bits import SystemBits
from mpcfl.hazmat.packing import SlotLayout, pack
from mpcfl.hazmat.primes import draw_below
from mpcfl.net.channel import PairSecrets, SealedTransport
from mpcfl.secagg.base import SumSettings, to_offset_binary
from mpcfl.secagg.crypten_sum import open_crypten_sum
from mpcfl.secagg.masks import MaskPreparation
from mpcfl.secagg.plain_sum import open_plain_sum

# The tests are imported without a package, so that a plain import does not find the faults.
_spec = importlib.util.spec_from_file_location("faults", Path(__file__).with_name("conftest.py"))
faults = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(faults)

pytestmark = pytest.mark.stat
QUICK = MaskProbe(dim=1024, seeds=1 << 12)
FEW_SEEDS = replace(QUICK, seeds=2)
WITHOUT_SEEDS = MaskProbe(dim=512, n_parties=3, seeds=2)
CHECKS = {
    "sums-are-right",
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


def one_or_another_number(bits, bound):
    """Draw a base as ever, and all coefficients of the dealer's polynomial as zero."""
    return draw_below(bits, bound) if gmpy2.is_square(bound) else 0


def audit_faulty(subject, factory, probe=FEW_SEEDS):
    backend, bits = subject
    return failed(audit_masks(backend, replace(probe, modulus_bits=bits), factory=factory))


@pytest.fixture(params=[("crypten", 32), ("ring", 20)], ids=["crypten", "ring"])
def subject(request):
    """A masked backend and the bits of its ring; words of 20 bits are packed on the wire."""
    return request.param


PROBES = {
    "four": QUICK,
    "three": MaskProbe(n_parties=3, dim=512, modulus_bits=16, seeds=256),
    "five": MaskProbe(n_parties=5, dim=256, modulus_bits=64, rounds=3, seeds=256),
    "two": MaskProbe(n_parties=2, dim=256, modulus_bits=8, seeds=256),
    "odd": MaskProbe(n_parties=3, dim=203, modulus_bits=21, seeds=256),
}


@pytest.mark.parametrize("backend", ["crypten", "ring"])
@pytest.mark.parametrize("probe", PROBES.values(), ids=PROBES)
def test_masked_backends_show_no_fault(backend, probe):
    report = audit_masks(backend, probe)
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


KEYED = MaskProbe(n_parties=3, dim=16, key_bits=512, seeds=256)
OWNED = (Custody.HOLDER, Custody.CLIENTS)


@pytest.mark.parametrize("custody", OWNED)
@pytest.mark.parametrize("backend", ["phe", "paillier"])
def test_owners_of_a_key_show_no_fault(small_keys, backend, custody):
    report = audit_masks(backend, replace(KEYED, custody=custody))
    assert report.passed, report.lines()
    checks = {finding.check for finding in report.findings}
    assert {"ciphertext-repeats", "key-owner-reads-sums-only"} <= checks


@pytest.mark.parametrize("custody", Custody)
def test_packed_values_in_several_chunks_show_no_fault(small_keys, monkeypatch, custody):
    """Twenty bits: sums are packed where they are told, and slots are no whole bytes."""
    monkeypatch.setattr("mpcfl.secagg.paillier_ops.chunk_ciphertexts", lambda key_bits: 4)
    probe = MaskProbe(n_parties=4, dim=150, modulus_bits=20, key_bits=512, seeds=2, custody=custody)
    report = audit_masks("paillier", probe)
    assert report.passed, report.lines()


@pytest.mark.parametrize(("n_parties", "threshold"), [(3, None), (4, 2), (2, None)])
def test_too_few_key_shares_show_no_fault(small_keys, n_parties, threshold):
    probe = replace(
        KEYED, n_parties=n_parties, custody=Custody.THRESHOLD, threshold=threshold, seeds=2
    )
    report = audit_masks("paillier", probe)
    assert report.passed, report.lines()
    finding = next(f for f in report.findings if f.check == "too-few-key-shares-open-nothing")
    # By default two of three decrypt, and both of two: single shares are tried.
    assert finding.figures == {"tried": n_parties, "opened": 0, "control_won": 1}
    assert "key-owner-reads-sums-only" not in {f.check for f in report.findings}


def test_key_shares_that_are_the_whole_key_are_found(small_keys, monkeypatch):
    """The dealer's polynomial is a constant, the key itself."""
    monkeypatch.setattr("mpcfl.hazmat.threshold_key.draw_below", one_or_another_number)
    probe = replace(KEYED, custody=Custody.THRESHOLD, seeds=2)
    report = audit_masks("paillier", probe)
    # A partial decryption by the whole key is a plain power of 1 + n: equal for equal sums.
    assert failed(report) == {"too-few-key-shares-open-nothing", "ciphertext-repeats"}
    finding = next(f for f in report.findings if f.check == "too-few-key-shares-open-nothing")
    assert finding.figures == {"tried": 3, "opened": 3, "control_won": 1}


def test_pieces_of_an_input_count_from_64_bits_on():
    levels = np.arange(100, 120, dtype=np.int64)
    words = to_offset_binary(levels, 8)
    assert is_read([words[3:7], words[12:16]], levels, 8)
    assert not is_read([words[3:7], words[12:15]], levels, 8)
    assert not is_read([words[:16]], levels - 50, 8)
    # What is left of a plaintext of zeros is in every vector, and no piece of it.
    assert not is_read([words[:0]] * 9, levels, 8)


def test_slots_are_read_from_the_lowest_up_also_where_they_are_wider_than_a_word():
    layout = SlotLayout(modulus_bits=64, n_inputs=4, plaintext_bits=511)
    levels = np.arange(-3, 9, dtype=np.int64)
    ops = SimpleNamespace(layout=layout)
    assert slot_words(ops, pack(levels, layout)).tolist() == to_offset_binary(levels, 64).tolist()
    assert slot_words(SimpleNamespace(), [5, 1 << 65, 0]).tolist() == [5]


@pytest.mark.parametrize("backend", ["phe", "paillier"])
def test_a_randomizer_used_for_all_ciphertexts_is_found(small_keys, backend):
    report = audit_masks(backend, KEYED, factory=faults.ONE_RANDOMIZER[backend])
    assert failed(report) == {"ciphertext-repeats"}


@pytest.mark.parametrize("custody", OWNED)
@pytest.mark.parametrize("backend", ["phe", "paillier"])
def test_a_single_ciphertext_that_reaches_a_key_owner_is_found(small_keys, backend, custody):
    probe = replace(KEYED, custody=custody, seeds=2)
    report = audit_masks(backend, probe, factory=faults.DETOURS[backend])
    assert "key-owner-reads-sums-only" in failed(report)
    finding = next(f for f in report.findings if f.check == "key-owner-reads-sums-only")
    # Rank 1's, in each sum of the first session.
    assert finding.figures["inputs_read"] == KEYED.rounds + 1


NOT_UNIFORM = (
    faults.TopBitZero,
    faults.OneBitBiased,
    faults.TwinBits,
    faults.TwinHalves,
    faults.LowBitsOnly,
)


@pytest.mark.parametrize("kind", NOT_UNIFORM)
def test_masks_that_are_not_uniform_are_found(subject, kind):
    found = audit_faulty(subject, faults.opener(kind, subject[0]))
    assert "uniform-between-two" in found
    assert "sums-are-right" not in found
    if kind in (faults.TopBitZero, faults.LowBitsOnly):
        assert "uniform-over-the-ring" in found, "it shows under three masks too"


def test_low_bits_only_leave_the_upper_half_in_the_clear(subject):
    found = audit_faulty(subject, faults.opener(faults.LowBitsOnly, subject[0]))
    assert {"uniform-over-the-ring", "mask-reuse", "no-correlation"} <= found


@pytest.mark.parametrize("number", ["mask", "sum"])
def test_a_mask_used_for_every_sum_of_a_session_is_found(subject, number):
    factory = faults.opener(faults.SameMaskInEverySum, subject[0])
    if number == "sum":
        factory = faults.teller(None, subject[0], faults.NumberedAlike)
    found = audit_faulty(subject, factory, replace(QUICK, seeds=16))
    assert {"mask-reuse", "mask-repeats", "mask-keys", "mask-seeds"} <= found


def test_masks_that_are_made_ahead_and_used_twice_are_found(subject, monkeypatch):
    take, made = MaskPreparation.take, {}

    def take_the_first(self, sum_id):
        masks = take(self, sum_id)
        # Copies, for what is masked may come to lie over the masks.
        first = made.setdefault(self, None if masks is None else masks.copy())
        return None if first is None else first.copy()

    monkeypatch.setattr(MaskPreparation, "take", take_the_first)
    backend, bits = subject
    report = audit_masks(backend, replace(FEW_SEEDS, modulus_bits=bits))
    assert failed(report) == {"mask-reuse", "mask-repeats"}


def test_masks_used_again_in_another_session_are_found(subject):
    factory = faults.open_from(lambda rank: bytes([rank]), subject[0])
    found = audit_faulty(subject, factory, MaskProbe(dim=512, seeds=16))
    assert {"mask-reuse", "mask-repeats"} <= found


def test_a_block_that_repeats_within_a_mask_is_found(subject):
    found = audit_faulty(subject, faults.opener(faults.RepeatedBlock, subject[0]))
    assert "mask-repeats" in found


def test_masks_from_two_neighbors_only_are_found_and_taken_off(subject):
    backend, bits = subject
    factory = faults.opener(faults.TwoNeighborsOnly, backend)
    report = audit_masks(backend, replace(FEW_SEEDS, modulus_bits=bits), factory=factory)
    assert failed(report) == {"key-for-every-pair", "no-coalition-strips-a-mask"}
    attack = next(f for f in report.findings if f.check == "no-coalition-strips-a-mask")
    assert attack.figures["won"] == 4


def test_one_pair_without_a_mask_is_found(subject):
    # All but one of four read a party whose mask with the one left out is missing.
    found = audit_faulty(subject, faults.opener(faults.OnePairWithout, subject[0]))
    assert {"key-for-every-pair", "no-coalition-strips-a-mask"} <= found


def test_masks_that_do_not_cancel_are_found(subject):
    found = audit_faulty(subject, faults.opener(faults.SameSign, subject[0]))
    assert "sums-are-right" in found


def test_short_session_secrets_are_found(subject):
    factory = faults.open_from(lambda _: os.urandom(2), subject[0])
    assert audit_faulty(subject, factory, QUICK) == {"session-secrets"}


def test_short_mask_seeds_are_found(subject):
    factory = faults.opener(faults.ShortMaskSeeds, subject[0])
    found = audit_faulty(subject, factory, QUICK)
    # The auditor can't follow masks that are stretched from a part of a key, and says so.
    assert found == {"mask-seeds", "no-coalition-strips-a-mask"}


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
    found = audit_faulty(("crypten", 32), faults.teller(tell), WITHOUT_SEEDS)
    assert "nothing-in-the-clear" in found


PARTIAL = {
    "scaled": lambda levels: (levels / 1234.5).astype("<f8").tobytes(),
    "low-byte": low_byte,
    "delayed": lambda levels: os_bytes(24) + (levels * 3).astype("<i8").tobytes(),
}


def os_bytes(count):
    return SystemBits().words(count // 8).tobytes()


@pytest.mark.parametrize("tell", PARTIAL.values(), ids=PARTIAL.keys())
def test_levels_that_show_in_part_or_scaled_are_found(tell):
    assert "no-correlation" in audit_faulty(("crypten", 32), faults.teller(tell), WITHOUT_SEEDS)


def test_levels_that_are_packed_but_not_masked_are_found():
    """Twenty bits fit no machine word and no plain encoding of one."""
    found = audit_faulty(("ring", 20), faults.opener(faults.Bare, "ring"), WITHOUT_SEEDS)
    assert {"nothing-in-the-clear", "no-correlation", "uniform-over-the-ring"} <= found


def test_audit_looks_at_a_vector_in_one_message_of_mpi(monkeypatch):
    monkeypatch.setattr("mpcfl.net.reduction._TREE_RANKS", 2)
    monkeypatch.setattr("mpcfl.net.reduction._TREE_SLICE_BYTES", 1 << 20)
    probe = replace(WITHOUT_SEEDS, modulus_bits=20)
    assert audit_masks("ring", probe).passed
    bare = audit_masks("ring", probe, factory=faults.opener(faults.Bare, "ring"))
    assert "uniform-over-the-ring" in failed(bare)


def test_audit_joins_the_chunks_of_a_long_vector(monkeypatch):
    monkeypatch.setattr("mpcfl.net.reduction._CHUNK_BYTES", 256)
    monkeypatch.setattr("mpcfl.net.reduction._LEAST_SLICE_WORDS", 1)
    probe = MaskProbe(n_parties=4, dim=509, modulus_bits=20, seeds=2)
    report = audit_masks("ring", probe)
    assert report.passed, report.lines()
    near = faults.opener(faults.TwoNeighborsOnly, "ring")
    assert "no-coalition-strips-a-mask" in failed(audit_masks("ring", probe, factory=near))


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
    all_others = [(1, 2), (0, 2), (0, 1)]
    sent = sorted((m for m in wire if m.via is Via.SCATTER), key=lambda message: message.sender)
    assert sent == [
        Message(rank, others, Stage.AGGREGATE, 0, inputs[rank].tobytes(), Via.SCATTER)
        for rank, others in enumerate(all_others)
    ]
    # Each rank then tells its part of the sum: 8, 8 and no words.
    total = sum(inputs)
    gathered = {m.sender: m.payload for m in wire if m.via is Via.GATHER}
    assert gathered == {0: total[:8].tobytes(), 1: total[8:].tobytes(), 2: b""}
    assert len(wire) == 6


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
