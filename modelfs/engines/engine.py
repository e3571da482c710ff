"""What an engine is: it shows a `View` at a mount point, and translates, nothing more; and which engines there are.

Rule: errno mapping and the kernel's interface live in engines only; a view never learns how it is mounted.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

from modelfs.config import CacheConfig
from modelfs.engines.device import can_be_native
from modelfs.engines.native.engine import Keeping, NativeEngine
from modelfs.engines.options import MountOptions
from modelfs.errors import BadInput
from modelfs.settings import EngineChoice
from modelfs.view.view import View

READAHEAD_KB = 1024
"""Through fusepy, cached: 0.4-0.6 GB/s at the kernel's 128, 0.4-0.8 at 1024; cold over HTTP 0.12-0.18 and 0.16-0.20
(2 noisy cores). 4096 gained nothing more."""


class Engine(Protocol):
    """passthrough: whether whole files are handed to the kernel; known once it serves."""

    name: str

    @property
    def passthrough(self) -> bool: ...

    @property
    def serving(self) -> bool:
        """Whether the kernel's first request was answered."""

    def check(self, options: MountOptions) -> None:
        """Raises BadInput or Forbidden, with what to do, where this engine cannot work here. Mounts nothing."""

    def take(self, options: MountOptions) -> None:
        """Mount, where this engine can do that before it serves, or take a mount over. Raises MountFailed, BadInput."""

    def serve(self, view: View) -> None:
        """Serve what was taken until the mount is gone. Raises MountFailed where it cannot be mounted."""

    def leave(self, seconds: float) -> None:
        """For a successor: take no more requests, and answer those taken, within so long."""


def choose_engine(choice: EngineChoice, options: MountOptions, cache: CacheConfig,
                  keeping: Keeping | None = None) -> Engine:
    """auto: native where it can work, else fusepy. Raises BadInput, Forbidden where the one asked for cannot."""
    if can_be_native(choice):
        native = NativeEngine(cache.directory, passthrough=cache.verify != "always", keeping=keeping)
        native.check(options)
        return native
    try:
        from modelfs.engines.fusepy_engine import FusepyEngine
    except OSError as error:  # fusepy loads libfuse as it is imported
        raise BadInput("cannot mount", where="libfuse.so.2", why="the library is missing",
                       advice="Install it (Debian, Ubuntu: apt-get install fuse3 libfuse2, on newer releases "
                              "libfuse2t64), or use --engine native.") from error
    engine = FusepyEngine()
    engine.check(options)
    return engine


def raise_readahead(device: int) -> bool:
    """Let the kernel read READAHEAD_KB ahead in the mount with this st_dev. Returns whether it could be set."""
    try:
        Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb").write_text(f"{READAHEAD_KB}\n")
    except OSError:
        return False
    return True
