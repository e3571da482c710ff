"""`--bwlimit R`, as the commands that move much take it.

Rule: without it nothing is held up; a rate so low that a server would take us for dead is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import click

from modelfs.errors import BadInput
from modelfs.units import KiB, parse_size

if TYPE_CHECKING:
    from modelfs.stores.throttled import Throttle

P = ParamSpec("P")
T = TypeVar("T")
_LEAST = 16 * KiB  # a piece of 256 KiB in 16 s: servers end connections that are silent for 30


def rate_option(help: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    return click.option("--bwlimit", metavar="R", help=help)


def throttle_of(text: str | None) -> Throttle | None:
    """Of "50MB" or "50MB/s". Raises BadInput."""
    if text is None:
        return None
    rate = parse_size(text.strip().removesuffix("/s"))
    if rate < _LEAST:
        raise BadInput(f"not a rate {text!r}", where="--bwlimit",
                       why="it is bytes a second, like 50MB, and at least 16KiB")
    from modelfs.stores.throttled import Throttle

    return Throttle(rate)
