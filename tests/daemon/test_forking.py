"""Forked children: what they have of their parent, and what not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(code: str, tmp_path: Path, **more: object) -> subprocess.CompletedProcess[str]:
    """In a process of its own, as code and `python FILE`, so that the file's directory is where Python looks first."""
    file = tmp_path / "program.py"
    file.write_text("import os, signal, sys\nfrom modelfs.daemon.forking import Forked\n" + code)
    return subprocess.run([sys.executable, str(file)], env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=60,
                          capture_output=True, text=True, check=False, **more)  # type: ignore[call-overload,no-any-return]


@pytest.mark.parametrize(("what", "code"), [
    ("return 7", 7), ("raise ValueError('told')", 1), ("raise SystemExit(9)", 1), ("os.kill(os.getpid(), 9)", -9),
    ("sys.stdout.write('nowhere')\n    return 0", 0)])
def test_the_exit_code_says_how_it_ended(tmp_path: Path, what: str, code: int) -> None:
    done = run(f"def child():\n    {what}\nprint('once')\nprint(Forked(child, ()).wait())\n", tmp_path)
    assert done.stdout == f"once\n{code}\n"
    assert ("ValueError: told" in done.stderr) == ("told" in what)


def test_it_has_the_descriptors_it_is_given_and_no_others(tmp_path: Path) -> None:
    done = run("""
kept, other = os.pipe(), os.pipe()
os.set_inheritable(other[1], True)
def child():
    os.write(kept[1], " ".join(sorted(os.listdir("/proc/self/fd"), key=int)).encode())
    return 0
assert Forked(child, {kept[1]}).wait() == 0
os.close(other[1])
assert os.read(other[0], 1) == b""
has = set(map(int, os.read(kept[0], 100).split()))
print(has >= {0, 1, 2, kept[1]}, len(has) - 4)  # the listing's own beside
""", tmp_path)
    assert done.stdout == "True 1\n", done.stderr


def test_it_handles_signals_as_a_new_process_does_and_leaves_ignored_ones_ignored(tmp_path: Path) -> None:
    done = run("""
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
    signal.signal(number, lambda *_: None)
signal.signal(signal.SIGHUP, signal.SIG_IGN)
def child():
    same = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2, signal.SIGHUP)]
    return int(same != [signal.SIG_DFL, signal.default_int_handler, signal.SIG_DFL, signal.SIG_IGN])
print(Forked(child, ()).wait())
""", tmp_path)
    assert done.stdout == "0\n", done.stderr


def test_without_standard_streams_it_writes_where_it_is_told(tmp_path: Path) -> None:
    log = tmp_path / "log"
    done = subprocess.run(["bash", "-c", f"exec {sys.executable} - 0<&0 1>&- 2>&-"], input=f"""
import os, sys
from modelfs.daemon.forking import Forked
log = os.open({str(log)!r}, os.O_WRONLY | os.O_CREAT)
def child():
    print("told", file=sys.stderr)
    print("not told")
    return 0
sys.exit(Forked(child, (), stderr=log).wait())
""", env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True, timeout=60, check=False)
    assert (done.returncode, log.read_text()) == (0, "told\n")
