"""Mounts, and programs that find modelfs and python3 as a user's shell would."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mount.mounting import ROOT, Mounter
from results import Result


@pytest.fixture
def mount(tmp_path: Path, environ: dict[str, str]) -> Iterator[Mounter]:
    mounter = Mounter(tmp_path, environ)
    yield mounter
    mounter.end()


@pytest.fixture
def example(tmp_path: Path, environ: dict[str, str]) -> Callable[..., Result]:
    """Run examples/NAME with arguments, by python3 or bash; the output of one that fails is shown."""
    binaries = tmp_path / "bin"
    binaries.mkdir()
    for name, options in (("modelfs", "-m modelfs"), ("python3", "")):
        (binaries / name).write_text(f'#!/bin/sh\nexec {sys.executable} {options} "$@"\n')
        (binaries / name).chmod(0o755)

    def run(name: str, *arguments: object, code: int = 0) -> Result:
        program = "bash" if name.endswith(".sh") else "python3"
        done = subprocess.run([program, str(ROOT / "examples" / name), *map(str, arguments)], cwd=tmp_path,
                              env={**environ, "PATH": f"{binaries}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT),
                                   "TMPDIR": str(tmp_path)},
                              stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == code, done.stdout[-3000:] + done.stderr[-3000:]
        return Result(done.returncode, done.stdout, done.stderr)
    return run
