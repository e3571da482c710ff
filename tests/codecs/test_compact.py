"""The codecs for what was pruned, clustered or quantised: exact, as small as promised, and only for such chunks."""

from __future__ import annotations

import contextlib
import functools
import struct
import tracemalloc
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from weights import KINDS, clustered, example_of, gaussian, pruned, pruned_two_of_four, quantised, stored_as

from modelfs.codecs import CodecError, codec_named, encode_chunk
from modelfs.codecs.blocks import SLICE, Zstd
from modelfs.codecs.floats import BF16, F16, F32, FloatKind
from modelfs.codecs.grouping import best_grouping
from modelfs.codecs.parts import PALETTE, PLANES, RAW, SLICES, SPARSE, ZSTD, Methods
from modelfs.codecs.plain import RawCodec, ZstdCodec
from modelfs.codecs.registry import best_of

COUNT = 1 << 20
COMPACT = [*(f"{name}{width}" for name in ("palette", "sparse") for width in (1, 2, 4, 8)),
           *(f"affine-{kind}" for kind in KINDS)]


@pytest.fixture(scope="module")
def values() -> npt.NDArray[np.float32]:
    return gaussian(COUNT)


def decoded(name: str, stored: bytes, length: int) -> bytes:
    out = bytearray(length)
    codec_named(name).decode(memoryview(stored), memoryview(out))
    return bytes(out)


