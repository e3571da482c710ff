"""What compress makes of files: the same files but for their weights, in every format, and those as the recipe says."""

from __future__ import annotations

import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from modelfiles import Storage, View, weights, whole, write_gguf, write_torch
from safetensors.numpy import load_file, save_file

from modelfs.compression import run as run_module
from modelfs.compression.journal import Destination
from modelfs.compression.layout import ModelFile, layout_of
from modelfs.compression.pool import LocalPool
from modelfs.compression.run import Outcome, compress
from modelfs.errors import BadInput
from modelfs.transforms import Affine, Chain, Prune, parse_recipe, recipe_named, transform_array


@pytest.fixture(scope="module")
def pool() -> Iterator[LocalPool]:
    made = LocalPool(2)
    yield made
    made.close()


class Compressed:
    """A source directory, and what compress makes of it."""

    def __init__(self, root: Path, pool: LocalPool) -> None:
        self.source, self.made = root / "source", root / "made"
        self.source.mkdir()
        self._pool = pool
        self.told: list[str] = []

    def files(self) -> list[ModelFile]:
        paths = sorted(path for path in self.source.rglob("*") if path.is_file())
        return [ModelFile(str(path.relative_to(self.source)), str(path), status.st_size, status.st_mtime_ns,
                          status.st_mode) for path in paths for status in [path.stat()]]

    def run(self, recipe: object = "int8") -> Outcome:
        parsed = recipe_named(recipe) if isinstance(recipe, str) else parse_recipe(recipe, "test", "test")  # type: ignore[arg-type]
        return compress(self.files(), Destination(self.made, False), parsed, self._pool, source="source",
                        advance=lambda size: None, tell=self.told.append)

    def differing(self, name: str) -> list[int]:
        """Offsets of bytes that differ."""
        old, new = ((root / name).read_bytes() for root in (self.source, self.made))
        assert len(old) == len(new)
        return np.flatnonzero(np.frombuffer(old, np.uint8) != np.frombuffer(new, np.uint8)).tolist()


@pytest.fixture
def model(tmp_path: Path, pool: LocalPool) -> Compressed:
    return Compressed(tmp_path, pool)


def int8_of(array: np.ndarray) -> np.ndarray:
    return transform_array(Affine(8), array).values


def method_of(outcome: Outcome, name: str) -> str:
    return next(report.method for _, report in outcome.tensors if report.name == name)


def test_safetensors_keep_all_but_the_weights_of_the_recipe(model: Compressed) -> None:
    arrays = {"a": weights(70, 300), "b": weights(64, 128, dtype="f2"), "norm": weights(5000),
              "ids": np.arange(8192).reshape(64, 128), "small": weights(4, 4), "none": np.zeros((0, 9), "f4")}
    save_file(arrays, model.source / "x.safetensors", metadata={"format": "pt"})
    outcome = model.run()
    made = load_file(model.made / "x.safetensors")
    for name, array in arrays.items():
        expected = int8_of(array) if name in ("a", "b") else array
        assert made[name].dtype == array.dtype and np.array_equal(made[name], expected), name
    first = struct.unpack("<Q", (model.source / "x.safetensors").read_bytes()[:8])[0] + 8
    assert min(model.differing("x.safetensors")) >= first, "the header is as it was"
    assert method_of(outcome, "a") == "int8" and method_of(outcome, "norm") == "left alone: fewer than 2 dimensions"
    assert outcome.totals.changed == 2 and outcome.totals.tensors == 6
    report = next(each for _, each in outcome.tensors if each.name == "a")
    assert report.max_error == np.abs(arrays["a"] - made["a"]).max() and report.bits == 8 + 16 * 3 / 300


def test_gguf_rows_are_its_first_dimension(model: Compressed) -> None:
    arrays = {"a": weights(40, 256), "b": weights(9, 777, dtype="f2"), "bias": weights(6000)}
    write_gguf(model.source / "x.gguf", arrays)
    model.run()
    data = (model.made / "x.gguf").read_bytes()
    assert int8_of(arrays["a"]).tobytes() in data and int8_of(arrays["b"]).tobytes() in data
    assert arrays["bias"].tobytes() in data


