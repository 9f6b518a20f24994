"""A round of a language model's size keeps to its memory: no stage copies what it need not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from jobs import WarmServer, left_behind, run_job

pytestmark = pytest.mark.mpi

PEAK_RANK = Path(__file__).parent / "peak_rank.py"
N_PARTIES = 4
# As many as a BERT of 6 layers and 384 features has, half of them in its largest parameter.
DIM = 22_713_986
VECTOR_BYTES = 8 * DIM
ALLOWED_BYTES = 3 * VECTOR_BYTES + 300_000_000
# In vectors of float64: masks, noise, and sum made ahead or kept, and one record's row. One copy of
# a vector more, and half of one for a parameter on its way, is what a stage may not take.
EXPECTED_VECTORS = {"ring": 2.5, "crypten": 3.0}
SPARE_BYTES = 120_000_000

TASK = f"""
import torch
from torch import nn

SIZES = [{DIM // 2}, *[{DIM // 16}] * 7]
SIZES.append({DIM} - sum(SIZES))


class Wide(nn.Module):
    def __init__(self):
        super().__init__()
        self.parts = nn.ParameterList(nn.Parameter(torch.full((size,), 0.01)) for size in SIZES)

    def forward(self, inputs):
        return inputs * sum((part * part).sum() for part in self.parts)


class WideTask:
    def model(self):
        return Wide()

    def party_data(self, party, n_parties):
        return torch.tensor([[0.5], [0.25 + party]]), torch.zeros(2, 1)

    def test_data(self):
        return torch.ones(1, 1), torch.zeros(1, 1)

    def loss(self, outputs, targets):
        return (outputs - targets).mean()
"""

JOB = f"""
task = "wide_task:WideTask"

[parties]
count = {N_PARTIES}

[privacy]
unit = "record"
epsilon = 8.0
sample_rate = 1.0
records = {2 * N_PARTIES}

[training]
rounds = 1

[aggregation]
backend = "BACKEND"
modulus_bits = 32
"""


@pytest.mark.parametrize("backend", ["ring", "crypten"])
def test_no_rank_needs_more_than_three_vectors_and_300_mb(
    backend: str, warm: WarmServer, tmp_path: Path
) -> None:
    (tmp_path / "wide_task.py").write_text(TASK)
    (tmp_path / "job.toml").write_text(JOB.replace("BACKEND", backend))
    line = [PEAK_RANK, tmp_path, "job.toml", "--out", "out"]
    ended = run_job(warm, N_PARTIES, line, tmp_path, deadline_s=240)
    assert ended.code == 0, ended.stdout + ended.stderr
    assert left_behind(warm) == []
    sizes = [json.loads((tmp_path / f"peak-{n}.json").read_text()) for n in range(N_PARTIES)]
    needed = [size["peak"] - size["loaded"] for size in sizes]
    assert max(needed) <= ALLOWED_BYTES
    assert max(needed) <= EXPECTED_VECTORS[backend] * VECTOR_BYTES + SPARE_BYTES, needed
    # A rank that had trained nothing would need less than this.
    assert min(needed) >= 1.5 * VECTOR_BYTES
