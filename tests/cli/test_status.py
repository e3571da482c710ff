"""`modelfs status` of several daemons, some of which cannot answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from results import Result

from modelfs import paths
from modelfs.daemon.control import ControlServer, Listening
from modelfs.errors import Forbidden, ModelfsError

Run = Callable[..., Result]


@contextmanager
def daemon(environ: Mapping[str, str], mountpoint: Path, error: ModelfsError | None = None) -> Iterator[None]:
    def status(request: Mapping[str, Any]) -> dict[str, Any]:
        if error is not None:
            raise error
        return {"mountpoint": str(mountpoint), "repository": "/srv/models", "engine": "native", "pid": 1,
                "cache": {"bytes": 0}, "stores": [{"state": "ok"}]}
    server = ControlServer(Listening.begin(paths.socket_path(mountpoint, environ)), {"status": status})
    try:
        yield
    finally:
        server.close()


def test_a_daemon_that_answers_an_error_is_a_warning_and_the_others_are_shown(modelfs: Run, environ: dict[str, str],
                                                                              tmp_path: Path) -> None:
    errors = (Forbidden("not permitted", why="another uid"), ModelfsError("its disk fails"))
    with daemon(environ, tmp_path / "a", errors[0]), daemon(environ, tmp_path / "b"), \
            daemon(environ, tmp_path / "c", errors[1]):
        done = modelfs("status", "--json")
        table = modelfs("status")
    assert (done.code, table.code) == (0, 0), done.err
    # as root all mounts of the machine are shown, those of others that run meanwhile, too
    shown = [at["mountpoint"] for at in json.loads(done.out)["mounts"] if at["mountpoint"].startswith(str(tmp_path))]
    assert shown == [str(tmp_path / "b")] and str(tmp_path / "b") in table.out
    for name, error in zip("ac", errors, strict=True):
        line = f"warning: a mount does not say how it is, {paths.socket_path(tmp_path / name, environ)}: {error}"
        assert line in done.err.splitlines() and line in table.err.splitlines()
