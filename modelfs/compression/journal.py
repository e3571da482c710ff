"""The journal of a run and its unfinished files, in one hidden directory: what a run that was killed need not do again.

Rule: a task is noted once what it wrote is on the disk, and counts only while its unfinished file is there. A run of
another recipe, or of a source that changed, begins anew, and removes what the journal's run made. A directory whose run
lives is locked.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from modelfs.compression.layout import ModelFile
from modelfs.errors import BadInput, Conflict
from modelfs.transforms import Part, TensorReport

WORK_DIRECTORY = ".modelfs-compress"
_NAME = "journal"


@dataclass(frozen=True, slots=True)
class Destination:
    """root: the directory to be made, or where single the file."""

    root: Path
    single: bool

    @property
    def work(self) -> Path:
        """On the same disk as root, and hidden."""
        if self.single:
            return self.root.parent / f".{self.root.name}{WORK_DIRECTORY}"
        return self.root / WORK_DIRECTORY

    def path_of(self, file: ModelFile) -> Path:
        return self.root if self.single else self.root / file.path


@dataclass(slots=True)
class Noted:
    """What is known of one file from earlier. results: of its tasks, by their keys. named: it got its own name."""

    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    named: bool = False


class Journal:
    """One run's; begin before all else, end when it is over. Notes are for one thread."""

    def __init__(self, destination: Destination) -> None:
        self._destination, self._work = destination, destination.work
        self._fd = -1
        self._noted: dict[int, Noted] = {}
        self.resolved: dict[str, Any] | None = None
        self.began_anew: str | None = None

    def begin(self, files: Sequence[ModelFile], recipe: Mapping[str, object]) -> None:
        """began_anew then says why an earlier run's work is not used, if there was one.

        Raises Conflict where something else stands at the destination, or another run is at it; OSError.
        """
        root = self._destination.root
        if not self._work.is_dir():
            if os.path.lexists(root):
                raise Conflict("something is there already", where=str(root), why="no run of compress to go on with",
                               advice="Name another DST.")
            self._work.mkdir(parents=True, exist_ok=True)
        path = self._work / _NAME
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict("another run of compress is at it", where=str(root),
                           advice="Run it again when that has ended.") from None
        head = {"files": [asdict(file) for file in files], "recipe": dict(recipe)}
        lines = _lines(self._fd)
        if lines:
            self.began_anew = _difference(lines[0], head)
            if self.began_anew is None:
                self._adopt(lines[1:])
                return
            self._remove_made(lines)
        os.ftruncate(self._fd, 0)
        self._note(head)

    def noted(self, number: int) -> Noted:
        """Of the file so numbered in the run."""
        return self._noted.setdefault(number, Noted())

    def part(self, number: int) -> Path:
        """The unfinished file."""
        return self._work / str(number)

    def spool(self, number: int, tensor: int) -> Path:
        return self._work / f"{number}.{tensor}"

    def note_resolved(self, recipe: Mapping[str, object]) -> None:
        self.resolved = dict(recipe)
        self._note({"resolved": self.resolved})

    def note_done(self, number: int, key: str, result: dict[str, Any]) -> None:
        self._note({"file": number, "task": key, "result": result})

    def note_named(self, number: int) -> None:
        """Before the unfinished file gets its name."""
        self._note({"file": number, "named": True})

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def end(self) -> None:
        """All is done: nothing of the run stays but its files."""
        for path in self._work.iterdir():
            if path.name != _NAME:
                path.unlink()
        (self._work / _NAME).unlink()
        self._work.rmdir()
        self.close()

    def _note(self, line: Mapping[str, object]) -> None:
        data = json.dumps(line).encode() + b"\n"
        while data:
            data = data[os.write(self._fd, data):]
        os.fdatasync(self._fd)

    def _adopt(self, lines: Sequence[dict[str, Any]]) -> None:
        for line in lines:
            if "resolved" in line:
                self.resolved = line["resolved"]
            elif line.get("named"):
                self.noted(line["file"]).named = True
            else:
                self.noted(line["file"]).results[line["task"]] = line["result"]

    def _remove_made(self, lines: Sequence[dict[str, Any]]) -> None:
        """By an earlier run: its unfinished files, and those that got their names."""
        files = lines[0]["files"]
        for line in lines[1:]:
            if line.get("named"):
                with suppress(FileNotFoundError):
                    self._destination.path_of(ModelFile(**files[line["file"]])).unlink()
        for path in self._work.iterdir():
            if path.name != _NAME:
                path.unlink()


def result_of_report(report: TensorReport, parts: Sequence[tuple[str, Part]] = ()) -> dict[str, Any]:
    return {"report": asdict(report), "parts": [[suffix, part.dtype, list(part.shape)] for suffix, part in parts]}


def report_of_result(result: Mapping[str, Any]) -> TensorReport:
    fields = dict(result["report"])
    return TensorReport(**(fields | {"shape": tuple(fields["shape"])}))


def parts_of_result(result: Mapping[str, Any]) -> tuple[tuple[str, Part], ...]:
    return tuple((suffix, Part(dtype, tuple(shape))) for suffix, dtype, shape in result["parts"])


def refuse_unfinished(files: Sequence[ModelFile], where: str) -> None:
    """A source in which a run has not ended is no model yet. Raises BadInput."""
    for file in files:
        if WORK_DIRECTORY in file.path:
            raise BadInput("an unfinished run of compress in the source", where=f"{where}/{file.path}",
                           advice="Let that run end first, or remove it.")


def _lines(fd: int) -> list[dict[str, Any]]:
    """Without the one that was being written when the run was killed; that one goes."""
    with os.fdopen(os.dup(fd), "rb") as stream:
        stream.seek(0)
        data = stream.read()
    whole = data[:data.rfind(b"\n") + 1]
    try:
        lines = [json.loads(line) for line in whole.splitlines()]
    except ValueError:
        lines = []
    os.ftruncate(fd, len(whole) if lines else 0)
    return lines


def _difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
    if old.get("recipe") != new["recipe"]:
        return "the recipe has changed"
    return "the source has changed" if old.get("files") != new["files"] else None
