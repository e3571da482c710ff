"""A mount as users begin it, in the foreground or as a daemon, timed and asked for its status.

Rule: it starts with the configuration that is given here alone, and is gone when the block ends, whatever happened.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers import MODELFS, MOUNT_POINT, is_mounted
from benchmarks.processes import Failed, run, running, wait_until


@dataclass(frozen=True, slots=True)
class Mounted:
    """began: time.perf_counter() just before the command. ready_s: what the command took."""

    place: Path
    environ: Mapping[str, str]
    began: float
    ready_s: float

    def status(self) -> dict[str, Any]:
        found = json.loads(run([*MODELFS, "status", str(self.place), "--json"], self.environ))
        assert isinstance(found, dict)
        return found

    def counter(self, name: str) -> int:
        return int(self.status()["counters"][name])


@contextmanager
def mounted(spec: str, scratch: Path, *options: str, daemon: bool = True) -> Iterator[Mounted]:
    """spec: of the repository. scratch: where its cache is kept, from an earlier mount, too."""
    place = scratch / MOUNT_POINT
    place.mkdir(exist_ok=True, parents=True)
    environ = os.environ | {name: str(scratch / name.lower()) for name in ("XDG_CONFIG_HOME", "XDG_STATE_HOME")}
    command = [*MODELFS, "mount", spec, str(place), "--engine", "native", "--cache-dir", str(scratch / "cache"),
               "--cache-size", "20 GiB", *options]
    with ExitStack() as stack:
        began = time.perf_counter()
        if daemon:
            run([*command, "--daemon"], environ)
        else:
            log = scratch / "log"
            process = stack.enter_context(running(command, log, environ))
            wait_until(lambda: "mounted " in log.read_text() or process.poll() is not None, "a mount")
        ready_s = time.perf_counter() - began
        try:
            if not is_mounted(place):
                raise Failed(f"no mount: {(scratch / 'log').read_text()}")
            yield Mounted(place, environ, began, ready_s)
            run([*MODELFS, "umount", str(place)], environ)
        finally:
            if is_mounted(place):
                subprocess.run([*MODELFS, "umount", "--force", str(place)], env=environ, check=False)


def resident_bytes(pid: int) -> int:
    """VmRSS."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
