"""Batches modulo one odd number: equal to Python's own arithmetic, by the kernel and by gmpy2."""

from __future__ import annotations

import copy
import pickle  # noqa: TID251 - to see that it fails
import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, cycle, islice

import gmpy2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpcfl.errors import BackendUnavailable
from mpcfl.hazmat import modular
from mpcfl.hazmat.bits import raw_keyed_bits
from mpcfl.hazmat.modular import FixedBase, Modulus, kernel_name

WAYS = [
    pytest.param(False, id="gmpy2"),
    pytest.param(
        True,
        id="kernel",
        marks=pytest.mark.skipif(
            kernel_name() == "gmpy2", reason="the kernel is not built or this CPU lacks IFMA"
        ),
    ),
]
both_ways = pytest.mark.parametrize("kernel", WAYS)
# Around limbs of 52 bits less the two bits that stay free, and around words of 64 bits; one
# size for every number of rows (8, 4, 2, 1) that the last step of a product can have.
SIZES = [2, 3, 51, 52, 53, 63, 64, 65, 414, 415, 466, 467, 512, 518, 519, 570, 622, 674, 726]
SIZES += [778, 779, 832, 1024, 1025, 1536]
LARGE = [2048, 3072, 4096, 6144, 8192]
MERSENNE = (1 << 127) - 1


