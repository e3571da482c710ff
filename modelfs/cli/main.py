"""The command line's frame: which commands there are, and how whatever they come to becomes an exit code.

Rule: every failure is one line on standard error, `modelfs: what, where: why. What to do.`; a traceback comes
only with --debug. A command's module is imported only when it is called: `modelfs version` needs nothing else.
"""

from __future__ import annotations

import errno
import importlib
import io
import os
import select
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TextIO

import click

from modelfs import __version__
from modelfs.cli.output import DEBUG, printable
from modelfs.errors import ModelfsError, NoSpace

INTERNAL, USAGE, INTERRUPTED, PIPE_CLOSED = 1, 2, 130, 141  # 141: what a shell says of SIGPIPE


@dataclass(frozen=True, slots=True)
class Entry:
    """module: of modelfs.cli, with the click command as its `command`."""

    module: str
    group: str
    help: str
    example: str


COMMANDS: Mapping[str, Entry] = {
    "init": Entry("init", "Repositories", "make an empty repository", "modelfs init /srv/models"),
    "push": Entry("push", "Repositories", "store a directory as a new version of a model",
                  "modelfs push ./llama /srv/models acme/llama"),
    "pull": Entry("pull", "Repositories", "copy a version to a directory",
                  "modelfs pull https://models.example.org acme/llama ./llama"),
    "serve": Entry("serve", "Repositories", "serve a repository over HTTP", "modelfs serve /srv/models --port 8750"),
    "verify": Entry("verify", "Repositories", "check that all is there, and as it was pushed",
                    "modelfs verify /srv/models --read-data"),
    "replicate": Entry("replicate", "Repositories", "make other stores like a repository, and keep them so",
                       "modelfs replicate /srv/models s3://backup/models --watch"),
    "promote": Entry("promote", "Repositories", "let a replica take pushes", "modelfs promote /srv/mirror"),
    "gc": Entry("gc", "Repositories", "free what no version needs", "modelfs gc /srv/models --dry-run"),
    "ls": Entry("ls", "Models", "list models, or the files of one", "modelfs ls /srv/models acme/llama:v2"),
    "log": Entry("log", "Models", "list the versions of a model", "modelfs log /srv/models acme/llama"),
    "inspect": Entry("inspect", "Models", "show files, tensors and how they are stored",
                     "modelfs inspect /srv/models acme/llama model.safetensors"),
    "tag": Entry("tag", "Models", "have a tag name a version", "modelfs tag /srv/models acme/llama:v3 prod"),
    "rm": Entry("rm", "Models", "remove a tag, a version or a whole model", "modelfs rm /srv/models acme/llama:v2"),
    "yank": Entry("yank", "Models", "withdraw a version", "modelfs yank /srv/models acme/llama:v2 --reason 'bad eval'"),
    "compress": Entry("compress", "Models", "make files with fewer bits a weight, by a recipe",
                      "modelfs compress ./llama ./llama-int8 --recipe int8"),
    "mount": Entry("mount", "Mounts", "show a repository as local files",
                   "modelfs mount https://models.example.org /mnt/models --daemon"),
    "umount": Entry("umount", "Mounts", "end a mount", "modelfs umount /mnt/models"),
    "status": Entry("status", "Mounts", "show mounts, their cache and counters", "modelfs status /mnt/models --json"),
    "upgrade": Entry("upgrade", "Mounts", "let a mount go on under the modelfs installed now",
                     "modelfs upgrade /mnt/models"),
    "cache": Entry("cache", "Mounts", "fetch models into the disk cache, pin, list and clear them",
                   "modelfs cache warm https://models.example.org acme/llama --pin"),
    "config": Entry("config", "This modelfs", "show the settings, or have a mount read them again",
                    "modelfs config show"),
    "remote": Entry("remote", "This modelfs", "list remotes, or ask them and their mirrors how they are",
                    "modelfs remote check"),
    "bench": Entry("bench", "This modelfs", "measure a store, the cache's disk and a mount, and say what limits reads",
                   "modelfs bench https://models.example.org acme/llama"),
    "version": Entry("version", "This modelfs", "show the version", "modelfs version"),
}


