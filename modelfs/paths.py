"""Where modelfs keeps what is not a repository: cache, state, sockets, configuration, by the XDG base directory rules.

Rule: the environment comes in as an argument and nothing is created here but by `make_private`.
"""

from __future__ import annotations

import os
import pwd
import stat
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path

from modelfs.errors import BadInput, Forbidden

SYSTEM_CONFIG = Path("/etc/modelfs/config.toml")
_MAX_LINKS = 40  # as the kernel's own limit


def home_dir(environ: Mapping[str, str]) -> Path:
    """$HOME, or where that is not set what the system's accounts say."""
    home = environ.get("HOME", "")
    if not home:
        try:
            home = pwd.getpwuid(os.getuid()).pw_dir
        except KeyError:
            raise BadInput("no home directory", why=f"HOME is not set and uid {os.getuid()} has no account",
                           advice="Set HOME or XDG_CONFIG_HOME, XDG_CACHE_HOME and XDG_STATE_HOME.") from None
    return Path(home)


def config_file(environ: Mapping[str, str]) -> Path:
    """The user's own configuration; it need not be there."""
    return _base(environ, "XDG_CONFIG_HOME", ".config") / "modelfs" / "config.toml"


def cache_dir(environ: Mapping[str, str]) -> Path:
    return Path("/var/cache/modelfs") if os.geteuid() == 0 else _base(environ, "XDG_CACHE_HOME", ".cache") / "modelfs"


def state_dir(environ: Mapping[str, str]) -> Path:
    """Journals of pushes and the serials already seen: what should outlive a cache."""
    if os.geteuid() == 0 and not _absolute(environ, "XDG_STATE_HOME"):
        return Path("/var/lib/modelfs")
    return _base(environ, "XDG_STATE_HOME", ".local/state") / "modelfs"


def runtime_dir(environ: Mapping[str, str]) -> Path:
    """Sockets and locks of living mounts; `make_private` it before use."""
    if os.geteuid() == 0:
        return Path("/run/modelfs")
    if given := _absolute(environ, "XDG_RUNTIME_DIR"):
        return given / "modelfs"
    return (_absolute(environ, "TMPDIR") or Path("/tmp")) / f"modelfs-{os.geteuid()}"


def socket_path(mountpoint: Path, environ: Mapping[str, str]) -> Path:
    """The control socket of the mount at mountpoint; the same whichever way the path is written."""
    name = blake2b(os.fsencode(canonical(mountpoint)), digest_size=8).hexdigest()
    return runtime_dir(environ) / f"{name}.sock"


def canonical(mountpoint: Path) -> Path:
    """Absolute and without symbolic links, found without asking the filesystem that is mounted there.

    realpath would lstat the mount's root, which hangs or fails while its daemon does; readlink(2) on the
    root of a mount is answered by the kernel.
    """
    path = os.path.abspath(mountpoint)
    for _ in range(_MAX_LINKS):
        parent, name = os.path.split(path)
        path = os.path.join(os.path.realpath(parent), name) if name else parent
        try:
            target = os.readlink(path)
        except OSError:
            return Path(path)
        path = os.path.normpath(os.path.join(os.path.dirname(path), target))
    raise BadInput("too many symbolic links", where=str(mountpoint))


def make_private(directory: Path) -> Path:
    """The directory, made with mode 0700 where it is missing.

    Raises Forbidden where it is another user's, open to others, or cannot be made.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = directory.lstat()
    except OSError as error:
        raise Forbidden("cannot make a directory", where=str(directory), why=error.strerror or str(error)) from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise Forbidden("not a directory of our own", where=str(directory),
                        why=f"owner uid {found.st_uid}, mode {stat.S_IMODE(found.st_mode):04o}",
                        advice=f"It must belong to uid {os.geteuid()} with mode 0700.")
    return directory


def _absolute(environ: Mapping[str, str], variable: str) -> Path | None:
    """XDG: a relative path in one of its variables is to be ignored."""
    given = environ.get(variable, "")
    return Path(given) if given.startswith("/") else None


def _base(environ: Mapping[str, str], variable: str, below_home: str) -> Path:
    return _absolute(environ, variable) or home_dir(environ) / below_home
