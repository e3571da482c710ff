"""What a transform did to a tensor and to a model: bits a weight and how far the weights moved.

Rule: sums run in float64 block by block; what is not a number (the signal-to-noise ratio of no noise) is None, so that
every report is JSON.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import numpy as np

from modelfs.transforms.dtypes import Values


@dataclass(frozen=True, slots=True)
class TensorReport:
    """method: the transform's name, or "left alone: why". cosine: 1.0 where nothing changed. snr_db: signal to error,
    None without error. signal: the root of the mean square of the original."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    method: str
    elements: int
    bits: float
    max_error: float | None
    rms_error: float | None
    cosine: float | None
    snr_db: float | None
    signal: float | None


@dataclass(frozen=True, slots=True)
class Totals:
    """bits, rms_error, cosine: means weighted by elements (rms_error: of squares); max_error: the largest of all.

    changed: tensors that a transform changed or could have. Without any element all but the counts are None.
    """

    tensors: int
    changed: int
    elements: int
    bits: float | None
    max_error: float | None
    rms_error: float | None
    cosine: float | None
    snr_db: float | None


@dataclass(frozen=True, slots=True)
class Report:
    tensors: tuple[TensorReport, ...]
    totals: Totals

    @classmethod
    def of(cls, tensors: Iterable[TensorReport]) -> Report:
        kept = tuple(tensors)
        return cls(kept, totals_of(kept))

    def document(self) -> dict[str, object]:
        return {"tensors": [asdict(tensor) | {"shape": list(tensor.shape)} for tensor in self.tensors],
                "totals": asdict(self.totals)}


LEFT_ALONE = "left alone: "


def left_alone(name: str, dtype: str, shape: tuple[int, ...], bits: float, reason: str) -> TensorReport:
    return TensorReport(name, dtype, shape, LEFT_ALONE + reason, math.prod(shape), bits, 0.0, 0.0, 1.0, None, None)


class Comparison:
    """Told the blocks of one tensor before and after, it keeps five numbers. Of values beyond 1e154 some are None."""

    def __init__(self) -> None:
        self._count, self._largest = 0, 0.0
        self._before = self._after = self._product = self._error = 0.0

    def add(self, before: Values, after: Values) -> None:
        """Of one shape; three temporaries of it in float64."""
        with np.errstate(over="ignore", invalid="ignore"):
            old, new = before.reshape(-1).astype(np.float64), after.reshape(-1).astype(np.float64)
            self._count += old.size
            self._before += float(old @ old)
            self._after += float(new @ new)
            self._product += float(old @ new)
            new -= old
            self._error += float(new @ new)
            self._largest = max(self._largest, float(np.abs(new, out=new).max(initial=0.0)))

    def report(self, name: str, dtype: str, shape: tuple[int, ...], method: str, bits: float) -> TensorReport:
        count = max(self._count, 1)
        norms = math.sqrt(self._before) * math.sqrt(self._after)
        cosine = (self._product / norms if norms else 0.0) if self._error else 1.0
        return TensorReport(name, dtype, shape, method, self._count, bits, _number(self._largest),
                            _number(math.sqrt(self._error / count)), _number(min(cosine, 1.0)),
                            _decibels(self._before, self._error), _number(math.sqrt(self._before / count)))


def totals_of(tensors: Iterable[TensorReport]) -> Totals:
    kept = tuple(tensors)
    elements = sum(tensor.elements for tensor in kept)
    changed = [tensor for tensor in kept if not tensor.method.startswith(LEFT_ALONE)]

    def mean(values: Iterable[float | None], over: Iterable[TensorReport]) -> float | None:
        products, count = 0.0, 0
        for value, tensor in zip(values, over, strict=True):
            if value is None:
                return None
            products, count = products + value * tensor.elements, count + tensor.elements
        return products / count if count else None

    errors = mean([None if each.rms_error is None else each.rms_error ** 2 for each in kept], kept)
    noise = mean([None if each.rms_error is None else each.rms_error ** 2 for each in changed], changed)
    signal = mean([None if each.signal is None else each.signal ** 2 for each in changed], changed)
    largest = [each.max_error for each in kept if each.elements]
    return Totals(len(kept), len(changed), elements, mean([each.bits for each in kept], kept),
                  None if None in largest or not largest else max(each for each in largest if each is not None),
                  None if errors is None else math.sqrt(errors), mean([each.cosine for each in kept], kept),
                  None if signal is None or noise is None else _decibels(signal, noise))


def _decibels(signal: float, noise: float) -> float | None:
    return _number(10 * math.log10(signal / noise)) if signal > 0 and 0 < noise < math.inf else None


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
