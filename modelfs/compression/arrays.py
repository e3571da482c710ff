"""A model held as numpy arrays → its compact form, without files or a repository.

Rule: decompress_model gives exactly the arrays that the recipe's transforms made; arrays that no rule is for come back
as they were, bit for bit, whatever their dtype.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from modelfs.codecs import CodecError, codec_named, encode_chunk
from modelfs.errors import BadInput, Malformed
from modelfs.transforms import Choice, Recipe, Survey, nothing_matched, of_array, recipe_named, transform_array
from modelfs.transforms.dtypes import name_of, native_order
from modelfs.units import MiB

Array: TypeAlias = npt.NDArray[Any]
CHUNK_BYTES = 2 * MiB


@dataclass(frozen=True, slots=True)
class StoredChunk:
    """length: of the decoded bytes."""

    codec: str
    length: int
    stored: bytes


@dataclass(frozen=True, slots=True)
class CompressedArray:
    """dtype: numpy's, with its byte order. method: the transform's name, "" where the array is as it was."""

    name: str
    dtype: str
    method: str
    chunks: tuple[StoredChunk, ...]

    @property
    def nbytes(self) -> int:
        """Of the stored chunks."""
        return sum(len(chunk.stored) for chunk in self.chunks)


def compress_model(model: Sequence[Array] | Mapping[str, Array], recipe: Recipe | str = "int8",
                   ) -> list[tuple[CompressedArray, tuple[int, ...]]]:
    """(compressed, shape) of each array, in order.

    model: arrays, by name or not; none is written to. recipe: a recipe, the name of one, or its file's path; its rules
    see the arrays' names ("" without), and "" for the file.
    Raises BadInput where the recipe matches no array, or asks for native dtypes, which are for files.
    """
    recipe = recipe_named(recipe) if isinstance(recipe, str) else recipe
    if recipe.native_dtype:
        raise BadInput(f"recipe {recipe.name!r} with native dtypes", why="arrays keep their dtype here",
                       advice="Leave out native_dtype.")
    named = list(model.items()) if isinstance(model, Mapping) else [("", array) for array in model]
    named = [(name, np.asarray(array)) for name, array in named]
    choices = [recipe.choose("", name, name_of(array.dtype) or str(array.dtype), array.shape) for name, array in named]
    if named and not any(choice.method for choice in choices):
        raise nothing_matched(recipe, "the model", choices)
    if recipe.needs_survey:
        survey = Survey()
        for choice, (_, array) in zip(choices, named, strict=True):
            if choice.method is not None:
                survey.add(choice, of_array(array, name_of(array.dtype) or ""))
        recipe = recipe.resolved(survey)
    return [(_compressed(recipe, choice, name, array), array.shape)
            for choice, (name, array) in zip(choices, named, strict=True)]


def decompress_model(compressed: Iterable[tuple[CompressedArray, tuple[int, ...]]]) -> list[Array]:
    """The arrays, in order. Raises Malformed for what compress_model did not make."""
    return [_array(stored, shape) for stored, shape in compressed]


def _compressed(recipe: Recipe, choice: Choice, name: str, array: Array) -> CompressedArray:
    method = recipe.rules[choice.rule].method if choice.rule is not None else None
    told = ""
    values = array
    if method is not None:
        result = transform_array(method, array)
        values, told = result.values, "" if result.left_alone else method.name
    if values.dtype.hasobject:
        raise BadInput(f"array {name!r}", why="Python objects are no weights", advice="Leave it out of the model.")
    # codecs look for what elements have in common, in this machine's order of bytes
    flat = np.ascontiguousarray(native_order(values)).reshape(-1).view(np.uint8)
    width = array.dtype.itemsize if array.dtype.itemsize in (1, 2, 4, 8) else 0
    chunks = []
    for start in range(0, flat.size, CHUNK_BYTES):
        part = flat[start:start + CHUNK_BYTES]
        codec, stored = encode_chunk(part.data, width)
        chunks.append(StoredChunk(codec, part.size, stored))
    return CompressedArray(name, array.dtype.str, told, tuple(chunks))


def _array(compressed: CompressedArray, shape: tuple[int, ...]) -> Array:
    dtype = np.dtype(compressed.dtype)
    native = np.empty(shape, dtype.newbyteorder("="))
    flat = native.reshape(-1).view(np.uint8).data
    if sum(chunk.length for chunk in compressed.chunks) != len(flat):
        raise Malformed(f"compressed array {compressed.name!r}", why=f"its chunks are not of shape {shape}")
    at = 0
    for chunk in compressed.chunks:
        try:
            codec_named(chunk.codec).decode(memoryview(chunk.stored), flat[at:at + chunk.length])
        except CodecError as error:
            raise Malformed(f"compressed array {compressed.name!r}", why=str(error)) from error
        at += chunk.length
    return native.astype(dtype, copy=False)
