"""Commands that end by kill -9 at a write of their choice, each in a process of its own.

Rule: a write is what gives an object its name, with its bytes written and synced before; a kill comes right before one,
so what was to be named lies there as the temporary file that a killed process leaves. Processes are forks of one that
has imported everything already, which makes dozens of kills cheap.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_RUN = """
import json, os, signal, sys
from modelfs.cli.main import main
import modelfs.app.transfers, modelfs.cli.promote, modelfs.cli.push, modelfs.cli.replicate, modelfs.cli.verify
import modelfs.maintenance.agreement, modelfs.maintenance.repair, modelfs.maintenance.verify, modelfs.transfer.replicate
import modelfs.transfer.push
exec(sys.argv[1])
def counted(write, last):
    def before(*arguments, **named):
        wrote.append(1)
        if len(wrote) == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return write(*arguments, **named)
    return before
def run(arguments, last, said):
    out = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(out, stream)
    os.replace, os.link = counted(os.replace, last), counted(os.link, last)
    code = main(arguments)
    if last == -1:
        sys.stdout.flush()
        os.write(out, f"wrote {len(wrote)}".encode())
    if len(wrote) + 1 == last:
        os.kill(os.getpid(), signal.SIGKILL)
    sys.stdout.flush()
    os._exit(code)
wrote = []
for line in sys.stdin:
    arguments, last, said = json.loads(line)
    child = os.fork()
    if not child:
        run(arguments, last, said)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
KILLED = -signal.SIGKILL


@dataclass(frozen=True, slots=True)
class Killer:
    process: subprocess.Popen[str]
    said: Path

    def run(self, *arguments: object, before_write: int = 0) -> int:
        """The command's exit code, or KILLED. before_write: which write to be killed before, from 1 on; one more than
        there are is right after the last. What it printed is in said."""
        assert self.process.stdin and self.process.stdout
        line = json.dumps([list(map(str, arguments)), before_write, str(self.said)])
        print(line, file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline())

    def writes(self, *arguments: object) -> int:
        """How many writes the command does, which ends well."""
        code = self.run(*arguments, before_write=-1)
        said = self.said.read_text()
        assert code == 0, said
        return int(said.rpartition("wrote ")[2])


@contextmanager
def killer(environ: Mapping[str, str], scratch: Path, before: str = "") -> Iterator[Killer]:
    """before: code that runs first, to make packs small."""
    process = subprocess.Popen([sys.executable, "-c", _RUN, before], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               text=True, env={**environ, "PYTHONPATH": str(Path(__file__).parents[2])})
    try:
        yield Killer(process, scratch / "said")
    finally:
        process.kill()
        process.communicate()