class Commands(click.Group):
    """The group of all commands; each is loaded when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        found = importlib.import_module(f"modelfs.cli.{entry.module}").command
        if not isinstance(found, click.Command):
            raise TypeError(f"modelfs.cli.{entry.module}.command is no click command")
        return found

    def resolve_command(self, ctx: click.Context,
                        args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        # click's own looks for near names only among commands that are loaded
        if args[0] not in COMMANDS and not args[0].startswith("-"):
            raise click.exceptions.NoSuchCommand(args[0], possibilities=COMMANDS, ctx=ctx)
        return super().resolve_command(ctx, args)

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write(overview())


def overview() -> str:
    """All commands by group, each with what it does and one example."""
    lines = ["modelfs: model repositories as local files, every byte checked before it is handed out.", "",
             "Usage: modelfs COMMAND [ARGUMENTS]…", ""]
    for group in dict.fromkeys(entry.group for entry in COMMANDS.values()):
        lines.append(f"{group}:")
        for name, entry in COMMANDS.items():
            if entry.group == group:
                lines += [f"  {name:<10}{entry.help}", f"              {entry.example}"]
        lines.append("")
    lines += ["REPO is a directory, a URL of http(s)://, s3://, gs://, az:// or file://, or a remote of the config.",
              "MODEL is org/name (its tag latest), org/name:tag or org/name:vN (a version).", "",
              "modelfs COMMAND --help tells all of a command."]
    return "\n".join(lines) + "\n"


@click.group(cls=Commands, invoke_without_command=True,
             context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, message="modelfs %(version)s")
@click.pass_context
def root(context: click.Context) -> None:
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line (sys.argv's by default) and return its exit code."""
    for stream in _streams():
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    meta: dict[str, object] = {}
    try:
        code = _run(list(sys.argv[1:] if arguments is None else arguments), meta)
        _flush()
        return code
    except ModelfsError as error:
        return _fail(error, str(error), error.exit_code, meta)
    except click.UsageError as error:
        return _fail(error, _usage_line(error), USAGE, meta)
    except click.ClickException as error:
        return _fail(error, error.format_message(), error.exit_code, meta)
    except (KeyboardInterrupt, click.Abort) as error:
        return _fail(error, "interrupted", INTERRUPTED, meta)
    except BrokenPipeError as error:
        if _reader_gone():
            _drop_output(*_streams())
            return PIPE_CLOSED
        return _fail(error, _internal_line(error), INTERNAL, meta)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):  # no fault of ours, whichever disk; --help prints, too
            full = NoSpace("cannot write", where=str(error.filename or ""), why=error.strerror or "")
            return _fail(error, str(full), full.exit_code, meta)
        return _fail(error, _internal_line(error), INTERNAL, meta)
    except Exception as error:
        return _fail(error, _internal_line(error), INTERNAL, meta)


def _run(arguments: list[str], meta: dict[str, object]) -> int:
    try:
        with root.make_context("modelfs", arguments) as context:
            try:
                result = root.invoke(context)
            finally:
                meta.update(context.meta)
    except click.exceptions.Exit as done:
        return done.exit_code
    return result if isinstance(result, int) else 0


def _fail(error: BaseException, line: str, code: int, meta: Mapping[str, object]) -> int:
    """Where nobody is there to be told, or the disk is full, the exit code still says it."""
    try:
        _flush()
    except OSError:
        _drop_output(sys.stdout)
    try:
        if meta.get(DEBUG):
            traceback.print_exception(error)
        click.echo(f"modelfs: {printable(' '.join(line.split()))}", err=True)
    except OSError:
        _drop_output(sys.stderr)
    return code


def _usage_line(error: click.UsageError) -> str:
    command = error.ctx.command_path if error.ctx else "modelfs"
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        message = "missing command."
    else:
        message = error.format_message().strip()
        message = message[:1].lower() + message[1:]
    return f"{message if message.endswith(('.', '?', ')')) else message + '.'} See {command} --help."


def _internal_line(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "modelfs" in frame.filename] or frames
    where = f"{ours[-1].filename.rpartition('modelfs/')[2]} line {ours[-1].lineno}" if ours else "unknown"
    return (f"internal error, {where}: {type(error).__name__}: {error}. "
            "This is a fault of modelfs; run it again with --debug and report what it prints.")


def _reader_gone() -> bool:
    """Whether who reads our output has left (`modelfs ls | head`), and not some other pipe or socket has broken."""
    poll = select.poll()
    for stream in _streams():
        poll.register(stream.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _drop_output(*streams: TextIO) -> None:
    """Send what is still buffered nowhere: else the interpreter flushes once more at its end, and complains."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in streams:
        os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _flush() -> None:
    if sys.stdout is not None:
        sys.stdout.flush()


def _streams() -> list[TextIO]:
    """Those that are open: under `>&-` Python has None for one."""
    return [stream for stream in (sys.stdout, sys.stderr) if stream is not None]
