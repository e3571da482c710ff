"""`modelfs mount`: a repository, or one version of a model, as local files.

Rule: in the foreground it serves until it is unmounted; with --daemon it returns 0 only once the mount answers.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from modelfs.cli.output import Session, command_options, examples
from modelfs.errors import ModelfsError
from modelfs.ids import ModelRef

if TYPE_CHECKING:
    from modelfs.config import Config


@click.command(epilog=examples("modelfs mount https://models.example.org /mnt/models --daemon",
                               "modelfs mount /srv/models /mnt/llama --model acme/llama:v2 --cache-size '50 GiB'"))
@click.argument("repo")
@click.argument("mountpoint")
@click.option("--model", metavar="MODEL", help="Only this version, its files at the root: org/name, :tag or :vN.")
@click.option("--engine", metavar="E", help="auto, native or fusepy.")
@click.option("--cache-dir", metavar="D", help="Where chunks are kept; mounts may share it.")
@click.option("--cache-size", metavar="S", help="Its limit: 200GiB, or 10% of the disk.")
@click.option("--follow", is_flag=True, help="With --model: be at the version that the tag names at any time.")
@click.option("--daemon", is_flag=True, help="Return once the mount answers, and serve in the background.")
@click.option("--allow-other", is_flag=True, help="Let other users read it.")
@click.option("--poll", metavar="T", help="How soon new versions and moved tags are seen.")
@click.option("--deadline", metavar="T", help="After it a read fails rather than hangs.")
@click.option("--verify", metavar="V", help="When cached chunks are checked: mount, changed or always.")
@click.option("--ready-fd", type=int, hidden=True)
@click.option("--kept", hidden=True)
@command_options(prints_json=False)
def command(session: Session, repo: str, mountpoint: str, model: str | None, engine: str | None,
            cache_dir: str | None, cache_size: str | None, follow: bool, daemon: bool, allow_other: bool,
            poll: str | None, deadline: str | None, verify: str | None, ready_fd: int | None,
            kept: str | None) -> None:
    """Show REPO as files below MOUNTPOINT: org/name/vN/…, tags as links to versions."""
    flags: dict[str, object] = {
        "cache_directory": None if cache_dir is None else os.path.abspath(cache_dir), "cache_size": cache_size,
        "mount_engine": engine, "mount_allow_other": allow_other, "mount_poll": poll, "fetch_deadline": deadline,
        "cache_verify": verify}
    if session.config_file is not None:  # read again at a reload, from wherever we are then
        session = replace(session, config_file=session.config_file.absolute())
    if daemon:
        _in_background(session, repo, mountpoint, model, follow, flags)
    else:
        _serve(session, repo, mountpoint, model, follow, flags, ready_fd, kept)


def _serve(session: Session, repo: str, mountpoint: str, model: str | None, follow: bool,
           flags: dict[str, object], ready_fd: int | None, kept: str | None) -> None:
    from pathlib import Path

    from modelfs.daemon.background import ReadyPipe
    from modelfs.daemon.signals import threads_without_signals

    with threads_without_signals():  # numpy's BLAS starts threads as it is imported
        from modelfs.app import mounting

    pipe = ReadyPipe(ready_fd) if ready_fd is not None else None

    def load() -> Config:
        return session.config(**flags)

    def say(line: str) -> None:
        session.output.note(line)
        if pipe and line.startswith("warning"):
            pipe.say(line)

    try:
        request = mounting.MountRequest(repo, Path(mountpoint), ModelRef.parse(model) if model else None, follow)
        mounting.mount(request, load, session.environ, say=say,
                       ready=pipe.ready if pipe else lambda: None, kept=kept)
    except ModelfsError as error:
        if pipe:
            pipe.failed(error)
        raise


def _in_background(session: Session, repo: str, mountpoint: str, model: str | None, follow: bool,
                   flags: dict[str, object]) -> None:
    from pathlib import Path

    from modelfs import paths
    from modelfs.cli.main import main
    from modelfs.daemon import background
    from modelfs.daemon.keeper import Keeper
    from modelfs.engines.device import can_be_native
    from modelfs.logs import set_up_logging
    from modelfs.settings import FLAGS

    place = paths.canonical(Path(mountpoint))
    socket = paths.socket_path(place, session.environ)
    log = paths.state_dir(session.environ) / "logs" / f"{socket.stem}.log"
    config = session.config(**flags)
    native = can_be_native(config.mount.engine)
    if native:
        flags = {**flags, "mount_engine": "native"}  # every worker the same, whatever becomes of the machine
    typed = {option: flags[key.replace(".", "_", 1)] for key, option in FLAGS.items()}
    arguments = [*(f"{option}={value}" for option, value in typed.items() if value is not None),
                 *([f"--model={model}"] if model else []), *(["--follow"] if follow else []),
                 *(["--allow-other"] if flags["mount_allow_other"] else []),
                 *([f"--config={session.config_file}"] if session.config_file else []),
                 *(["--debug"] if session.debug else []), *(["--verbose"] if session.output.verbose else []),
                 *(["--quiet"] if session.output.quiet else [])]

    def serve(ready: int) -> int:
        if not native:
            return main(["mount", f"--ready-fd={ready}", *arguments, "--", repo, mountpoint])
        set_up_logging(level="info", format=config.log.format)
        return Keeper(background.ReadyPipe(ready), socket, repo, place, arguments).run(main)

    started = background.start(serve, log)
    for line in started.said:
        session.output.note(line)
    session.output.note(f"mounted {repo} on {place}, pid {started.pid}, log {started.log}")
