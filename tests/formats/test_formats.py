"""What describe finds in real and hand-written model files, and that nothing in a file can make it fail."""

from __future__ import annotations

import io
import json
import struct
import tracemalloc
import zipfile
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from modelfs.formats import Description, Segment, Tensor, describe

Kept = dict[str, bytes]


def described(data: bytes, path: str = "model.bin") -> Description:
    found = describe(lambda offset, length: data[offset:offset + length], len(data), path)
    at = 0
    for segment in found.segments:
        assert segment.offset == at and segment.length > 0 and segment.width in (0, 1, 2, 4, 8)
        at += segment.length
    assert at == len(data)
    assert all(0 <= each.offset <= each.offset + each.length <= len(data) for each in found.tensors)
    assert [each.offset for each in found.tensors] == sorted(each.offset for each in found.tensors)
    return found


def content(data: bytes, found: Description) -> Kept:
    return {each.name: data[each.offset:each.offset + each.length] for each in found.tensors}


def is_unknown(data: bytes) -> bool:
    found = described(data)
    return found == Description(None, (Segment(0, len(data)),))


def safetensors_of(header: object, data: bytes = b"") -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def gguf_of(tensors: list[tuple[str, list[int], int, bytes]], alignment: int = 32, version: int = 3,
            extra: bytes = b"", pairs: int = 0) -> bytes:
    metadata = text("general.alignment") + struct.pack("<II", 4, alignment) + extra
    table, data = b"", b""
    for name, shape, kind, numbers in tensors:
        table += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, len(data))
        data += numbers + b"\0" * (-len(numbers) % alignment)
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), 1 + pairs) + metadata + table
    return head + b"\0" * (-len(head) % alignment) + data


def torch_like(compression: int = zipfile.ZIP_STORED, wide: bool = False, size: int = 100_000) -> tuple[bytes, Kept]:
    """As torch.save lays it out: records of an uncompressed archive that begin at multiples of 64 bytes."""
    kept = {f"archive/data/{k}": np.random.default_rng(k).bytes(size) for k in range(3)}
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in [("archive/data.pkl", b"\x80\x02}q\x00."), *kept.items(), ("archive/version", b"3\n")]:
            info = zipfile.ZipInfo(name)
            info.compress_type = compression
            padding = -(file.tell() + 34 + len(name)) % 64
            info.extra = b"FB" + struct.pack("<H", padding) + b"Z" * padding
            with archive.open(info, "w", force_zip64=wide) as record:
                record.write(data)
    return file.getvalue(), kept


def zip64_of(data: bytes) -> bytes:
    """The same archive with its directory's place, and the first entry's sizes, in zip64 fields."""
    end = data.rindex(b"PK\x05\x06")
    count, _, start = struct.unpack_from("<HLL", data, end + 10)
    directory = bytearray(data[start:end])
    size, = struct.unpack_from("<L", directory, 20)
    name, extra = struct.unpack_from("<HH", directory, 28)
    struct.pack_into("<LL", directory, 20, 0xFFFFFFFF, 0xFFFFFFFF)
    struct.pack_into("<H", directory, 30, extra + 20)
    directory[46 + name:46 + name] = struct.pack("<HHQQ", 1, 16, size, size)
    end64 = start + len(directory)
    return (data[:start] + bytes(directory)
            + struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, len(directory), start)
            + struct.pack("<4sLQL", b"PK\x06\x07", 0, end64, 1)
            + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0))


def npy_of(array: np.ndarray, version: tuple[int, int] | None = None) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version)
    return file.getvalue()


def npz_of(save_as: Callable[..., None]) -> bytes:
    file = io.BytesIO()
    save_as(file, x=np.arange(5000), y=np.ones((30, 40), np.float16))
    return file.getvalue()


