"""The kernel's FUSE protocol, as far as a read-only filesystem speaks it: numbers and structures, nothing that acts.

Rule: names and layouts are those of include/uapi/linux/fuse.h (protocol 7.40, Linux 6.9), in the host's byte order.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final

MAJOR, MINOR = 7, 40
LEAST_MINOR = 31
"""Linux 5.4: what older kernels lack (max_pages, parallel readdir) is nowhere else in here asked for."""
ROOT_ID: Final = 1


class Op(IntEnum):
    LOOKUP = 1
    FORGET = 2  # no reply
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36  # no reply
    DESTROY = 38
    BATCH_FORGET = 42  # no reply
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    COPY_FILE_RANGE = 47
    TMPFILE = 51


WRITES: Final = frozenset({
    Op.SETATTR, Op.SYMLINK, Op.MKNOD, Op.MKDIR, Op.UNLINK, Op.RMDIR, Op.RENAME, Op.LINK, Op.WRITE, Op.SETXATTR,
    Op.REMOVEXATTR, Op.CREATE, Op.FALLOCATE, Op.RENAME2, Op.COPY_FILE_RANGE, Op.TMPFILE})

# flags of INIT; those from 1 << 32 on travel in flags2, and only with INIT_EXT
ASYNC_READ = 1 << 0
DO_READDIRPLUS = 1 << 13
READDIRPLUS_AUTO = 1 << 14
PARALLEL_DIROPS = 1 << 18
MAX_PAGES = 1 << 22
INIT_EXT = 1 << 30
PASSTHROUGH = 1 << 37
HAS_RESEND = 1 << 39

# flags of OPEN's and OPENDIR's answers
FOPEN_KEEP_CACHE = 1 << 1
FOPEN_CACHE_DIR = 1 << 3
FOPEN_NOFLUSH = 1 << 5
FOPEN_PASSTHROUGH = 1 << 7

NOTIFY_STORE = 4
NOTIFY_RESEND = 7

BACKING_OPEN = 0x4010E501  # _IOW(229, 1, struct fuse_backing_map)
BACKING_CLOSE = 0x4004E502  # _IOW(229, 2, uint32_t)

IN_HEADER = struct.Struct("=IIQQIIII")
"""length, opcode, unique, node id, uid, gid, pid, total extension length and padding."""
OUT_HEADER = struct.Struct("=IiQ")
"""length, error (negative errno; a notification's code where unique is 0), unique."""
INIT_IN = struct.Struct("=IIII")
"""major, minor, max_readahead, flags; then flags2 (u32) where flags has INIT_EXT."""
INIT_OUT = struct.Struct("=IIIIHHIIHHIIH22x")
"""major, minor, max_readahead, flags, max_background, congestion_threshold, max_write, time_gran, max_pages,
map_alignment, flags2, max_stack_depth, request_timeout."""
ATTR = struct.Struct("=QQQQQQIIIIIIIIII")
"""ino, size, blocks, atime, mtime, ctime (s), their nanoseconds, mode, nlink, uid, gid, rdev, blksize, flags."""
ENTRY_OUT = struct.Struct("=QQQQII")
"""node id, generation, entry_valid, attr_valid (s), their nanoseconds; an ATTR follows."""
ATTR_OUT = struct.Struct("=QII")
"""attr_valid, its nanoseconds, padding; an ATTR follows."""
OPEN_OUT = struct.Struct("=QIi")
"""handle, flags, backing id."""
READ_IN = struct.Struct("=QQIIQII")
"""handle, offset, size, read flags, lock owner, flags, padding. Of READ, READDIR and READDIRPLUS."""
RELEASE_IN = struct.Struct("=QIIQ")
"""handle, flags, release flags, lock owner."""
GETXATTR_IN = struct.Struct("=II")
"""size, padding; for GETXATTR the name follows."""
GETXATTR_OUT = struct.Struct("=II")
STATFS_OUT = struct.Struct("=QQQQQIIII24x")
"""blocks, free, available, files, free files, block size, name length, fragment size, padding."""
INTERRUPT_IN = struct.Struct("=Q")
DIRENT = struct.Struct("=QQII")
"""ino, offset of the next, name length, type; then the name, padded to 8 bytes."""
STORE_OUT = struct.Struct("=QQII")
"""node id, offset, size, padding; then the bytes."""
BACKING_MAP = struct.Struct("=iIQ")
"""descriptor, flags, padding."""

LARGEST_READ = 1 << 20
"""256 pages, the most that the kernel grants without a changed sysctl (fs.fuse.max_pages_limit)."""
REQUEST_BYTES = 8192 + 4096
"""FUSE_MIN_READ_BUFFER, and the most that a request but WRITE carries: names and extended attributes' names."""
MAX_WRITE = 4096