def bits_of(data: memoryview, codec: str, count: int = COUNT) -> float:
    """Bits an element as encode_chunk stores it, which must be with codec, after a look that it comes back."""
    name, stored = encode_chunk(data, len(data) // count)
    assert name == codec and decoded(name, stored, len(data)) == data
    return 8 * len(stored) / count


def parts(*each: tuple[int, bytes]) -> bytes:
    return b"".join([struct.pack("<BI", method, len(stored)) for method, stored in each] + [s for _, s in each])


def test_a_million_fp16_weights_store_as_small_as_promised(values: npt.NDArray[np.float32]) -> None:
    assert bits_of(stored_as(clustered(values, 16), F16), "palette2") <= 4.1
    assert bits_of(stored_as(quantised(values, 4, 128), F16), "affine-f16") <= 4.3
    assert bits_of(stored_as(pruned(values, 0.5), F16), "sparse2") <= 7.3


def test_what_is_pruned_and_quantised_or_clustered_stores_smaller_than_either(
        values: npt.NDArray[np.float32]) -> None:
    few = pruned(values, 0.9)
    assert bits_of(stored_as(quantised(few, 8, 128), F16), "affine-f16") <= 1.3
    assert bits_of(stored_as(np.where(few == 0, few, clustered(values, 32)), F16), "sparse2") <= 0.8
    assert bits_of(stored_as(pruned_two_of_four(values), BF16), "sparse2") <= 6.1


@pytest.mark.parametrize("levels, bits", [(2, 1.02), (4, 2.02), (16, 4.02), (32, 5.1), (256, 8.1)])
@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8"])
def test_levels_cost_their_logarithm(values: npt.NDArray[np.float32], levels: int, bits: float, dtype: str) -> None:
    few = clustered(values[:1 << 18], levels).astype(dtype)
    assert bits_of(memoryview(few.tobytes()), f"palette{few.itemsize}", len(few)) <= bits


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("scale", KINDS.values(), ids=[f"scale-{name}" for name in KINDS])
@pytest.mark.parametrize("group", [32, 128, 1024])
@pytest.mark.parametrize("zero_point", [False, True], ids=["symmetric", "zero-point"])
def test_scales_are_found_whatever_they_were_rounded_to(
        values: npt.NDArray[np.float32], kind: FloatKind, scale: FloatKind, group: int, zero_point: bool) -> None:
    few = values[:1 << 16]
    for bits in (4, 8):
        data = stored_as(quantised(few, bits, group, scale, zero_point=zero_point), kind)
        stored = codec_named(f"affine-{kind.name}").encode(data)
        assert stored is not None and decoded(f"affine-{kind.name}", stored, len(data)) == data
        assert 8 * len(stored) / len(few) <= bits + 1 + 32 / group


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("zero_point", [False, True], ids=["symmetric", "zero-point"])
def test_scales_that_are_denormal_in_fp16_are_found(
        values: npt.NDArray[np.float32], kind: FloatKind, zero_point: bool) -> None:
    small = values[:1 << 16] * np.float32(0.01)
    data = stored_as(quantised(small, 8, 128, F16, zero_point=zero_point), kind)
    stored = codec_named(f"affine-{kind.name}").encode(data)
    assert stored is not None and 8 * len(stored) / len(small) <= 9
    assert decoded(f"affine-{kind.name}", stored, len(data)) == data


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("group, skip", [(96, 0), (100, 31), (128, 64), (768, 256), (1152, 1000), (11008, 0)])
@pytest.mark.parametrize("zero_point", [False, True], ids=["symmetric", "zero-point"])
def test_groups_of_any_size_are_found_wherever_the_chunk_begins_in_one(
        kind: FloatKind, group: int, skip: int, zero_point: bool) -> None:
    count = 1 << 17
    values = gaussian(-(-(skip + count) // group) * group)
    for bits in (4, 8):
        made = quantised(values, bits, group, zero_point=zero_point)[skip:skip + count]
        found = best_grouping(np.frombuffer(stored_as(made, kind), f"<u{kind.width}"), kind)
        assert found is not None and (found.size, found.skip) == (group, skip)
        assert bits_of(stored_as(made, kind), f"affine-{kind.name}", count) <= bits + 0.5


def test_a_bias_of_odd_length_before_a_matrix_shifts_its_groups(values: npt.NDArray[np.float32]) -> None:
    few = values[:1 << 17]
    data = stored_as(np.concatenate([few[:37], quantised(few, 8, 128)]), F16)
    assert bits_of(data, "affine-f16", len(few) + 37) <= 8


def test_minus_zeros_survive_quantisation(values: npt.NDArray[np.float32]) -> None:
    plain, signed = (stored_as(quantised(values, 4, 128, minus_zeros=minus), F16) for minus in (False, True))
    assert plain != signed
    assert bits_of(signed, "affine-f16") <= bits_of(plain, "affine-f16") + 0.3
    none = stored_as(quantised(values, 4, 128, minus_zeros=True) * np.float32(-1), F16)
    assert bits_of(none, "affine-f16") <= bits_of(plain, "affine-f16") + 0.3


def test_groups_that_are_no_products_are_kept_as_they_are(values: npt.NDArray[np.float32]) -> None:
    mixed = quantised(values, 4, 128).reshape(-1, 128)
    mixed[100:200] = values.reshape(-1, 128)[100:200]
    mixed[300, 5], mixed[301, 7], mixed[302] = np.inf, -np.inf, 0
    elements = np.frombuffer(stored_as(mixed, F16), np.uint16).copy()
    elements[400 * 128] = 0x7E01
    assert bits_of(memoryview(elements.tobytes()), "affine-f16") <= 4.3


def test_any_patterns_are_levels() -> None:
    patterns = np.array([0, 0x8000, 1, 0x8001, 0x7C00, 0xFC00, 0x7E00, 0x7E01, 0xFFFF, 0x3C00], "<u2")
    data = memoryview(np.random.default_rng(5).choice(patterns, 50_000).tobytes())
    for width in (2, 0):
        name, stored = encode_chunk(data, width)
        assert name == "palette2" and decoded(name, stored, len(data)) == data


def test_minus_zero_is_a_value_and_not_sparse() -> None:
    elements = np.where(np.random.default_rng(6).random(COUNT) < 0.5, 0x8000, np.frombuffer(
        stored_as(gaussian(COUNT), F16), np.uint16)).astype("<u2")
    data = memoryview(elements.tobytes())
    assert codec_named("sparse2").encode(data) is None
    elements[elements == 0x8000] = 0
    assert codec_named("sparse2").encode(memoryview(elements.tobytes())) is not None


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_pruned_weights_are_not_taken_for_quantised_ones(
        values: npt.NDArray[np.float32], kind: FloatKind, share: float) -> None:
    data = stored_as(pruned(values, share), kind)
    assert best_grouping(np.frombuffer(data, f"<u{kind.width}"), kind) is None
    assert codec_named(f"affine-{kind.name}").encode(data) is None


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_ordinary_weights_and_noise_are_declined_and_stored_as_ever(kind: FloatKind) -> None:
    noise = memoryview(np.random.default_rng(8).bytes(COUNT))
    for data in (stored_as(gaussian(COUNT), kind), noise):
        for name in (f"palette{kind.width}", f"sparse{kind.width}", f"affine-{kind.name}"):
            assert codec_named(name).encode(data) is None
        assert encode_chunk(data, kind.width)[0] == (f"planes{kind.width}-zstd" if data is not noise else "raw")


def test_a_palette_whose_sample_does_not_show_all_levels_is_stored_otherwise(
        values: npt.NDArray[np.float32]) -> None:
    elements = np.frombuffer(stored_as(clustered(values, 16), F16), np.uint16).copy()
    elements[5000:9000] = np.arange(4000)
    data = memoryview(elements.tobytes())
    name, stored = encode_chunk(data, 2)
    assert name != "palette2" and len(stored) < len(data) and decoded(name, stored, len(data)) == data


@pytest.mark.parametrize("make", [
    lambda values: clustered(values, 16), lambda values: pruned(values, 0.5), lambda values: quantised(values, 8, 64)],
    ids=["clustered", "pruned", "quantised"])
def test_the_choice_by_sample_is_the_choice_on_everything(
        values: npt.NDArray[np.float32], make: Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]) -> None:
    data = stored_as(make(values[:1 << 18]), BF16)
    assert encode_chunk(data, 2) == best_of(data, 2)


@pytest.mark.parametrize("width", [1, 2, 4, 8])
@given(change=st.data())
@settings(max_examples=60, deadline=None)
def test_any_chunk_of_few_levels_or_many_zeros_comes_back(width: int, change: st.DataObject) -> None:
    levels = change.draw(st.lists(st.binary(min_size=width, max_size=width), min_size=1, max_size=40, unique=True))
    count, seed = change.draw(st.integers(1, 3000)), change.draw(st.integers(0, 99))
    rng = np.random.default_rng(seed)
    elements = rng.choice(np.frombuffer(b"".join(levels), f"<u{width}"), count)
    elements[rng.random(count) < change.draw(st.floats(0, 1))] = 0
    data = memoryview(elements.tobytes() + change.draw(st.binary(max_size=width - 1)))
    for name in (f"palette{width}", f"sparse{width}"):
        stored = codec_named(name).encode(data)
        assert stored is None or decoded(name, stored, len(data)) == data
        assert stored is not None or len(data) < 600 + width * len(levels) or name == f"sparse{width}"


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@given(change=st.data())
@settings(max_examples=40, deadline=None)
def test_any_products_come_back_also_denormal_and_infinite_ones(kind: FloatKind, change: st.DataObject) -> None:
    group, bits = change.draw(st.sampled_from([16, 27, 32, 64, 96, 256])), change.draw(st.sampled_from([4, 8]))
    count, seed = change.draw(st.integers(1, 20)), change.draw(st.integers(0, 99))
    magnitude = np.float32(2.0 ** change.draw(st.integers(-30, 20)))
    with np.errstate(all="ignore"):
        made = quantised(gaussian(count * group, seed) * magnitude, bits, group,
                         change.draw(st.sampled_from([F16, BF16, F32])), zero_point=change.draw(st.booleans()),
                         minus_zeros=change.draw(st.booleans()))
    skip = change.draw(st.integers(0, group - 1))
    end = change.draw(st.integers(skip + 1, count * group))
    elements = np.nan_to_num(made, nan=1, posinf=np.inf, neginf=-np.inf)[skip:end]
    data = memoryview(bytes(stored_as(elements, kind)) + change.draw(st.binary(max_size=kind.width - 1)))
    name = f"affine-{kind.name}"
    stored = codec_named(name).encode(data)
    assert stored is None or decoded(name, stored, len(data)) == data


@pytest.mark.parametrize("share", [0.0, 0.02, 0.05, 0.1, 0.12, 0.5, 1.0])
@pytest.mark.parametrize("width", [2, 4])
def test_masks_of_any_density_come_back_over_several_blocks(share: float, width: int) -> None:
    count = (1 << 18) + 4099
    rng = np.random.default_rng(9)
    elements = rng.integers(1, 1 << 8 * width, count, f"<u{width}")
    elements[rng.random(count) >= share] = 0
    elements[:9000] = 0
    data = memoryview(elements.tobytes())
    stored = codec_named(f"sparse{width}").encode(data)
    assert share == 1 or stored is not None
    assert stored is None or decoded(f"sparse{width}", stored, len(data)) == data


def test_a_part_whose_sample_shows_too_few_levels_is_stored_by_another_method() -> None:
    elements = np.where(np.random.default_rng(10).random(COUNT) < 0.5, 0, 0x3C00).astype("<u2")
    elements[5000:9000] = 0x3C00 + np.arange(4000)
    data = memoryview(elements.tobytes())
    stored = codec_named("sparse2").encode(data)
    assert stored is not None and decoded("sparse2", stored, len(data)) == data
    # The bits take an eighth of a byte, and the values, nearly all alike, next to nothing.
    assert len(stored) < 0.2 * COUNT


def test_a_part_that_keeps_not_what_its_sample_promised_is_tried_by_all_methods() -> None:
    rng = np.random.default_rng(11)
    numbers = np.where(rng.random(COUNT) < 0.9, 0, rng.integers(1, 256, COUNT)).astype(np.uint8)
    for start in [(COUNT - SLICE) * k // (SLICES - 1) & ~7 for k in range(SLICES)]:
        numbers[start:start + SLICE] = 7
    methods = Methods({RAW: RawCodec(), ZSTD: ZstdCodec(Zstd()), SPARSE: codec_named("sparse1")})
    method, stored = methods.encode(numbers)
    assert method == SPARSE and bytes(methods.decode(method, memoryview(stored), COUNT)) == numbers.tobytes()


def test_palettes_lie_as_the_format_says() -> None:
    levels = struct.pack("<3H", 1, 0x3C00, 0x8000)
    stored = bytes([2, 2, RAW]) + levels + bytes([0b10010010, 0b00000001]) + b"!"
    assert decoded("palette2", stored, 11) == struct.pack("<5H", 0x8000, 1, 0x3C00, 0x8000, 0x3C00) + b"!"


def test_sparse_chunks_lie_as_the_format_says() -> None:
    stored = parts((RAW, bytes([0b10010010, 0b1])), (RAW, struct.pack("<4H", 7, 8, 9, 10))) + b"!"
    assert decoded("sparse2", stored, 19) == struct.pack("<9H", 0, 7, 0, 0, 8, 0, 0, 9, 10) + b"!"


def test_products_lie_as_the_format_says() -> None:
    scales, lowest = np.array([0.5, np.nan, 0.25], "<f2"), np.array([-128, -128, -200], "<i2")
    codes = np.zeros(33, np.uint8)
    codes[:3], codes[32] = (1, 255, 128), (256 - 190)
    others, minus = np.arange(16, dtype="<f2"), bytes([1, 0, 0, 0])
    stored = struct.pack("<BI", 0, 16) + parts(
        (RAW, scales.tobytes()), (RAW, lowest.tobytes()), (RAW, codes.tobytes()), (RAW, minus),
        (RAW, others.tobytes())) + b"!"
    first = np.zeros(16, "<f2")
    first[:4] = 0.5, -0.5, -64, -0.0
    assert decoded("affine-f16", stored, 67) == first.tobytes() + others.tobytes() + struct.pack("<e", -47.5) + b"!"


def test_products_of_groups_that_begin_before_the_chunk_lie_as_the_format_says() -> None:
    scales, lowest = np.array([0.5, np.nan, 2], "<f4"), np.array([-128, -128, -128], "<i2")
    codes = np.concatenate([np.full(3, 255), np.zeros(17), np.arange(2)]).astype(np.uint8)
    others = np.arange(17, dtype="<f2")
    stored = struct.pack("<BII", 0x80 | 2, 17, 14) + parts(
        (RAW, scales.tobytes()), (RAW, lowest.tobytes()), (RAW, codes.tobytes()), (RAW, b""), (RAW, others.tobytes()))
    expected = np.concatenate([np.full(3, -0.5), others, np.array([0, 2])]).astype("<f2")
    assert decoded("affine-f16", stored, 44) == expected.tobytes()
    one = struct.pack("<BII", 0x80, 65536, 65535) + parts(
        (RAW, struct.pack("<e", 3)), (RAW, struct.pack("<h", -128)), (RAW, b"\2"), (RAW, b""), (RAW, b""))
    assert decoded("affine-f16", one, 2) == struct.pack("<e", 6)


def shifted(kind: int = 0x80, size: int = 16, skip: int = 0) -> bytes:
    """One group of 16 without its first skip elements."""
    return struct.pack("<BII", kind, size, skip) + parts(
        (RAW, struct.pack("<e", 1)), (RAW, struct.pack("<h", -128)), (RAW, bytes(16 - skip % 16)), (RAW, b""),
        (RAW, b""))


@functools.cache
def shifted_example() -> tuple[memoryview, bytes]:
    data = stored_as(quantised(gaussian(1000), 8, 100)[55:], BF16)
    stored = codec_named("affine-bf16").encode(data)
    assert stored is not None and stored[0] & 0x80
    return data, stored


@given(change=st.data())
@settings(max_examples=150, deadline=None)
def test_flipped_bytes_of_shifted_groups_end_in_an_error_or_in_a_chunk_of_that_length(change: st.DataObject) -> None:
    data, good = shifted_example()
    bad = bytearray(good)
    for _ in range(change.draw(st.integers(1, 3))):
        bad[change.draw(st.integers(0, 60) | st.integers(0, len(bad) - 1))] ^= change.draw(st.integers(1, 255))
    with contextlib.suppress(CodecError):
        assert len(decoded("affine-bf16", bytes(bad), len(data))) == len(data)


def affine(scales: bytes, *, head: tuple[int, int] = (0, 16), lowest: int = -128, codes: tuple[int, bytes] = (
        RAW, bytes(16)), others: bytes = b"") -> bytes:
    return struct.pack("<BI", *head) + parts((RAW, scales), (RAW, struct.pack("<h", lowest)), codes, (RAW, b""),
                                             (RAW, others))


@pytest.mark.parametrize("name, stored, length, why", [
    ("palette2", bytes([2, 2, RAW]) + struct.pack("<3H", 1, 2, 3) + bytes([0b11]), 8, "index beyond the 3 levels"),
    ("palette2", bytes([1, 1, RAW]) + struct.pack("<2H", 2, 2) + bytes([0]), 8, "do not rise"),
    ("palette2", bytes([1, 3, RAW]) + struct.pack("<2H", 1, 2) + bytes([0, 0]), 8, "with 3 bits an index"),
    ("palette2", bytes([255, 8, RAW]) + struct.pack("<2H", 1, 2), 8, "palette of 256 levels"),
    ("palette2", bytes([1, 1, SPARSE]) + struct.pack("<2H", 1, 2) + bytes([0]), 8, "part of method 5"),
    ("palette8", b"", 16, "too short"),
    ("sparse2", parts((RAW, bytes([1])), (RAW, b"")), 8, "raw bytes where 2"),
    ("sparse2", parts((RAW, bytes([17])), (RAW, b"1122")), 8, "element that is not there"),
    ("sparse2", parts((RAW, bytes([1])), (SPARSE, b"11")), 8, "part of method 5"),
    ("sparse2", parts((RAW, bytes([1])), (RAW, b"11")) + b"more", 8, "do not add up"),
    ("sparse4", bytes(9), 8, "too short for a table"),
    ("affine-f16", affine(struct.pack("<e", np.inf)), 32, "infinite or negative"),
    ("affine-f16", affine(struct.pack("<e", -1)), 32, "infinite or negative"),
    ("affine-f16", affine(struct.pack("<e", 1), lowest=1), 32, "begin above 0"),
    ("affine-f16", affine(struct.pack("<e", 1), lowest=-256), 32, "begin above 0"),
    ("affine-f16", affine(struct.pack("<e", 1), head=(3, 16)), 32, "scales of kind 3"),
    ("affine-f16", affine(struct.pack("<e", 1), head=(0, 1)), 32, "groups of 1"),
    ("affine-f16", affine(struct.pack("<e", np.nan)), 32, "not all there"),
    ("affine-f16", affine(struct.pack("<e", 1), others=b"11"), 32, "not all there"),
    ("affine-f16", affine(struct.pack("<e", 1), codes=(PLANES, bytes(16))), 32, "part of method 3"),
    ("affine-f32", affine(struct.pack("<e", 1)), 68, "raw bytes where"),
    ("affine-f16", affine(struct.pack("<e", 1), head=(0, 17)), 32, "groups of 17"),
    ("affine-f16", shifted(size=15), 32, "groups of 15"),
    ("affine-f16", shifted(size=65537), 32, "groups of 65537"),
    ("affine-f16", shifted(skip=16), 32, "without 16"),
    ("affine-f16", shifted(kind=0x83), 32, "scales of kind 3"),
    ("affine-f16", shifted(skip=1), 32, "raw bytes where"),
    ("affine-f16", struct.pack("<BI", 0x80, 16), 32, "scales of kind 128"),
])
def test_a_lie_is_a_codec_error_that_says_which(name: str, stored: bytes, length: int, why: str) -> None:
    with pytest.raises(CodecError, match=why):
        decoded(name, stored, length)


@pytest.mark.parametrize("name", COMPACT)
def test_decoding_allocates_a_small_multiple_of_the_chunk(name: str) -> None:
    data = example_of(name, COUNT)
    stored = codec_named(name).encode(data)
    assert stored is not None
    assert peak_of_decoding(name, stored, len(data)) < 6 * len(data)


@pytest.mark.parametrize("name, stored", [
    ("palette1", bytes([1, 8, ZSTD]) + b"\1\2" + b"\x28\xb5\x2f\xfd\xc0\0" + struct.pack("<Q", 1 << 42) + b"\1\0\0"),
    ("sparse1", parts((RAW, bytes([255]) * (COUNT // 8)), (PALETTE, bytes([0, 8, RAW, 5])))),
    ("affine-f16", affine(bytes(2), codes=(SPARSE, parts((RAW, bytes([255]) * (COUNT // 16)), (RAW, b""))))),
])
def test_what_stored_bytes_claim_is_not_allocated(name: str, stored: bytes) -> None:
    assert peak_of_decoding(name, stored, COUNT) < 6 * COUNT


def peak_of_decoding(name: str, stored: bytes, length: int) -> int:
    out = memoryview(bytearray(length))
    tracemalloc.start()
    try:
        codec_named(name).decode(memoryview(stored), out)
    except CodecError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak
