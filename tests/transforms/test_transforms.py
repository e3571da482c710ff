"""What every transform keeps: dtype and shape, what came in, a bound on memory, and tensors that it cannot treat."""

from __future__ import annotations

import pickle
import tracemalloc

import numpy as np
import pytest

from modelfs.transforms import (
    Affine,
    Chain,
    Cluster,
    LeftAlone,
    Prune,
    PrunePattern,
    Rounding,
    Transform,
    of_array,
    of_bytes,
    transform_array,
)
from modelfs.transforms import blocks as blocks_module
from modelfs.transforms.dtypes import BITS, decode_array, encode, stored_as
from modelfs.units import MiB

METHODS: list[Transform] = [
    Prune(0.5), Prune(threshold=0.3), PrunePattern(2, 4), PrunePattern(1, 3), Affine(8), Affine(4),
    Affine(8, 96, zero_point=True), Affine(4, 32, zero_point=True), Rounding("bf16"), Rounding("fp16"), Rounding("fp8"),
    Rounding("fp8", scaled=True), Cluster(4), Cluster(8, start="k-means++"), Cluster(3, 256),
    Chain(Prune(0.5), Affine(8)), Chain(PrunePattern(2, 4), Affine(4, 32, zero_point=True)),
    Chain(Prune(0.9), Cluster(5)), Chain(PrunePattern(1, 3), Cluster(4)),
    Chain(Prune(0.7), Cluster(2, 256)), Chain(Prune(0.5), Rounding("bf16"))]
every_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name.replace(" ", "-"))


def weights(*shape: int, dtype: str = "F32", seed: int = 1) -> np.ndarray:
    """As values that dtype has: its bits where numpy has no such floats."""
    numbers = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    stored = encode(numbers, dtype)
    return stored if stored.dtype.kind == "u" else stored.astype(stored.dtype.newbyteorder("="))


@every_method
@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16", "F8_E4M3"])
def test_values_keep_dtype_and_shape_and_what_came_in_is_not_touched(method: Transform, dtype: str) -> None:
    array = weights(6, 700, dtype=dtype)
    before = array.copy()
    result = transform_array(method, array, dtype=dtype)
    assert np.array_equal(array, before) and result.values.dtype == array.dtype and result.values.shape == array.shape
    if result.left_alone:
        assert result.values is array and result.bits == BITS[dtype] and "no more than" in result.left_alone
        return
    assert not np.shares_memory(result.values, array) and not np.array_equal(result.values, array)
    values = decode_array(result.values, dtype)
    assert np.isfinite(values).all()
    assert np.array_equal(encode(values, dtype), result.values.astype(stored_as(dtype)))


@every_method
def test_a_view_is_read_in_its_own_order_and_never_written_to(method: Transform) -> None:
    base = weights(900, 3, 8)
    before = base.copy()
    view = base.transpose(1, 2, 0)[::-1]
    assert np.array_equal(transform_array(method, view).values,
                          transform_array(method, np.ascontiguousarray(view)).values)
    assert np.array_equal(base, before)
    base.flags.writeable = False
    transform_array(method, base)


@every_method
def test_a_big_endian_array_keeps_its_order_and_has_the_same_values(method: Transform) -> None:
    array = weights(40, 256)
    big = transform_array(method, array.astype(">f4")).values
    assert big.dtype == ">f4" and np.array_equal(big, transform_array(method, array).values)


