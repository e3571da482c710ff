"""The session without a kernel: requests are written by hand, and each is answered as the protocol wants."""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from repository.builder import Builder

from modelfs.engines.native import protocol
from modelfs.engines.native.protocol import Op
from modelfs.engines.native.session import Session, Settings
from modelfs.engines.native.state import State
from modelfs.errors import BadInput
from modelfs.view.view import View

ALL = (1 << 64) - 1
WANTED = (protocol.ASYNC_READ | protocol.PARALLEL_DIROPS | protocol.DO_READDIRPLUS | protocol.READDIRPLUS_AUTO
          | protocol.MAX_PAGES | protocol.INIT_EXT | protocol.PASSTHROUGH | protocol.HAS_RESEND)

WRITES = (4, 6, 8, 9, 10, 11, 12, 13, 16, 21, 24, 35, 43, 45, 47, 51)
"""SETATTR SYMLINK MKNOD MKDIR UNLINK RMDIR RENAME LINK WRITE SETXATTR REMOVEXATTR CREATE FALLOCATE RENAME2
COPY_FILE_RANGE TMPFILE, as fuse.h has them."""


class Kernel:
    """The other end of a session's descriptor."""

    def __init__(self, view: View, cache: Path, *, refused: int = 0) -> None:
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._theirs, self._unique = theirs, 0
        self.state = State.create()
        self.state.begin_epoch()
        settings = Settings(cache, passthrough=True, store_ahead=False, refused=refused)
        self.session = Session(theirs.fileno(), view, settings, self.state)
        self.raised: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.session.serve()
        except BadInput as error:
            self.raised = error

    def send(self, opcode: int, body: bytes = b"", id: int = 1) -> int:
        self._unique += 2
        self._ours.send(protocol.IN_HEADER.pack(protocol.IN_HEADER.size + len(body), opcode, self._unique, id, 0, 0, 0,
                                                0) + body)
        return self._unique

    def receive(self) -> tuple[int, int, bytes]:
        """unique, errno, body."""
        self._ours.settimeout(30)
        data = self._ours.recv(1 << 21)
        length, error, unique = protocol.OUT_HEADER.unpack_from(data)
        assert length == len(data)
        return unique, -error, data[protocol.OUT_HEADER.size:]

    def ask(self, opcode: int, body: bytes = b"", id: int = 1) -> tuple[int, bytes]:
        """errno, body."""
        asked = self.send(opcode, body, id)
        unique, code, answer = self.receive()
        assert unique == asked
        return code, answer

    def init(self, major: int = 7, minor: int = 45, flags: int = ALL) -> tuple[int, bytes]:
        return self.ask(Op.INIT, protocol.INIT_IN.pack(major, minor, 131072, flags & 0xFFFFFFFF)
                        + struct.pack("=I", flags >> 32) + bytes(44))

    def agreed(self) -> int:
        found = self.state.agreed()
        return found.flags if found else 0

    def end(self) -> None:
        self.session.leave()
        self._ours.send(protocol.IN_HEADER.pack(protocol.IN_HEADER.size, Op.FORGET, 0, 1, 0, 0, 0, 0))
        self.ended()
        self._ours.close()
        self._theirs.close()
        for descriptor in self.state.descriptors:
            os.close(descriptor)

    def ended(self) -> None:
        self._thread.join(30)
        assert not self._thread.is_alive()


Make = Callable[..., Kernel]


@pytest.fixture
def kernel(built: Builder, show: Callable[..., View], tmp_path: Path) -> Iterator[Make]:
    made: list[Kernel] = []

    def make(**options: int) -> Kernel:
        built.push("acme/base", {"d/a.bin": b"bytes", "b": b"b"})
        made.append(Kernel(show(), tmp_path, **options))
        return made[-1]

    yield make
    for each in made:
        each.end()


def init_out(body: bytes) -> dict[str, int]:
    names = ["major", "minor", "max_readahead", "flags", "max_background", "congestion", "max_write", "time_gran",
             "max_pages", "alignment", "flags2", "depth", "timeout"]
    return dict(zip(names, protocol.INIT_OUT.unpack(body), strict=True))


def test_of_all_that_a_kernel_offers_exactly_what_is_wanted_is_taken(kernel: Make) -> None:
    made = kernel()
    code, body = made.init()
    told = init_out(body)
    assert code == 0 and told["flags"] | told["flags2"] << 32 == WANTED == made.agreed()
    assert (told["major"], told["minor"], told["time_gran"], told["depth"]) == (7, 40, 1, 1)
    assert told["max_pages"] * os.sysconf("SC_PAGESIZE") == 1 << 20 and told["max_readahead"] == 131072


@pytest.mark.parametrize("refused", [protocol.PASSTHROUGH, protocol.HAS_RESEND, protocol.INIT_EXT, ALL])
def test_flags_that_a_kernel_does_not_offer_are_not_taken(kernel: Make, refused: int) -> None:
    made = kernel()
    code, body = made.init(flags=ALL & ~refused)
    told = init_out(body)
    # what travels in flags2 needs INIT_EXT
    want = WANTED & ~refused & (0xFFFFFFFF if refused == protocol.INIT_EXT else ALL)
    assert code == 0 and told["flags"] | told["flags2"] << 32 == want == made.agreed() & want
    assert told["depth"] == bool(want & protocol.PASSTHROUGH)
    assert made.ask(Op.GETATTR, bytes(16))[0] == 0


