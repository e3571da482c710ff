"""Directory listings in pieces, as the kernel asks for them."""

from __future__ import annotations

import stat
from collections.abc import Iterator

import pytest

from modelfs.engines.native import protocol
from modelfs.engines.native.answers import Known, Listed, Listing, Packer
from modelfs.view.view import Attr

NAMES = [b".", b"..", *(b"n" * length for length in range(1, 40)), "ü".encode(), b"x" * 255]
PACKER = Packer()


def entries(plus: bool) -> Iterator[Listed]:
    for number, name in enumerate(NAMES):
        attr = Attr(number + 100, stat.S_IFREG | 0o444, number, 0)
        known = Known(number + 1000, attr, 3600, 3600) if plus and number > 1 else None
        yield Listed(name, number + 100, stat.S_IFREG if number > 1 else stat.S_IFDIR, known)


def parsed(data: bytes, plus: bool) -> list[tuple[bytes, int, int, int]]:
    """Name, inode, offset of the next, node id."""
    found, at = [], 0
    while at < len(data):
        id = 0
        if plus:
            id = protocol.ENTRY_OUT.unpack_from(data, at)[0]
            at += protocol.ENTRY_OUT.size + protocol.ATTR.size
        ino, following, length, _ = protocol.DIRENT.unpack_from(data, at)
        at += protocol.DIRENT.size
        found.append((data[at:at + length], ino, following, id))
        at += length + -length % 8
    assert at == len(data), "entries begin at multiples of 8"
    return found


@pytest.mark.parametrize("plus", [False, True])
@pytest.mark.parametrize("size", [450, 512, 4096, 1 << 20])
def test_pieces_of_any_size_make_the_whole(plus: bool, size: int) -> None:
    listing, offset, seen = Listing(entries(plus)), 0, []
    while piece := listing.piece(offset, size, PACKER, plus=plus):
        assert len(piece) <= size
        found = parsed(piece, plus)
        seen += found
        offset = found[-1][2]
    assert [entry[0] for entry in seen] == NAMES
    assert [entry[1] for entry in seen] == list(range(100, 100 + len(NAMES)))
    assert [entry[3] for entry in seen[2:]] == [number + 1000 if plus else 0 for number in range(2, len(NAMES))]


@pytest.mark.parametrize("plus", [False, True])
def test_a_new_listing_goes_on_wherever_another_stopped(plus: bool) -> None:
    for offset in range(len(NAMES) + 3):
        data = Listing(entries(plus)).piece(offset, 1 << 20, PACKER, plus=plus)
        assert [entry[0] for entry in parsed(data, plus)] == NAMES[offset:]


def test_a_listing_goes_forward_only_and_keeps_what_did_not_fit() -> None:
    listing = Listing(entries(False))
    first = parsed(listing.piece(0, 100, PACKER, plus=False), False)
    assert len(first) == 3
    assert listing.reaches(3) and listing.reaches(40) and not listing.reaches(2)
    assert parsed(listing.piece(10, 1 << 20, PACKER, plus=False), False)[0][0] == NAMES[10]
    assert listing.piece(len(NAMES), 4096, PACKER, plus=False) == b""