@every_method
@pytest.mark.parametrize("shape", [(7, 1000), (2, 3, 5000), (40_000,), (300, 3, 3)])
def test_however_a_tensor_is_cut_into_blocks_the_same_comes_out(method: Transform, shape: tuple[int, ...],
                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    array = weights(*shape)
    whole = transform_array(method, array, native=True)
    monkeypatch.setattr(blocks_module, "BLOCK_ELEMENTS", 1000)
    cut = transform_array(method, array, native=True)
    assert np.array_equal(cut.values, whole.values) and cut.bits == whole.bits
    assert cut.native.keys() == whole.native.keys()
    assert all(np.array_equal(cut.native[suffix], part) for suffix, part in whole.native.items())


@every_method
def test_bytes_of_a_file_are_read_like_the_array(method: Transform) -> None:
    array = weights(20, 300, dtype="BF16")
    data = array.tobytes()
    tensor = of_bytes(lambda offset, length: memoryview(data)[offset:offset + length], "BF16", array.shape)
    fitted = method.fit(tensor)
    if isinstance(fitted, LeftAlone):
        assert fitted.reason == "BF16 has no more than 16 bits"
        return
    fitted = pickle.loads(pickle.dumps(fitted))
    new = np.concatenate([fitted.apply(block).reshape(-1) for block in tensor.blocks(method.unit)])
    expected = transform_array(method, array, dtype="BF16").values
    assert np.array_equal(encode(new, "BF16").reshape(array.shape), expected)


@every_method
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_tensor_with_nan_or_inf_is_left_alone(method: Transform, bad: float) -> None:
    array = weights(8, 512)
    array[3, 17] = bad
    result = transform_array(method, array, native=True)
    assert result.values is array and not result.native and result.bits == 32
    assert result.left_alone == "NaN or inf in it"


@every_method
@pytest.mark.parametrize("array", [np.arange(5000).reshape(50, 100), np.ones((64, 64), np.bool_),
                                   np.ones((4, 4), np.complex64), np.array(["a"]), np.ones((64, 64), np.uint8)],
                         ids=lambda array: array.dtype.name)
def test_integers_bools_and_the_like_are_left_alone(method: Transform, array: np.ndarray) -> None:
    result = transform_array(method, array)
    assert result.values is array and result.left_alone == "not a float dtype that transforms know"


@every_method
def test_an_empty_tensor_is_left_alone_and_a_scalar_is_a_tensor_of_one(method: Transform) -> None:
    for shape in ((0,), (3, 0), (0, 5)):
        result = transform_array(method, np.empty(shape, np.float32))
        assert result.values.shape == shape and result.left_alone == "empty"
    scalar = transform_array(method, np.array(0.25, np.float32))
    assert (scalar.values.shape == () and abs(float(scalar.values) - 0.25) < 0.01) or float(scalar.values) == 0
    assert np.array_equal(scalar.values, transform_array(method, np.array([0.25], np.float32)).values[0])


@every_method
@pytest.mark.parametrize("value", [0.0, 0.75, -3.0])
def test_a_tensor_of_one_value_stays_near_it_or_loses_what_pruning_takes(method: Transform, value: float) -> None:
    result = transform_array(method, np.full((16, 512), value, np.float32)).values
    kept = result[result != 0]
    assert np.abs(kept - value).max(initial=0) <= abs(value) / 100
    if not isinstance(method, Chain | Prune | PrunePattern):
        assert len(kept) == (result.size if value else 0)


@every_method
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_denormal_weights_stay_finite_and_move_no_farther_than_they_are_large(method: Transform, dtype: type) -> None:
    tiny = np.finfo(dtype).smallest_subnormal
    array = np.arange(-300, 300).repeat(8).reshape(8, 600).astype(dtype) * tiny
    result = transform_array(method, array).values
    assert np.isfinite(result).all()
    if not (isinstance(method, Affine) or (isinstance(method, Chain) and isinstance(method.second, Affine))):
        assert (np.abs(result - array) <= 300 * tiny).all()
    assert (np.abs(result) <= 300 * tiny).all() or np.abs(result).max() <= 2.0 ** -24 * 127


@every_method
def test_numbers_at_the_end_of_float64_are_treated_or_left_alone(method: Transform) -> None:
    array = np.linspace(-1, 1, 2048).reshape(2, 1024) * 1.7e308
    result = transform_array(method, array)
    assert np.isfinite(result.values).all()
    assert result.left_alone in (None, "values too large for a scale of fp16")


def peak_of(call: object) -> int:
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("method", [Cluster(4), Cluster(4, 4096), Affine(8), Prune(0.5), Rounding("fp8", scaled=True),
                                    Chain(Prune(0.9), Cluster(5))], ids=lambda method: method.name)
def test_a_large_tensor_needs_its_result_and_96_mib(method: Transform) -> None:
    array = np.broadcast_to(weights(4, 1 << 20), (2, 4, 1 << 20))
    tensor = of_array(array, "F32")
    assert peak_of(lambda: method.fit(tensor)) < 96 * MiB
    assert peak_of(lambda: transform_array(method, array)) < array.nbytes + 96 * MiB


def test_a_block_of_a_strided_gigabyte_is_all_that_is_copied() -> None:
    tensor = of_array(np.broadcast_to(weights(4, 1 << 20), (64, 4, 1 << 20)), "F32")
    assert peak_of(lambda: next(iter(tensor.blocks(1)))) < 16 * MiB