@pytest.mark.parametrize("dtype", [">f4", ">f2", ">f8", "<f4", "<f8"])
def test_npy_keeps_its_byte_order(model: Compressed, dtype: str) -> None:
    array = weights(50, 200).astype(dtype)
    np.save(model.source / "x.npy", array)
    model.run()
    made = np.load(model.made / "x.npy")
    assert made.dtype == array.dtype and np.array_equal(made, int8_of(array)) and not np.array_equal(made, array)
    assert min(model.differing("x.npy")) >= 128


def test_npy_in_fortran_order_is_taken_as_it_lies(model: Compressed) -> None:
    array = np.asfortranarray(weights(50, 200))
    np.save(model.source / "x.npy", array)
    model.run()
    made = np.load(model.made / "x.npy")
    assert np.array_equal(made.T, int8_of(np.ascontiguousarray(array.T)))


def test_npz_passes_its_checksums(model: Compressed) -> None:
    arrays = {"p": weights(64, 100), "q": np.arange(7), "r": weights(99, 99, dtype=">f4")}
    np.savez(model.source / "x.npz", **arrays)
    model.run()
    with zipfile.ZipFile(model.made / "x.npz") as archive:
        assert archive.testzip() is None
    made = np.load(model.made / "x.npz")
    assert {name: made[name].dtype for name in made} == {name: array.dtype for name, array in arrays.items()}
    assert np.array_equal(made["p"], int8_of(arrays["p"])) and np.array_equal(made["r"], int8_of(arrays["r"]))
    assert np.array_equal(made["q"], arrays["q"])


def test_deflated_npz_is_left_alone_and_told(model: Compressed) -> None:
    np.savez_compressed(model.source / "x.npz", p=weights(64, 100))
    np.save(model.source / "y.npy", weights(64, 100))
    outcome = model.run()
    assert model.differing("x.npz") == []
    report = next(each for _, each in outcome.tensors if each.name == "p")
    assert (report.method, report.dtype, report.shape) == ("left alone: compressed in its archive", "F32", (64, 100))


def test_torch_archives_pass_their_checksums_also_with_descriptors(model: Compressed) -> None:
    array, turned = weights(64, 100), weights(80, 90, seed=2)
    views = {"a": whole("0", array), "deep": {"b": [whole("1", turned.T)]}}
    write_torch(model.source / "x.pt", views, [views["a"].storage, Storage("FloatStorage", "1", turned.tobytes())])  # type: ignore[union-attr]
    outcome = model.run()
    with zipfile.ZipFile(model.made / "x.pt") as archive:
        assert archive.testzip() is None
        assert all(info.flag_bits & 8 for info in archive.infolist()), "what this test is for"
        assert archive.read("m/data/0") == int8_of(array).tobytes()
        assert archive.read("m/data/1") == int8_of(turned).tobytes()
    data = (model.made / "x.pt").read_bytes()
    for stored in (int8_of(array).tobytes(), int8_of(turned).tobytes()):
        assert data.count(stored + b"PK\x07\x08" + struct.pack("<L", zlib.crc32(stored))) == 1, "descriptors, too"
    assert {each.name: each.shape for _, each in outcome.tensors} == {"a": (64, 100), "deep.b.0": (90, 80)}


def test_torch_files_of_a_big_endian_machine_stay_so(model: Compressed) -> None:
    array = weights(64, 100).astype(">f4")
    view = whole("0", array)
    write_torch(model.source / "x.pt", {"a": view}, [view.storage], byteorder=b"big")
    model.run()
    with zipfile.ZipFile(model.made / "x.pt") as archive:
        assert archive.read("m/data/0") == int8_of(array).tobytes()


def test_tied_tensors_are_changed_once_and_overlapping_ones_never(model: Compressed) -> None:
    tied, shared = weights(64, 100), weights(300, 100, seed=2)
    first, second = whole("0", tied), whole("1", shared)
    part = View(second.storage, 1000, (100, 100), (100, 1))
    strided = View(whole("2", tied).storage, 0, (64, 50), (100, 2))
    write_torch(model.source / "x.pt", {"a": first, "b": first, "c": second, "part": part, "strided": strided},
                [first.storage, second.storage, strided.storage])
    outcome = model.run()
    with zipfile.ZipFile(model.made / "x.pt") as archive:
        assert archive.read("m/data/0") == int8_of(tied).tobytes()
        assert archive.read("m/data/1") == shared.tobytes() and archive.read("m/data/2") == tied.tobytes()
    assert method_of(outcome, "a") == method_of(outcome, "b") == "int8"
    assert method_of(outcome, "c") == method_of(outcome, "part") == "left alone: shares bytes with another tensor"
    assert method_of(outcome, "strided") == "left alone: strided in its storage"
    assert outcome.totals.elements == tied.size + shared.size + part.shape[0] * part.shape[1] + 3200