def numbers(purpose: int, bits: int) -> Iterator[int]:
    """Yield fixed pseudo-random numbers below 2^bits."""
    stream = raw_keyed_bits(purpose.to_bytes(32, "big"))
    while True:
        content = stream.words(-(-bits // 64)).tobytes()
        yield int.from_bytes(content, "little") >> (-bits % 64)


def moduli(bits: int) -> list[int]:
    """Return the smallest, the largest and another odd modulus of a size."""
    top = 1 << (bits - 1)
    return [top | 1, 2 * top - 1, next(numbers(1, bits)) | top | 1]


def operands(value: int, count: int) -> list[int]:
    """Return the ends of the range first and then numbers within."""
    inner = (number % value for number in numbers(2, value.bit_length() + 64))
    return list(islice(chain([value - 1, 0, 1, value // 2, value - 2], inner), count))


def product(left: Sequence[int], right: Sequence[int], value: int) -> list[int]:
    return [a * b % value for a, b in zip(left, right, strict=True)]


@both_ways
@pytest.mark.parametrize("bits", SIZES + LARGE)
def test_products_of_all_sizes(bits: int, kernel: bool) -> None:
    for value in moduli(bits):
        modulus = Modulus(value, kernel=kernel)
        assert modulus.uses_kernel is kernel
        left, right = operands(value, 9), operands(value, 9)[::-1]
        assert modulus.multiply(left, right) == product(left, right, value)
        assert modulus.multiply(left, left) == product(left, left, value)


@both_ways
@pytest.mark.parametrize("bits", SIZES)
def test_powers_of_all_sizes(bits: int, kernel: bool) -> None:
    """Squaring has code of its own, whose last step depends on the size as that of products."""
    for value in moduli(bits):
        modulus, bases = Modulus(value, kernel=kernel), operands(value, 9)
        exponent = next(numbers(3, 90)) | 1 << 89
        expected = [pow(base, exponent, value) for base in bases]
        assert modulus.power(bases, exponent) == expected
        assert modulus.power_secret(bases, exponent, 97) == expected


@both_ways
@pytest.mark.parametrize("bits", LARGE)
def test_powers_of_large_moduli(bits: int, kernel: bool) -> None:
    modulus, exponent = Modulus(moduli(bits)[2], kernel=kernel), next(numbers(3, 40))
    bases = operands(modulus.value, 3)
    expected = [pow(base, exponent, int(modulus.value)) for base in bases]
    assert modulus.power_secret(bases, exponent, 40) == expected


@both_ways
@pytest.mark.parametrize("bits", [1, 2, 8, 9, 24, 25, 80, 81, 240, 241, 300])
def test_exponents_of_all_sizes(bits: int, kernel: bool) -> None:
    """Window widths change with the size; zero, one and all ones are the ends of each."""
    modulus, bases = Modulus(MERSENNE, kernel=kernel), operands(MERSENNE, 3)
    for exponent in {0, 1, (1 << bits) - 1, 1 << (bits - 1), next(numbers(4, bits))}:
        expected = [pow(base, exponent, MERSENNE) for base in bases]
        assert modulus.power(bases, exponent) == expected
        assert modulus.power_secret(bases, exponent, bits) == expected
        assert modulus.power_secret(bases, exponent, bits + 70) == expected


@both_ways
def test_a_power_that_is_zero(kernel: bool) -> None:
    """Zero may come out as the modulus itself where no factor was zero."""
    root = moduli(230)[2]
    modulus = Modulus(root * root, kernel=kernel)
    assert modulus.multiply([root, root], [root, 3 * root]) == [0, 0]
    assert modulus.power([root, 5 * root], 2) == [0, 0]
    assert modulus.power_secret([root, 5 * root], 2, 9) == [0, 0]
    assert FixedBase(modulus, root, 20, 3).power([0, 1, 2, 1 << 19]) == [1, root, 0, 0]


@both_ways
@pytest.mark.parametrize("bits", [2, 3, 51, 64, 412, 413, 466, 518, 570, 622, 674, 1024, 2048])
def test_squares_as_moduli(bits: int, kernel: bool) -> None:
    """The kernel computes modulo the root there; multiples of the root are its special cases."""
    for root in moduli(bits):
        value = root * root
        modulus = Modulus(value, kernel=kernel)
        bases = [root, value - root, 2 * root + 1, *operands(value, 6)]
        exponent = next(numbers(3, 30)) | 1 << 29
        expected = [pow(base, exponent, value) for base in bases]
        assert modulus.power(bases, exponent) == expected
        assert modulus.power_secret(bases, 3, 30) == [pow(base, 3, value) for base in bases]
        assert modulus.multiply(bases, bases[::-1]) == product(bases, bases[::-1], value)


@pytest.mark.parametrize("writer", WAYS)
@pytest.mark.parametrize("reader", WAYS)
def test_fixed_base_modulo_a_square(writer: bool, reader: bool) -> None:
    root = moduli(521)[2]
    value, exponents = root * root, [0, 1, (1 << 40) - 1, *islice(numbers(7, 40), 6)]
    for base in (root, root + 1, value - 1, next(numbers(8, 1000))):
        content = FixedBase(Modulus(value, kernel=writer), base, 40, 4).to_bytes()
        table = FixedBase.from_bytes(Modulus(value, kernel=reader), base, 40, 4, content)
        assert table.power(exponents) == [pow(base, e, value) for e in exponents]
        assert table.entry(3, 5) == pow(base, 5 << 12, value)
        assert table.to_bytes() == content


@both_ways
def test_a_secret_exponent_as_long_as_the_modulus(kernel: bool) -> None:
    value = moduli(1024)[2]
    modulus, bases = Modulus(value, kernel=kernel), operands(value, 8)
    for exponent in ((1 << 1024) - 1, next(numbers(5, 1024))):
        expected = [pow(base, exponent, value) for base in bases]
        assert modulus.power_secret(bases, exponent, 1024) == expected


@both_ways
@pytest.mark.parametrize("count", [0, 1, 2, 7, 8, 9, 17])
def test_batches_of_all_sizes(count: int, kernel: bool) -> None:
    value = moduli(521)[2]
    modulus, bases = Modulus(value, kernel=kernel), operands(value, count)
    exponents = list(islice(cycle([0, 1, (1 << 130) - 1, *islice(numbers(6, 130), 5)]), count))
    powers = [pow(base, e, value) for base, e in zip(bases, exponents, strict=True)]
    assert modulus.multiply(bases, bases[::-1]) == product(bases, bases[::-1], value)
    assert modulus.power(bases, 65537) == [pow(base, 65537, value) for base in bases]
    assert modulus.power_secret(bases, 5, 3) == [pow(base, 5, value) for base in bases]
    assert modulus.powers(bases, exponents) == powers
    table = FixedBase(modulus, 7, 130, 4)
    assert table.power(exponents) == [pow(7, exponent, value) for exponent in exponents]


@both_ways
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_any_modulus_and_any_numbers(kernel: bool, data: st.DataObject) -> None:
    value = data.draw(st.integers(1, 1 << 700)) * 2 + 1
    count = data.draw(st.integers(2, 10))
    batch = st.lists(st.integers(-(1 << 720), 1 << 720), min_size=count, max_size=count)
    left, right = data.draw(batch), data.draw(batch)
    exponents = [abs(number) >> 600 for number in data.draw(batch)]
    modulus = Modulus(value, kernel=kernel)
    assert modulus.multiply(left, right) == product(left, right, value)
    expected = [pow(base, e, value) for base, e in zip(left, exponents, strict=True)]
    assert modulus.powers(left, exponents) == expected
    assert modulus.powers([gmpy2.mpz(base) for base in left], tuple(exponents)) == expected


@both_ways
@pytest.mark.parametrize(("bits", "window"), [(1, 1), (1, 6), (12, 4), (77, 5), (80, 10), (33, 8)])
def test_fixed_base(bits: int, window: int, kernel: bool) -> None:
    value = moduli(467)[2]
    table = FixedBase(Modulus(value, kernel=kernel), value - 3, bits, window)
    exponents = [0, 1, (1 << bits) - 1, *islice(numbers(7, bits), 6)]
    assert table.power(exponents) == [pow(value - 3, e, value) for e in exponents]
    for row, digit in ((0, 0), (0, 1), (table.n_rows - 1, (1 << window) - 1)):
        assert table.entry(row, digit) == pow(value - 3, digit << (row * window), value)


@both_ways
@given(base=st.integers(), exponents=st.lists(st.integers(0, (1 << 50) - 1), max_size=9))
@settings(max_examples=25, deadline=None)
def test_fixed_base_of_any_number(kernel: bool, base: int, exponents: list[int]) -> None:
    table = FixedBase(Modulus(MERSENNE, kernel=kernel), base, 50, 3)
    assert table.power(exponents) == [pow(base, e, MERSENNE) for e in exponents]


@pytest.mark.parametrize("reader", WAYS)
@pytest.mark.parametrize("writer", WAYS)
def test_a_table_written_by_one_way_is_read_by_the_other(writer: bool, reader: bool) -> None:
    value = moduli(571)[2]
    content = FixedBase(Modulus(value, kernel=writer), 5, 43, 4).to_bytes()
    table = FixedBase.from_bytes(Modulus(value, kernel=reader), 5, 43, 4, content)
    exponents = list(islice(numbers(8, 43), 9))
    assert table.power(exponents) == [pow(5, e, value) for e in exponents]
    assert table.to_bytes() == content
    assert FixedBase(Modulus(value, kernel=reader), 5, 43, 4).to_bytes() == content


@both_ways
def test_a_damaged_table_is_refused(kernel: bool) -> None:
    modulus = Modulus(MERSENNE, kernel=kernel)
    content = FixedBase(modulus, 3, 20, 4).to_bytes()
    flipped = bytearray(content)
    flipped[-5] ^= 1
    wrong = [(content[:-1], "bytes; expected"), (b"", "bytes; expected")]
    wrong += [(content + b"\0", "bytes; expected"), (b"M" + content[1:], "not a table of this")]
    wrong += [(bytes(flipped), "damaged")]
    for bad, message in wrong:
        with pytest.raises(ValueError, match=message):
            FixedBase.from_bytes(modulus, 3, 20, 4, bad)


@both_ways
def test_a_table_of_something_else_is_refused(kernel: bool) -> None:
    modulus = Modulus(MERSENNE, kernel=kernel)
    content = FixedBase(modulus, 3, 20, 4).to_bytes()
    with pytest.raises(ValueError, match="another base"):
        FixedBase.from_bytes(modulus, 5, 20, 4, content)
    with pytest.raises(ValueError, match="another base"):
        FixedBase.from_bytes(modulus, 3, 19, 4, content)
    other = Modulus(MERSENNE - 2, kernel=kernel)
    with pytest.raises(ValueError, match="another base"):
        FixedBase.from_bytes(other, 3, 20, 4, content)


@pytest.mark.parametrize("value", [-3, 0, 1, 2, 4, 1 << 64])
def test_only_odd_moduli_from_three_on(value: int) -> None:
    with pytest.raises(ValueError, match="odd and at least 3"):
        Modulus(value)


@both_ways
def test_exponents_out_of_range_are_refused_and_not_shown(kernel: bool) -> None:
    modulus = Modulus(MERSENNE, kernel=kernel)
    table = FixedBase(modulus, 3, 20, 4)
    calls: list[Callable[[int], object]] = [
        lambda exponent: modulus.power_secret([2], exponent, 20),
        lambda exponent: table.power([1, exponent]),
    ]
    for call in calls:
        for exponent in (-987654, 1987654):
            with pytest.raises(ValueError, match="out of range") as raised:
                call(exponent)
            assert "987654" not in str(raised.value)
    with pytest.raises(ValueError, match="out of range"):
        modulus.power([2, 3], -1)
    with pytest.raises(ValueError, match="out of range"):
        modulus.powers([2, 3], [1, -1])
    with pytest.raises(ValueError, match="expected at least 1"):
        modulus.power_secret([2], 0, 0)


@both_ways
def test_sequences_of_different_lengths_are_refused(kernel: bool) -> None:
    modulus = Modulus(MERSENNE, kernel=kernel)
    with pytest.raises(ValueError, match="same length"):
        modulus.multiply([1, 2], [1])
    with pytest.raises(ValueError, match="same length"):
        modulus.powers([1], [1, 2])


@both_ways
def test_tables_that_can_not_be_are_refused(kernel: bool) -> None:
    modulus = Modulus(MERSENNE, kernel=kernel)
    for bits, window in ((0, 4), (10, 0), (10, 17)):
        with pytest.raises(ValueError, match="expected at"):
            FixedBase(modulus, 3, bits, window)
    table = FixedBase(modulus, 3, 10, 4)
    for row, digit in ((3, 0), (-1, 0), (0, 16), (0, -1)):
        with pytest.raises(IndexError):
            table.entry(row, digit)


@both_ways
def test_nothing_secret_is_shown_or_pickled(kernel: bool) -> None:
    modulus = Modulus(moduli(200)[2], kernel=kernel)
    table = FixedBase(modulus, 123456789123456789, 10, 4)
    for thing in (modulus, table):
        assert str(modulus.value) not in repr(thing)
        assert hex(modulus.value) not in repr(thing)
        assert "123456789123456789" not in repr(thing)
        with pytest.raises(TypeError):
            pickle.dumps(thing)
        with pytest.raises(TypeError):
            copy.copy(thing)


def test_without_a_kernel_gmpy2_computes_and_asking_for_it_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(modular, "_KERNEL_BITS", 0)
    assert kernel_name() == "gmpy2"
    assert not Modulus(15).uses_kernel
    with pytest.raises(BackendUnavailable, match="leave the choice open"):
        Modulus(15, kernel=True)


def test_a_modulus_too_long_for_the_kernel_is_left_to_gmpy2() -> None:
    value = (1 << 8193) - 1
    modulus = Modulus(value)
    assert not modulus.uses_kernel
    assert modulus.multiply([value - 1, 2], [value - 1, 3]) == [1, 6]
    with pytest.raises(BackendUnavailable):
        Modulus(value, kernel=True)


@both_ways
def test_two_threads_share_a_modulus_and_a_table(kernel: bool) -> None:
    value = moduli(1024)[2]
    modulus = Modulus(value, kernel=kernel)
    table = FixedBase(modulus, 3, 60, 6)
    found: dict[int, list[list[int]]] = {}

    def compute(name: int) -> None:
        bases, exponents = operands(value - name, 9), list(islice(numbers(name, 60), 9))
        found[name] = [modulus.power_secret(bases, 77, 60), table.power(exponents)]

    threads = [threading.Thread(target=compute, args=(name,)) for name in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in range(2):
        powers = [pow(base, 77, value) for base in operands(value - name, 9)]
        assert found[name] == [powers, [pow(3, e, value) for e in islice(numbers(name, 60), 9)]]


@both_ways
@pytest.mark.parametrize("way", ["power", "power_secret", "powers"])
def test_other_threads_run_during_a_power(way: str, kernel: bool) -> None:
    """Held for one long call, the lock would let the watcher count once or twice."""
    modulus = Modulus(moduli(4096)[2], kernel=kernel)
    exponent = next(numbers(9, 4000)) | 1 << 3999
    # GMP computes one number after the other, the kernel needs two.
    bases = operands(modulus.value, 2 if kernel else 1)
    exponents = [exponent] * len(bases)
    arguments = {"power": (exponent,), "power_secret": (exponent, 4000), "powers": (exponents,)}
    counted, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.0005):
            counted[0] += 1

    watcher = threading.Thread(target=watch)
    watcher.start()
    during: list[int] = []
    # One call is enough, but on a busy machine the watcher may not get a core during the first.
    while max(during, default=0) < 4 and len(during) < 50:
        before = counted[0]
        getattr(modulus, way)(bases, *arguments[way])
        during.append(counted[0] - before)
    done.set()
    watcher.join()
    assert max(during) >= 4, during