def test_safetensors_by_its_own_library() -> None:
    rng = np.random.default_rng(1)
    arrays = {"b": rng.random((30, 7), np.float32), "a": rng.integers(0, 99, 11).astype(np.int8),
              "none": np.zeros((0, 4), np.float16), "half": np.ones((), np.float16)}
    data = save(arrays, metadata={"format": "pt"})
    found = described(data)
    assert found.format == "safetensors"
    assert content(data, found) == {name: array.tobytes() for name, array in arrays.items()}
    assert {each.name: (each.dtype, each.shape) for each in found.tensors} == {
        "b": ("F32", (30, 7)), "a": ("I8", (11,)), "none": ("F16", (0, 4)), "half": ("F16", ())}
    assert [each.head for each in found.segments] == [True, False, False, False]
    assert {each.width for each in found.segments[1:]} == {1, 2, 4}


@pytest.mark.parametrize("header, data", [
    ({"a": entry("F32", [2], 0, 7)}, b"1234567"),
    ({"a": entry("F32", [2], 0, 8)}, b"123456789"),
    ({"a": entry("F32", [2], 0, 8)}, b"1234567"),
    ({"a": entry("F32", [2], 4, 12)}, b"0" * 12),
    ({"a": entry("U8", [8], 0, 8), "b": entry("U8", [8], 4, 12)}, b"0" * 12),
    ({"a": entry("U8", [4], 0, 4), "b": entry("U8", [4], 8, 12)}, b"0" * 12),
    ({"a": entry("U8", [4], 0, 4), "b": entry("U8", [4], 8, 12)}, b"0" * 8),
    ({"a": entry("Q9", [2**70], 0, 4)}, b"0000"),
    ({"a": entry("U8", [-4], 0, 4)}, b"0000"),
    ({"a": entry("U8", [2**64], 0, 4)}, b"0000"),
    ({"a": entry("U8", [2] * 10_000, 0, 4)}, b"0000"),
    ({"a": {"dtype": "U8", "shape": [True], "data_offsets": [0, 1]}}, b"0"),
    ({"a": {"dtype": "U8", "shape": [1.0], "data_offsets": [0, 1]}}, b"0"),
    ({"a": {"dtype": "U8", "shape": 1, "data_offsets": [0, 1]}}, b"0"),
    ({"a": {"dtype": None, "shape": [1], "data_offsets": [0, 1, 1]}}, b"0"),
    ({"a": 3}, b""),
    ({"\ud800": entry("U8", [1], 0, 1)}, b"0"),
    (b"{" + b'"a":[' * 50_000, b""),
    (b"{" + b'"a":{' * 50_000, b""),
    (b'{"a": 1' + b"0" * 5000 + b"}", b""),
    (b"{\xff}", b""),
    (b"{'a'}", b""),
])
def test_a_safetensors_header_that_lies_is_no_header(header: object, data: bytes) -> None:
    assert is_unknown(safetensors_of(header, data))


def test_a_header_of_millions_of_lists_is_not_parsed() -> None:
    data = safetensors_of(b'{"a":[' + b"[]," * 3_000_000 + b"0]}")
    tracemalloc.start()
    assert is_unknown(data)
    assert tracemalloc.get_traced_memory()[1] < 4 * len(data)
    tracemalloc.stop()


@pytest.mark.parametrize("data", [
    b"\xff" * 8 + b"{not a header", b"\x10", b"\x10\0\0\0\0\0\0\0{", b"\0" * 100, b"GGUF" + b"\xff" * 40, b"GGUF",
    b"PK\x03\x04" + b"\0" * 100, b"PK\x03\x04", b"\x93NUMPY", b"\x93NUMPY\x01\x00\xff\xff{}",
    b"\x93NUMPY\x02\x00" + b"\xff" * 9,
])
def test_the_magic_of_a_format_alone_is_unknown(data: bytes) -> None:
    assert is_unknown(data)


def test_an_empty_file_has_no_segments() -> None:
    assert described(b"") == Description(None, ())


