"""Log lines: their two forms, one line an event whatever is in it, and the limit on repeats."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modelfs.logs import LimitedHandler, TextLines, log_event, logger_for, set_up_logging

LOG = logger_for("modelfs.cache.eviction")


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("modelfs")
    level, raises = ours.level, logging.raiseExceptions
    yield
    ours.setLevel(level)
    logging.raiseExceptions = raises
    for handler in [each for each in root.handlers if isinstance(each, LimitedHandler)]:
        root.removeHandler(handler)
        handler.close()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "log"


def lines(file: Path) -> list[str]:
    return file.read_text().splitlines()


def test_a_text_line_has_time_level_logger_event_and_fields(file: Path) -> None:
    set_up_logging(level="info", format="text", file=file)
    log_event(LOG, "warning", "chunk.corrupt", file="a b.safetensors", chunk="ab12", pack=None)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z WARNING modelfs\.cache event=chunk\.corrupt "
                        r'file="a b\.safetensors" chunk=ab12 pack=None', lines(file)[0])


def test_a_json_line_has_the_same_as_members(file: Path) -> None:
    set_up_logging(level="info", format="json", file=file)
    log_event(LOG, "warning", "chunk.corrupt", file="a", n=3, level="mine")
    LOG.info("plain %s", "text")
    event, plain = map(json.loads, lines(file))
    assert {key: value for key, value in event.items() if key != "time"} == {
        "level": "warning", "logger": "modelfs.cache", "event": "chunk.corrupt", "file": "a", "n": 3, "level_": "mine"}
    assert (plain["level"], plain["message"]) == ("info", "plain text")


@pytest.mark.parametrize("form", ["text", "json"])
def test_newlines_escapes_and_broken_unicode_stay_in_one_line(file: Path, form: str) -> None:
    set_up_logging(level="info", format=form, file=file)
    for odd in ("a\nb", "a\rb", "a\x1b[31m", "a\udcff", "a\u2028b", "", 'say "x"', "a=b", "a\\b"):
        log_event(LOG, "error", "file.odd", path=odd)
        log_event(LOG, "error", odd)
        LOG.error(odd)
        assert len(lines(file)) == 3 and file.read_text().count(json.dumps(odd)) == 3, odd
        assert file.read_text().replace("\n", "").isprintable()
        file.write_text("")


def test_below_the_level_nothing_is_written_and_the_level_can_change(file: Path) -> None:
    set_up_logging(level="error", format="text", file=file)
    log_event(LOG, "warning", "a")
    set_up_logging(level="debug", format="text", file=file)
    log_event(LOG, "debug", "b")
    logging.getLogger("urllib3").info("of others only what is wrong")
    assert [line.split("event=")[1] for line in lines(file)] == ["b"]


def test_a_traceback_comes_only_with_debug(file: Path) -> None:
    error = ValueError("no\nway")
    set_up_logging(level="debug", format="text", file=file)
    log_event(LOG, "error", "one", error=error)
    try:
        raise error
    except ValueError:
        LOG.exception("two")
    assert ["Traceback" in line or "File " in line for line in lines(file)] == [False, False]
    assert 'error="ValueError: no\\nway"' in lines(file)[0] and "ValueError" in lines(file)[1]
    set_up_logging(level="debug", format="text", file=file, debug=True)
    log_event(LOG, "error", "three", error=error)
    assert "Traceback" in file.read_text()


def test_a_log_that_was_moved_away_is_opened_anew(file: Path) -> None:
    set_up_logging(level="info", format="text", file=file)
    log_event(LOG, "info", "before")
    file.rename(file.with_suffix(".1"))
    log_event(LOG, "info", "after")
    assert "event=after" in lines(file)[0] and "event=before" in lines(file.with_suffix(".1"))[0]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_log_on_a_full_disk_fails_nobody_and_prints_nothing() -> None:
    code = ("from pathlib import Path; from modelfs.logs import *; "
            "set_up_logging(level='info', format='text', file=Path('/dev/full')); "
            "log_event(logger_for('modelfs.cache'), 'error', 'x'); print('went on')")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False,
                          cwd=Path(__file__).parents[1])
    assert (done.returncode, done.stdout) == (0, "went on\n")
    assert "Traceback" not in done.stderr.replace("Exception ignored", "")


class Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.setFormatter(TextLines(debug=False))

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record).split("modelfs.cache ")[1])


class Limited:
    """A logger of its own behind the limit, under a clock that the test moves."""

    def __init__(self) -> None:
        self.now, self.kept = 0.0, Kept()
        self.handler = LimitedHandler(self.kept, 60.0, clock=lambda: self.now)
        self.logger = logging.Logger("modelfs.cache")
        self.logger.addHandler(self.handler)

    def log(self, event: str, **fields: Any) -> list[str]:
        before = len(self.kept.lines)
        log_event(self.logger, "warning", event, **fields)
        return self.kept.lines[before:]


def test_the_same_event_comes_once_a_period_and_then_its_count() -> None:
    limited = Limited()
    assert limited.log("store.down", store="a") == ["event=store.down store=a"]
    assert [limited.log("store.down", store="a") for _ in range(5)] == [[]] * 5
    assert limited.log("store.down", store="b") == ["event=store.down store=b"]
    limited.now = 59.9
    assert limited.log("store.down", store="a") == []
    limited.now = 60.1
    assert limited.log("other") == ["event=store.down store=a repeated=6", "event=other"]
    assert limited.log("store.down", store="a") == ["event=store.down store=a"]


def test_a_key_makes_events_the_same_whatever_their_other_fields() -> None:
    limited = Limited()
    assert limited.log("chunk.corrupt", key="pack1", chunk="a") == ["event=chunk.corrupt chunk=a"]
    assert limited.log("chunk.corrupt", key="pack1", chunk="b") == []
    assert limited.log("chunk.corrupt", key="pack2", chunk="b") == ["event=chunk.corrupt chunk=b"]


def test_plain_messages_are_not_limited_and_tell_what_is_due() -> None:
    limited = Limited()
    limited.log("a")
    limited.log("a")
    limited.now = 61.0
    limited.logger.warning("hello")
    limited.logger.warning("hello")
    assert limited.kept.lines == ["event=a", "event=a repeated=1", "message=hello", "message=hello"]


def test_what_was_counted_is_told_at_the_end() -> None:
    limited = Limited()
    limited.log("a")
    limited.log("a")
    limited.log("b")
    limited.handler.close()
    assert limited.kept.lines == ["event=a", "event=b", "event=a repeated=1"]


def test_any_number_of_different_events_takes_bounded_memory_and_loses_none() -> None:
    limited = Limited()
    for n in range(10_000):
        limited.log("a", n=n)
        limited.log("a", n=n)
    limited.handler.close()
    assert len(limited.handler._seen) == 0
    told = [line for line in limited.kept.lines if "repeated=1" in line]
    assert len(limited.kept.lines) == 20_000 and len(told) == 10_000
