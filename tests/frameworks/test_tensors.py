"""Tensors that numpy, safetensors and torch load through a mount equal those of the original files, bit for bit."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from frameworks.mapped import is_mapped

Shown = Callable[[Path], Path]
FILE = "model.safetensors"


def state() -> dict[str, torch.Tensor]:
    """Every dtype that checkpoints commonly have, one tensor of several chunks, a scalar and an empty one."""
    generator = torch.Generator().manual_seed(11)
    normal = torch.randn(2048, 1024, generator=generator)
    return {"f32": normal, "bf16": normal[:512].to(torch.bfloat16), "f16": normal[:300].half(),
            "f64": normal[:9].double(), "fp8": normal[:64].to(torch.float8_e4m3fn), "i64": torch.arange(1000),
            "u8": torch.arange(256).to(torch.uint8), "flags": normal[0] > 0, "scalar": torch.tensor(3.5),
            "empty": torch.empty(0, 4)}


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert sorted(found) == sorted(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape, name
        assert bytes_of(found[name]) == bytes_of(tensor), name


def bytes_of(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def test_safetensors_loads_numpy_arrays(through_a_mount: Shown, minilm: Path) -> None:
    path = through_a_mount(minilm) / FILE
    with safetensors.safe_open(path, "numpy") as there, safetensors.safe_open(minilm / FILE, "numpy") as here:
        assert is_mapped(path) and len(there.keys()) == 104
        for name in here.keys():  # noqa: SIM118  not a mapping
            assert there.get_tensor(name).tobytes() == here.get_tensor(name).tobytes(), name
    read = safetensors.numpy.load_file(path)
    assert {name: array.tobytes() for name, array in safetensors.numpy.load_file(minilm / FILE).items()} == {
        name: array.tobytes() for name, array in read.items()}


def test_safetensors_loads_torch_tensors_of_every_dtype(through_a_mount: Shown, source: Path) -> None:
    safetensors.torch.save_file(state(), source / FILE)
    path = through_a_mount(source) / FILE
    found = safetensors.torch.load_file(path)
    assert is_mapped(path), "its tensors are views of the file"
    assert_equal(found, state())
    del found
    gc.collect()
    assert not is_mapped(path)


def test_safetensors_loads_a_slice_of_a_tensor(through_a_mount: Shown, source: Path) -> None:
    safetensors.torch.save_file(state(), source / FILE)
    with safetensors.safe_open(through_a_mount(source) / FILE, "pt") as file:
        rows = file.get_slice("f32")[1000:1010, 5:9]
    assert torch.equal(rows, state()["f32"][1000:1010, 5:9])


@pytest.mark.parametrize("mmap", [False, True], ids=["read", "mmap"])
def test_torch_load_gives_what_torch_save_wrote(mmap: bool, through_a_mount: Shown, source: Path) -> None:
    torch.save(state(), source / "model.bin")
    path = through_a_mount(source) / "model.bin"
    found = torch.load(path, mmap=mmap, weights_only=True, map_location="cpu")
    assert is_mapped(path) == mmap
    assert_equal(found, state())


def test_a_module_takes_its_parameters_mapped_from_the_mount(through_a_mount: Shown, source: Path) -> None:
    torch.manual_seed(5)
    original = torch.nn.Sequential(torch.nn.Linear(512, 2048), torch.nn.GELU(), torch.nn.Linear(2048, 512))
    torch.save(original.state_dict(), source / "model.bin")
    path = through_a_mount(source) / "model.bin"
    with torch.device("meta"):
        loaded = torch.nn.Sequential(torch.nn.Linear(512, 2048), torch.nn.GELU(), torch.nn.Linear(2048, 512))
    loaded.load_state_dict(torch.load(path, mmap=True, weights_only=True), assign=True)
    assert is_mapped(path)
    given = torch.randn(4, 512)
    with torch.no_grad():
        assert torch.equal(loaded(given), original(given))


@pytest.mark.parametrize("mode", ["r", "c"], ids=["shared", "copy-on-write"])
def test_numpy_maps_npy_files_and_raw_ones(mode: str, through_a_mount: Shown, source: Path) -> None:
    array = np.random.default_rng(3).normal(size=(3000, 257)).astype(np.float32)
    np.save(source / "array.npy", array)
    array.tofile(source / "array.raw")
    shown = through_a_mount(source)
    npy = np.load(shown / "array.npy", mmap_mode=mode)
    raw = np.memmap(shown / "array.raw", np.float32, mode, shape=array.shape)
    assert is_mapped(shown / "array.npy") and is_mapped(shown / "array.raw")
    assert np.array_equal(npy, array) and np.array_equal(raw, array)


def test_numpy_reads_npy_and_npz_files(through_a_mount: Shown, source: Path) -> None:
    arrays = {"a": np.random.default_rng(4).normal(size=(500, 999)), "b": np.arange(70_000)}
    np.save(source / "a.npy", arrays["a"])
    np.savez(source / "plain.npz", **arrays)
    np.savez_compressed(source / "packed.npz", **arrays)
    shown = through_a_mount(source)
    assert np.array_equal(np.load(shown / "a.npy"), arrays["a"]) and not is_mapped(shown / "a.npy")
    for name in ("plain.npz", "packed.npz"):
        with np.load(shown / name) as found:
            assert all(np.array_equal(found[key], array) for key, array in arrays.items())