def test_tied_tensors_of_two_rules_are_left_alone(model: Compressed) -> None:
    view = whole("0", weights(64, 100))
    write_torch(model.source / "x.pt", {"a": view, "b": view}, [view.storage])
    np.save(model.source / "y.npy", weights(64, 100))
    outcome = model.run({"rule": [{"tensors": ["a"], "skip": True}, {"quantise": {"bits": 8}}]})
    assert model.differing("x.pt") == []
    assert "another rule is for a tensor over the same bytes" in method_of(outcome, "b")


def test_nothing_in_a_pickle_is_run(model: Compressed, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> object:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    write_torch(model.source / "x.pt", None, [], raw_pickle=pickle.dumps({"a": Evil()}, 2))
    write_torch(model.source / "damaged.pt", None, [], raw_pickle=b"\x80\x02}q\x00(X")
    write_torch(model.source / "far.pt", None, [], raw_pickle=b"\x80\x02}r\xff\xff\xff\x7f.")
    np.save(model.source / "y.npy", weights(64, 100))
    outcome = model.run()
    assert not (tmp_path / "ran").exists()
    notes = {file.path: file.note for file in outcome.files}
    assert notes["x.pt"] is None and all("a pickle that cannot be read" in str(notes[name])
                                         for name in ("damaged.pt", "far.pt"))
    assert len(model.told) == 2 and all(model.differing(name) == [] for name in ("x.pt", "damaged.pt", "far.pt"))


def test_names_of_a_modules_tensors_are_those_of_its_state_dict(tmp_path: Path) -> None:
    view = whole("0", weights(64, 100))
    write_torch(tmp_path / "x.pt", {"net": {"_modules": {"fc": {"_parameters": {"weight": view}}}}}, [view.storage])
    status = (tmp_path / "x.pt").stat()
    found = layout_of(ModelFile("x.pt", str(tmp_path / "x.pt"), status.st_size, status.st_mtime_ns, 0o644))
    assert [each.name for each in found.tensors] == ["net.fc.weight"]


def test_a_tensor_with_nan_keeps_its_bytes(model: Compressed) -> None:
    bad = weights(64, 100)
    bad[3, 4] = np.nan
    save_file({"bad": bad, "good": weights(64, 100)}, model.source / "x.safetensors")
    outcome = model.run()
    assert load_file(model.made / "x.safetensors")["bad"].tobytes() == bad.tobytes()
    assert method_of(outcome, "bad") == "left alone: NaN or inf in it"


def test_other_files_are_copied_with_execute_bits_and_mtimes(model: Compressed) -> None:
    (model.source / "below").mkdir()
    for name, content in (("run.sh", b"#!/bin/sh\n"), ("below/config.json", b"{}"), ("empty", b"")):
        (model.source / name).write_bytes(content)
    (model.source / "run.sh").chmod(0o755)
    np.save(model.source / "y.npy", weights(64, 100))
    for path in model.source.rglob("*"):
        os.utime(path, ns=(1, 1_600_000_000_123_456_789))
    model.run()
    for name in ("run.sh", "below/config.json", "empty", "y.npy"):
        found = (model.made / name).stat()
        assert found.st_mtime_ns == 1_600_000_000_123_456_789
        assert bool(found.st_mode & 0o111) == (name == "run.sh")
        assert name == "y.npy" or (model.made / name).read_bytes() == (model.source / name).read_bytes()
    assert sorted(path.name for path in model.made.rglob("*")) == [
        "below", "config.json", "empty", "run.sh", "y.npy"]


def test_pruning_across_tensors_has_one_threshold(model: Compressed) -> None:
    arrays = {"small": weights(64, 100) * np.float32(0.01), "large": weights(64, 100, seed=2)}
    save_file(arrays, model.source / "x.safetensors")
    outcome = model.run({"rule": [{"prune": {"sparsity": 0.5, "scope": "global"}}]})
    made = load_file(model.made / "x.safetensors")
    zeros = {name: float((array == 0).mean()) for name, array in made.items()}
    assert zeros["small"] > 0.95 and zeros["large"] < 0.05
    assert (zeros["small"] + zeros["large"]) / 2 == pytest.approx(0.5, abs=0.01)
    document = outcome.document()["recipe"]
    assert isinstance(document, dict) and document["rule"][0]["prune"]["threshold"] > 0


def test_one_threshold_is_found_over_all_shards_whatever_survey_reads_which(model: Compressed,
                                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    layers = [weights(64, 100, seed=seed) * np.float32(scale) for seed, scale in enumerate((0.01, 0.5, 1, 100))]
    for number, layer in enumerate(layers):
        save_file({"w": layer}, model.source / f"{number}.safetensors")
    recipe = {"rule": [{"prune": {"sparsity": 0.5, "scope": "global"}}]}
    monkeypatch.setattr(run_module, "_SURVEY_BYTES", 1)  # a survey for each tensor
    outcome = model.run(recipe)
    threshold = outcome.document()["recipe"]["rule"][0]["prune"]["threshold"]  # type: ignore[index]
    assert threshold == pytest.approx(np.median(np.abs(np.concatenate(layers))), rel=0.01)
    for number, layer in enumerate(layers):
        made = load_file(model.made / f"{number}.safetensors")["w"]
        assert np.array_equal(made, np.where(np.abs(layer) < threshold, 0, layer))
    assert [float((layer == 0).mean()) for layer in (load_file(model.made / f"{number}.safetensors")["w"]
                                                     for number in (0, 3))] == [1.0, pytest.approx(0, abs=0.01)]


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_big_endian_file_with_fewer_values_than_clusters_keeps_every_bit(model: Compressed, order: str) -> None:
    few = np.asarray(weights(12).astype(">f4")[np.random.default_rng(2).integers(0, 12, (64, 100))], order=order)  # type: ignore[call-overload]
    np.save(model.source / "x.npy", few)
    np.save(model.source / "y.npy", np.asarray(weights(64, 100).astype(">f4"), order=order))  # type: ignore[call-overload]
    outcome = model.run("kmeans16")
    assert model.differing("x.npy") == [] and [each.method for _, each in outcome.tensors] == ["k-means 16"] * 2
    made = np.load(model.made / "y.npy")
    assert made.dtype == ">f4" and len(np.unique(made)) == 16
    assert np.corrcoef(made.ravel(), weights(64, 100).ravel())[0, 1] > 0.99


def test_of_rows_that_four_does_not_divide_the_rest_has_two_weights_left(model: Compressed) -> None:
    """In GGUF, and of a convolution: there all axes but the first are a row."""
    matrix, kernel = weights(60, 101), weights(64, 11, 3, 3, seed=2)
    write_gguf(model.source / "x.gguf", {"w": matrix})
    save_file({"conv": kernel}, model.source / "y.safetensors")
    model.run("prune2:4")
    data = (model.made / "x.gguf").read_bytes()
    flat = np.frombuffer(data[-((matrix.nbytes + 31) // 32 * 32):], np.float32)[:matrix.size].reshape(matrix.shape)
    conv = load_file(model.made / "y.safetensors")["conv"].reshape(64, 99)
    for made, old in ((flat, matrix), (conv, kernel.reshape(64, 99))):
        assert np.array_equal(made[made != 0], old[made != 0])
        for start in range(0, made.shape[1], 4):
            group, before = made[:, start:start + 4], np.abs(old[:, start:start + 4])
            kept = min(2, group.shape[1])
            assert (np.count_nonzero(group, axis=1) == kept).all()
            assert np.array_equal(np.sort(np.abs(group))[:, -kept:], np.sort(before)[:, -kept:])


def test_a_recipe_that_matches_nothing_says_why_and_makes_nothing(model: Compressed) -> None:
    save_file({"bias": weights(9000), "ids": np.arange(9000).reshape(90, 100)}, model.source / "x.safetensors")
    with pytest.raises(BadInput, match="matches no tensor, source: left alone were") as caught:
        model.run()
    assert "1 for dtype I64" in str(caught.value) and not model.made.exists()


def test_a_chain_of_two_methods_comes_out_as_over_arrays(model: Compressed) -> None:
    array = weights(3, 700_001)
    np.save(model.source / "x.npy", array)
    model.run("prune50+int8")
    expected = transform_array(Chain(Prune(0.5), Affine(8)), array).values
    assert np.array_equal(np.load(model.made / "x.npy"), expected)

