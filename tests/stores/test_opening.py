"""What a user may write for a repository."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from modelfs.errors import BadInput
from modelfs.stores.file_store import FileStore
from modelfs.stores.opening import open_store


def test_a_path_and_a_file_url_are_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for spec in (str(tmp_path / "a b"), "a b", f"file://{tmp_path}/a%20b", f"file://localhost{tmp_path}/a%20b"):
        store = open_store(spec)
        assert isinstance(store, FileStore) and store.root == tmp_path / "a b"


@pytest.mark.parametrize("spec", ["http://x.example/repo/", "HTTP://x.example/repo"])
def test_a_url_is_an_http_store(spec: str) -> None:
    assert open_store(spec).url == "http://x.example/repo"


@pytest.mark.parametrize("spec", ["s3://bucket/x", "ftp://x", "gs://x"])
def test_another_scheme_is_refused_with_what_is_supported(spec: str) -> None:
    with pytest.raises(BadInput, match="a path, file://, http:// or https://"):
        open_store(spec)


@pytest.mark.parametrize("spec", ["", "a\0b", "file://host/x", "file://relative", "file:///a?b", "http://", "https://u:p@h/"])
def test_what_names_no_repository_is_refused(spec: str) -> None:
    with pytest.raises(BadInput):
        open_store(spec)


def test_a_directory_needs_no_http_client() -> None:
    code = ("import sys; from modelfs.stores.opening import open_store; open_store('x');"
            "sys.exit('requests' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0
