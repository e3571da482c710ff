"""What a command prints, and the options that every command has.

Rule: standard output holds the one JSON document or plain tables, standard error all else; nothing that comes
from outside (names, messages) can send control characters to a terminal. Heavy modules are imported where used.
"""

from __future__ import annotations

import errno
import functools
import json
import os
import sys
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Concatenate, ParamSpec, Protocol

import click

from modelfs.errors import NoSpace

if TYPE_CHECKING:
    from modelfs.config import Config

P = ParamSpec("P")
DEBUG = "modelfs.debug"  # in a context's meta: a traceback is wanted


class Progress(Protocol):
    """May be called from any thread."""

    def advance(self, size_bytes: int) -> None: ...

    def total(self, size_bytes: int) -> None:
        """Set what is 100 %, once it is known or when it changes."""

    def note(self, text: str) -> None:
        """A few words beside the bar, such as "1.2 GiB saved by dedup"."""


@dataclass(frozen=True, slots=True)
class Output:
    """json: documents are printed and tables are not. quiet: neither notes nor progress. verbose: details, too."""

    json: bool = False
    quiet: bool = False
    verbose: bool = False

    def document(self, document: Mapping[str, object]) -> None:
        """The command's one JSON document; without --json nothing."""
        if self.json:
            # compact unless somebody looks at it: with an indent Python encodes 20 times slower
            _print(json.dumps(document, indent=2 if _terminal(sys.stdout) else None))

    def table(self, headers: Sequence[str], rows: Sequence[Sequence[object]], *, right: Sequence[str] = ()) -> None:
        """Aligned columns on standard output, nothing with --json.

        headers: all empty for a table without any. right: the headers of columns of numbers.
        """
        if self.json:
            return
        cells = [[printable(str(cell)) for cell in row] for row in rows]
        widths = [max(map(_width, column)) for column in zip(headers, *cells, strict=True)]
        lines = ["  ".join(_pad(cell, width, header in right)
                           for cell, width, header in zip(row, widths, headers, strict=True)).rstrip()
                 for row in [list(headers), *cells]]
        if not any(headers):
            del lines[0]
        elif _colour(sys.stdout):
            lines[0] = click.style(lines[0], bold=True)
        _print("\n".join(lines))

    def line(self, text: str) -> None:
        """A line of a summary on standard output, nothing with --json."""
        if not self.json:
            _print(printable(text))

    def note(self, text: str) -> None:
        """A line for people on standard error, nothing with --quiet."""
        if not self.quiet:
            click.echo(printable(text), err=True)

    def detail(self, text: str) -> None:
        """A line for people who asked with --verbose, on standard error."""
        if self.verbose and not self.quiet:
            click.echo(printable(text), err=True)

    def warning(self, text: str) -> None:
        """A line on standard error, with --quiet, too."""
        click.echo(f"warning: {printable(text)}", err=True)

    @contextmanager
    def progress(self, total: int | None, label: str) -> Iterator[Progress]:
        """A bar of bytes, with rate and time left, on standard error: only on a terminal, not with --quiet or --json.

        total: bytes, or None where it is not known (yet).
        """
        if self.quiet or self.json or not _terminal(sys.stderr):
            yield _Silent()
            return
        from modelfs.cli.progress import bar

        with bar(total, printable(label)) as progress:
            yield progress


@dataclass(frozen=True, slots=True)
class Session:
    """What a command is given beside its own arguments. environ: as it was when the command began."""

    output: Output
    environ: Mapping[str, str]
    config_file: Path | None
    debug: bool

    def config(self, **flags: object) -> Config:
        """The configuration, with what was typed over it, and logging set up by it.

        flags: keys with `_` for the dot's place, as in cache_size="1 GiB"; None and False stand for what was not given.
        Raises BadInput, Forbidden.
        """
        from modelfs.config import load_config
        from modelfs.logs import set_up_logging

        typed = {name.replace("_", ".", 1): str(value) for name, value in flags.items() if value not in (None, False)}
        config = load_config(file=self.config_file, flags=typed, environ=self.environ)
        set_up_logging(level="error" if self.output.quiet else config.log.level, format=config.log.format,
                       debug=self.debug)
        return config


