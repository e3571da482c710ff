"""The command line's frame: exit codes, one-line errors, help; by the real command in a process of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from modelfs.cli.main import COMMANDS
from modelfs.cli.output import printable
from tests.conftest import Result

Run = Callable[..., Result]

# A command that does what its argument says, put where `modelfs version` is looked for.
PROBE = '''
import os, sys, types
import click
from modelfs import errors
from modelfs.cli.main import main
from modelfs.cli.output import command_options

@click.command()
@click.argument("what")
@command_options()
def command(session, what):
    if what == "wait":
        print("waiting", flush=True)
        import time
        time.sleep(60)
    if what == "flood":
        session.output.table(["n"], [[n] for n in range(200_000)])
    if what == "pipe":
        read, write = os.pipe()
        os.close(read)
        os.write(write, b"x")
    if what == "seven":
        return 7
    if what == "chatter":
        session.output.note("a note")
        session.output.detail("a detail")
        session.output.warning("a warning")
        with session.output.progress(10, "work") as progress:
            progress.advance(10)
        session.output.line("a line")
        session.output.document({"a": 1})
    if what == "hostile":
        session.output.table(["name"], [["\\x1b[31mred\\nx\\udcff"]])
        raise errors.NotFound("no file \\x1b[31m", where="a\\nb")
    if what == "fault":
        raise ZeroDivisionError("one\\ntwo")
    if what == "abort":
        click.confirm("sure?", abort=True)
    if what[0].isupper():
        raise getattr(errors, what)("this failed", where="there", why="so it is", advice="Do that.")

module = types.ModuleType("modelfs.cli.version")
module.command = command
sys.modules["modelfs.cli.version"] = module
sys.exit(main(["version", *sys.argv[1:]]))
'''


@pytest.fixture
def probe(environ: dict[str, str], tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    script = tmp_path / "probe.py"
    script.write_text(PROBE)

    def start(*arguments: str, **more: object) -> subprocess.Popen[str]:
        options: dict[str, object] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
        return subprocess.Popen([sys.executable, str(script), *arguments], text=True,  # type: ignore[call-overload,no-any-return]
                                env={**environ, "PYTHONPATH": str(Path(__file__).parents[2])}, **(options | more))
    return start


def finish(process: subprocess.Popen[str]) -> Result:
    out, err = process.communicate(timeout=60)
    return Result(process.returncode, out or "", err)


def assert_one_line(result: Result, code: int, *words: str) -> None:
    assert result.code == code, result
    assert result.err.startswith("modelfs: ") and len(result.err.splitlines()) == 1, result.err
    assert [word for word in words if word not in result.err] == []


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_modelfs_alone_and_its_help_list_every_command_with_an_example(modelfs: Run, arguments: list[str]) -> None:
    result = modelfs(*arguments)
    assert (result.code, result.err) == (0, "")
    for name, entry in COMMANDS.items():
        assert f"  {name} " in result.out and entry.help in result.out and entry.example in result.out
    assert "REPO is a directory" in result.out and "MODEL is org/name" in result.out
    assert max(map(len, result.out.splitlines())) <= 100


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_every_command_ends_with_two_examples(modelfs: Run, name: str) -> None:
    if not (Path(__file__).parents[2] / "modelfs" / "cli" / f"{COMMANDS[name].module}.py").exists():
        pytest.skip("this command has no module yet")
    result = modelfs(name, "--help")
    assert (result.code, result.err) == (0, "")
    _, heading, text = result.out.rpartition("Examples:\n")
    lines = text.splitlines()
    assert heading and len(lines) >= 2
    assert [line for line in lines if not line.startswith("    ") or "modelfs" not in line] == []


def test_version_says_version_python_and_format(modelfs: Run) -> None:
    result = modelfs("version", "--json")
    assert result.code == 0 and result.err == ""
    assert set(json.loads(result.out)) == {"version", "python", "format"}
    assert modelfs("version").out.startswith("modelfs " + json.loads(result.out)["version"])
    assert modelfs("--version").out == f"modelfs {json.loads(result.out)['version']}\n"


def test_version_loads_none_of_the_heavy_modules(environ: dict[str, str]) -> None:
    code = ("import sys; from modelfs.cli.main import main; main(['version']); "
            "print([name for name in ('numpy', 'requests', 'aiohttp', 'rich', 'lz4', 'zstandard', 'blake3', 'fuse', "
            "'tomllib', 'logging') if name in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], env={**environ, "PYTHONPATH": str(Path(__file__).parents[2])},
                          capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(("arguments", "words"), [
    (["nosuchcommand"], ["no such command 'nosuchcommand'"]),
    (["pusj"], ["'pusj'", "Did you mean 'push'?", "See modelfs --help."]),
    (["--nosuchflag"], ["--nosuchflag"]),
    (["version", "--jsno"], ["--jsno", "Did you mean '--json'?", "See modelfs version --help."]),
    (["version", "more"], ["unexpected extra argument", "more"]),
    (["version", "--config"], ["--config"]),
    (["config"], ["missing command"]),
    (["config", "shwo"], ["'shwo'", "Did you mean 'show'?"]),
    (["serve", "x", "--port", "99999"], ["'--port'", "'99999' is no whole number from 0 to 65535."]),
    (["push", "x", "y", "z", "--jobs", "many"], ["'--jobs'", "'many' is no whole number from 1 to 1024."]),
])
def test_wrong_usage_is_one_line_and_exit_2(modelfs: Run, arguments: list[str], words: list[str]) -> None:
    result = modelfs(*arguments)
    assert_one_line(result, 2, *words)
    assert result.out == ""


@pytest.mark.parametrize(("error", "code"), [
    ("ModelfsError", 1), ("BadInput", 2), ("NotFound", 3), ("IntegrityError", 4), ("Malformed", 4), ("Unavailable", 5),
    ("DeadlinePassed", 5), ("Forbidden", 6), ("Conflict", 7), ("NoSpace", 8),
])
def test_each_error_is_its_line_and_its_exit_code(probe: Callable[..., subprocess.Popen[str]], error: str,
                                                 code: int) -> None:
    result = finish(probe(error))
    assert result == Result(code, "", "modelfs: this failed, there: so it is. Do that.\n")


def test_debug_adds_the_traceback_before_the_line(probe: Callable[..., subprocess.Popen[str]]) -> None:
    result = finish(probe("NotFound", "--debug"))
    assert result.code == 3 and result.err.startswith("Traceback")
    assert result.err.splitlines()[-1].startswith("modelfs: this failed")


def test_a_fault_of_ours_is_exit_1_with_its_place_in_one_line(probe: Callable[..., subprocess.Popen[str]]) -> None:
    assert_one_line(finish(probe("fault")), 1, "internal error, ", " line ", "ZeroDivisionError: one two", "--debug")


def test_what_a_command_returns_is_its_exit_code(probe: Callable[..., subprocess.Popen[str]]) -> None:
    assert finish(probe("seven")) == Result(7, "", "")


def test_an_interrupted_command_is_one_line_and_exit_130(probe: Callable[..., subprocess.Popen[str]]) -> None:
    process = probe("wait")
    assert process.stdout is not None and process.stdout.readline() == "waiting\n"
    process.send_signal(signal.SIGINT)
    assert_one_line(finish(process), 130)


def test_a_question_without_an_answer_is_exit_130(probe: Callable[..., subprocess.Popen[str]]) -> None:
    result = finish(probe("abort"))
    assert result.code == 130 and result.err.splitlines()[-1] == "modelfs: interrupted"


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_leaves_ends_the_command_without_a_word(probe: Callable[..., subprocess.Popen[str]],
                                                              environ: dict[str, str], unbuffered: str) -> None:
    environ["PYTHONUNBUFFERED"] = unbuffered
    process = probe("flood")
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(60) == 141
    process.stderr.close()


def test_a_reader_that_left_before_the_first_line_is_no_word_either(
        probe: Callable[..., subprocess.Popen[str]]) -> None:
    read, write = os.pipe()
    os.close(read)
    process = probe("chatter", "--quiet", stdout=write)
    os.close(write)
    assert finish(process) == Result(141, "", "warning: a warning\n")


def test_another_pipe_that_breaks_is_no_reader_that_left(probe: Callable[..., subprocess.Popen[str]]) -> None:
    assert_one_line(finish(probe("pipe")), 1, "internal error", "BrokenPipeError")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_to_a_full_disk_is_exit_8(probe: Callable[..., subprocess.Popen[str]], environ: dict[str, str],
                                         unbuffered: str) -> None:
    environ["PYTHONUNBUFFERED"] = unbuffered
    with open("/dev/full", "w") as full:
        process = probe("chatter", stdout=full)
        assert process.stderr is not None
        assert process.stderr.read().splitlines()[-1].startswith("modelfs: cannot print, standard output")
        process.stderr.close()
        assert process.wait(60) == 8


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["push", "--help"]], ids=" ".join)
def test_help_to_a_full_disk_is_no_fault_of_ours(environ: dict[str, str], arguments: list[str],
                                                 unbuffered: str) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-m", "modelfs", *arguments], stdout=full, stderr=subprocess.PIPE,
                              text=True, timeout=60, check=False,
                              env={**environ, "PYTHONPATH": str(Path(__file__).parents[2]),
                                   "PYTHONUNBUFFERED": unbuffered})
    assert (done.returncode, done.stderr) == (8, "modelfs: cannot write: No space left on device\n")


def test_notes_go_to_standard_error_and_only_results_to_standard_output(
        probe: Callable[..., subprocess.Popen[str]]) -> None:
    assert finish(probe("chatter")) == Result(0, "a line\n", "a note\nwarning: a warning\n")
    assert finish(probe("chatter", "--verbose")) == Result(0, "a line\n", "a note\na detail\nwarning: a warning\n")
    assert finish(probe("chatter", "--quiet")) == Result(0, "a line\n", "warning: a warning\n")
    assert finish(probe("chatter", "--json")).out == '{"a": 1}\n'


def test_on_a_terminal_there_is_progress_and_without_one_there_is_not(
        probe: Callable[..., subprocess.Popen[str]]) -> None:
    shown = shown_on_a_terminal(lambda terminal: probe("chatter", stderr=terminal))
    assert b"work" in shown and b"\x1b[" in shown
    assert re.search(rb"[0-9-]:[0-9-]{2}:[0-9-]{2}", shown), "the time that is left"
    assert "work" not in finish(probe("chatter")).err


@pytest.mark.parametrize(("no_color", "bold"), [("", True), ("1", False)])
def test_a_tables_head_is_bold_on_a_terminal_unless_no_color_is_set(
        environ: dict[str, str], probe: Callable[..., subprocess.Popen[str]], no_color: str, bold: bool) -> None:
    environ |= {"NO_COLOR": no_color, "TERM": "xterm"}
    shown = shown_on_a_terminal(lambda terminal: probe("hostile", stdout=terminal))
    assert b"name" in shown and (b"\x1b[1m" in shown) is bold
    assert "\x1b[1m" not in finish(probe("hostile")).out


def shown_on_a_terminal(start: Callable[[int], subprocess.Popen[str]]) -> bytes:
    """start: of a process that writes to this descriptor, to its end."""
    master, slave = os.openpty()
    with os.fdopen(master, "rb", buffering=0) as screen:
        process = start(slave)
        os.close(slave)
        shown = b""
        while piece := _read_terminal(screen.fileno()):
            shown += piece
        finish(process)
    return shown


def _read_terminal(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # EIO: the last one who held the other side has left
        return b""


def test_control_characters_of_names_never_reach_the_terminal(probe: Callable[..., subprocess.Popen[str]]) -> None:
    result = finish(probe("hostile"))
    assert result == Result(3, "name\n\\x1b[31mred\\nx\\udcff\n", "modelfs: no file \\x1b[31m, a b\n")


@pytest.mark.parametrize(("text", "shown"), [
    ("plain", "plain"), ("größe 模型", "größe 模型"), ("a\tb", "a\\tb"), ("\x9b31m", "\\x9b31m"), ("\u202e", "\\u202e"),
])
def test_printable_escapes_what_a_terminal_would_obey(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_columns_of_wide_characters_are_aligned(environ: dict[str, str]) -> None:
    code = ("from modelfs.cli.output import Output; "
            "Output().table(['name', 'size'], [['模型', 5], ['abcde', 1234]], right=['size'])")
    done = subprocess.run([sys.executable, "-X", "utf8", "-c", code], capture_output=True, timeout=60, check=True,
                          env={**environ, "PYTHONPATH": str(Path(__file__).parents[2])})
    assert done.stdout.decode() == "name   size\n模型      5\nabcde  1234\n"
