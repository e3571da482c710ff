"""A process that does tasks: it takes them from standard input and answers on standard output, pickled.

Rule: it ends as soon as its parent has gone, in the middle of a task, too: nobody would read the answer. The parent is
the only one who speaks to it, so the pickles are its own.
"""

from __future__ import annotations

import os
import pickle
import struct
import threading
import traceback
from queue import SimpleQueue
from typing import IO, Any

LENGTH = struct.Struct("<Q")


def send(stream: IO[bytes], value: object) -> None:
    data = pickle.dumps(value)
    stream.write(LENGTH.pack(len(data)) + data)
    stream.flush()


def receive(stream: IO[bytes]) -> Any:
    """Raises EOFError where the other side has gone."""
    head = stream.read(LENGTH.size)
    if len(head) < LENGTH.size:
        raise EOFError
    length, = LENGTH.unpack(head)
    data = stream.read(length)
    if len(data) < length:
        raise EOFError
    return pickle.loads(data)


def main() -> None:
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    tasks: SimpleQueue[Any] = SimpleQueue()
    threading.Thread(target=_take, args=(os.fdopen(os.dup(0), "rb"), tasks), daemon=True).start()
    while True:
        task = tasks.get()
        try:
            answer = (True, task.run())
        except Exception as error:
            error.add_note("in a worker:\n" + "".join(traceback.format_exception(error)))
            answer = (False, error)
        try:
            send(answers, answer)
        except BrokenPipeError:
            os._exit(1)


def _take(stream: IO[bytes], tasks: SimpleQueue[Any]) -> None:
    try:
        while True:
            tasks.put(receive(stream))
    except (EOFError, OSError):
        os._exit(0)


if __name__ == "__main__":
    main()
