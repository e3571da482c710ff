"""JSON objects of the repository: canonical when written, looked through with care when read.

Rule: what is written has sorted keys, no spaces, UTF-8, so that equal content has equal bytes; what is read
and does not have the fields it should is Malformed, never a KeyError.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from modelfs.errors import BadInput, Malformed
from modelfs.ids import ObjectId


def canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


class Record:
    """An object of a JSON document whose fields are fetched by type. Raises Malformed throughout."""

    def __init__(self, what: str, fields: object) -> None:
        if not isinstance(fields, dict):
            raise Malformed(what, why="it is no JSON object")
        self.what, self.fields = what, fields

    @classmethod
    def parse(cls, data: bytes | str, what: str) -> Record:
        """data: UTF-8, nothing else that json.loads would guess, and no half of a surrogate pair: it could be
        neither written again nor shown."""
        try:
            text = data if isinstance(data, str) else data.decode()
            fields = json.loads(text)
            if "\\ud" in text.lower():
                canonical(fields)
        except (ValueError, RecursionError) as error:
            raise Malformed(what, why=f"it is no JSON ({error})"[:200]) from error
        return cls(what, fields)

    def text(self, key: str) -> str:
        return str(self._typed(key, str, "a string"))

    def optional_text(self, key: str) -> str | None:
        return None if self.fields.get(key) is None else self.text(key)

    def integer(self, key: str, least: int = 0) -> int:
        value = self.fields.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 1 << 63:
            raise Malformed(self.what, why=f"{key} is no whole number from {least}")
        return value

    def optional_integer(self, key: str, least: int = 0) -> int | None:
        return None if self.fields.get(key) is None else self.integer(key, least)

    def flag(self, key: str) -> bool:
        return bool(self._typed(key, bool, "true or false"))

    def items(self, key: str) -> list[Any]:
        return list(self._typed(key, list, "a list"))

    def mapping(self, key: str) -> dict[str, Any]:
        return dict(self._typed(key, dict, "an object"))

    def records(self, key: str) -> list[Record]:
        return [Record(f"{self.what} {key}", item) for item in self.items(key)]

    def object_id(self, key: str) -> ObjectId:
        return self.as_object_id(self.fields.get(key), key)

    def as_object_id(self, value: object, key: str) -> ObjectId:
        try:
            return ObjectId.from_hex(value)
        except BadInput as error:
            raise Malformed(self.what, why=f"{key} is no digest") from error

    def texts(self, key: str) -> dict[str, str]:
        found = self.mapping(key)
        if not all(isinstance(value, str) for value in found.values()):
            raise Malformed(self.what, why=f"{key} holds something other than strings")
        return found

    def others(self, *known: str) -> Mapping[str, Any]:
        """The fields that this modelfs does not know: kept, so that rewriting loses nothing of a later one."""
        return {key: value for key, value in self.fields.items() if key not in known}

    def _typed(self, key: str, kind: type, name: str) -> Any:
        value = self.fields.get(key)
        if not isinstance(value, kind):
            raise Malformed(self.what, why=f"{key} is missing or not {name}")
        return value
