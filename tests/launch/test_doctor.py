"""What `mpcfl doctor` says about the arithmetic of the paillier backend."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mpcfl.launch import doctor
from mpcfl.secagg import paillier_ops

CPU = "processor\t: 0\nflags\t\t: fpu avx512f {}\n"


@pytest.fixture
def cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Give the machine a CPU with one more flag."""

    def have(flag: str) -> None:
        file = tmp_path / "cpuinfo"
        file.write_text(CPU.format(flag))
        monkeypatch.setattr(doctor, "_CPU_FILE", file)

    return have


def test_a_kernel_in_use_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paillier_ops, "kernel_name", lambda: "avx512-ifma")
    finding = doctor._arithmetic()
    assert (finding.found, finding.good) == ("kernel avx512-ifma", True)


def test_a_cpu_that_could_use_the_kernel_gets_a_remedy(monkeypatch, cpu) -> None:
    monkeypatch.setattr(paillier_ops, "kernel_name", lambda: "gmpy2")
    cpu("avx512ifma")
    finding = doctor._arithmetic()
    assert (finding.good, finding.required) == (False, False)
    assert "not built" in finding.found
    assert "C compiler" in finding.remedy


@pytest.mark.parametrize("flag", ["avx2", "avx512ifma2"])
def test_a_cpu_without_the_instructions_needs_nothing(monkeypatch, cpu, flag: str) -> None:
    monkeypatch.setattr(paillier_ops, "kernel_name", lambda: "gmpy2")
    cpu(flag)
    finding = doctor._arithmetic()
    assert (finding.good, finding.remedy) == (True, "")
    assert "no AVX-512 IFMA" in finding.found


def test_a_machine_that_tells_nothing_of_its_cpu_needs_nothing(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(paillier_ops, "kernel_name", lambda: "gmpy2")
    monkeypatch.setattr(doctor, "_CPU_FILE", tmp_path / "absent")
    assert doctor._arithmetic().good


def test_without_gmpy2_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("mpcfl.secagg.paillier_ops", "mpcfl.hazmat.modular"):
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "gmpy2", None)
    finding = doctor._arithmetic()
    assert (finding.found, finding.good, finding.required) == ("no gmpy2", False, False)
    assert finding.remedy == 'pip install "mpcfl[paillier]"'