def test_flags_that_are_refused_on_our_side_are_as_if_the_kernel_had_none(kernel: Make) -> None:
    made = kernel(refused=protocol.PASSTHROUGH | protocol.HAS_RESEND)
    made.init()
    assert made.agreed() == WANTED & ~(protocol.PASSTHROUGH | protocol.HAS_RESEND)


def test_a_kernel_of_a_later_protocol_is_told_ours_and_asks_again(kernel: Make) -> None:
    made = kernel()
    code, body = made.init(major=8, minor=0)
    assert code == 0 and init_out(body)["major"] == 7
    assert made.init()[0] == 0 and made.agreed() == WANTED


def test_a_kernel_that_is_too_old_is_bad_input_and_names_the_other_engine(kernel: Make) -> None:
    made = kernel()
    assert made.init(minor=30)[0] == errno.EPROTO
    made.ended()
    assert isinstance(made.raised, BadInput) and "fusepy" in str(made.raised)


def test_writes_are_erofs_unknown_calls_enosys_and_forgets_are_not_answered(kernel: Make) -> None:
    made = kernel()
    made.init()
    for opcode in WRITES:
        assert made.ask(opcode, bytes(64)) == (errno.EROFS, b""), opcode
    for opcode in (Op.ACCESS, Op.FLUSH, Op.FSYNC, 39, 40, 46, 52, 4096):
        assert made.ask(opcode, bytes(64)) == (errno.ENOSYS, b""), opcode
    for opcode in (Op.FORGET, Op.BATCH_FORGET, Op.INTERRUPT):
        made.send(opcode, bytes(64))
    assert made.ask(Op.DESTROY) == (0, b"")


def test_what_was_forgotten_once_or_in_a_batch_is_still_known_by_its_id(kernel: Make) -> None:
    """Nothing is counted: an id says what it means, so that no count can be wrong."""
    made = kernel()
    made.init()
    ids = [1]
    for name in (b"acme", b"base", b"v1", b"d", b"a.bin"):
        ids.append(int(protocol.ENTRY_OUT.unpack_from(made.ask(Op.LOOKUP, name + b"\0", ids[-1])[1])[0]))
    told = [made.ask(Op.GETATTR, bytes(16), id) for id in ids]
    assert [code for code, _ in told] == [0] * len(ids)
    made.send(Op.FORGET, struct.pack("=Q", 1), ids[-1])
    made.send(Op.FORGET, struct.pack("=Q", 1 << 40), ids[-1])  # more often than it was told
    made.send(Op.BATCH_FORGET, struct.pack("=II", 3, 0) + b"".join(
        struct.pack("=QQ", id, count) for id, count in ((ids[1], 1), (ids[2], 7), (99 << 36, 1))))
    assert [made.ask(Op.GETATTR, bytes(16), id) for id in ids] == told


def test_a_file_is_found_opened_read_and_released_by_what_each_answer_said(kernel: Make) -> None:
    made = kernel()
    made.init()

    def lookup(parent: int, name: bytes) -> int:
        code, body = made.ask(Op.LOOKUP, name + b"\0", parent)
        assert code == 0
        return int(protocol.ENTRY_OUT.unpack_from(body)[0])

    id = 1
    for name in (b"acme", b"base", b"v1", b"d", b"a.bin"):
        id = lookup(id, name)
    code, body = made.ask(Op.OPEN, struct.pack("=II", os.O_RDONLY, 0), id)
    handle, flags, _ = protocol.OPEN_OUT.unpack(body)
    assert code == 0 and flags & protocol.FOPEN_NOFLUSH and flags & protocol.FOPEN_KEEP_CACHE
    for offset, size, want in ((0, 4096, b"bytes"), (2, 2, b"te"), (5, 10, b""), (1 << 40, 1, b"")):
        assert made.ask(Op.READ, protocol.READ_IN.pack(handle, offset, size, 0, 0, 0, 0), id) == (0, want)
    assert made.ask(Op.OPEN, struct.pack("=II", os.O_RDWR, 0), id)[0] == errno.EROFS
    assert made.ask(Op.RELEASE, protocol.RELEASE_IN.pack(handle, 0, 0, 0), id) == (0, b"")
    # a handle that another worker gave out is read all the same
    assert made.ask(Op.READ, protocol.READ_IN.pack(handle + 7, 0, 5, 0, 0, 0, 0), id) == (0, b"bytes")
    assert made.ask(Op.RELEASE, protocol.RELEASE_IN.pack(handle + 7, 0, 0, 0), id) == (0, b"")
    assert made.ask(Op.LOOKUP, b"nothing\0", id)[0] == errno.ENOTDIR
    assert made.ask(Op.LOOKUP, b"nothing\0", 1)[0] == errno.ENOENT
    assert made.ask(Op.GETATTR, bytes(16), 99 << 36)[0] == errno.ENOENT
