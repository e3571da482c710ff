"""What a user may write for a repository."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from modelfs.errors import BadInput
from modelfs.stores.file_store import FileStore
from modelfs.stores.opening import is_network, open_store


def test_a_path_and_a_file_url_are_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for spec in (str(tmp_path / "a b"), "a b", f"file://{tmp_path}/a%20b", f"file://localhost{tmp_path}/a%20b"):
        store = open_store(spec)
        assert isinstance(store, FileStore) and store.root == tmp_path / "a b"


@pytest.mark.parametrize("spec", ["http://x.example/repo/", "HTTP://x.example/repo"])
def test_a_url_is_an_http_store(spec: str) -> None:
    assert open_store(spec).url == "http://x.example/repo"


@pytest.mark.parametrize("spec", ["ftp://x", "s3a://bucket/x", "hf://x/y"])
def test_another_scheme_is_refused_with_what_is_supported(spec: str) -> None:
    with pytest.raises(BadInput, match="a path, file://, http://, https://, s3://, gs:// or az://"):
        open_store(spec)


@pytest.mark.parametrize(("spec", "url"), [
    ("s3://bucket/a/b/", "s3://bucket/a/b"), ("S3://bucket", "s3://bucket"), ("s3://my.bucket-1/", "s3://my.bucket-1"),
    ("gs://bucket/x", "gs://bucket/x"), ("az://container/x", "az://container/x"),
])
def test_a_url_of_an_object_store_is_one(monkeypatch: pytest.MonkeyPatch, spec: str, url: str) -> None:
    for name in [name for name in os.environ if name.startswith(("AWS_", "GOOGLE_", "AZURE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT", "lab")
    monkeypatch.setenv("HOME", "/nonexistent")
    assert open_store(spec).url == url


@pytest.mark.parametrize("spec", ["s3://", "s3:///x", "s3://key:secret@bucket/x", "s3://bucket/x?y", "s3://bucket/a//b",
                                  "s3://bucket/../x", "s3://bucket/a b", "s3://buck et/x", "gs://b/%20", "az://c/x"])
def test_what_is_no_url_of_an_object_store_is_refused(monkeypatch: pytest.MonkeyPatch, spec: str) -> None:
    for name in ("AZURE_STORAGE_ACCOUNT", "AZURE_STORAGE_ACCOUNT_NAME"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(BadInput) as caught:
        open_store(spec)
    assert "secret" not in str(caught.value)


def test_without_the_library_a_line_says_what_to_install() -> None:
    code = ("import sys; sys.modules['obstore'] = None\n"
            "from modelfs.stores.opening import open_store\n"
            "try: open_store('s3://bucket/x')\n"
            "except Exception as error: print(type(error).__name__, error)")
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=True, capture_output=True)
    assert done.stdout.decode().startswith("BadInput ") and "pip install 'modelfs[cloud]'" in done.stdout.decode()


@pytest.mark.parametrize("spec", ["", "a\0b", "file://host/x", "file://relative", "file:///a?b", "http://", "https://u:p@h/"])
def test_what_names_no_repository_is_refused(spec: str) -> None:
    with pytest.raises(BadInput):
        open_store(spec)


def test_a_directory_needs_neither_an_http_client_nor_the_clouds_library() -> None:
    code = ("import sys; from modelfs.stores.opening import open_store; open_store('x');"
            "sys.exit(bool({'requests', 'obstore', 'asyncio', 'configparser'} & set(sys.modules)))")
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0


@pytest.mark.parametrize(("spec", "far"), [
    ("/srv/models", False), ("file:///srv/models", False), ("http://x.example", True), ("HTTPS://x.example", True),
    ("s3://bucket", True), ("gs://bucket/x", True), ("az://container", True)])
def test_what_is_behind_a_network_is_told_from_directories(spec: str, far: bool) -> None:
    assert is_network(spec) is far
