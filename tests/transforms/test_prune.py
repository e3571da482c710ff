"""Pruning: exactly so many zeros, n of every m, and one threshold over several tensors."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from modelfs.errors import ModelfsError
from modelfs.transforms import Chain, MagnitudeHistogram, Prune, PrunePattern, of_array, transform_array
from modelfs.transforms import blocks as blocks_module

shapes = npst.array_shapes(min_dims=1, max_dims=3, max_side=40)
any_floats = st.sampled_from([np.float32, np.float64, np.float16]).flatmap(lambda dtype: npst.arrays(
    dtype, shapes, elements=npst.from_dtype(np.dtype(dtype), allow_nan=False, allow_infinity=False)))
few_values = npst.arrays(np.float32, shapes, elements=st.sampled_from([-1.0, 0.0, -0.0, 0.5, 1.0]))


@settings(max_examples=100, deadline=None)
@given(array=any_floats | few_values, sparsity=st.floats(0.01, 0.99))
def test_the_smallest_go_and_exactly_as_many_as_asked_for(array: np.ndarray, sparsity: float) -> None:
    result = transform_array(Prune(sparsity), array)
    gone = round(sparsity * array.size)
    before = np.count_nonzero(array == 0)
    assert np.count_nonzero(result.values == 0) == max(gone, before)
    kept = result.values != 0
    assert np.array_equal(result.values[kept], array[kept])
    if kept.any() and not kept.all():
        assert np.abs(array[kept]).min() >= np.abs(array[~kept]).max()
    assert result.bits == pytest.approx(1 + 8 * array.dtype.itemsize * (1 - gone / array.size))


def test_of_equal_magnitudes_the_first_go_in_whatever_blocks_they_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks_module, "BLOCK_ELEMENTS", 10)
    array = np.array([2.0, -1.0] * 50, np.float32).reshape(10, 10)
    result = transform_array(Prune(0.3), array).values.reshape(-1)
    assert np.flatnonzero(result == 0).tolist() == list(range(1, 61, 2))
    assert not np.signbit(result[result == 0]).any(), "what is pruned is +0.0"


def test_a_threshold_takes_what_is_under_it_and_says_what_that_leaves() -> None:
    array = np.array([0.1, -0.2, 0.3, -0.4], np.float32)
    result = transform_array(Prune(threshold=0.3), array)
    assert result.values.tolist() == [0, 0, np.float32(0.3), np.float32(-0.4)] and result.bits == 1 + 32 / 2


@settings(max_examples=50, deadline=None)
@given(array=any_floats | few_values, pattern=st.sampled_from([(2, 4), (1, 4), (4, 8), (1, 2), (3, 5)]))
def test_of_every_m_in_a_row_the_n_largest_stay(array: np.ndarray, pattern: tuple[int, int]) -> None:
    keep, of = pattern
    result = transform_array(PrunePattern(keep, of), array).values
    # a tensor of more than two axes whose last is no multiple of m has its rows along all axes but the first
    rows = array.shape[0] if array.ndim > 2 and array.shape[-1] % of else -1
    columns = -1 if rows > 0 else array.shape[-1]
    for old, new in zip(array.reshape(rows, columns), result.reshape(rows, columns), strict=True):
        for start in range(0, len(old), of):
            before, after = old[start:start + of], new[start:start + of]
            kept = after != 0
            assert kept.sum() == min(keep, np.count_nonzero(before)) and np.array_equal(after[kept], before[kept])
            assert np.sort(np.abs(before[kept])).tolist() == np.sort(np.abs(before))[len(before) - kept.sum():].tolist()


def three_layers() -> list[np.ndarray]:
    generator = np.random.default_rng(5)
    return [(generator.standard_normal((300, 400)) * scale).astype(np.float32) for scale in (0.01, 0.1, 1)]


def test_one_threshold_over_several_tensors_prunes_the_small_layer_more() -> None:
    layers = three_layers()
    first, second = MagnitudeHistogram(), MagnitudeHistogram()
    first.add(of_array(layers[0], "F32"))
    for layer in layers[1:]:
        second.add(of_array(layer, "F32"))
    first.merge(pickle.loads(pickle.dumps(second)))
    threshold = first.threshold(0.5)
    pruned = [transform_array(Prune(0.5, threshold, across=True), layer).values == 0 for layer in layers]
    assert np.mean(pruned) == pytest.approx(0.5, abs=0.0005)
    assert pruned[0].mean() > 0.99 and pruned[2].mean() < 0.1
    exact = np.quantile(np.abs(np.concatenate([layer.reshape(-1) for layer in layers])), 0.5)
    assert threshold == pytest.approx(exact, rel=0.001)


@pytest.mark.parametrize("array", [np.full(5000, -3.0), np.full(10, 1e300), np.full(10, 5e-324), np.zeros(10)])
def test_a_threshold_over_equal_magnitudes_takes_all_or_none(array: np.ndarray) -> None:
    histogram = MagnitudeHistogram()
    assert histogram.threshold(0.5) == 0
    histogram.add(of_array(array, "F64"))
    threshold = histogram.threshold(0.6)
    assert threshold >= 0 and not np.isnan(threshold)
    result = transform_array(Prune(0.6, threshold, across=True), array).values
    assert np.array_equal(result, array) or not result.any()


def test_pruning_across_tensors_before_they_were_surveyed_is_an_error_of_the_caller() -> None:
    with pytest.raises(ModelfsError, match="not surveyed"):
        transform_array(Prune(0.5, across=True), np.ones((4, 4), np.float32))


@settings(max_examples=25, deadline=None)
@given(array=npst.arrays(np.float32, (8, 64), elements=st.floats(-4, 4, width=32)))
def test_what_was_pruned_stays_plus_zero_through_every_second_step(array: np.ndarray) -> None:
    from transforms.test_transforms import METHODS
    for method in METHODS:
        if isinstance(method, Chain):
            first, both = transform_array(method.first, array), transform_array(method, array)
            if both.left_alone is None:
                assert not both.values[first.values == 0].any(), method.name
                assert not np.signbit(both.values[(first.values == 0)]).any(), method.name
