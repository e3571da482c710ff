"""The names of things, as types of their own: digests of chunks and objects, models and their versions.

Rule: a value of these types is valid; whoever makes one from outside input gets BadInput instead.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

from blake3 import blake3

from modelfs.errors import BadInput

DIGEST_SIZE = 32
_HEX = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_VERSION = re.compile(r"v([1-9][0-9]{0,17})")


class Digest(bytes):
    """32 bytes of BLAKE3-256 (O'Connor et al. 2020)."""

    __slots__ = ()

    def __new__(cls, raw: bytes) -> Self:
        if len(raw) != DIGEST_SIZE:
            raise BadInput("a digest has 32 bytes", why=f"got {len(raw)}")
        return super().__new__(cls, raw)

    @classmethod
    def from_hex(cls, text: object) -> Self:
        if not isinstance(text, str) or not _HEX.fullmatch(text):
            raise BadInput("a digest is 64 lower-case hex digits", why=f"got {str(text)[:80]!r}")
        return cls(bytes.fromhex(text))

    @classmethod
    def of(cls, data: bytes | bytearray | memoryview) -> Self:
        """The digest of data, by one thread: the callers are parallel already."""
        return cls(blake3(data).digest())

    def __str__(self) -> str:
        return self.hex()


class ChunkId(Digest):
    """Of a chunk's decoded bytes."""

    __slots__ = ()


class ObjectId(Digest):
    """Of a stored object: a pack, an index, a manifest, a history."""

    __slots__ = ()


def check_name(text: str, kind: str) -> str:
    """One part of a model's name, or a tag (the rules of huggingface_hub's repository names)."""
    if not _NAME.fullmatch(text) or "--" in text or ".." in text:
        raise BadInput(f"not a valid {kind} {text[:120]!r}",
                       why="a name is 1 to 96 of A-Z a-z 0-9 . _ -, begins with a letter or digit, and has no -- or ..")
    return text


def check_tag(text: str) -> str:
    if _VERSION.fullmatch(text) or re.fullmatch(r"v[0-9]+", text):
        raise BadInput(f"not a valid tag {text!r}", why="names like v1 are versions")
    return check_name(text, "tag")


def parse_version(text: str) -> int | None:
    """7 of "v7"; None of what is no version."""
    found = _VERSION.fullmatch(text)
    return int(found[1]) if found else None


@dataclass(frozen=True, slots=True, order=True)
class ModelName:
    org: str
    name: str

    @classmethod
    def parse(cls, text: str) -> ModelName:
        org, slash, name = text.partition("/")
        if not slash:
            raise BadInput(f"not a model {text[:200]!r}", why="a model is org/name, org/name:tag or org/name:vN")
        return cls(check_name(org, "organisation"), check_name(name, "model name"))

    def __str__(self) -> str:
        return f"{self.org}/{self.name}"


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A model and what was asked of it: a tag, a version, or neither (then `latest` is meant). A variant, as in
    org/name@int8, is the tag int8."""

    model: ModelName
    tag: str | None = None
    version: int | None = None

    @classmethod
    def parse(cls, text: str) -> ModelRef:
        head, colon, tail = text.partition(":")
        name, at, variant = head.partition("@")
        model = ModelName.parse(name)
        if at and colon:
            raise BadInput(f"not a model {text[:200]!r}", why="a variant, @int8, is a tag itself",
                           advice=f"Say {name[:100]}@{variant[:100]} or {name[:100]}:{tail[:100]}.")
        if at:
            return cls(model, tag=check_tag(variant))
        if not colon:
            return cls(model)
        version = parse_version(tail)
        return cls(model, version=version) if version else cls(model, tag=check_tag(tail))

    def __str__(self) -> str:
        if self.version:
            return f"{self.model}:v{self.version}"
        return f"{self.model}:{self.tag}" if self.tag else str(self.model)
