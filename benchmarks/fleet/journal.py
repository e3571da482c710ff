"""What happened in a simulation, and when: one JSON line an event.

Rule: times are the machine's monotonic clock, which all its processes share, so that what the readers saw can be laid
beside what was done to the fleet.
"""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

Event = dict[str, Any]


class Journal:
    def __init__(self, path: Path, show: bool = False) -> None:
        """show: on standard output, too."""
        self._lock = threading.Lock()
        self._file = path.open("a", buffering=1)
        self._began, self._show = time.monotonic(), show
        self.events: list[Event] = []

    def note(self, event: str, **fields: object) -> float:
        """When it was."""
        with self._lock:
            now = time.monotonic()
            self.events.append({"t": round(now, 4), "event": event, **fields})
            self._file.write(self.line(**self.events[-1]))
            if self._show:
                told = " ".join(f"{key}={value}" for key, value in fields.items())
                print(f"{now - self._began:7.1f} {event} {told}", flush=True)
        return now

    def close(self) -> None:
        self._file.close()

    @staticmethod
    def line(**fields: Any) -> str:
        return json.dumps(fields) + "\n"


def read_events(path: Path) -> list[Event]:
    """The last line of who was killed may be none."""
    found = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found
