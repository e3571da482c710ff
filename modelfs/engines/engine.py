"""What an engine is: it shows a `View` at a mount point, and translates, nothing more; and which engines there are.

Rule: errno mapping and the kernel's interface live in engines only; a view never learns how it is mounted.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from modelfs.config import EngineChoice
from modelfs.errors import BadInput, Forbidden, ModelfsError
from modelfs.view.view import View

READAHEAD_KB = 1024
"""Through fusepy, cached: 0.4-0.6 GB/s at the kernel's 128, 0.4-0.8 at 1024; cold over HTTP 0.12-0.18 and 0.16-0.20
(2 noisy cores). 4096 gained nothing more."""
IN_A_CONTAINER = ("In a container it takes docker run --device /dev/fuse --cap-add SYS_ADMIN "
                  "--security-opt apparmor=unconfined.")


class MountFailed(ModelfsError):
    """The mount was refused by the kernel, libfuse or fusermount."""


@dataclass(frozen=True, slots=True)
class MountOptions:
    """source: what the table of mounts shows as the device; without secrets."""

    mountpoint: Path
    source: str
    allow_other: bool = False


class Engine(Protocol):
    name: str
    passthrough: bool

    def check(self, options: MountOptions) -> None:
        """Raises BadInput or Forbidden, with what to do, where this engine cannot work here. Mounts nothing."""

    def serve(self, view: View, options: MountOptions) -> None:
        """Mount, and serve until the mount is gone. Raises MountFailed where it cannot be mounted."""


def choose_engine(choice: EngineChoice) -> Engine:
    """Raises BadInput where the one asked for is not to be had."""
    if choice == "native":
        raise BadInput("no native engine in this version yet", advice="Use --engine fusepy or auto.")
    try:
        from modelfs.engines.fusepy_engine import FusepyEngine
    except OSError as error:  # fusepy loads libfuse as it is imported
        raise BadInput("cannot mount", where="libfuse.so.2", why="the library is missing",
                       advice="Install it (Debian, Ubuntu: apt-get install fuse3 libfuse2, on newer releases "
                              "libfuse2t64).") from error
    return FusepyEngine()


def check_fuse(options: MountOptions) -> None:
    """What every engine needs: the device, and where we are not root, fusermount. Raises BadInput, Forbidden."""
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR))
    except FileNotFoundError as error:
        raise BadInput("cannot mount", where="/dev/fuse", why="the device is missing",
                       advice="Load the module: modprobe fuse. " + IN_A_CONTAINER) from error
    except OSError as error:
        raise Forbidden("cannot mount", where="/dev/fuse", why=error.strerror or str(error),
                        advice=IN_A_CONTAINER if os.geteuid() == 0 else
                        "Its mode is usually 0666: ask an admin for `chmod 666 /dev/fuse`.") from error
    if os.geteuid() != 0 and not (shutil.which("fusermount3") or shutil.which("fusermount")):
        raise BadInput("cannot mount", where="fusermount3", why="the program is missing",
                       advice="Install fuse3 (Debian, Ubuntu: apt-get install fuse3), or mount as root.")
    try:
        str(options.mountpoint).encode()
    except UnicodeEncodeError as error:
        raise BadInput("cannot mount", where=repr(str(options.mountpoint)), why="the path is not UTF-8") from error


def raise_readahead(device: int) -> bool:
    """Let the kernel read READAHEAD_KB ahead in the mount with this st_dev. Returns whether it could be set."""
    try:
        Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb").write_text(f"{READAHEAD_KB}\n")
    except OSError:
        return False
    return True
