"""Numpy arrays and torch tensors go in and come out as what they are, without a copy."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

import mpcfl
from mpcfl.errors import BackendUnavailable
from mpcfl.net.memory import run_parties
from mpcfl.secagg.vectors import as_array, as_given


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("backend", ["ring", "crypten", "plain"])
def test_tensors_are_summed_into_tensors(backend, dtype):
    def party(transport):
        levels = torch.arange(-3, 4, dtype=dtype) * (transport.rank + 1)
        total = mpcfl.secure_sum(levels, comm=transport, backend=backend)
        with mpcfl.open_secure_sum(comm=transport, backend=backend, dim=4) as session:
            # Every other one: not contiguous.
            again = session.sum(levels[::2])
        return levels, total, again

    for rank, (levels, total, again) in enumerate(run_parties(3, party)):
        assert total.dtype == again.dtype == dtype
        assert total.tolist() == [6 * x for x in range(-3, 4)]
        assert again.tolist() == [6 * x for x in range(-3, 4, 2)]
        assert levels.tolist() == [(rank + 1) * x for x in range(-3, 4)], "the input was changed"


def test_neither_is_copied():
    array, tensor = np.arange(5), torch.arange(5)
    assert as_array(array) is array
    assert np.shares_memory(as_array(tensor), tensor.numpy())
    assert as_given(array, levels=np.zeros(1)) is array
    assert as_given(array, levels=tensor).data_ptr() == array.ctypes.data


@pytest.mark.parametrize("levels", [[1, 2], None, torch.eye(2, dtype=torch.int64).to_sparse()])
def test_anything_else_is_refused(levels):
    with pytest.raises(TypeError, match="levels must be"):
        as_array(levels)


def test_arrays_are_summed_without_torch():
    program = (
        "import sys, numpy as np, mpcfl\n"
        "from mpcfl.net.memory import run_parties\n"
        "run_parties(2, lambda t: mpcfl.secure_sum(np.ones(3, np.int32), comm=t, backend='ring'))\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_only_crypten_hands_a_sum_on():
    def party(transport):
        with (
            mpcfl.open_secure_sum(comm=transport, backend="ring", dim=2) as session,
            pytest.raises(BackendUnavailable, match="only backend"),
        ):
            session.share_sum(np.zeros(2, np.int64), None)

    run_parties(2, party)