def test_gguf_tensors_run_to_the_next_and_padding_is_theirs() -> None:
    strings = b"".join(text(f"token {k}") for k in range(50_000))
    extra = (text("tokens") + struct.pack("<IIQ", 9, 8, 50_000) + strings
             + text("nested") + struct.pack("<IIQ", 9, 9, 2) + 2 * (struct.pack("<IQ", 5, 3) + bytes(12))
             + text("name") + struct.pack("<I", 8) + text("a model")
             + b"".join(text(f"k{kind}") + struct.pack("<I", kind) + bytes(size) for kind, size in (
                 (0, 1), (1, 1), (2, 2), (3, 2), (4, 4), (5, 4), (6, 4), (7, 1), (10, 8), (11, 8), (12, 8))))
    parts = [("embed", [4, 5], 0, bytes(range(80))), ("quantised", [32, 2], 2, bytes(36)), ("new", [7], 999, b"7" * 50),
             ("scalar", [1], 30, b"ab"), ("none", [0, 3], 1, b"")]
    for version in (2, 3):
        data = gguf_of(parts, alignment=64, version=version, extra=extra, pairs=14)
        found = described(data)
        assert found.format == "gguf"
        by_name = {each.name: each for each in found.tensors}
        assert {name: (each.dtype, each.shape, each.length) for name, each in by_name.items()} == {
            "embed": ("F32", (4, 5), 80), "quantised": ("Q4_0", (32, 2), 64), "new": ("GGML_999", (7,), 64),
            "scalar": ("BF16", (1,), 2), "none": ("F16", (0, 3), 0)}
        assert content(data, found)["embed"] == bytes(range(80))
        assert [(each.length, each.width, each.head) for each in found.segments[1:]] == [
            (128, 4, False), (64, 0, False), (64, 0, False), (64, 2, False)]
        assert found.segments[0].head and found.segments[0].length == by_name["embed"].offset


def test_gguf_without_tensors_is_a_header() -> None:
    data = gguf_of([])
    assert described(data) == Description("gguf", (Segment(0, len(data), head=True),))


@pytest.mark.parametrize("data", [
    gguf_of([("a", [9], 0, bytes(32))]),
    gguf_of([("a", [2**40], 0, bytes(64))]),
    gguf_of([("a", [2**63, 2**63], 0, bytes(64))]),
    gguf_of([("a", [1] * 9, 0, bytes(32))]),
    gguf_of([("a", [4], 0, bytes(16))], alignment=3),
    gguf_of([("a", [4], 0, bytes(16))], version=1),
    gguf_of([("a", [4], 30, bytes(16))]).replace(struct.pack("<IQ", 30, 0), struct.pack("<IQ", 30, 8)),
    gguf_of([], extra=text("x") + struct.pack("<I", 13), pairs=1),
    gguf_of([], extra=text("x") + struct.pack("<IIQ", 9, 8, 2**63), pairs=1),
    gguf_of([], extra=text("x") + struct.pack("<IIQ", 9, 4, 2**63), pairs=1),
    gguf_of([], extra=text("x") + struct.pack("<IIQ", 9, 9, 1) + struct.pack("<IQ", 9, 1) * 5000, pairs=1),
    gguf_of([], pairs=2**40),
    gguf_of([("a" * 70_000, [4], 0, bytes(16))]),
    gguf_of([("a", [4], 0, bytes(16))])[:-40],
])
def test_gguf_that_lies_is_unknown(data: bytes) -> None:
    assert is_unknown(data)


@pytest.mark.parametrize("wide", [False, True])
def test_torch_records_lie_where_a_reader_finds_them(wide: bool) -> None:
    data, kept = torch_like(wide=wide)
    for each in [data, zip64_of(data)]:
        found = described(each)
        assert found.format == "torch"
        assert content(each, found) == kept
        assert [(tensor.dtype, tensor.shape) for tensor in found.tensors] == 3 * [("U8", (100_000,))]
        assert found.segments[0].head and b"data.pkl" in each[:found.segments[0].length]
        last = found.segments[-1]
        assert last.head and each[last.offset:last.offset + 4] == b"PK\x01\x02"


