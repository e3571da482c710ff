"""Products of whole numbers and scales: every way to compute them gives the bits that the format says."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from weights import KINDS

from modelfs.codecs.floats import BF16, F16, FloatKind
from modelfs.codecs.products import BLOCK, NARROW, Groups, Multiplier, multiply_all

SCALES = [
    st.integers(0, 0x7BFF).map(lambda bits: float(np.array(bits, "<u2").view("<f2"))),
    st.integers(0, 0x7F7F).map(lambda bits: float(np.array(bits << 16, "<u4").view("<f4"))),
    st.integers(0, 0x7F7FFFFF).map(lambda bits: float(np.array(bits, "<u4").view("<f4"))),
    st.floats(2.0 ** -15, 2.0 ** -13, width=32), st.floats(255, 258, width=32)]


def nearest(exact: Fraction, kind: FloatKind) -> int:
    """The bits of what is nearest to a number that is not negative, ties to even; found by bisection."""
    def value(bits: int) -> Fraction:
        return Fraction(float(kind.halves(np.array([2 * bits]))[0]))

    low, high = 0, kind.infinity
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if value(middle) <= exact else (low, middle)
    below, above = exact - value(low), value(high) - exact
    return high if above < below or (above == below and high % 2 == 0) else low


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@given(scale=st.one_of(SCALES), lowest=st.sampled_from([NARROW, -255, -200, 0]), looked_at=st.sets(
    st.integers(0, 255), min_size=16, max_size=16))
@settings(max_examples=60, deadline=None)
def test_a_product_is_the_number_nearest_to_the_product_in_binary32(
        kind: FloatKind, scale: float, lowest: int, looked_at: set[int]) -> None:
    codes = np.arange(256).astype(np.uint8)[None]
    out = np.empty((1, 256), f"<u{kind.width}")
    with np.errstate(over="ignore"):
        Multiplier(kind, 256).fill(codes, np.array([lowest], np.int16), np.array([scale], np.float32), out)
        multiples = [lowest + k for k in looked_at]
        singles = [np.float32(q) * np.float32(scale) for q in multiples]
    for q, single in zip(multiples, singles, strict=True):
        expected = nearest(Fraction(float(abs(single))), kind) if np.isfinite(single) else kind.infinity
        assert int(out[0, q % 256]) == (kind.sign if q < 0 else 0) | expected, (q, scale)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("lowest", [NARROW, -255, 0])
@pytest.mark.parametrize("least, most", [
    (0, 2.0 ** -24), (2.0 ** -19, 2.0 ** -14), (2.0 ** -14, 256), (256, 260), (1e3, 1e5)])
def test_the_fast_ways_round_as_the_slow_one(kind: FloatKind, lowest: int, least: float, most: float) -> None:
    scales = np.random.default_rng(1).uniform(least, most, 500).astype(np.float32)
    scales[:2] = least, most
    codes = np.tile(np.arange(256).astype(np.uint8), (500, 1))
    out = np.empty(codes.shape, f"<u{kind.width}")
    for some in (slice(None), *(slice(k, k + 1) for k in range(100))):
        rows = scales[some]
        Multiplier(kind, codes.size).fill(codes[some], np.full(len(rows), lowest, np.int16), rows, out[some])
        multiples = np.arange(lowest, lowest + 256)[np.argsort(np.arange(lowest, lowest + 256) % 256)]
        assert np.array_equal(out[some], kind.rounded(multiples.astype(np.float32) * rows[:, None]))


@pytest.mark.parametrize("size, skip, count", [
    (16, 0, 16), (16, 3, 5), (16, 15, 1), (17, 4, 1000), (48, 47, 4 * BLOCK + 5), (40_000, 9, BLOCK + 1),
    (65_536, 60_000, 9000)])
def test_groups_lie_one_after_the_other_from_where_the_chunk_begins(size: int, skip: int, count: int) -> None:
    number = -(-(count + skip) // size)
    rng = np.random.default_rng(size)
    groups = Groups(size, skip, rng.random(number, np.float32), np.full(number, NARROW, np.int16),
                    rng.integers(0, 256, count).astype(np.uint8))
    groups.scales[::3] = np.nan
    for kind in (F16, BF16):
        out = np.empty(count, "<u2")
        multiply_all(groups, kind, out)
        of_element = np.nan_to_num(groups.scales)[(np.arange(count) + skip) // size]
        expected = kind.rounded(groups.codes.view(np.int8).astype(np.float32) * of_element)
        assert np.array_equal(out, expected)
    assert np.array_equal(groups.elements_of(np.isnan(groups.scales)), (np.arange(count) + skip) // size % 3 == 0)
