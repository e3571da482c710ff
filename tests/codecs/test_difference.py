"""Differences: whatever the two chunks are, what was put in comes out, and what is no difference is an error."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelfs.codecs import CodecError, difference_named, encode_difference
from modelfs.errors import Unsupported

widths = st.sampled_from([2, 4])


@given(st.binary(max_size=3000), st.randoms(use_true_random=False), widths)
def test_what_was_put_in_comes_out(base: bytes, moves: random.Random, width: int) -> None:
    data = bytearray(base)
    for _ in range(len(base) // 50):
        at = moves.randrange(len(base))
        data[at] = (data[at] + moves.choice([-1, 1, 7])) % 256
    found = encode_difference(memoryview(data), memoryview(base), width)
    if found is not None:
        name, stored = found
        out = memoryview(bytearray(len(data)))
        difference_named(name).decode(memoryview(stored), memoryview(base), out)
        assert out == data and len(stored) < len(data)


@pytest.mark.parametrize("width", [2, 4])
def test_ends_of_the_number_line_and_a_rest_that_is_no_element(width: int) -> None:
    """The largest steps there are, either way, thrice over so that they compress, and a byte behind them."""
    ends = [b"\x00" * width, b"\xff" * width, b"\xff" * (width - 1) + b"\x7f", b"\x00" * (width - 1) + b"\x80"]
    pairs = [(a, b) for a in ends for b in ends] * 300
    data, base = b"".join(a for a, _ in pairs) + b"\x01", b"".join(b for _, b in pairs) + b"\x02"
    found = encode_difference(memoryview(data), memoryview(base), width)
    assert found is not None
    out = memoryview(bytearray(len(data)))
    difference_named(found[0]).decode(memoryview(found[1]), memoryview(base), out)
    assert out == data


def test_there_are_none_of_other_widths_and_of_chunks_that_are_not_equally_long() -> None:
    zeros = memoryview(bytes(1000))
    assert encode_difference(zeros, zeros, 2)
    for data, base, width in ((zeros, zeros, 1), (zeros, zeros, 8), (zeros, zeros, 0), (zeros, zeros[:998], 2),
                              (zeros[:1], zeros[:1], 2), (zeros[:0], zeros[:0], 4)):
        assert encode_difference(data, base, width) is None


@given(st.binary(max_size=300), st.integers(0, 400), widths)
def test_what_is_no_difference_is_an_error_and_nothing_else(stored: bytes, length: int, width: int) -> None:
    codec, out = difference_named(f"difference{width}"), memoryview(bytearray(length))
    with pytest.raises(CodecError):
        codec.decode(memoryview(stored), memoryview(bytes(length + 1)), out)
    try:
        codec.decode(memoryview(stored), memoryview(bytes(length)), out)
    except CodecError:
        return
    assert len(stored) >= length, "only raw planes can come of noise"


def test_one_that_is_not_known_is_refused_by_name() -> None:
    with pytest.raises(Unsupported, match="difference-of-tomorrow"):
        difference_named("difference-of-tomorrow")
