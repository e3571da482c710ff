"""compress_model: arrays in, the compact form and shapes out, and exactly the transformed arrays back."""

from __future__ import annotations

import numpy as np
import pytest

from modelfs.compression import compress_model, decompress_model
from modelfs.compression.arrays import CHUNK_BYTES
from modelfs.errors import BadInput, Malformed
from modelfs.transforms import NAMES, parse_recipe, recipe_named, transform_array


def model() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(3)
    return {"layer.0.weight": generator.standard_normal((256, 512)).astype(np.float32) * np.float32(0.02),
            "layer.1.weight": generator.standard_normal((512, 128)).astype(np.float16).T,
            "wide": generator.standard_normal((64, 128)), "big": generator.standard_normal((64, 128)).astype(">f4"),
            "norm": generator.standard_normal(512).astype(np.float32), "ids": np.arange(5000).reshape(50, 100),
            "mask": np.ones((64, 65), np.bool_), "empty": np.empty((0, 7), np.float32), "one": np.array(3.5)}


@pytest.mark.parametrize("name", NAMES)
def test_what_comes_back_is_what_the_transform_made(name: str) -> None:
    arrays = model()
    before = {key: array.copy() for key, array in arrays.items()}
    compressed = compress_model(arrays, name)
    assert [each.name for each, _ in compressed] == list(arrays)
    assert [shape for _, shape in compressed] == [array.shape for array in arrays.values()]
    restored = dict(zip(arrays, decompress_model(compressed), strict=True))
    for key, array in arrays.items():
        assert np.array_equal(array, before[key]), "what came in is not written to"
        rule = recipe_named(name).rules[0]
        chosen = array.ndim == 2 and array.size >= 4096 and array.dtype.kind == "f" and not (
            array.dtype == np.float16 and name in ("bf16", "fp16"))
        expected = transform_array(rule.method, array).values if chosen else array
        assert restored[key].dtype == array.dtype and np.array_equal(restored[key], expected), key
        assert restored[key].tobytes() == expected.tobytes(), key


def test_clusters_take_a_sixth_of_the_bytes_and_lists_need_no_names() -> None:
    weights = np.random.default_rng(4).standard_normal((1024, 1024)).astype(np.float32)
    (compressed, shape), = compress_model([weights], "kmeans16")
    assert shape == (1024, 1024) and compressed.name == "" and compressed.method == "k-means 16"
    assert len(compressed.chunks) == weights.nbytes // CHUNK_BYTES
    assert compressed.nbytes < weights.nbytes / 6
    restored, = decompress_model([(compressed, shape)])
    assert len(np.unique(restored)) == 16 and np.corrcoef(restored.ravel(), weights.ravel())[0, 1] > 0.99


def test_a_global_recipe_finds_its_threshold_over_all_arrays() -> None:
    generator = np.random.default_rng(5)
    arrays = [(generator.standard_normal((100, 100)) * scale).astype(np.float32) for scale in (0.01, 1)]
    recipe = parse_recipe({"rule": [{"prune": {"sparsity": 0.5, "scope": "global"}}]}, "global", "global")
    small, large = decompress_model(compress_model(arrays, recipe))
    assert np.mean(small == 0) > 0.95 and np.mean(large == 0) < 0.05


def test_views_of_one_memory_are_arrays_of_their_own_and_it_is_not_written_to() -> None:
    memory = np.random.default_rng(8).standard_normal(20_000).astype(np.float32)
    before = memory.copy()
    memory.flags.writeable = False
    views = {"a": memory[:10_000].reshape(100, 100), "b": memory[5000:15_000].reshape(100, 100),
             "turned": memory[:10_000].reshape(100, 100).T, "back": memory[::-2].reshape(100, 100),
             "broad": np.broadcast_to(memory[:100], (100, 100))}
    restored = decompress_model(compress_model(views, "int4"))
    method = recipe_named("int4").rules[0].method
    assert method is not None
    for view, array in zip(views.values(), restored, strict=True):
        assert np.array_equal(array, transform_array(method, view.copy()).values) and not np.array_equal(array, view)
        assert not any(np.shares_memory(array, other) for other in (memory, *restored) if other is not array)
    assert np.array_equal(memory, before)


def test_an_array_with_nan_comes_back_bit_for_bit() -> None:
    array = np.random.default_rng(6).standard_normal((64, 128)).astype(np.float32)
    array[0, 0] = np.nan
    (compressed, shape), = compress_model([array])
    assert compressed.method == "" and decompress_model([(compressed, shape)])[0].tobytes() == array.tobytes()


def test_a_recipe_that_matches_nothing_or_wants_native_dtypes_is_refused() -> None:
    with pytest.raises(BadInput, match=r"'int8' matches no tensor, the model: left alone were 2 for fewer than 2 dim"):
        compress_model([np.ones(5), np.ones(9000)])
    with pytest.raises(BadInput, match="native"):
        compress_model([np.ones((64, 64))], recipe_named("int8").for_native_dtype())
    with pytest.raises(BadInput, match="Python objects"):
        compress_model([np.ones((64, 64)), np.array([object()])])
    assert compress_model([]) == []


def test_a_compressed_array_that_was_tampered_with_is_malformed() -> None:
    (compressed, shape), = compress_model([np.ones((64, 64), np.float32)])
    with pytest.raises(Malformed, match="not of shape"):
        decompress_model([(compressed, (65, 64))])
    chunk = compressed.chunks[0]
    torn = type(compressed)(compressed.name, compressed.dtype, compressed.method,
                            (type(chunk)(chunk.codec, chunk.length, chunk.stored[:-1]),))
    with pytest.raises(Malformed):
        decompress_model([(torn, shape)])
