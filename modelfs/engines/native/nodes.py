"""Node ids: the kernel's 64-bit names for what a view shows, computed, not counted.

Rule: an id says by itself what it means, so no table grows with lookups, FORGET has nothing to do, and a worker that
takes over from a dead one understands the ids that the kernel kept. Only what stands above the files of versions is
numbered, in the order of its first sight, and written down before the kernel hears of it.

    bits 63 passthrough   62..56 generation   55..36 number of the version   35..10 row   9..0 depth
    depth 0: the thing numbered itself; 1..1022: the directory of so many parts that holds file `row`; 1023: file `row`
"""

from __future__ import annotations

import json
import os
import threading
from dataclasses import dataclass

from modelfs.engines.native.protocol import ROOT_ID
from modelfs.errors import BadInput, ModelfsError, NotFound
from modelfs.ids import ModelName, ObjectId
from modelfs.view.tree import Directory, File, Node, VersionId
from modelfs.view.view import View

_FILE = 1023
_NUMBERS, _ROWS, _GENERATIONS = 1 << 20, 1 << 26, 1 << 7
_PASSTHROUGH = 1 << 63

Upper = str | VersionId
"""What is numbered: the path of what stands above versions, or a version."""


@dataclass(frozen=True, slots=True)
class FileId:
    """base: for opens through the daemon. What stays the same as a file moves between that and passthrough."""

    base: int

    def passthrough(self, generation: int) -> int:
        """For opens that the kernel serves from the backing file; wraps after 128 generations."""
        return self.base | _PASSTHROUGH | generation % _GENERATIONS << 56


def file_of(id: int) -> FileId:
    return FileId(id & ~(_PASSTHROUGH | (_GENERATIONS - 1) << 56))


def is_passthrough(id: int) -> bool:
    return bool(id & _PASSTHROUGH)


class NodeIds:
    """log: an open, append-only file that outlives this process; what it holds already is taken over."""

    def __init__(self, view: View, log: int) -> None:
        self._view, self._log = view, log
        self._lock = threading.Lock()
        self._upper: list[Upper] = [""]  # guarded by _lock for changes; number 0 is the root's
        self._numbers: dict[Upper, int] = {}  # guarded by _lock for changes
        for line in os.pread(log, os.fstat(log).st_size, 0).splitlines():
            self._add(from_line(line))

    def id_of(self, node: Node) -> int:
        """Of a file: the id for opens through the daemon. Raises BadInput where ids do not suffice."""
        match node:
            case File(version, number, _):
                return self._number(version) << 36 | _row(number) << 10 | _FILE
            case Directory(version, path, first, _):
                depth = path.count("/") + 1
                if depth >= _FILE:
                    raise BadInput("a directory is too deep", where=path[:80], why=f"more than {_FILE - 1} levels")
                return self._number(version) << 36 | _row(first) << 10 | depth
        if node == self._view.root():
            return ROOT_ID
        return self._number(self._view.where(node)) << 36

    def node_of(self, id: int, view: View) -> Node:
        """What the id names now. view: the one to load by. Raises NotFound for what has gone; what loading raises."""
        if id == ROOT_ID:
            return view.root()
        upper = self._upper_of(id)
        if isinstance(upper, str):
            return view.resolve(upper)
        depth, row = id & 1023, id >> 10 & _ROWS - 1
        if depth == _FILE:
            return view.file_at(upper, row)
        return view.directory_at(upper, row, depth)

    def _upper_of(self, id: int) -> Upper:
        number = id >> 36 & _NUMBERS - 1
        try:
            return self._upper[number]
        except IndexError:
            raise NotFound("an unknown node id") from None

    def _number(self, upper: Upper) -> int:
        found = self._numbers.get(upper)
        if found is not None:
            return found
        with self._lock:
            found = self._numbers.get(upper)
            if found is None:
                if len(self._upper) >= _NUMBERS:
                    raise BadInput("the mount has seen too many models and versions", advice="Mount it anew.")
                os.write(self._log, to_line(upper))
                found = self._add(upper)
            return found

    def _add(self, upper: Upper) -> int:
        self._upper.append(upper)
        number = self._numbers[upper] = len(self._upper) - 1
        return number


def _row(number: int) -> int:
    if number >= _ROWS:
        raise BadInput("a version has too many files", why=f"more than {_ROWS}")
    return number


def to_line(upper: Upper) -> bytes:
    fields = upper if isinstance(upper, str) else [str(upper.model), upper.number, upper.manifest.hex(),
                                                   upper.created_ns]
    return json.dumps(fields).encode() + b"\n"


def from_line(line: bytes) -> Upper:
    """Raises ModelfsError for what `to_line` did not write."""
    fields = json.loads(line)
    if isinstance(fields, str):
        return fields
    try:
        model, number, manifest, created_ns = fields
        return VersionId(ModelName.parse(model), number, ObjectId(bytes.fromhex(manifest)), created_ns)
    except (TypeError, ValueError) as error:
        raise ModelfsError("the mount's list of nodes is damaged", why=str(error)) from error
