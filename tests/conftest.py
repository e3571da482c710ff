"""What tests of all rooms share: an environment of their own, and the real command run in it."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Callable, Generator, Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from results import Result

# Workers of pytest share the cores, and threads of BLAS that wait for one by turning are six times as slow then. Before
# anything imports numpy, and for every command that is run.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# No deadline: the machine is shared, and a slow example is no failing one.
settings.register_profile("modelfs", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("modelfs")


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """Without the user's own settings, and Python's: every directory that modelfs finds by it is in tmp_path."""
    kept = {name: value for name, value in os.environ.items()
            if not name.startswith(("MODELFS_", "XDG_", "PYTHON")) and not name.lower().endswith("_proxy")}
    home = tmp_path / "home"
    for name in ("config", "cache", "state", "run"):
        (home / name).mkdir(parents=True, mode=0o700)
    return kept | {
        "HOME": str(home), "XDG_CONFIG_HOME": str(home / "config"), "XDG_CACHE_HOME": str(home / "cache"),
        "XDG_STATE_HOME": str(home / "state"), "XDG_RUNTIME_DIR": str(home / "run"),
        "MODELFS_CACHE_DIRECTORY": str(home / "cache" / "modelfs"),
    }


@pytest.fixture
def modelfs(environ: dict[str, str], tmp_path: Path) -> Callable[..., Result]:
    """Run `modelfs ARGUMENTS…` in tmp_path, without a terminal; env: more environment variables."""
    def run(*arguments: object, env: Mapping[str, str] | None = None, timeout: float = 60) -> Result:
        done = subprocess.run([sys.executable, "-m", "modelfs", *map(str, arguments)], cwd=tmp_path,
                              env={**environ, "PYTHONPATH": str(Path(__file__).parents[1]), **(env or {})},
                              stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout, check=False)
        return Result(done.returncode, done.stdout.decode(), done.stderr.decode())
    return run


def pytest_collection_finish() -> None:
    """Four thousand tests stay to the end: the garbage collector need not go through them again and again."""
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What a test printed or logged may be no UTF-8, which pytest-xdist cannot send from one process to another."""
    report = yield
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
    return report
