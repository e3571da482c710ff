"""What may be a key, and where a key's parts may be looked for in a directory.

Rule: every store and the server check each key here before they touch anything, so no key leaves its store.
"""

from __future__ import annotations

import re

from modelfs.errors import BadInput, ModelfsError

_KEY = re.compile(r"(?:[a-z0-9]+(?:\.[a-z0-9]+)*/)*[a-z0-9]+(?:\.[a-z0-9]+)*")
_PREFIX = re.compile(r"(?:[a-z0-9]+(?:\.[a-z0-9]+)*/)*(?:[a-z0-9]+(?:\.[a-z0-9]+)*)?")
_LONGEST = 200


def is_key(text: str) -> bool:
    """Parts of a-z, 0-9 and single inner dots, joined by single slashes; at most 200 characters."""
    return len(text) <= _LONGEST and _KEY.fullmatch(text) is not None


def check_key(key: str) -> str:
    """Raises BadInput."""
    if not is_key(key):
        raise BadInput(f"not the key of an object {key[:120]!r}",
                       why="keys are parts of a-z, 0-9 and inner dots, joined by /")
    return key


def check_prefix(prefix: str) -> str:
    """The beginning of a key, empty for all of them. Raises BadInput."""
    if len(prefix) > _LONGEST or not _PREFIX.fullmatch(prefix):
        raise BadInput(f"not the beginning of a key {prefix[:120]!r}",
                       why="keys are parts of a-z, 0-9 and inner dots, joined by /")
    return prefix


def check_range(key: str, offset: int, length: int) -> None:
    """A range has at least one byte; whoever asks for another has a fault of ours."""
    if offset < 0 or length < 1:
        raise ModelfsError("a range that holds no bytes was asked for", where=key, why=f"{length} bytes at {offset}")
