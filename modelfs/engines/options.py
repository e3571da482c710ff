"""What a mount is asked to be, whichever engine serves it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from modelfs.errors import ModelfsError

_DESCRIPTOR_DIRECTORY = Path("/dev/fd")


class MountFailed(ModelfsError):
    """The mount was refused by the kernel, libfuse or fusermount."""


@dataclass(frozen=True, slots=True)
class MountOptions:
    """source: what the table of mounts shows as the device; without secrets. mountpoint: canonical, or /dev/fd/N, a
    FUSE descriptor that whoever started us has mounted."""

    mountpoint: Path
    source: str
    allow_other: bool = False

    @property
    def descriptor(self) -> int | None:
        """N of /dev/fd/N."""
        if self.mountpoint.parent == _DESCRIPTOR_DIRECTORY and self.mountpoint.name.isdecimal():
            return int(self.mountpoint.name)
        return None
