"""Numbers as files store them: exact one way, nearest the other, and nothing finite becomes infinite."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelfs.transforms.dtypes import BITS, LARGEST, decode, decode_array, encode, native_order, rounded, stored_as

SMALL = ("F16", "BF16", "F8_E4M3")
finite = st.floats(allow_nan=False, allow_infinity=False)


def all_values(dtype: str) -> np.ndarray:
    """Of every pattern that a small dtype has, in the order of patterns."""
    return decode(patterns_of(dtype).tobytes(), dtype)


def patterns_of(dtype: str) -> np.ndarray:
    return np.arange(1 << BITS[dtype]).astype(f"<u{BITS[dtype] // 8}")


@pytest.mark.parametrize("dtype", SMALL)
def test_every_pattern_of_a_small_dtype_comes_back_through_float32(dtype: str) -> None:
    values = all_values(dtype)
    back = encode(values, dtype)
    numbers = ~np.isnan(values)
    assert back.dtype == stored_as(dtype)
    assert np.array_equal(back.view(patterns_of(dtype).dtype)[numbers], patterns_of(dtype)[numbers])
    assert np.isnan(decode_array(back[~numbers], dtype)).all() and (~numbers).sum() >= 2


def test_fp8_has_the_values_of_the_ocp_specification() -> None:
    values = all_values("F8_E4M3")
    assert [values[code] for code in (0x00, 0x01, 0x07, 0x08, 0x38, 0x7E)] == [
        0, 2.0 ** -9, 7 * 2.0 ** -9, 2.0 ** -6, 1, 448]
    assert np.isnan(values[[0x7F, 0xFF]]).all() and np.isfinite(np.delete(values, [0x7F, 0xFF])).all()
    assert math.copysign(1, values[0x80]) == -1


@pytest.mark.parametrize("dtype", SMALL)
@pytest.mark.parametrize("width", [np.float32, np.float64])
@settings(max_examples=60, deadline=None)
@given(number=finite, near=st.floats(-1000, 1000))
def test_encoding_takes_the_nearest_value_and_of_two_the_even_one(dtype: str, width: type, number: float,
                                                                 near: float) -> None:
    with np.errstate(invalid="ignore"):  # some of the NaN are signalling ones
        values = all_values(dtype).astype(np.float64)
    patterns = np.flatnonzero(np.isfinite(values))
    grid = values[patterns]
    ordered = np.unique(grid)
    place = min(max(int(np.searchsorted(ordered, near)), 1), len(ordered) - 1)
    tie = (ordered[place - 1] + ordered[place]) / 2
    with np.errstate(over="ignore"):
        tried = np.array([number, near, tie, np.nextafter(tie, math.inf), np.nextafter(tie, -math.inf)]).astype(width)
    tried = tried[np.isfinite(tried)]
    codes = encode(tried, dtype).view(patterns_of(dtype).dtype)
    for each, code in zip(tried.astype(np.float64), codes, strict=True):
        distance = np.abs(grid - np.clip(each, ordered[0], ordered[-1]))
        best = patterns[distance == distance.min()]
        assert code in best
        if len(np.unique(values[best])) == 2:
            assert code % 2 == 0


def test_float64_is_not_rounded_twice() -> None:
    just_above_a_tie = np.array([1 + 2.0 ** -8 + 2.0 ** -40, -(1 + 2.0 ** -8 + 2.0 ** -40)])
    assert rounded(just_above_a_tie, "BF16").tolist() == [1 + 2.0 ** -7, -(1 + 2.0 ** -7)]


@pytest.mark.parametrize("dtype", ["F32", *SMALL])
def test_what_is_too_large_saturates_and_what_is_no_number_stays_none(dtype: str) -> None:
    values = np.array([1e300, -1e300, np.nan, np.inf, -np.inf])
    found = rounded(values, dtype)
    assert found[:2].tolist() == [LARGEST[dtype], -LARGEST[dtype]] and np.isnan(found[2])
    infinite = LARGEST[dtype] if dtype == "F8_E4M3" else np.inf
    assert found[3:].tolist() == [infinite, -infinite]


def test_nan_with_a_payload_only_in_the_lower_half_stays_nan_as_bf16() -> None:
    nan = np.array([0x7F800001, 0xFFFFFFFF, 0x7FC12345], np.uint32).view(np.float32)
    assert np.isnan(rounded(nan, "BF16")).all()
    assert encode(nan, "BF16").tolist() == [0x7FC0, 0xFFFF, 0x7FC1]


def test_arrays_of_the_other_byte_order_become_this_machines() -> None:
    array = np.array([1.5, -2.25], ">f4")
    turned = native_order(array)
    assert turned.dtype == np.float32 and turned.dtype.isnative and turned.tolist() == array.tolist()
    same = np.ones(3, np.float32)
    assert native_order(same) is same
