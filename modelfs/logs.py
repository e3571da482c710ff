"""What modelfs logs: events with stable names and fields, as text or JSON lines, on standard error or in a file.

Rule: one event is one line whatever its fields hold, the same event of the same key comes at most once a
period (its repeats are counted), and a traceback comes only with debug.
"""

from __future__ import annotations

import json
import logging
import logging.handlers
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TextIO

Level = Literal["debug", "info", "warning", "error"]
LEVELS: Mapping[Level, int] = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING,
                               "error": logging.ERROR}
ROOT = "modelfs"
REPEAT_PERIOD_S = 60.0
_MAX_KEYS = 4096  # distinct events remembered at once; beyond, the oldest are told and forgotten
_RESERVED = ("time", "level", "logger", "event", "message")


def logger_for(module: str) -> logging.Logger:
    """The logger of the room that a module (its `__name__`) is in: modelfs.cache of modelfs.cache.eviction."""
    return logging.getLogger(".".join(module.split(".")[:2]))


def log_event(logger: logging.Logger, level: Level, event: str, /, *, key: str | None = None, error: object = None,
              **fields: object) -> None:
    """Log an event, for example `log_event(log, "warning", "chunk.corrupt", file=path, chunk=chunk_id)`.

    event: dotted, lower case, stable: people alert on it. key: what makes it the same event for the limit on
    repeats, by default all of its fields. error: shown as a field, and an exception's traceback with debug.
    """
    number = LEVELS[level]
    if logger.isEnabledFor(number):
        if error is not None:
            fields["error"] = f"{type(error).__name__}: {error}" if isinstance(error, BaseException) else error
        logger.log(number, event, exc_info=error if isinstance(error, BaseException) else None,
                   extra={"modelfs_event": Event(event, fields, key)})


def set_up_logging(*, level: Level, format: str, file: Path | None = None, stream: TextIO | None = None,
                   debug: bool = False, period_s: float = REPEAT_PERIOD_S) -> None:
    """Send what is logged in this process to file, else to stream (standard error). May be called again, to change.

    level: debug, info, warning or error, for modelfs; others' loggers are heard from warning on.
    format: text or json. A file is reopened when it was moved away. Raises OSError where it cannot be opened.
    """
    # A log that cannot be written (full disk, closed pipe) must not fail what it tells of, nor print a traceback.
    logging.raiseExceptions = debug
    target: logging.Handler
    target = logging.handlers.WatchedFileHandler(file, encoding="utf-8") if file else logging.StreamHandler(stream)
    target.setFormatter(JsonLines(debug) if format == "json" else TextLines(debug))
    root = logging.getLogger()
    for old in [handler for handler in root.handlers if isinstance(handler, LimitedHandler)]:
        root.removeHandler(old)
        old.close()
    root.addHandler(LimitedHandler(target, period_s))
    logging.getLogger(ROOT).setLevel(logging.DEBUG if debug else LEVELS[level])
    # It warns of every connection beyond those that a store keeps for later, as it ends it.
    logging.getLogger("urllib3.connectionpool").setLevel(logging.DEBUG if debug else logging.ERROR)


@dataclass(frozen=True, slots=True)
class Event:
    name: str
    fields: dict[str, object]
    key: str | None = None


class LimitedHandler(logging.Handler):
    """Passes events on to another handler, the same one at most once a period.

    The first is passed on at once. Its repeats are counted, and told by one line with `repeated` when the
    period is over: with the next line of any kind, or at the end of the process.
    """

    def __init__(self, target: logging.Handler, period_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._target, self._period_s, self._clock = target, period_s, clock
        # guarded by the handler's own lock; in the order in which their periods end
        self._seen: OrderedDict[str, _Repeats] = OrderedDict()

    def emit(self, record: logging.LogRecord) -> None:
        now = self._clock()
        self._tell(until=now - self._period_s)
        event = _event_of(record)
        if event is None:
            self._target.handle(record)
            return
        key = f"{record.name} {event.name} {event.key if event.key is not None else event.fields}"
        if (repeats := self._seen.get(key)) is not None:
            repeats.count += 1
            repeats.last = record
            return
        self._seen[key] = _Repeats(now, record)
        if len(self._seen) > _MAX_KEYS:
            self._tell_one()
        self._target.handle(record)

    def close(self) -> None:
        self.acquire()
        try:
            self._tell(until=float("inf"))
        finally:
            self.release()
        self._target.close()
        super().close()

    def _tell(self, until: float) -> None:
        while self._seen and next(iter(self._seen.values())).since_s <= until:
            self._tell_one()

    def _tell_one(self) -> None:
        _, repeats = self._seen.popitem(last=False)
        event = _event_of(repeats.last)
        if repeats.count and event is not None:
            record = logging.makeLogRecord(repeats.last.__dict__ | {
                "modelfs_event": Event(event.name, event.fields | {"repeated": repeats.count}), "exc_info": None})
            self._target.handle(record)


class TextLines(logging.Formatter):
    """2026-01-31T12:00:00.123Z WARNING modelfs.cache event=chunk.corrupt file=a.safetensors chunk=ab12…"""

    def __init__(self, debug: bool) -> None:
        super().__init__()
        self._debug = debug

    def format(self, record: logging.LogRecord) -> str:
        head = f"{_time_of(record)} {record.levelname} {record.name}"
        body = "".join(f" {name}={_quoted(value)}" for name, value in _fields_of(record).items())
        return head + body + (_indented_trace(record) if self._debug else "")


class JsonLines(logging.Formatter):
    """{"time": …, "level": "warning", "logger": "modelfs.cache", "event": "chunk.corrupt", "file": …, …}"""

    def __init__(self, debug: bool) -> None:
        super().__init__()
        self._debug = debug

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {"time": _time_of(record), "level": record.levelname.lower(), "logger": record.name}
        line |= _fields_of(record)
        if self._debug and (trace := _trace(record)):
            line["traceback"] = trace
        return json.dumps(line, default=str)


@dataclass(slots=True)
class _Repeats:
    since_s: float
    last: logging.LogRecord
    count: int = 0


def _event_of(record: logging.LogRecord) -> Event | None:
    event = getattr(record, "modelfs_event", None)
    return event if isinstance(event, Event) else None


def _fields_of(record: logging.LogRecord) -> dict[str, object]:
    """What a line says: an event and its fields, or the message of whoever logs plain text."""
    if (event := _event_of(record)) is not None:
        return {"event": event.name} | {f"{name}_" if name in _RESERVED else name: value
                                        for name, value in event.fields.items()}
    fields: dict[str, object] = {"message": record.getMessage()}
    if record.exc_info and record.exc_info[1] is not None:
        fields["error"] = f"{type(record.exc_info[1]).__name__}: {record.exc_info[1]}"
    return fields


def _time_of(record: logging.LogRecord) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"


def _quoted(value: object) -> str:
    """Bare where that is unambiguous, else in JSON's quotes, which escape newlines and all control characters."""
    text = str(value)
    if text and text.isprintable() and not any(mark in text for mark in ' "=\\'):
        return text
    return json.dumps(text)


def _trace(record: logging.LogRecord) -> str:
    return "".join(traceback.format_exception(record.exc_info[1])) if record.exc_info else ""


def _indented_trace(record: logging.LogRecord) -> str:
    return "".join(f"\n    {line}" for line in _trace(record).splitlines())
