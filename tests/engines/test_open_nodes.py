"""The table of what is open under ids for passthrough, as it is found by the next worker.

Without a FUSE device no file is handed to the kernel, so here each counts as read through the daemon; passthrough
itself is in tests/mount.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

import pytest

from modelfs.engines.native.passthrough import TABLE_BYTES, OpenNodes

ROW = struct.Struct("=QQ")
NO_DEVICE = -1


@pytest.fixture
def table() -> Iterator[int]:
    made = os.memfd_create("opens")
    os.ftruncate(made, TABLE_BYTES)
    yield made
    os.close(made)


def rows(table: int) -> set[tuple[int, int]]:
    """(node id, opens) of what counts as open."""
    found = {ROW.unpack(os.pread(table, ROW.size, at)) for at in range(0, TABLE_BYTES, ROW.size)}
    return {(id, state >> 32) for id, state in found if id and state >> 32}


def opened(nodes: OpenNodes, id: int) -> None:
    assert nodes.open(id, lambda: None) is None


def test_opens_and_releases_are_counted_across_workers(table: int) -> None:
    first = OpenNodes(NO_DEVICE, table)
    for id in (7, 7, 7, 9):
        opened(first, id)
    first.release(7)
    assert rows(table) == {(7, 2), (9, 1)}
    second = OpenNodes(NO_DEVICE, table)
    assert second.read_by_daemon(7) and second.read_by_daemon(9) and not second.read_by_daemon(8)
    opened(second, 8)
    for id in (7, 7, 9):
        second.release(id)
    assert rows(table) == {(8, 1)}
    assert not second.read_by_daemon(7)
    third = OpenNodes(NO_DEVICE, table)
    third.release(8)
    third.release(8)
    assert rows(table) == set(), "what is not open is released without harm"


def test_a_row_of_which_only_one_word_was_written_is_free(table: int) -> None:
    """A worker that died between the two: it had not answered yet, or the last handle was just released."""
    os.pwrite(table, ROW.pack(7, 0), 0)
    os.pwrite(table, ROW.pack(0, 1 << 32), ROW.size)
    nodes = OpenNodes(NO_DEVICE, table)
    assert not nodes.read_by_daemon(7)
    opened(nodes, 5)
    opened(nodes, 7)
    assert rows(table) == {(5, 1), (7, 1)}


def test_a_full_table_opens_no_more_by_passthrough_and_heals(table: int) -> None:
    most = TABLE_BYTES // ROW.size
    nodes = OpenNodes(NO_DEVICE, table)
    for id in range(1, most + 1):
        opened(nodes, id)

    def backing() -> None:
        raise AssertionError("nobody could know it as open")

    assert nodes.open(most + 1, backing) is None
    nodes.release(most + 1)
    nodes.release(1)
    opened(nodes, most + 2)
    assert nodes.read_by_daemon(most + 2) and not nodes.read_by_daemon(1)
