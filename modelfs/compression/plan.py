"""What is to be done with each file of a model: which tensors get which method, and which bytes are only copied.

Rule: every byte of a file is in exactly one job or one copied range. Tensors over the same bytes are one job, and only
where the same rule is for all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from modelfs.compression.layout import Layout, ModelFile, StoredTensor
from modelfs.formats.safetensors import BITS as STORED_BITS
from modelfs.transforms import Choice, Recipe, TensorReport, left_alone
from modelfs.units import MiB

_COPY_BYTES = 128 * MiB
"""Of a range that is copied at once: progress is told after each."""


@dataclass(frozen=True, slots=True)
class Range:
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Job:
    """number: of the tensor in the file's layout. twins: the numbers of others over the same bytes."""

    number: int
    tensor: StoredTensor
    choice: Choice
    twins: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class FilePlan:
    """number: of the file in the run. choices: of all tensors. untouched: reports of those that have no job, by number.
    """

    number: int
    file: ModelFile
    layout: Layout
    jobs: tuple[Job, ...]
    choices: tuple[Choice, ...]
    untouched: dict[int, TensorReport]

    @property
    def copied(self) -> list[Range]:
        """What lies between the jobs, in pieces."""
        return list(_between(self.file.size, self.jobs))


def plan_of(number: int, file: ModelFile, layout: Layout, recipe: Recipe) -> FilePlan:
    choices = [recipe.choose(file.path, each.name, each.dtype, each.shape) if each.obstacle is None else
               Choice(None, None, each.obstacle) for each in layout.tensors]
    by_place: dict[tuple[int, int], list[int]] = {}
    untouched: dict[int, TensorReport] = {}
    for index, (tensor, choice) in enumerate(zip(layout.tensors, choices, strict=True)):
        if tensor.obstacle is None and tensor.length:
            by_place.setdefault((tensor.offset, tensor.length), []).append(index)
        else:
            untouched[index] = untouched_report(tensor, choice.reason or "empty")
    jobs = []
    for indexes in by_place.values():
        first = indexes[0]
        alike = len({choices[each].rule for each in indexes}) == 1
        if alike and choices[first].method is not None:
            jobs.append(Job(first, layout.tensors[first], choices[first], tuple(indexes[1:])))
            continue
        for each in indexes:
            reason = choices[each].reason if alike or choices[each].method is None else \
                "another rule is for a tensor over the same bytes"
            choices[each] = Choice(None, None, reason)
            untouched[each] = untouched_report(layout.tensors[each], reason)
    jobs.sort(key=lambda job: job.tensor.offset)
    return FilePlan(number, file, layout, tuple(jobs), tuple(choices), untouched)


def untouched_report(tensor: StoredTensor, reason: str) -> TensorReport:
    count = math.prod(tensor.shape)
    bits = STORED_BITS.get(tensor.dtype) or (8 * tensor.length / count if count else 0.0)
    return left_alone(tensor.name, tensor.dtype, tensor.shape, bits, reason)


def _between(size: int, jobs: tuple[Job, ...]) -> Iterator[Range]:
    at = 0
    for start, end in [(job.tensor.offset, job.tensor.offset + job.tensor.length) for job in jobs] + [(size, size)]:
        while at < start:
            length = min(start - at, _COPY_BYTES)
            yield Range(at, length)
            at += length
        at = end
