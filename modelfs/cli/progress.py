"""The progress bar, drawn by rich on standard error.

Rule: nothing else imports rich, and this module is imported only where a bar is drawn: rich takes longer to
import than most commands take to run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)


class Bar:
    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task

    def advance(self, size_bytes: int) -> None:
        self._progress.advance(self._task, size_bytes)

    def total(self, size_bytes: int) -> None:
        self._progress.update(self._task, total=size_bytes)

    def note(self, text: str) -> None:
        self._progress.update(self._task, extra=text)


@contextmanager
def bar(total: int | None, label: str) -> Iterator[Bar]:
    """total: bytes, or None. The bar goes away at the end: the command's summary takes its place."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(binary_units=True),
               TransferSpeedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[extra]}", markup=False))
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield Bar(progress, progress.add_task(label, total=total, extra=""))