def command_options(*, prints_json: bool = True) -> Callable[
        [Callable[Concatenate[Session, P], int | None]], Callable[P, int | None]]:
    """--config, --debug, --quiet, --verbose and --json for a command whose first parameter is its `Session`.

    What the command returns is its exit code, None stands for 0.
    """
    def decorate(function: Callable[Concatenate[Session, P], int | None]) -> Callable[P, int | None]:
        def run(*args: P.args, **kwargs: P.kwargs) -> int | None:
            context = click.get_current_context()
            taken = {name: kwargs.pop(name) for name in ("config_file", "debug", "quiet", "verbose")}
            wants_json = bool(kwargs.pop("json", False))
            context.meta[DEBUG] = bool(taken["debug"])
            file = taken["config_file"]
            session = Session(Output(wants_json, bool(taken["quiet"]), bool(taken["verbose"])), dict(os.environ),
                              Path(str(file)) if file is not None else None, bool(taken["debug"]))
            return function(session, *args, **kwargs)

        wrapped: Callable[P, int | None] = functools.wraps(function)(run)
        for option in _options(prints_json):
            wrapped = option(wrapped)
        return wrapped
    return decorate


def examples(*lines: str) -> str:
    """The end of a command's help, kept as it is written: `epilog=examples("modelfs ls /srv/models")`."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


class Whole(click.ParamType[int]):
    """A whole number from least to most, as an option's type. click.IntRange says so in the words of a programmer."""

    name = "number"

    def __init__(self, least: int, most: int) -> None:
        self.least, self.most = least, most

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            number = int(str(value))
        except ValueError:
            number = None
        if number is None or not self.least <= number <= self.most:
            self.fail(f"{value!r} is no whole number from {self.least} to {self.most}.", param, ctx)
        return number


def counted(number: int, noun: str) -> str:
    """ "1 file", "2 files"."""
    return f"{number} {noun}{'s' * (number != 1)}"


def to_the_second(time: str) -> str:
    """An RFC 3339 time in UTC without its fraction, as tables show it."""
    return time[:19] + "Z"


def printable(text: str) -> str:
    """text with what a terminal would obey, and what cannot be encoded, as escapes."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode()
                   for char in text)


def _options(prints_json: bool) -> list[Callable[[Callable[P, int | None]], Callable[P, int | None]]]:
    """In reverse: click lists the one applied last first."""
    options: list[Callable[[Callable[P, int | None]], Callable[P, int | None]]] = [
        click.option("--debug", is_flag=True, help="Log everything, and show tracebacks."),
        click.option("--verbose", is_flag=True, help="Say more on standard error."),
        click.option("--quiet", is_flag=True, help="Neither notes nor progress, only errors."),
        click.option("--config", "config_file", metavar="F", help="A configuration file over the usual ones."),
    ]
    if prints_json:
        options.append(click.option("--json", is_flag=True, help="One JSON document on standard output."))
    return options


def _print(text: str) -> None:
    """text and a newline on standard output, all of it. Raises NoSpace where that is a file on a full disk."""
    if sys.stdout is None:
        return
    try:
        # Not print(): under PYTHONUNBUFFERED what write(2) leaves over is lost there without an error, measured
        # with a pipe whose reader leaves and with a disk that fills.
        rest = memoryview(f"{text}\n".encode(sys.stdout.encoding, sys.stdout.errors or "strict"))
        sys.stdout.flush()
        while rest:
            rest = rest[sys.stdout.buffer.write(rest):]
        sys.stdout.flush()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpace("cannot print", where="standard output", why=error.strerror or "") from error
        raise


class _Silent:
    def advance(self, size_bytes: int) -> None:
        pass

    def total(self, size_bytes: int) -> None:
        pass

    def note(self, text: str) -> None:
        pass


def _terminal(stream: object) -> bool:
    isatty = getattr(stream, "isatty", None)
    return isatty is not None and bool(isatty()) and os.environ.get("TERM") != "dumb"


def _colour(stream: object) -> bool:
    """NO_COLOR counts when it is there and not empty (no-color.org)."""
    return _terminal(stream) and not os.environ.get("NO_COLOR")


def _width(text: str) -> int:
    """Columns of a terminal: East Asian wide characters take two, combining marks none."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(char) else 1 + (unicodedata.east_asian_width(char) in "WF") for char in text)


def _pad(text: str, width: int, right: bool) -> str:
    space = " " * (width - _width(text))
    return space + text if right else text + space
