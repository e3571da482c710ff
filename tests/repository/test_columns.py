"""The container of columns: views within what was given, or Malformed, whatever the header says."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.numpy import load

from modelfs.errors import Malformed
from modelfs.repository import columns


def container(header: object, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def entry(start: object, stop: object, shape: object, dtype: object = "U8") -> dict[str, object]:
    return {"data_offsets": [start, stop], "dtype": dtype, "shape": shape}


@given(st.dictionaries(st.text(max_size=8), st.lists(st.integers(0, 255), max_size=64), max_size=5),
       st.sampled_from(["u1", "<u2", "<u4", "<u8", "<i8"]), st.dictionaries(st.text(max_size=8), st.text(max_size=8)))
def test_what_was_written_is_read(table: dict[str, list[int]], dtype: str, scalars: dict[str, str]) -> None:
    table.pop("__metadata__", None)
    data = columns.serialise({name: np.array(values, dtype) for name, values in table.items()}, scalars)
    found = columns.parse(data, "columns")
    assert {name: array.tolist() for name, array in found.arrays.items()} == table
    assert found.scalars == scalars


def test_another_program_reads_it_as_safetensors_with_the_widest_types_first_and_aligned() -> None:
    data = columns.serialise({"a": np.arange(3, dtype=np.uint8), "b": np.arange(5, dtype=np.uint64),
                              "c": np.arange(4, dtype=np.uint32).reshape(2, 2)}, {"modelfs": "test"})
    assert {name: array.tolist() for name, array in load(data).items()} == {
        "a": [0, 1, 2], "b": [0, 1, 2, 3, 4], "c": [[0, 1], [2, 3]]}
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8:8 + length])
    assert length % 8 == 0
    assert [name for name, _ in sorted(list(header.items())[1:], key=lambda item: item[1]["data_offsets"])] == [
        "b", "c", "a"]


HOSTILE = {
    "nothing": b"",
    "a length and no header": (100).to_bytes(8, "little"),
    "a header of all bytes there are": (2**64 - 1).to_bytes(8, "little") + b"{}",
    "a header larger than a header may be": container(b" " * (1 << 20) + b"{}"),
    "no JSON": container(b"{]"),
    "not UTF-8": container(b'{"\xff":1}'),
    "nested without end": container(b"[" * 100_000),
    "a number without end": container(b"{\"a\":" + b"9" * 5000 + b"}"),
    "a list": container([1]),
    "a column that is a number": container({"a": 1}),
    "no offsets": container({"a": {"dtype": "U8", "shape": [1]}}),
    "one offset": container({"a": {"data_offsets": [0], "dtype": "U8", "shape": [0]}}),
    "offsets that are words": container({"a": entry("0", "1", [1])}, b"1"),
    "offsets that are fractions": container({"a": entry(0, 1.0, [1])}, b"1"),
    "an end beyond the end": container({"a": entry(0, 2, [2])}, b"1"),
    "an end before the start": container({"a": entry(0, 2, [2]), "b": entry(2, 0, [0])}, b"12"),
    "a start below zero": container({"a": entry(-1, 1, [2])}, b"1"),
    "overlapping columns": container({"a": entry(0, 2, [2]), "b": entry(1, 3, [2])}, b"123"),
    "a gap": container({"a": entry(0, 1, [1]), "b": entry(2, 3, [1])}, b"123"),
    "bytes left over": container({"a": entry(0, 1, [1])}, b"12"),
    "a shape that does not fit": container({"a": entry(0, 2, [3])}, b"12"),
    "a shape below zero": container({"a": entry(0, 2, [-1, -2])}, b"12"),
    "a shape beyond all memory": container({"a": entry(0, 0, [0, 2**70])}),
    "a shape that is a word": container({"a": entry(0, 1, "1")}, b"1"),
    "a shape that is a number": container({"a": entry(0, 1, 1)}, b"1"),
    "a hundred dimensions": container({"a": entry(0, 1, [1] * 100)}, b"1"),
    "elements cut in the middle": container({"a": entry(0, 3, [1], "U16")}, b"123"),
    "a type that is a list": container({"a": entry(0, 1, [1], ["U8"])}, b"1"),
    "scalars that are no strings": container({"__metadata__": {"a": 1}}),
    "scalars that are a list": container({"__metadata__": ["a"]}),
    "no scalars at all, in so many words": container({"__metadata__": None}),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_container_is_malformed(what: str) -> None:
    with pytest.raises(Malformed):
        columns.parse(HOSTILE[what], "columns")


def test_a_type_that_is_not_known_costs_its_column_and_no_more() -> None:
    found = columns.parse(container({"a": entry(0, 2, [1], "F16"), "b": entry(2, 3, [1])}, b"123"), "columns")
    assert set(found.arrays) == {"b"}


@pytest.mark.parametrize("ask", [("missing", "U8"), ("flat", "U32"), ("flat", "U8", 32), ("wide", "U8", 31),
                                 ("wide", "U8"), ("scalar", "U8")])
def test_a_column_of_another_type_or_shape_than_asked_for_is_malformed(ask: tuple[Any, ...]) -> None:
    found = columns.parse(container({"flat": entry(0, 1, [1]), "wide": entry(1, 33, [1, 32]),
                                     "scalar": entry(33, 34, [])}, bytes(34)), "columns")
    with pytest.raises(Malformed):
        found.get(*ask)


names = st.sampled_from(["data_offsets", "dtype", "shape", "__metadata__", "a"])
json_value = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
                          lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner), max_leaves=12)
offset = st.integers(-1, 9) | json_value
likely = st.builds(entry, offset, offset, st.lists(st.integers(-1, 9), max_size=3) | json_value,
                   st.sampled_from(["U8", "U16", "I64"]) | json_value)


@given(st.dictionaries(st.sampled_from(["a", "b", "__metadata__"]), likely | json_value), st.binary(max_size=9))
@example({"a": entry(0, 0, [0, 2**63])}, b"")
def test_no_header_brings_anything_but_views_or_malformed(header: dict[str, object], body: bytes) -> None:
    tracemalloc.start()
    try:
        found = columns.parse(container(header, body), "columns")
    except Malformed:
        return
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1 << 20
    assert sum(array.nbytes for array in found.arrays.values()) <= len(body)
