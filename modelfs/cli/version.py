"""`modelfs version`: which modelfs this is, and which repository format it writes.

Rule: it imports nothing of modelfs beside the frame, so that it answers at once.
"""

from __future__ import annotations

import platform

import click

from modelfs import __version__
from modelfs.cli.output import Session, command_options, examples

FORMAT = 1


@click.command(epilog=examples("modelfs version", "modelfs version --json"))
@command_options()
def command(session: Session) -> None:
    """Show the version of modelfs, of Python and of the repository format."""
    session.output.document({"version": __version__, "python": platform.python_version(), "format": FORMAT})
    session.output.line(f"modelfs {__version__}, repository format {FORMAT}, Python {platform.python_version()}")
