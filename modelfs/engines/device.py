"""Whether this machine lets us speak FUSE at all, and what to do where it does not."""

from __future__ import annotations

import os
import shutil

from modelfs.errors import BadInput, Forbidden, ModelfsError
from modelfs.settings import EngineChoice

IN_A_CONTAINER = ("In a container it takes docker run --device /dev/fuse --cap-add SYS_ADMIN "
                  "--security-opt apparmor=unconfined.")


def can_be_native(choice: EngineChoice) -> bool:
    """Whether this choice comes to the native engine here."""
    if choice != "auto":
        return choice == "native"
    try:
        check_fuse()
    except ModelfsError:
        return False
    return True


def check_fuse() -> None:
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
