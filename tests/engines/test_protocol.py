"""Numbers and layouts of the FUSE protocol, against the header that the C library brings."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from modelfs.engines.native import protocol
from modelfs.engines.native.protocol import Op

HEADER = Path("/usr/include/linux/fuse.h")
STRUCTS: dict[str, tuple[tuple[struct.Struct, ...], str]] = {
    "fuse_in_header": ((protocol.IN_HEADER,), "len opcode unique nodeid uid gid pid"),
    "fuse_out_header": ((protocol.OUT_HEADER,), "len error unique"),
    "fuse_init_out": ((protocol.INIT_OUT,), "major minor max_readahead flags max_background congestion_threshold "
                                            "max_write time_gran max_pages map_alignment flags2"),
    "fuse_attr": ((protocol.ATTR,), "ino size blocks atime mtime ctime atimensec mtimensec ctimensec mode nlink uid "
                                    "gid rdev blksize flags"),
    "fuse_entry_out": ((protocol.ENTRY_OUT, protocol.ATTR), "nodeid generation entry_valid attr_valid "
                                                            "entry_valid_nsec attr_valid_nsec attr"),
    "fuse_attr_out": ((protocol.ATTR_OUT, protocol.ATTR), "attr_valid attr_valid_nsec dummy attr"),
    "fuse_open_out": ((protocol.OPEN_OUT,), "fh open_flags"),
    "fuse_read_in": ((protocol.READ_IN,), "fh offset size read_flags lock_owner flags"),
    "fuse_release_in": ((protocol.RELEASE_IN,), "fh flags release_flags lock_owner"),
    "fuse_getxattr_in": ((protocol.GETXATTR_IN,), "size"),
    "fuse_getxattr_out": ((protocol.GETXATTR_OUT,), "size"),
    "fuse_kstatfs": ((protocol.STATFS_OUT,), "blocks bfree bavail files ffree bsize namelen frsize"),
    "fuse_interrupt_in": ((protocol.INTERRUPT_IN,), "unique"),
    "fuse_dirent": ((protocol.DIRENT,), "ino off namelen type"),
    "fuse_notify_store_out": ((protocol.STORE_OUT,), "nodeid offset size"),
}
FLAGS = {"FUSE_ASYNC_READ": protocol.ASYNC_READ, "FUSE_DO_READDIRPLUS": protocol.DO_READDIRPLUS,
         "FUSE_READDIRPLUS_AUTO": protocol.READDIRPLUS_AUTO, "FUSE_PARALLEL_DIROPS": protocol.PARALLEL_DIROPS,
         "FUSE_MAX_PAGES": protocol.MAX_PAGES, "FUSE_INIT_EXT": protocol.INIT_EXT,
         "FUSE_PASSTHROUGH": protocol.PASSTHROUGH, "FUSE_HAS_RESEND": protocol.HAS_RESEND,
         "FOPEN_KEEP_CACHE": protocol.FOPEN_KEEP_CACHE, "FOPEN_CACHE_DIR": protocol.FOPEN_CACHE_DIR,
         "FOPEN_NOFLUSH": protocol.FOPEN_NOFLUSH, "FOPEN_PASSTHROUGH": protocol.FOPEN_PASSTHROUGH,
         "FUSE_ROOT_ID": protocol.ROOT_ID}
NOTIFICATIONS = {"FUSE_NOTIFY_STORE": protocol.NOTIFY_STORE, "FUSE_NOTIFY_RESEND": protocol.NOTIFY_RESEND}
NEWER_THAN_SOME_HEADERS = {"FUSE_PASSTHROUGH", "FUSE_HAS_RESEND", "FOPEN_PASSTHROUGH", "FUSE_NOTIFY_RESEND",
                           "FUSE_TMPFILE"}

pytestmark = pytest.mark.skipif(not HEADER.exists(), reason="the kernel's headers are not installed")


def offsets(parts: tuple[struct.Struct, ...]) -> list[int]:
    """Where each field of a structure begins, the last a whole structure where there are two parts."""
    kinds = re.findall(r"\d*[A-Za-z]", parts[0].format.lstrip("="))
    found = [struct.calcsize("=" + "".join(kinds[:number])) for number in range(len(kinds)) if "x" not in kinds[number]]
    return [*found, parts[0].size] if len(parts) == 2 else found


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
def test_structures_lie_as_the_compiler_lays_them(tmp_path: Path) -> None:
    lines = ["#include <linux/fuse.h>", "#include <stdio.h>", "#include <stddef.h>", "int main(void) {"]
    for name, (_, fields) in STRUCTS.items():
        lines.append(f'printf("{name} %zu", sizeof(struct {name}));')
        lines += [f'printf(" %zu", offsetof(struct {name}, {field}));' for field in fields.split()]
        lines.append('printf("\\n");')
    (tmp_path / "sizes.c").write_text("\n".join([*lines, "return 0; }"]))
    subprocess.run(["cc", "-o", tmp_path / "sizes", tmp_path / "sizes.c"], check=True)
    told = subprocess.run([tmp_path / "sizes"], check=True, capture_output=True, text=True).stdout
    for line in told.splitlines():
        name, size, *at = line.split()
        parts = STRUCTS[name][0]
        assert sum(part.size for part in parts) == int(size), name
        assert offsets(parts)[:len(at)] == list(map(int, at)), name


def test_numbers_are_those_of_the_header() -> None:
    text = HEADER.read_text()
    there = {name: eval(value.replace("ULL", ""), {"__builtins__": {}}) for name, value in re.findall(
        r"^#define\s+((?:FUSE|FOPEN)_\w+)\s+(\(?[0-9]+(?:ULL)?(?:\s*<<\s*[0-9]+)?\)?)\s*(?:/\*.*)?$", text, re.M)}
    there |= {name: int(value) for name, value in re.findall(r"^\s+(FUSE_\w+)\s*=\s*([0-9]+),", text, re.M)}
    ours = FLAGS | NOTIFICATIONS | {f"FUSE_{op.name}": int(op) for op in Op}
    missing = ours.keys() - there.keys()
    assert missing <= NEWER_THAN_SOME_HEADERS
    assert {name: there[name] for name in ours.keys() - missing} == \
        {name: value for name, value in ours.items() if name not in missing}
