"""What a request asks beyond the object: a range of it, or only news of it (RFC 9110, sections 13 and 14).

Rule: what is not understood is answered by the whole object, as the RFC has it; an impossible range never is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from modelfs.server.objects import OpenObject

_RANGE = re.compile(r"bytes\s*=\s*(?:([0-9]{1,19})\s*-\s*([0-9]{0,19})|-\s*([0-9]{1,19}))", re.I)
_NO_CACHE = re.compile(r"(?:^|,)\s*no-cache\s*(?:,|$)", re.I)
_TAG = re.compile(r'(?:W/)?("[^"]*")')


class Unsatisfiable(Exception):
    """A range that holds no byte of the object: 416."""


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes first to last, inclusive, as HTTP counts them; last is first - 1 where there are none."""

    first: int
    last: int

    @property
    def length(self) -> int:
        return self.last - self.first + 1


def matches(if_none_match: str | None, etag: str) -> bool:
    """Whether the client has this state of the object already."""
    if if_none_match is None:
        return False
    return if_none_match.strip() == "*" or etag in _TAG.findall(if_none_match)


def past_caches(headers: Mapping[str, str]) -> bool:
    """Whether the client wants what the origin has now."""
    return _NO_CACHE.search(headers.get("Cache-Control", "")) is not None


def requested_span(range_: str | None, if_range: str | None, found: OpenObject) -> Span | None:
    """The one range asked for, cut to the object's end; None where the whole object is to be sent.

    range_, if_range: the headers. Raises Unsatisfiable.
    """
    parsed = _RANGE.fullmatch(range_.strip()) if range_ else None
    if not parsed or (if_range is not None and if_range.strip() != found.etag):
        return None
    if parsed[3] is not None:
        first, last = max(0, found.size - int(parsed[3])), found.size - 1
    else:
        first, last = int(parsed[1]), min(int(parsed[2]) if parsed[2] else found.size - 1, found.size - 1)
    if first > last:
        raise Unsatisfiable
    return Span(first, last)
