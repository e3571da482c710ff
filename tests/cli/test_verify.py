"""verify: exit 0 or 4, every fault in the document, and what --repair put back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from results import Result

Run = Callable[..., Result]


@pytest.fixture
def repo(modelfs: Run, tmp_path: Path) -> Path:
    (tmp_path / "src").mkdir()
    (tmp_path / "src/data.bin").write_bytes(np.random.default_rng(1).bytes(600_000))
    (tmp_path / "src/config.json").write_text("{}")
    modelfs("init", "repo", "--chunk-size", "64KiB")
    assert modelfs("push", "src", "repo", "acme/base").code == 0
    return tmp_path / "repo"


def files(repo: Path, kind: str) -> list[Path]:
    return sorted((path for path in (repo / kind).rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def report(result: Result, code: int) -> Any:
    assert result.code == code
    return json.loads(result.out)


def test_a_sound_repository_is_exit_0(modelfs: Run, repo: Path) -> None:
    found = report(modelfs("verify", repo, "--read-data", "--json"), 0)
    (one,) = found["repositories"]
    assert found["ok"] is one["ok"] is True
    assert (one["repository"], one["versions"], one["chunks_checked"], one["faults"]) == (repo.as_uri(), 1, 11, [])
    assert one["bytes_checked"] == 600_002
    assert report(modelfs("verify", repo, "--json"), 0)["repositories"][0]["chunks_checked"] == 0
    assert report(modelfs("verify", repo, "--sample", "20%", "--json"), 0)["repositories"][0]["chunks_checked"] == 2
    assert report(modelfs("verify", repo, "--sample", "0.2", "--json"), 0)["repositories"][0]["chunks_checked"] == 2


def test_a_flipped_byte_is_exit_4_and_names_object_model_version_and_path(modelfs: Run, repo: Path) -> None:
    pack = files(repo, "packs")[-1]
    data = bytearray(pack.read_bytes())
    data[1000] ^= 1
    pack.write_bytes(data)
    assert report(modelfs("verify", repo, "--json"), 0)["ok"]
    found = report(modelfs("verify", repo, "--read-data", "--json"), 4)
    faults = found["repositories"][0]["faults"]
    assert all(set(fault) == {"kind", "object", "model", "version", "path", "detail"} for fault in faults)
    key = f"packs/{pack.name[:2]}/{pack.name}"
    assert {(fault["kind"], fault["object"], fault["model"], fault["version"], fault["path"]) for fault in faults} == {
        ("corrupt", key, "acme/base", "v1", "data.bin"), ("corrupt", key, None, None, None)}
    table = modelfs("verify", repo, "--read-data")
    assert table.code == 4
    assert "data.bin" in table.out


def test_a_missing_pack_is_exit_4_without_reading(modelfs: Run, repo: Path) -> None:
    files(repo, "packs")[-1].unlink()
    faults = report(modelfs("verify", repo, "--json"), 4)["repositories"][0]["faults"]
    assert {(fault["kind"], fault["version"], fault["path"]) for fault in faults} == {("missing", "v1", "data.bin")}


def test_a_missing_layout_is_put_back(modelfs: Run, repo: Path) -> None:
    (lost,) = files(repo, "layouts")
    before = lost.read_bytes()
    lost.unlink()
    faults = report(modelfs("verify", repo, "--json"), 4)["repositories"][0]["faults"]
    assert [fault["kind"] for fault in faults] == ["missing"]
    found = report(modelfs("verify", repo, "--repair", "--json"), 0)
    assert found["repositories"][0]["repaired"] == [f"layouts/{lost.name[:2]}/{lost.name}"]
    assert lost.read_bytes() == before
    assert modelfs("verify", repo, "--read-data").code == 0


def test_each_of_several_replicas_has_a_report_of_its_own(modelfs: Run, repo: Path, tmp_path: Path) -> None:
    modelfs("replicate", repo, "second")
    found = report(modelfs("verify", repo, "second", "--json"), 0)
    assert [one["versions"] for one in found["repositories"]] == [1, 1]
    files(repo, "manifests")[0].unlink()
    found = report(modelfs("verify", repo, "second", "--json"), 4)
    assert [one["ok"] for one in found["repositories"]] == [False, True]


@pytest.mark.parametrize("part", ["0", "101%", "many", "-1", "1.5", "nan"])
def test_a_part_is_above_0_and_at_most_all(modelfs: Run, repo: Path, part: str) -> None:
    result = modelfs("verify", repo, f"--sample={part}")
    assert (result.code, len(result.err.splitlines())) == (2, 1)


def test_what_is_no_repository_is_exit_3(modelfs: Run, tmp_path: Path) -> None:
    assert modelfs("verify", "nowhere").code == 3
    assert modelfs("verify").code == 2
