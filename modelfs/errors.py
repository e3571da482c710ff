"""Every error that modelfs raises on purpose, with the errno a file call gets and the exit code a command ends with.

ModelfsError                1 EIO     a fault of ours
├── BadInput                2 EINVAL  arguments, names, configuration
├── NotFound                3 ENOENT  no such repository, model, tag, version, path, mount
├── IntegrityError          4 EIO     bytes do not agree with what names them
│   ├── Malformed           4 EIO     an object that does not follow the format
│   ├── Unsupported         4 EIO     a format or required feature beyond this modelfs, named
│   ├── CorruptChunk        4 EIO     a chunk that does not decode, or does not hash to its id
│   └── ObjectMissing       4 EIO     an object that is named, and is not in this store
├── Unavailable             5 EIO     a store does not answer; the only error that is tried again
│   ├── DeadlinePassed      5 EIO     it did not answer in time
│   └── WrongServer         5 EIO     what answers is not what the URL says; tried once
├── Forbidden               6 EACCES  token, key, file mode
├── Conflict                7 EBUSY   busy, locked, taken, changed meanwhile
│   └── SwapLost            7 EBUSY   somebody else moved the object first; read it again and retry
└── NoSpace                 8 ENOSPC  a disk or a limit is full
"""

from __future__ import annotations

import errno


class ModelfsError(Exception):
    """`str(error)` is one line, "what, where: why. What to do."; neither part may hold a secret."""

    exit_code = 1
    errno = errno.EIO

    def __init__(self, what: str, *, where: str = "", why: str = "", advice: str = "") -> None:
        self.what, self.where, self.why, self.advice = what, where, why, advice
        line = what + (f", {where}" if where else "") + (f": {why}" if why else "")
        if advice:
            line += ("" if line.endswith(".") else ".") + " " + advice
        super().__init__(" ".join(line.split()))


class BadInput(ModelfsError):
    exit_code, errno = 2, errno.EINVAL


class NotFound(ModelfsError):
    exit_code, errno = 3, errno.ENOENT


class IntegrityError(ModelfsError):
    exit_code = 4


class Malformed(IntegrityError):
    pass


class Unsupported(IntegrityError):
    pass


class CorruptChunk(IntegrityError):
    pass


class ObjectMissing(IntegrityError):
    pass


class Unavailable(ModelfsError):
    """retry_after_s: what the store asked for (Retry-After), or None."""

    exit_code = 5

    def __init__(self, what: str, *, where: str = "", why: str = "", advice: str = "",
                 retry_after_s: float | None = None) -> None:
        super().__init__(what, where=where, why=why, advice=advice)
        self.retry_after_s = retry_after_s


class DeadlinePassed(Unavailable):
    pass


class WrongServer(Unavailable):
    """What answers does not speak TLS, or proves to be somebody else: asked again, it would still."""


class Forbidden(ModelfsError):
    exit_code, errno = 6, errno.EACCES


class Conflict(ModelfsError):
    exit_code, errno = 7, errno.EBUSY


class SwapLost(Conflict):
    pass


class NoSpace(ModelfsError):
    exit_code, errno = 8, errno.ENOSPC


NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""What the kernel says where NoSpace is meant."""
