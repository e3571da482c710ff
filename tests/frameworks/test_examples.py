"""The examples that need torch; and the table of docs/loaders.md names the versions that these tests ran with."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from mount.mounting import ROOT

Shown = Callable[[Path], Path]
TABLE = ROOT / "docs" / "loaders.md"


def output(name: str, *arguments: object) -> str:
    done = subprocess.run([sys.executable, str(ROOT / "examples" / name), *map(str, arguments)], timeout=120,
                          stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_load_torch_loads_safetensors_and_what_torch_save_wrote(through_a_mount: Shown, source: Path,
                                                                minilm: Path) -> None:
    torch.save({"a": torch.arange(10.0), "b": torch.ones(3, 4)}, source / "pytorch_model.bin")
    (source / "model.safetensors").write_bytes((minilm / "model.safetensors").read_bytes())
    shown = through_a_mount(source)
    assert output("load_torch.py", shown / "pytorch_model.bin") == "2 tensors, 22 parameters, their sum 57.000000\n"
    found = output("load_torch.py", shown / "model.safetensors")
    assert found.startswith("104 tensors, 22") and found == output("load_torch.py", source / "model.safetensors")


def test_load_transformers_puts_the_nearest_sentence_first(through_a_mount: Shown, minilm: Path) -> None:
    sentences = ["a file system", "a place for files", "a bunch of carrots"]
    lines = output("load_transformers.py", through_a_mount(minilm), *sentences).splitlines()
    assert [line.split("  ", 1)[1] for line in lines] == sentences
    same, near, far = (float(line.split()[0]) for line in lines)
    assert same > 0.999 and near > far + 0.2


def test_the_table_of_loaders_names_the_versions_that_were_tested() -> None:
    rows = [line for line in TABLE.read_text().splitlines() if line.startswith("| ")]
    for name in ("safetensors", "torch", "numpy", "transformers", "sentence-transformers", "onnxruntime", "xllamacpp"):
        assert any(f"{name} {version(name).partition('+')[0]} " in row for row in rows), name