def test_compressed_torch_records_are_opaque() -> None:
    data, _ = torch_like(zipfile.ZIP_DEFLATED)
    found = described(data)
    assert found.format == "torch" and found.tensors == ()


def test_an_archive_of_anything_else_is_unknown() -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("document.xml", b"<x/>" * 1000)
    assert is_unknown(file.getvalue())
    data, _ = torch_like()
    assert is_unknown(data[:-1])
    assert is_unknown(b"PK\x03\x04" + data)
    at = data.index(b"PK\x03\x04", 100)
    assert is_unknown(data[:at] + b"PK\x03\x05" + data[at + 4:])


def changed(data: bytes, magic: bytes, offset: int, form: str, *numbers: int) -> bytes:
    """data with numbers in place of those at offset behind the last magic."""
    result = bytearray(data)
    struct.pack_into(form, result, data.rindex(magic) + offset, *numbers)
    return bytes(result)


ENTRY, END, WIDE = b"PK\x01\x02", b"PK\x05\x06", b"PK\x06\x06"


@pytest.mark.parametrize("data", [
    changed(torch_like()[0], ENTRY, 20, "<LL", 99_999, 99_999),
    changed(torch_like()[0], ENTRY, 20, "<L", 1),
    changed(torch_like()[0], ENTRY, 8, "<H", 1),
    changed(torch_like()[0], ENTRY, 42, "<L", 0),
    changed(torch_like()[0], END, 8, "<HH", 6, 6),
    changed(torch_like()[0], END, 10, "<H", 4),
    changed(torch_like()[0], END, 16, "<L", 0xFFFFFFF0),
    changed(torch_like()[0], END, 20, "<H", 1),
    torch_like()[0] + b"x",
    changed(zip64_of(torch_like()[0]), WIDE, 24, "<QQ", 2**60, 2**60),
    changed(zip64_of(torch_like()[0]), WIDE, 40, "<Q", 2**64 - 1),
    changed(zip64_of(torch_like()[0]), END, -12, "<Q", 2**63),
    zip64_of(torch_like()[0]).replace(struct.pack("<HH", 1, 16), struct.pack("<HH", 1, 8)),
])
def test_an_archive_whose_directory_lies_is_unknown(data: bytes) -> None:
    assert is_unknown(data)


def test_an_array_in_an_archive_never_reaches_into_the_next_record() -> None:
    data = npz_of(np.savez)
    found = described(data.replace(b"(5000,)", b"(5100,)"))
    assert found.format == "npz" and [each.name for each in found.tensors] == ["y"]


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
@pytest.mark.parametrize("dtype, name, width", [
    ("<f4", "F32", 4), ("<f2", "F16", 2), (">f8", ">f8", 8), ("|u1", "U8", 1), ("?", "BOOL", 1), ("<c8", "C64", 4),
    ("<c16", "<c16", 8), ("<M8[ns]", "<M8[ns]", 8), ("S5", "|S5", 0), ("<U3", "<U3", 4)])
def test_npy_of_every_version_and_kind(version: tuple[int, int], dtype: str, name: str, width: int) -> None:
    array = np.zeros((6, 5), dtype)
    data = npy_of(array, version)
    found = described(data)
    assert found.format == "npy" and len(found.segments) == 2 and found.segments[0].head
    assert found.tensors == (Tensor("", name, (6, 5), len(data) - array.nbytes, array.nbytes),)
    assert found.segments[1].width == width


def test_npy_of_structures_is_one_run_of_bytes() -> None:
    found = described(npy_of(np.zeros(9, [("a", "<f4"), ("b", "<i8")])))
    assert found.format == "npy" and found.tensors == () and [each.width for each in found.segments] == [0, 0]


