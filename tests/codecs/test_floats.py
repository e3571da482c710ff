"""Floating point numbers and their bits: rounding is IEEE 754's, checked against other ways to do it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from modelfs.codecs.floats import BF16, F16, F32, FloatKind


@pytest.fixture(scope="module")
def values() -> npt.NDArray[np.float32]:
    """Any singles, those around fp16's denormals and its largest number, and ties."""
    bits = np.random.default_rng(9).integers(0, 1 << 32, 1 << 20, dtype=np.uint32)
    singles = bits.view(np.float32)
    ties = (bits[:1 << 16] & np.uint32(0xFFFF0000) | np.uint32(0x8000)).view(np.float32)
    return np.concatenate((singles[~np.isnan(singles)], np.linspace(-7e-5, 7e-5, 100_001, dtype=np.float32),
                           np.linspace(65_000, 66_000, 100_001, dtype=np.float32), ties[~np.isnan(ties)]))


def test_fp16_rounds_as_numpy_does(values: npt.NDArray[np.float32]) -> None:
    with np.errstate(over="ignore"):
        expected = values.astype(np.float16)
    assert np.array_equal(F16.rounded(values), expected.view(np.uint16))


def test_bf16_rounds_to_the_nearest_and_ties_to_even(values: npt.NDArray[np.float32]) -> None:
    got = BF16.rounded(values)
    below = (values.view(np.uint32) >> 16).astype(np.uint16)
    assert set(np.unique(got - below)) == {0, 1}
    finite = (below & 0x7FFF) < 0x7F7F
    exact, low, high = values[finite].astype(np.float64), *(
        BF16.single(below[finite] + step).astype(np.float64) for step in (np.uint16(0), np.uint16(1)))
    to_low, to_high = np.abs(exact - low), np.abs(high - exact)
    up = (to_high < to_low) | ((to_high == to_low) & (below[finite] & 1 == 1))
    assert (to_high == to_low).any() and np.array_equal(got[finite], below[finite] + up)


@pytest.mark.parametrize("kind", [F16, BF16, F32], ids=lambda kind: kind.name)
def test_half_steps_lie_between_neighbours(kind: FloatKind) -> None:
    bits = np.linspace(0, kind.infinity - 2, 5000).astype(f"<u{kind.width}")
    here, next_one = (kind.single(bits + step).astype(np.float64) for step in (bits.dtype.type(0), bits.dtype.type(1)))
    counts = 2 * bits.astype(np.int64)
    assert np.array_equal(kind.halves(counts), here)
    assert np.array_equal(kind.halves(counts + 1), (here + next_one) / 2)
    assert kind.finest == kind.single(np.array([1 << kind.precision - 1], bits.dtype))[0]
