"""Which arithmetic a process computes Paillier with, for the benchmarks that compare the two.

`mpcfl` takes its AVX-512 kernel wherever it was built and the processor has it, and has no switch
for jobs. A benchmark that wants figures of gmpy2 alone says so here, in its own process and
before it opens anything: `mpcfl.hazmat.modular` then finds a machine whose kernel takes no modulus.
"""

from __future__ import annotations

from mpcfl.errors import BackendUnavailable
from mpcfl.hazmat import modular


def leave_out_kernel() -> None:
    """Compute by gmpy2 alone from now on, in this process."""
    modular._KERNEL_BITS = 0


def has_kernel() -> bool:
    """Return whether the kernel computes by default here."""
    return modular.kernel_name() != "gmpy2"


def choose_arithmetic(kernel: bool) -> str:
    """Compute by the kernel, or by gmpy2 alone, and return the name of what computes.

    Raises:
        BackendUnavailable: the kernel is asked for and is not there.
    """
    if not kernel:
        leave_out_kernel()
    elif not has_kernel():
        raise BackendUnavailable(
            "the kernel was not built, or this processor has no AVX-512 IFMA; install a C compiler "
            "and mpcfl again, or leave the cells of the kernel out"
        )
    return modular.kernel_name()
