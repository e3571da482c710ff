"""safetensors files that hold the small dtypes themselves, codes and scales as tensors, and reading them back.

Rule: read_native gives exactly the values that the same recipe without --native-dtype stores. What is needed to read a
file stands in its own metadata.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from modelfs.compression.plan import FilePlan, Range
from modelfs.compression.tasks import Join, part_bytes
from modelfs.errors import BadInput, Malformed
from modelfs.formats import describe
from modelfs.formats.safetensors import BITS as SAFETENSORS_BITS
from modelfs.transforms import Affine, Chain, Cluster, Part, Recipe, Rounding, document_of, parse_recipe
from modelfs.transforms.blocks import Geometry
from modelfs.transforms.cluster import CODEBOOK
from modelfs.transforms.dtypes import BITS, Values, decode, float_of, rounded
from modelfs.transforms.quantise import SCALE, ZERO_POINT
from modelfs.transforms.recipe import Method

RECIPE_KEY, TENSORS_KEY = "modelfs.recipe", "modelfs.tensors"
_NUMPY = {"I8": "i1", "U8": "u1", "I16": "<i2", "U16": "<u2", "I32": "<i4", "U32": "<u4", "I64": "<i8", "U64": "<u8",
          "BOOL": "?", "C64": "<c8"}
_HEAD_LIMIT = 100_000_000

Array = npt.NDArray[Any]


def refuse_other_formats(plans: Iterable[FilePlan]) -> None:
    """Raises BadInput for the first file whose tensors would need parts that its format cannot have."""
    for plan in plans:
        if plan.jobs and plan.layout.format != "safetensors":
            raise BadInput(f"native dtypes in {plan.layout.format}", where=plan.file.path,
                           why="only safetensors files can hold them",
                           advice="Leave --native-dtype out, or the file by the recipe's files.")


@dataclass(frozen=True, slots=True)
class _Entry:
    name: str
    dtype: str
    shape: tuple[int, ...]
    location: str
    range: Range


def join_task(plan: FilePlan, part: str, spools: Mapping[int, str], parts: Mapping[int, tuple[tuple[str, Part], ...]],
              recipe: Recipe) -> Join:
    """The new file of small dtypes. spools, parts: by the tensors' numbers; without parts a tensor is copied.

    Raises OSError; BadInput where two tensors would have one name.
    """
    entries, native = [], {}
    rules = {job.number: job.choice.rule for job in plan.jobs}
    for number, tensor in enumerate(plan.layout.tensors):
        if not parts.get(number):
            entries.append(_Entry(tensor.name, tensor.dtype, tensor.shape, plan.file.location,
                                  Range(tensor.offset, tensor.length)))
            continue
        native[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "rule": rules[number],
                               "parts": [suffix for suffix, _ in parts[number]]}
        at = 0
        for suffix, each in parts[number]:
            size = part_bytes(each)
            entries.append(_Entry(tensor.name + suffix, each.dtype, each.shape, spools[number], Range(at, size)))
            at += size
    names = [entry.name for entry in entries]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise BadInput(f"two tensors would be named {twice!r}", where=plan.file.path, why="a part has a tensor's name",
                       advice="Have the recipe skip one of them.")
    # wide elements first, so that each lies at a multiple of its width
    entries.sort(key=lambda entry: -SAFETENSORS_BITS.get(entry.dtype, 8))
    header: dict[str, object] = {"__metadata__": _metadata(plan.file.location) | {
        RECIPE_KEY: json.dumps(document_of(recipe)), TENSORS_KEY: json.dumps(native)}}
    at = 0
    for entry in entries:
        header[entry.name] = {"dtype": entry.dtype, "shape": list(entry.shape),
                              "data_offsets": [at, at + entry.range.length]}
        at += entry.range.length
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return Join(part, len(text).to_bytes(8, "little") + text,
                tuple((entry.location, entry.range) for entry in entries if entry.range.length))


def read_native(path: str | os.PathLike[str], names: Iterable[str] | None = None) -> dict[str, Array]:
    """The tensors of a safetensors file, one made by `compress --native-dtype` or any other, as arrays.

    Floats come as float32, float64 those that were F64 before; other dtypes as they are, those that numpy lacks as
    their bytes. names: only these, under their names before; all by default.
    Raises BadInput where path is no safetensors file or lacks a name, Malformed where its parts do not fit.
    """
    where = os.fspath(path)
    try:
        with open(where, "rb") as stream:
            reader = _Reader(stream, where)
            wanted = reader.names() if names is None else list(names)
            return {name: reader.array(name) for name in wanted}
    except OSError as error:
        raise BadInput("cannot be read", where=where, why=error.strerror or str(error)) from error


_WRONG = (ValueError, KeyError, IndexError, TypeError, AttributeError)
"""What numbers and names that do not fit each other raise."""


@dataclass(frozen=True, slots=True)
class _Native:
    """A tensor that is stored as parts; dtype, shape: before."""

    dtype: str
    shape: tuple[int, ...]
    method: Method | None
    parts: tuple[str, ...]


class _Reader:
    def __init__(self, stream: BinaryIO, where: str) -> None:
        self._fd, self._where = stream.fileno(), where
        size = os.fstat(self._fd).st_size
        found = describe(lambda offset, length: os.pread(self._fd, length, offset), size, where)
        if found.format != "safetensors":
            raise BadInput("no safetensors file", where=where)
        self._tensors = {tensor.name: tensor for tensor in found.tensors}
        try:
            self._native = _natives(_metadata(where), where)
        except (*_WRONG, BadInput) as error:
            raise Malformed("metadata of compress that cannot be read", where=where, why=str(error)) from error

    def names(self) -> list[str]:
        """As they were before: a part is no tensor of its own."""
        parts = {name + suffix for name, native in self._native.items() for suffix in native.parts if suffix}
        return [name for name in self._tensors if name not in parts]

    def array(self, name: str) -> Array:
        if name not in self._tensors:
            raise BadInput(f"no tensor {name!r}", where=self._where)
        native = self._native.get(name)
        if native is None:
            return self._plain(name)
        try:
            return self._values(name, native).reshape(native.shape)
        except _WRONG as error:
            raise Malformed(f"tensor {name!r} cannot be read", where=self._where, why=str(error)) from error

    def _values(self, name: str, native: _Native) -> Values:
        last = native.method.second if isinstance(native.method, Chain) else native.method
        dtype, shape = native.dtype, native.shape
        if isinstance(last, Affine):
            return self._affine(name, last, dtype, shape)
        if isinstance(last, Cluster):
            return self._clustered(name, last, shape)
        if isinstance(last, Rounding):
            values: Values = self._plain(name).astype(float_of(dtype), copy=False)
            if last.scaled:
                values = np.multiply(values, self._plain(name + SCALE).astype(values.dtype))
            return rounded(values, dtype)
        raise TypeError("a method without parts")

    def _affine(self, name: str, method: Affine, dtype: str, shape: tuple[int, ...]) -> Values:
        geometry = Geometry.of(shape, method.unit)
        rows, columns = geometry.rows, geometry.columns
        groups = geometry.groups(method.group)
        stored = self._plain(name).reshape(rows, -1)
        if method.bits == 4:
            pairs = np.stack((stored & 15, stored >> 4), axis=2).reshape(rows, -1)
            stored = pairs[:, :columns]
        codes: Values = stored.astype(float_of(dtype))
        repeats = np.full(groups, method.group)
        repeats[-1] -= groups * method.group - columns
        if method.zero_point:
            zero_points = self._plain(name + ZERO_POINT).reshape(rows, groups)
            codes -= np.repeat(zero_points, repeats, axis=1)
        elif method.bits == 4:
            codes -= 8
        scales = self._plain(name + SCALE).reshape(rows, groups).astype(codes.dtype)
        codes *= np.repeat(scales, repeats, axis=1)
        return rounded(codes, dtype)

    def _clustered(self, name: str, method: Cluster, shape: tuple[int, ...]) -> Values:
        codes = self._plain(name)
        tables = self._plain(name + CODEBOOK)
        if not method.group:
            return np.asarray(tables[codes])
        geometry = Geometry.of(shape, method.unit)
        groups = geometry.groups(method.group)
        tables = tables.reshape(geometry.rows, groups, -1)
        group = np.arange(geometry.columns) // method.group
        return np.asarray(tables[np.arange(geometry.rows)[:, None], group,
                                 codes.reshape(geometry.rows, geometry.columns)])

    def _plain(self, name: str) -> Array:
        tensor = self._tensors[name]
        data = bytearray(tensor.length)
        view, at = memoryview(data), 0
        while at < tensor.length:
            read = os.preadv(self._fd, [view[at:]], tensor.offset + at)
            if not read:
                raise Malformed("shorter than it was", where=self._where)
            at += read
        if tensor.dtype in BITS:
            return decode(data, tensor.dtype).reshape(tensor.shape)
        kind = _NUMPY.get(tensor.dtype)
        return np.frombuffer(data, np.uint8) if kind is None else np.frombuffer(data, kind).reshape(tensor.shape)


def _natives(metadata: Mapping[str, str], where: str) -> dict[str, _Native]:
    """By their names. Raises BadInput and what _WRONG lists."""
    if TENSORS_KEY not in metadata:
        return {}
    rules = parse_recipe(json.loads(metadata[RECIPE_KEY]), "", where).rules
    return {name: _Native(str(each["dtype"]), tuple(int(size) for size in each["shape"]), rules[each["rule"]].method,
                          tuple(map(str, each["parts"])))
            for name, each in json.loads(metadata[TENSORS_KEY]).items()}


def _metadata(location: str) -> dict[str, str]:
    """Of a safetensors file that describe knows."""
    with open(location, "rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(min(length, _HEAD_LIMIT)))
    found = header.get("__metadata__")
    return {key: value for key, value in found.items() if isinstance(value, str)} if isinstance(found, dict) else {}

