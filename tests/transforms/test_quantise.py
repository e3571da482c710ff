"""Integers with a scale, and smaller floats: how far a weight may move, and what is stored as a small dtype."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from transforms.test_transforms import weights

from modelfs.transforms import Affine, Chain, Cluster, Prune, Rounding, transform_array
from modelfs.transforms.blocks import Geometry
from modelfs.transforms.dtypes import decode_array, rounded

arrays = npst.arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(1, 70)),
                     elements=st.floats(-1e4, 1e4, width=32) | st.floats(-1, 1, width=32))
affine = st.builds(Affine, st.sampled_from([4, 8]), st.sampled_from([8, 16, 26]), st.booleans())


def restored(method: Affine, native: dict[str, np.ndarray], shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """What a reader of the small dtypes computes: weights as docs/compression.md says, and the scale of each."""
    geometry = Geometry.of(shape, method.group)
    codes = native[""]
    if method.bits == 4:
        halves = np.stack([codes & 15, codes >> 4], -1).reshape(*geometry.lead, -1)[..., :geometry.columns]
        codes = halves.astype(np.int16) - (0 if method.zero_point else 8)
    codes = codes.reshape(geometry.rows, geometry.columns).astype(np.float32)

    def by_weight(name: str) -> np.ndarray:
        each = native[name].reshape(geometry.rows, -1).astype(np.float32)
        return each.repeat(method.group, axis=1)[:, :geometry.columns]
    scales = by_weight("_scale")
    if method.zero_point:
        codes -= by_weight("_zero_point")
    return (codes * scales).reshape(shape), scales.reshape(shape)


@settings(max_examples=100, deadline=None)
@given(array=arrays, method=affine)
def test_a_weight_moves_by_half_a_scale_at_most_and_the_parts_say_where_to(array: np.ndarray, method: Affine) -> None:
    result = transform_array(method, array, native=True)
    values, scales = restored(method, result.native, array.shape)
    assert np.array_equal(result.values, values)
    assert (np.abs(values.astype(np.float64) - array) <= scales.astype(np.float64) / 2 * (1 + 1e-5)).all()
    assert not result.values[array == 0].any() and not np.signbit(result.values[result.values == 0]).any()


@settings(max_examples=60, deadline=None)
@given(array=arrays, target=st.sampled_from([("bf16", False), ("fp16", False), ("fp8", False), ("fp8", True)]))
def test_rounding_again_changes_nothing(array: np.ndarray, target: tuple[str, bool]) -> None:
    once = transform_array(Rounding(*target), array).values
    assert np.array_equal(transform_array(Rounding(*target), once).values, once)


@pytest.mark.parametrize("shape", [(3, 200), (500,), (4, 6, 5, 5), (2, 3, 256), (7, 1), ()])
@pytest.mark.parametrize("method", [Affine(8), Affine(4), Affine(8, zero_point=True), Affine(4, 10, zero_point=True)],
                         ids=lambda method: method.name)
def test_parts_have_the_shapes_and_dtypes_that_were_announced(method: Affine, shape: tuple[int, ...]) -> None:
    array = weights(*shape) if shape else np.array(0.5, np.float32)
    result = transform_array(method, array, native=True)
    assert set(result.native) == {"", "_scale"} | ({"_zero_point"} if method.zero_point else set())
    assert result.native[""].dtype == (np.int8 if method.bits == 8 and not method.zero_point else np.uint8)
    assert result.native["_scale"].dtype == np.float16
    values, _ = restored(method, result.native, shape)
    assert np.array_equal(values, result.values)
    stored = sum(part.size * 8 * part.itemsize for part in result.native.values())
    if method.bits == 8:
        assert result.bits * array.size == pytest.approx(stored)


def test_bits_count_the_scales() -> None:
    array = weights(16, 1024)
    assert transform_array(Affine(4), array).bits == 4 + 16 / 128
    assert transform_array(Affine(8, 64, zero_point=True), array).bits == 8 + (16 + 8) / 64


def test_groups_of_different_size_do_not_spoil_each_other() -> None:
    array = weights(1, 256)
    array[0, 0] = 1000
    result = transform_array(Affine(8), array).values
    assert np.abs(result[0, 128:] - array[0, 128:]).max() < 0.02 < np.abs(result[0, 1:128] - array[0, 1:128]).max()


def test_a_zero_point_halves_the_step_where_all_weights_have_one_sign() -> None:
    array = np.abs(weights(16, 1024)) + np.float32(0.5)
    errors = [np.abs(transform_array(Affine(4, zero_point=zero), array).values - array).max() for zero in (False, True)]
    assert errors[1] < 0.6 * errors[0]


@pytest.mark.parametrize(("dtype", "bound"), [("F16", 2.0 ** -11), ("BF16", 2.0 ** -8), ("F64", 0)])
def test_in_a_small_dtype_the_result_is_rounded_once_more(dtype: str, bound: float) -> None:
    array = weights(8, 512, dtype=dtype)
    result = transform_array(Affine(8), array, dtype=dtype, native=True)
    values, _ = restored(Affine(8), result.native, array.shape)
    found = decode_array(result.values, dtype)
    assert np.array_equal(found, rounded(values, dtype)) and (np.abs(found - values) <= bound * np.abs(values)).all()


def test_small_floats_are_stored_as_their_bits_and_a_scaled_fp8_with_its_power_of_two() -> None:
    array = weights(8, 512) * np.float32(1e-4)
    for target, dtype in (("bf16", "BF16"), ("fp16", "F16"), ("fp8", "F8_E4M3")):
        result = transform_array(Rounding(target), array, native=True)
        assert np.array_equal(decode_array(result.native[""], dtype), result.values)
    scaled = transform_array(Rounding("fp8", scaled=True), array, native=True)
    scale, = scaled.native["_scale"]
    assert np.array_equal(decode_array(scaled.native[""], "F8_E4M3") * scale, scaled.values)
    assert np.frexp(scale)[0] == 0.5 and 224 < np.abs(array).max() / scale <= 448
    assert (np.abs(scaled.values - array) <= np.maximum(np.abs(array) / 16, scale * 2.0 ** -10)).all()
    at_the_end = transform_array(Rounding("fp8", scaled=True), np.array([448, 1], np.float32), native=True)
    assert at_the_end.native["_scale"].tolist() == [1]
    plain = transform_array(Rounding("fp8"), array).values
    assert not plain.any(), "under 2**-10 fp8 without a scale knows only zero"


@pytest.mark.parametrize("exponent", [-149, -130, 0, 120])
def test_a_scale_of_fp8_exists_for_every_size_of_weights(exponent: int) -> None:
    array = np.ldexp(np.linspace(-1, 1, 512, dtype=np.float32).reshape(2, 256), exponent)
    result = transform_array(Rounding("fp8", scaled=True), array).values
    assert np.abs(result - array).max() <= max(np.abs(array).max() / 16, 2.0 ** -126 * 2.0 ** -10)


@pytest.mark.parametrize("second", [Affine(8), Affine(4), Cluster(4), Rounding("bf16")])
def test_a_chain_stores_the_parts_of_its_second_step(second: Affine | Cluster | Rounding) -> None:
    result = transform_array(Chain(Prune(0.5), second), weights(16, 512), native=True)
    assert result.left_alone is None and "" in result.native
    assert result.bits == pytest.approx(1 + 0.5 * transform_array(second, weights(16, 512)).bits, rel=0.05)
