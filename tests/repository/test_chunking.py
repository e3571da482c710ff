"""Where files are cut: every byte once, large tensors by themselves, small ones together."""

from __future__ import annotations

import itertools
import json
import struct

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from modelfs.formats import Description, Segment, describe
from modelfs.ids import ChunkId
from modelfs.repository.chunking import SMALL_FILE, Cut, cut
from modelfs.units import GiB, KiB, MiB, TiB

CHUNK = 64 * KiB
parts = st.lists(st.builds(lambda length, width, head: (length, width, head),
                           st.one_of(st.integers(1, 9000), st.integers(1, 5 * CHUNK)),
                           st.sampled_from([0, 1, 2, 4, 8]), st.booleans()), min_size=1, max_size=40)


def of_parts(lengths: list[tuple[int, int, bool]]) -> tuple[Description, int]:
    at, segments = 0, []
    for length, width, head in lengths:
        segments.append(Segment(at, length, width, head))
        at += length
    return Description("safetensors", tuple(segments)), at


def safetensors(tensors: dict[str, bytes], dtype: str = "U8") -> bytes:
    header, at = {}, 0
    for name, data in tensors.items():
        size = 2 if dtype == "BF16" else 1
        header[name] = {"dtype": dtype, "shape": [len(data) // size], "data_offsets": [at, at + len(data)]}
        at += len(data)
    raw = json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + b"".join(tensors.values())


def ids_of(data: bytes, chunk_size: int = CHUNK) -> list[ChunkId]:
    description = describe(lambda offset, length: data[offset:offset + length], len(data), "model.safetensors")
    return [ChunkId.of(data[each.offset:each.offset + each.length]) for each in cut(description, len(data), chunk_size)]


@given(lengths=parts)
@settings(deadline=None)
def test_every_byte_lies_in_exactly_one_cut(lengths: list[tuple[int, int, bool]]) -> None:
    description, size = of_parts(lengths)
    at = 0
    for each in cut(description, size, CHUNK):
        assert each.offset == at and 1 <= each.length <= CHUNK
        at += each.length
    assert at == size


@given(lengths=parts)
@settings(deadline=None)
def test_a_cut_holds_one_width_and_never_mixes_head_and_data(lengths: list[tuple[int, int, bool]]) -> None:
    description, size = of_parts([(SMALL_FILE + 1, 4, False), *lengths])
    starts = [segment.offset for segment in description.segments]
    for each in cut(description, size, CHUNK):
        inside = [segment for segment in description.segments
                  if segment.offset < each.offset + each.length and each.offset < segment.offset + segment.length]
        assert {(segment.width, segment.head) for segment in inside} == {(each.width, each.head)}
        if len(inside) > 1:
            assert each.offset in starts and all(segment.length < CHUNK // 8 for segment in inside)


@given(lengths=parts)
@settings(deadline=None)
def test_neighbours_that_would_fit_into_one_chunk_share_it(lengths: list[tuple[int, int, bool]]) -> None:
    tensors = [(length, width, False) for length, width, _ in lengths]
    description, size = of_parts([(SMALL_FILE + 1, 4, False), *tensors])
    small = {segment.offset for segment in description.segments if segment.length < CHUNK // 8}
    for one, two in itertools.pairwise(cut(description, size, CHUNK)):
        if {one.offset, two.offset} <= small and one.width == two.width:
            first = next(segment for segment in description.segments if segment.offset == two.offset)
            assert one.length + first.length > CHUNK


def test_small_files_are_one_head_cut_and_an_empty_one_has_none() -> None:
    unknown = Description(None, (Segment(0, SMALL_FILE),))
    assert list(cut(unknown, SMALL_FILE, 2 * MiB)) == [Cut(0, SMALL_FILE, 0, True)]
    assert [each.length for each in cut(unknown, SMALL_FILE, CHUNK)] == [CHUNK] * 4
    assert list(cut(Description(None, ()), 0, CHUNK)) == []


def test_unknown_files_are_cut_at_fixed_sizes() -> None:
    size = 3 * MiB + 1
    assert list(cut(Description(None, (Segment(0, size),)), size, MiB)) == [
        Cut(at, min(MiB, size - at), 0, False) for at in range(0, size, MiB)]


def test_a_tensor_of_an_eighth_is_cut_by_itself_and_one_below_it_shares() -> None:
    eighth = CHUNK // 8
    description, size = of_parts([(SMALL_FILE, 0, True), (eighth, 2, False), (eighth, 2, False),
                                  (eighth - 1, 2, False), (eighth - 1, 2, False), (100, 4, False)])
    assert [each.length for each in cut(description, size, CHUNK) if not each.head] == [
        eighth, eighth, 2 * (eighth - 1), 100]


def test_small_tensors_share_a_chunk_that_they_fill_exactly() -> None:
    description, size = of_parts([(SMALL_FILE, 0, True), *[(CHUNK // 16, 2, False)] * 17])
    assert [each.length for each in cut(description, size, CHUNK) if not each.head] == [CHUNK, CHUNK // 16]


def test_an_unchanged_tensor_is_the_same_chunks_wherever_it_lies() -> None:
    rng = np.random.default_rng(5)
    kept = {f"large{k}": rng.bytes(size) for k, size in enumerate([CHUNK // 8, 3 * CHUNK + 77, CHUNK, 5 * CHUNK - 1])}
    before = safetensors(kept | {"bias": rng.bytes(300)})
    after = safetensors({"a": rng.bytes(1000)} | dict(reversed(kept.items())) | {"new": rng.bytes(2 * CHUNK + 5)})
    alone = [chunk for data in kept.values() for chunk in
             (ChunkId.of(data[at:at + CHUNK]) for at in range(0, len(data), CHUNK))]
    assert set(alone) <= set(ids_of(before)) & set(ids_of(after))


def test_an_extended_tensor_keeps_the_chunks_of_its_prefix() -> None:
    rows = np.random.default_rng(6).bytes(10 * CHUNK)
    longer = safetensors({"first": b"x" * 100, "embed": rows + b"one more row", "last": b"y" * 100})
    shared = set(ids_of(safetensors({"embed": rows}))) & set(ids_of(longer))
    assert len(shared) == 10


def test_a_terabyte_is_cut_lazily() -> None:
    cuts = cut(Description(None, (Segment(0, TiB),)), TiB, 2 * MiB)
    assert next(cuts) == Cut(0, 2 * MiB, 0, False)
    assert next(itertools.islice(cuts, GiB // (2 * MiB) - 1, None)) == Cut(GiB, 2 * MiB, 0, False)