def npy_with(header: bytes, data: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


@pytest.mark.parametrize("header", [
    b"(" * 60_000, b"-" * 60_000 + b"1", b"1+" * 30_000 + b"1", b"{[]: 1}", b"__import__('os')", b"[1]", b"{}", b"\0",
    b"{'descr': '<f4', 'fortran_order': False, 'shape': (9,)}", b"{'descr': '<f4', 'fortran_order': False, 'shape': 1}",
    b"{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}",
    b"{'descr': '<f4', 'fortran_order': False, 'shape': (True,)}",
    b"{'descr': '<f4', 'fortran_order': False, 'shape': (" + b"9" * 4000 + b",)}"])
def test_a_hostile_npy_header_is_unknown(header: bytes) -> None:
    assert is_unknown(npy_with(header, b"0" * 32))


def test_npz_arrays_are_found_where_they_are_stored_plainly() -> None:
    data = npz_of(np.savez)
    found = described(data)
    assert found.format == "npz"
    assert content(data, found) == {"x": np.arange(5000).tobytes(), "y": np.ones((30, 40), np.float16).tobytes()}
    assert {each.width for each in found.segments} == {0, 2, 8}
    found = described(npz_of(np.savez_compressed))
    assert found.format == "npz" and found.tensors == ()


SAMPLES = {"safetensors": save({"a": np.arange(40, dtype=np.float32), "b": np.ones(9, np.float16)}),
           "gguf": gguf_of([("a", [8], 0, bytes(32)), ("b", [5], 2, bytes(40))], extra=text("k") + struct.pack(
               "<IIQ", 9, 8, 2) + text("x") + text("y"), pairs=1),
           "torch": torch_like(size=70)[0], "torch, zip64": zip64_of(torch_like(size=70)[0]),
           "npy": npy_of(np.arange(30)), "npz": npz_of(np.savez)}


@pytest.mark.parametrize("name", SAMPLES)
@given(change=st.data())
@settings(max_examples=300, deadline=None)
def test_a_mutated_file_is_always_covered_exactly_once(name: str, change: st.DataObject) -> None:
    data = bytearray(SAMPLES[name])
    for _ in range(change.draw(st.integers(1, 4))):
        at = change.draw(st.one_of(st.integers(0, len(data)), st.integers(0, min(300, len(data))),
                                   st.integers(max(0, len(data) - 300), len(data))))
        kind = change.draw(st.sampled_from(["set", "insert", "delete", "number"]))
        if kind == "set":
            data[at:at + 1] = change.draw(st.binary(min_size=1, max_size=1))
        elif kind == "insert":
            data[at:at] = change.draw(st.binary(min_size=1, max_size=9))
        elif kind == "delete":
            del data[at:at + change.draw(st.integers(1, 50))]
        else:
            number = change.draw(st.sampled_from([0, 1, 2**16, 2**32 - 1, 2**63, 2**64 - 1]))
            data[at:at + 8] = struct.pack("<Q", number)
    described(bytes(data))


def test_a_read_that_fails_is_not_mistaken_for_another_format() -> None:
    def fails(offset: int, length: int) -> bytes:
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="gone"):
        describe(fails, 100, "model.safetensors")


def test_a_file_of_a_terabyte_is_described_by_its_header_alone() -> None:
    half = 1 << 39
    head = safetensors_of({"a": entry("BF16", [half // 2], 0, half), "b": entry("F32", [half // 4], half, 2 * half)})
    read: list[int] = []

    def sparse(offset: int, length: int) -> bytes:
        read.append(length)
        return head[offset:offset + length].ljust(length, b"\0")

    found = describe(sparse, len(head) + 2 * half, "model.safetensors")
    assert found.format == "safetensors" and sum(read) < 4096
    assert [each.length for each in found.segments] == [len(head), half, half]
