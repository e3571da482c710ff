"""`modelfs compress` as it is typed: what it prints, writes and refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from modelfiles import weights
from results import Result
from safetensors.numpy import load_file, save_file

Run = Callable[..., Result]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    save_file({"a.weight": weights(64, 128), "norm": weights(9)}, tmp_path / "model/x.safetensors")
    (tmp_path / "model/config.json").write_text("{}")
    return tmp_path / "model"


def test_it_prints_a_table_and_says_plainly_what_gets_smaller(model: Path, modelfs: Run) -> None:
    done = modelfs("compress", "model", "made", "--recipe", "int8")
    lines = done.out.splitlines()
    assert (done.code, done.err) == (0, "")
    assert lines[0].split() == ["x.safetensors", "dtype", "weights", "method", "bits", "max", "error", "RMS", "error",
                                "cosine", "SNR", "dB"]
    rows = {line.split()[0]: line.split() for line in lines[1:3]}
    assert rows["a.weight"][1:5] == ["F32", "8192", "int8", "8.12"]
    assert "left alone: fewer than 2 dimensions" in next(line for line in lines if line.startswith("norm"))
    assert lines[-2].startswith("made: 2 files, 1 of 2 tensors changed; 8.15 bits a weight, RMS error 0.00")
    assert "as much GPU memory as ever" in lines[-1]


def test_json_report_and_plots_say_the_same(model: Path, tmp_path: Path, modelfs: Run) -> None:
    done = modelfs("compress", model, "made", "--recipe", "prune50+int8", "--report", "r.json", "--plot", "p.png",
                   "--json", env={"MPLCONFIGDIR": matplotlib.get_cachedir()})  # its list of fonts takes seconds
    assert done.code == 0, done.err
    document = json.loads(done.out)
    assert json.loads((tmp_path / "r.json").read_text()) == document
    assert document["files"] == [
        {"path": "config.json", "format": None, "size_before": 2, "size": 2, "note": None},
        {"path": "x.safetensors", "format": "safetensors", "size_before": (model / "x.safetensors").stat().st_size,
         "size": (model / "x.safetensors").stat().st_size, "note": None}]
    tensor = next(each for each in document["tensors"] if each["name"] == "a.weight")
    made = load_file(tmp_path / "made/x.safetensors")["a.weight"]
    assert (made == 0).mean() >= 0.5
    assert tensor["max_error"] == np.abs(made - weights(64, 128)).max() and tensor["file"] == "x.safetensors"
    assert tensor["shape"] == [64, 128] and 0.5 < tensor["cosine"] < 1 and tensor["snr_db"] > 0
    assert document["totals"]["changed"] == 1 and document["recipe"]["name"] == "prune50+int8"
    assert (tmp_path / "p.png").read_bytes()[:4] == b"\x89PNG"


def test_a_single_file_becomes_a_single_file(model: Path, tmp_path: Path, modelfs: Run) -> None:
    assert modelfs("compress", "model/x.safetensors", "deep/y.safetensors", "--recipe", "int4").code == 0
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["y.safetensors"]
    assert modelfs("compress", "model/x.safetensors", "deep/y.safetensors", "--recipe", "int4").code == 7


def test_native_dtypes_say_how_they_are_read(model: Path, tmp_path: Path, modelfs: Run) -> None:
    done = modelfs("compress", "model", "made", "--recipe", "int4", "--native-dtype")
    assert done.code == 0 and "modelfs.compression.read_native reads them" in done.out
    assert (tmp_path / "made/x.safetensors").stat().st_size < (model / "x.safetensors").stat().st_size / 4


@pytest.mark.parametrize("arguments, code, line", [
    (["none", "made", "--recipe", "int8"], 3, "no source, none: no such file or directory"),
    (["model", "made", "--recipe", "int9"], 2, "no recipe 'int9'"),
    (["model", "model/made", "--recipe", "int8"], 2, "the destination is in the source"),
    (["model", "made", "--recipe", "int8", "--plot", "p.txt"], 2, "not a picture's name, p.txt"),
    (["model", "made", "--recipe", "int8", "--report", "none/r.json"], 2, "cannot be written, none/r.json"),
    (["model", "made", "--recipe", "prune50", "--native-dtype"], 2, "alone leaves the dtype as it is"),
    (["model", "made", "--recipe", "int8", "--executor", "spark://a:1"], 2, "not an executor 'spark://a:1'"),
    (["model", "made", "--recipe", "int8", "--executor", "dask://a:1", "--jobs", "2"], 2, "--jobs and --executor"),
    (["model/config.json", "made", "--recipe", "int8"], 2, "recipe 'int8' matches no tensor"),
])
def test_what_is_wrong_is_said_before_anything_is_made(arguments: list[str], code: int, line: str, model: Path,
                                                       tmp_path: Path, modelfs: Run) -> None:
    done = modelfs("compress", *arguments)
    assert done.code == code and done.err.startswith("modelfs: ") and line in done.err
    assert not (tmp_path / "made").exists() and not (model / "made").exists()


def test_without_matplotlib_a_plot_is_refused_at_once(model: Path, tmp_path: Path, modelfs: Run) -> None:
    (tmp_path / "no").mkdir()
    root = Path(__file__).parents[2]
    (tmp_path / "no/sitecustomize.py").write_text(
        "import sys, importlib.abc\n"
        "class No(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name in ('matplotlib', 'distributed'):\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, No())\n")
    env = {"PYTHONPATH": f"{tmp_path / 'no'}:{root}"}
    done = modelfs("compress", "model", "made", "--recipe", "int8", "--plot", "p.png", env=env)
    assert done.code == 2 and "pip install 'modelfs[plot]'" in done.err and not (tmp_path / "made").exists()
    done = modelfs("compress", "model", "made", "--recipe", "int8", "--executor", "dask://a:1", env=env)
    assert done.code == 2 and "pip install 'modelfs[dask]'" in done.err and not (tmp_path / "made").exists()
