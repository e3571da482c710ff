"""What a command came to: in a module of its own, since several directories have a conftest."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Result:
    """What a command came to. code is negative where a signal ended it."""

    code: int
    out: str
    err: str
