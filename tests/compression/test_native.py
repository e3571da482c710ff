"""--native-dtype: the small dtypes themselves in safetensors, and what read_native makes of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from modelfiles import weights, whole, write_gguf, write_torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from modelfs.compression import read_native
from modelfs.compression.journal import Destination
from modelfs.compression.layout import ModelFile
from modelfs.compression.pool import LocalPool
from modelfs.compression.run import compress
from modelfs.errors import BadInput, Malformed
from modelfs.formats import describe
from modelfs.formats.safetensors import BITS
from modelfs.transforms import parse_recipe
from modelfs.transforms.dtypes import decode, encode

METHODS: list[dict[str, object]] = [
    {"quantise": {"bits": 8}}, {"quantise": {"bits": 4}}, {"quantise": {"bits": 4, "group": 32, "zero_point": True}},
    {"quantise": {"bits": 8, "group": 96, "zero_point": True}}, {"cluster": {"bits": 4}},
    {"cluster": {"bits": 3, "group": 256}}, {"round": {"to": "bf16"}, "dtypes": ["F32", "F64"]},
    {"round": {"to": "fp16"}, "dtypes": ["F32", "F64"]}, {"round": {"to": "fp8"}},
    {"round": {"to": "fp8", "scaled": True}}, {"prune": {"sparsity": 0.5}, "quantise": {"bits": 8}},
    {"prune": {"sparsity": 0.9}, "cluster": {"bits": 5}}]


@pytest.fixture(scope="module")
def pool() -> Iterator[LocalPool]:
    made = LocalPool(2)
    yield made
    made.close()


def run(source: Path, made: Path, rule: dict[str, object], native: bool, pool: LocalPool) -> None:
    status = source.stat()
    file = ModelFile(source.name, str(source), status.st_size, status.st_mtime_ns, 0o644)
    recipe = parse_recipe({"native_dtype": native, "rule": [rule]}, "test", "test")
    compress([file], Destination(made, True), recipe, pool, source=str(source), advance=lambda size: None,
             tell=lambda text: None)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    bad = weights(64, 100)
    bad[0, 0] = np.inf
    arrays = {"even": weights(64, 128), "odd": weights(63, 101, seed=2), "half": weights(70, 90, dtype="f2"),
              "double": weights(65, 64, dtype="f8"), "conv": weights(40, 30, 3, 3),
              "bias": weights(50), "ids": np.arange(12),
              "bad": bad, "flag": np.ones(3, bool)}
    save_file(arrays, tmp_path / "x.safetensors", metadata={"format": "pt"})
    return tmp_path / "x.safetensors"


@pytest.mark.parametrize("rule", METHODS, ids=lambda rule: json.dumps(rule)[:50])
def test_reading_back_gives_what_the_old_dtypes_hold(rule: dict[str, object], source: Path, tmp_path: Path,
                                                     pool: LocalPool) -> None:
    run(source, tmp_path / "native.safetensors", rule, True, pool)
    run(source, tmp_path / "plain.safetensors", rule, False, pool)
    plain, back = load_file(tmp_path / "plain.safetensors"), read_native(tmp_path / "native.safetensors")
    assert back.keys() == plain.keys()
    for name, array in plain.items():
        assert back[name].shape == array.shape
        assert np.array_equal(back[name].astype(array.dtype), array), name
        assert back[name].dtype == (np.float32 if array.dtype == np.float16 else array.dtype)
    size = (tmp_path / "native.safetensors").stat().st_size
    assert size < 0.62 * (tmp_path / "plain.safetensors").stat().st_size


def test_rows_that_are_longer_than_a_block_come_back(tmp_path: Path, pool: LocalPool) -> None:
    save_file({"wide": weights(2, 1_100_001)}, tmp_path / "x.safetensors")
    rule: dict[str, object] = {"quantise": {"bits": 4, "group": 96, "zero_point": True}}
    for native in (True, False):
        run(tmp_path / "x.safetensors", tmp_path / f"{native}.safetensors", rule, native, pool)
    plain, back = load_file(tmp_path / "False.safetensors"), read_native(tmp_path / "True.safetensors")
    assert np.array_equal(plain["wide"], back["wide"])


def test_the_file_is_safetensors_with_its_old_metadata(source: Path, tmp_path: Path, pool: LocalPool) -> None:
    run(source, tmp_path / "n.safetensors", {"quantise": {"bits": 8}}, True, pool)
    with safe_open(tmp_path / "n.safetensors", "numpy") as opened:
        assert opened.metadata()["format"] == "pt" and "modelfs.recipe" in opened.metadata()
        assert opened.get_tensor("even").dtype == np.int8 and opened.get_tensor("even_scale").shape == (64, 1)
        assert opened.get_tensor("bad").dtype == np.float32, "left alone"
    data = (tmp_path / "n.safetensors").read_bytes()
    found = describe(lambda offset, length: data[offset:offset + length], len(data), "n")
    assert all(each.offset % (BITS[each.dtype] // 8) == 0 for each in found.tensors), "aligned"


def test_names_choose_and_unknown_ones_are_refused(source: Path, tmp_path: Path, pool: LocalPool) -> None:
    run(source, tmp_path / "n.safetensors", {"quantise": {"bits": 8}}, True, pool)
    assert list(read_native(tmp_path / "n.safetensors", ["odd"])) == ["odd"]
    with pytest.raises(BadInput, match="no tensor 'none'"):
        read_native(tmp_path / "n.safetensors", ["none"])


def test_files_of_other_programs_are_read_too(tmp_path: Path) -> None:
    bits = encode(weights(3, 5), "BF16")
    save_file({"a": weights(3, 5, dtype="f2")}, tmp_path / "a.safetensors")
    assert np.array_equal(read_native(tmp_path / "a.safetensors")["a"], weights(3, 5, dtype="f2"))
    head = json.dumps({"b": {"dtype": "BF16", "shape": [3, 5], "data_offsets": [0, 30]}}).encode()
    (tmp_path / "b.safetensors").write_bytes(len(head).to_bytes(8, "little") + head + bits.tobytes())
    assert np.array_equal(read_native(tmp_path / "b.safetensors")["b"], decode(bits.tobytes(), "BF16").reshape(3, 5))


@pytest.mark.parametrize("spoilt", ["x", '{"even": {"dtype": "F32", "shape": [64, 128], "rule": 7, "parts": [""]}}',
                                    '{"even": {"dtype": "F32", "shape": [9, 9], "rule": 0, "parts": [""]}}',
                                    '{"even": 3}', '[1]', '{"even": {"rule": 0}}'])
def test_spoilt_metadata_is_malformed(spoilt: str, source: Path, tmp_path: Path, pool: LocalPool) -> None:
    run(source, tmp_path / "n.safetensors", {"quantise": {"bits": 8}}, True, pool)
    with safe_open(tmp_path / "n.safetensors", "numpy") as opened:
        metadata = opened.metadata() | {"modelfs.tensors": spoilt}
        arrays = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    save_file(arrays, tmp_path / "spoilt.safetensors", metadata=metadata)
    with pytest.raises(Malformed):
        read_native(tmp_path / "spoilt.safetensors")


def test_a_part_that_has_a_tensors_name_is_refused(tmp_path: Path, pool: LocalPool) -> None:
    save_file({"a": weights(64, 100), "a_scale": weights(4)}, tmp_path / "x.safetensors")
    with pytest.raises(BadInput, match="two tensors would be named 'a_scale'"):
        run(tmp_path / "x.safetensors", tmp_path / "n.safetensors", {"quantise": {"bits": 8}}, True, pool)


@pytest.mark.parametrize("format", ["npy", "npz", "gguf", "pt"])
def test_other_formats_are_refused_before_anything_is_made(format: str, tmp_path: Path, pool: LocalPool) -> None:
    array, view = weights(64, 100), whole("0", weights(64, 100))
    path = tmp_path / f"x.{format}"
    {"npy": lambda: np.save(path, array), "npz": lambda: np.savez(path, w=array),
     "gguf": lambda: write_gguf(path, {"w": array}), "pt": lambda: write_torch(path, {"w": view}, [view.storage]),
     }[format]()
    with pytest.raises(BadInput, match="only safetensors files can hold them"):
        run(path, tmp_path / f"n.{format}", {"quantise": {"bits": 8}}, True, pool)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
