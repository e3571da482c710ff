"""Reports: the figures that numpy computes of whole arrays, from blocks, and always JSON."""

from __future__ import annotations

import json

import numpy as np
import pytest
from transforms.test_transforms import weights

from modelfs.transforms import Affine, Comparison, Report, TensorReport, left_alone, of_array, transform_array


def compared(before: np.ndarray, after: np.ndarray, name: str = "t", bits: float = 8.0) -> TensorReport:
    comparison = Comparison()
    for start in range(0, before.size, 1000):
        part = slice(start, start + 1000)
        comparison.add(before.reshape(-1)[part], after.reshape(-1)[part])
    return comparison.report(name, "F32", before.shape, "int8", bits)


def test_the_figures_are_those_of_the_whole_arrays() -> None:
    before = weights(30, 500)
    after = transform_array(Affine(4), before).values
    found = compared(before, after)
    old, new = before.reshape(-1).astype(np.float64), after.reshape(-1).astype(np.float64)
    error = new - old
    assert found.max_error == np.abs(error).max() and found.elements == before.size and found.shape == (30, 500)
    assert found.rms_error == pytest.approx(np.sqrt(np.mean(error ** 2)))
    assert found.cosine == pytest.approx(old @ new / np.linalg.norm(old) / np.linalg.norm(new))
    assert found.snr_db == pytest.approx(10 * np.log10((old @ old) / (error @ error)))


def test_small_differences_of_large_numbers_are_not_lost() -> None:
    before = np.full(100_000, 1e6, np.float32)
    after = before + np.float32(0.0625)
    found = compared(before, after)
    assert found.rms_error == pytest.approx(0.0625) and found.max_error == 0.0625


def test_totals_are_weighted_by_elements() -> None:
    before, small = weights(100, 300), weights(10, 10)
    tensors = [compared(before, before + np.float32(1)), compared(small, small + np.float32(3), bits=4),
               left_alone("norm", "F32", (900,), 32, "fewer than 2 dimensions")]
    totals = Report.of(tensors).totals
    elements = 30_000 + 100 + 900
    assert (totals.tensors, totals.changed, totals.elements) == (3, 2, elements)
    assert totals.bits == pytest.approx((30_000 * 8 + 100 * 4 + 900 * 32) / elements)
    assert totals.rms_error == pytest.approx(np.sqrt((30_000 * 1 + 100 * 9) / elements), rel=1e-5)
    assert totals.max_error == pytest.approx(3, rel=1e-5)
    signal = float((before.astype(float) ** 2).sum() + (small.astype(float) ** 2).sum())
    assert totals.snr_db == pytest.approx(10 * np.log10(signal / (30_000 + 900)), rel=1e-4)


@pytest.mark.parametrize(("before", "after"), [(np.zeros(10), np.zeros(10)), (np.ones(10), np.ones(10)),
                                               (np.ones(10), np.zeros(10)), (np.full(9, 1e200), np.full(9, -1e200)),
                                               (np.empty(0), np.empty(0))])
def test_every_report_is_strict_json(before: np.ndarray, after: np.ndarray) -> None:
    report = Report.of([compared(before, after), left_alone("t", "I64", (3,), 64, "dtype I64")])
    document = json.loads(json.dumps(report.document(), allow_nan=False))
    first = document["tensors"][0]
    if np.array_equal(before, after):
        assert first["snr_db"] is None and first["cosine"] == 1.0 and first["max_error"] == 0.0
    assert document["tensors"][1]["method"] == "left alone: dtype I64" and first["shape"] == [before.size]
    assert Report.of([]).totals.bits is None


def test_blocks_of_a_tensor_go_in_as_they_are() -> None:
    array = weights(64, 128)
    tensor, method, comparison = of_array(array, "F32"), Affine(8), Comparison()
    fitted = method.fit(tensor)
    for block in tensor.blocks(method.unit):
        comparison.add(block.values, fitted.apply(block))
    found = comparison.report("w", tensor.dtype, tensor.shape, method.name, fitted.bits)
    assert found.method == "int8" and found.bits == 8.125 and found.snr_db is not None and found.snr_db > 40
