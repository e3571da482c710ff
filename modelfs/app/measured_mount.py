"""A mount of the caller's own for a short while: the command, in a process of its own.

Rule: when the caller goes on, fails or dies, the mount goes, and its process, and its control socket.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from modelfs import paths
from modelfs.daemon import mountpoints
from modelfs.daemon.background import Relayed
from modelfs.errors import NotFound

_LEAVE_S = 1.0
"""What the mount has for leaving by itself: an interrupted command has two seconds for everything (__main__)."""
_RUN = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
if os.getppid() == int(sys.argv.pop(1)):
    from modelfs.__main__ import run
    sys.exit(run())
"""


@contextmanager
def mounted(arguments: Sequence[str], mountpoint: Path, environ: Mapping[str, str], log: Path) -> Iterator[None]:
    """While `modelfs mount ARGUMENTS…`, which name mountpoint, serves there. Only from the main thread.

    log: gets its standard error. Raises Relayed, with the command's own line and exit code, where it cannot be mounted.
    """
    place = paths.canonical(mountpoint)
    ours, theirs = os.pipe()
    with open(ours) as told:
        try:
            with log.open("wb") as stream:
                process = subprocess.Popen([sys.executable, "-P", "-c", _RUN, str(os.getpid()), "mount",
                                            f"--ready-fd={theirs}", *arguments], stdin=subprocess.DEVNULL,
                                           stdout=stream, stderr=stream, env=environ, pass_fds=(theirs,),
                                           start_new_session=True)
        finally:
            os.close(theirs)
        try:
            answer = json.loads(told.readline() or json.dumps(_last_words(process, log)))
            if "error" in answer:
                raise Relayed(str(answer["error"]), int(answer["exit_code"]))
            yield
        finally:
            _end(process, place, paths.socket_path(place, environ))


def _last_words(process: subprocess.Popen[bytes], log: Path) -> dict[str, object]:
    """Of a mount that ended without telling, which no error of modelfs's own makes it do."""
    lines = log.read_text(errors="replace").splitlines() or ["nothing was said"]
    return {"error": f"the mount ended before it answered: {lines[-1]}", "exit_code": max(1, process.wait())}


def _end(process: subprocess.Popen[bytes], place: Path, socket: Path) -> None:
    process.terminate()
    try:
        process.wait(_LEAVE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if mountpoints.mount_at(place) is not None:  # it was killed, here or before
        with suppress(NotFound):
            mountpoints.detach(place, lazy=True)
    for left in (socket, socket.with_suffix(".lock")):
        left.unlink(missing_ok=True)
