"""Layouts, indexes and packs' tails: hints, bounded when they are read, proved by nothing but the chunks."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from repository.builder import CHUNK, located

from modelfs.errors import IntegrityError, Malformed
from modelfs.ids import ChunkId, Digest, ObjectId
from modelfs.repository import columns, index, layout, pack
from modelfs.repository.index import Located
from modelfs.repository.pack import FOOTER, MAGIC, PackWriter
from modelfs.repository.places import MAX_PACK_BYTES, SELF, Base, Place, joined, table_of
from modelfs.units import MiB

ID = ObjectId(bytes(range(32)))
digest = st.binary(min_size=32, max_size=32)
flat_place = st.builds(Place, st.builds(ObjectId, digest), st.integers(0, MAX_PACK_BYTES - CHUNK),
                       st.integers(1, CHUNK), st.sampled_from(["raw", "zstd", "a-codec-of-tomorrow"]))
base = st.builds(Base, st.builds(ChunkId, digest), flat_place)
place = flat_place | st.builds(Place, st.builds(ObjectId, digest), st.just(5), st.just(6), st.just("delta"), base)
chunks = st.lists(st.builds(Located, st.builds(ChunkId, digest), st.integers(1, CHUNK), place), max_size=12,
                  unique_by=lambda chunk: chunk.id)


@given(st.lists(place, max_size=12), st.data())
def test_a_layout_says_what_was_written(places: list[Place], data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.sampled_from(places), max_size=20)) if places else []
    heads = set(data.draw(st.lists(st.sampled_from([each.pack for each in places])))) if places else set()
    raw = layout.serialise(ID, rows, heads)
    found = layout.parse(ID, raw, len(rows), CHUNK)
    assert [found.place(row) for row in range(len(rows))] == rows
    assert found.head_packs == heads & {each.pack for each in rows}
    assert found.stored_bytes() == sum(each.length for each in set(rows))


@given(st.lists(st.lists(place, max_size=6), min_size=1, max_size=3))
def test_joined_tables_say_what_each_said(parts: list[list[Place]]) -> None:
    tables = [table_of(each) for each in parts]
    found = joined(tables)
    rows = np.cumsum([0, *map(len, tables)])
    assert [found.place(int(first) + row) for first, each in zip(rows, parts, strict=False)
            for row in range(len(each))] == [each for some in parts for each in some]


@given(chunks)
def test_an_index_finds_what_was_written_and_nothing_else(written: list[Located]) -> None:
    found = index.parse(index.serialise(written), "index", CHUNK)
    assert found.all() == sorted(written, key=lambda chunk: chunk.id)
    assert [found.find(chunk.id) for chunk in written] == written
    assert found.find(ChunkId(b"\x55" * 32)) == next((c for c in written if c.id == b"\x55" * 32), None)


def test_ids_that_begin_alike_are_told_apart() -> None:
    rows = [Located(ChunkId(bytes(8) + bytes([n]) * 24), n + 1, Place(ID, n, 1, "raw")) for n in range(9)]
    found = index.parse(index.serialise(rows), "index", CHUNK)
    assert [found.find(row.id) for row in rows] == rows
    assert found.find(ChunkId(bytes(8) + b"\xff" * 24)) is None


@given(st.lists(st.binary(min_size=1, max_size=300), max_size=8))
def test_a_pack_says_of_itself_what_lies_in_it(pieces: list[bytes]) -> None:
    writer = PackWriter()
    for piece in pieces:
        writer.add(ChunkId.of(piece), len(piece), "raw", piece)
    sealed = writer.seal()
    data = bytes(sealed.data)
    assert ObjectId.of(data) == sealed.id
    start, length, tail_digest = pack.tail_span(data[-FOOTER.size:], len(data), "pack")
    rows = pack.parse_tail(sealed.id, data[start:start + length], tail_digest, CHUNK)
    assert {row.id for row in rows} == {ChunkId.of(piece) for piece in pieces}
    for row in rows:
        assert row.place.pack == sealed.id
        assert ChunkId.of(data[row.place.offset:row.place.offset + row.place.length]) == row.id


def spoiled(raw: bytes, spoil: Callable[[dict[str, Any]], None]) -> bytes:
    found = columns.parse(raw, "columns")
    table: dict[str, Any] = {name: array.copy() for name, array in found.arrays.items()}
    spoil(table)
    return columns.serialise(table, dict(found.scalars))


def put(column: str, value: int) -> Callable[[dict[str, Any]], None]:
    def spoil(table: dict[str, Any]) -> None:
        table[column][-1] = value
    return spoil


def based_on(row: int) -> Callable[[dict[str, Any]], None]:
    """The last row, on another."""
    def spoil(table: dict[str, Any]) -> None:
        table["place_base"][-1] = row
        table["place_base_id"] = np.zeros((1, 32), np.uint8)
    return spoil


def unnamed_base(table: dict[str, Any]) -> None:
    table["place_base"][0] = 1


def base_of_a_base(table: dict[str, Any]) -> None:
    table.update(place_base=np.array([1, 0], np.uint32), place_base_id=np.zeros((2, 32), np.uint8))


FALSE_PLACES: dict[str, Callable[[dict[str, Any]], None]] = {
    "beyond a pack": put("place_offset", MAX_PACK_BYTES - CHUNK + 1),
    "at the end of all numbers": put("place_offset", 2**64 - 1),
    "larger than a chunk": put("place_stored", CHUNK + 1),
    "of no bytes": put("place_stored", 0),
    "in a pack that is not there": put("place_pack", 1),
    "of a codec that is not there": put("place_codec", 1),
    "of a base that is not there": based_on(2),
    "of itself": based_on(1),
    "of a base that has a base": base_of_a_base,
    "of a base without a chunk id": unnamed_base,
    "without codecs": lambda table: table.update(codecs=np.zeros(0, np.uint8)),
    "with a codec's name cut short": lambda table: table.update(codecs=np.frombuffer(b"raw", np.uint8)),
    "of another type": lambda table: table.update(place_offset=table["place_offset"].astype(np.uint32)),
    "missing": lambda table: table.pop("place_pack"),
    "too few": lambda table: table.update(place_stored=table["place_stored"][:1]),
}


@pytest.mark.parametrize("what", FALSE_PLACES)
def test_a_place_that_cannot_be_is_malformed_in_a_layout_and_in_an_index(what: str) -> None:
    rows = located(b"one", b"two")
    as_layout = layout.serialise(ID, [row.place for row in rows], set())
    as_index = index.serialise(rows)
    assert len(layout.parse(ID, as_layout, 2, CHUNK).places) == len(index.parse(as_index, "index", CHUNK)) == 2
    with pytest.raises(Malformed):
        layout.parse(ID, spoiled(as_layout, FALSE_PLACES[what]), 2, CHUNK)
    with pytest.raises(Malformed):
        index.parse(spoiled(as_index, FALSE_PLACES[what]), "index", CHUNK)


@pytest.mark.parametrize("spoil", [put("row_place", 2), put("row_place", 2**32 - 1), put("heads", 1)])
def test_a_layout_that_names_what_it_has_not_is_malformed(spoil: Callable[[dict[str, Any]], None]) -> None:
    rows = located(b"one", b"two")
    raw = layout.serialise(ID, [row.place for row in rows], {rows[0].place.pack})
    with pytest.raises(Malformed):
        layout.parse(ID, spoiled(raw, spoil), 2, CHUNK)


def test_a_layout_of_another_manifest_or_of_another_number_of_rows_is_malformed() -> None:
    raw = layout.serialise(ID, [row.place for row in located(b"one", b"two")], set())
    with pytest.raises(Malformed, match="another manifest"):
        layout.parse(ObjectId(bytes(32)), raw, 2, CHUNK)
    for rows in (0, 1, 3):
        with pytest.raises(Malformed):
            layout.parse(ID, raw, rows, CHUNK)


def backwards(table: dict[str, Any]) -> None:
    table["chunk_id"] = table["chunk_id"][::-1]


@pytest.mark.parametrize("spoil", [
    backwards, put("chunk_length", 0), put("chunk_length", CHUNK + 1), lambda table: table.pop("chunk_id"),
    lambda table: table.update({name: table[name][:1] for name in table if name.startswith("place_")})])
def test_an_index_out_of_order_or_with_chunks_that_cannot_be_is_malformed(
        spoil: Callable[[dict[str, Any]], None]) -> None:
    raw = index.serialise(located(b"one", b"two"))
    with pytest.raises(Malformed):
        index.parse(spoiled(raw, spoil), "index", CHUNK)


def footer(magic: bytes = MAGIC, start: int = 10, length: int = 20) -> bytes:
    return FOOTER.pack(magic, start, length, bytes(32))


@pytest.mark.parametrize(("data", "size"), [
    (footer(magic=b"MFSPACK2"), 94), (footer(start=11), 94), (footer(length=0), 74), (footer()[:-1], 94), (b"", 0),
    (footer(start=2**64 - 1, length=95), 94), (footer(start=100 * MiB - 84), 100 * MiB)])
def test_a_footer_that_does_not_add_up_is_malformed(data: bytes, size: int) -> None:
    assert pack.tail_span(footer(), 94, "pack")[:2] == (10, 20)
    with pytest.raises(Malformed):
        pack.tail_span(data, size, "pack")


def test_a_tail_that_does_not_hash_or_names_another_pack_is_malformed() -> None:
    own = index.serialise([Located(ChunkId.of(b"x"), 1, Place(SELF, 0, 1, "raw"))], "tail")
    assert pack.parse_tail(ID, own, Digest.of(own), CHUNK)[0].place.pack == ID
    with pytest.raises(Malformed, match="hash"):
        pack.parse_tail(ID, own, Digest(bytes(32)), CHUNK)
    foreign = index.serialise(located(b"x"), "tail")
    with pytest.raises(Malformed, match="another pack"):
        pack.parse_tail(ID, foreign, Digest.of(foreign), CHUNK)


@given(st.data())
def test_any_flipped_or_missing_bytes_are_malformed_or_places_within_bounds(data: st.DataObject) -> None:
    rows = located(b"one", b"two", b"three")
    as_layout = data.draw(st.booleans())
    raw = bytearray(layout.serialise(ID, [row.place for row in rows], {rows[0].place.pack}) if as_layout
                    else index.serialise(rows))
    if data.draw(st.booleans()):
        del raw[data.draw(st.integers(0, len(raw) - 1)):]
    for _ in range(data.draw(st.integers(0, 3))):
        if raw:
            raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    tracemalloc.start()
    try:
        places = (layout.parse(ID, bytes(raw), 3, CHUNK) if as_layout else index.parse(bytes(raw), "i", CHUNK)).places
        found = [places.place(row) for row in range(len(places))]
    except IntegrityError:
        return
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 4 << 20
    assert all(0 <= each.offset <= MAX_PACK_BYTES - CHUNK and 1 <= each.length <= CHUNK for each in found)
