"""What each setting of the configuration may be: its form in TOML, its default, and what is said of a bad value.

Rule: a value is judged by itself here; where it came from, and what goes with what, is for config.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from modelfs import paths
from modelfs.logs import Level
from modelfs.units import DiskShare, MiB, parse_size, parse_time

Verify = Literal["mount", "changed", "always"]
Hydrate = Literal["off", "sequential", "file", "model"]
EngineChoice = Literal["auto", "native", "fusepy"]
LogFormat = Literal["text", "json"]

Yanked = Literal["warn", "deny"]

_MAX_SIZE = (1 << 63) - 1
_ENDPOINT = re.compile(r"https?://[A-Za-z0-9.:_/\[\]-]{1,300}")
_MAX_SECONDS = 30 * 86400.0
N = TypeVar("N", int, float)
_SCHEMES = ("http://", "https://", "file://", "s3://", "gs://", "az://")


@dataclass(frozen=True, slots=True)
class Key:
    """parse: a TOML value to the value of the dataclass; raises ValueError or ModelfsError. from_text: what an
    environment variable or a flag says, as the TOML value it stands for."""

    parse: Callable[[Any, Mapping[str, str]], Any]
    allowed: str
    from_text: Callable[[str], object] = lambda text: text


def _one_of(choices: Any) -> tuple[Callable[[Any, Mapping[str, str]], Any], str]:
    names = get_args(choices)

    def parse(value: Any, environ: Mapping[str, str]) -> Any:
        if value not in names:
            raise ValueError
        return value
    return parse, ", ".join(names)


def _size(least: int) -> Callable[[Any, Mapping[str, str]], int]:
    def parse(value: Any, environ: Mapping[str, str]) -> int:
        return _within(parse_size(value), least, _MAX_SIZE)
    return parse


def _share(value: Any, environ: Mapping[str, str]) -> DiskShare:
    share = DiskShare.parse(value)
    _within(share.size_bytes or 0, 0, _MAX_SIZE)
    return share


def _time(least: float) -> Callable[[Any, Mapping[str, str]], float]:
    def parse(value: Any, environ: Mapping[str, str]) -> float:
        return _within(parse_time(value), least, _MAX_SECONDS)
    return parse


def _connections(value: Any, environ: Mapping[str, str]) -> int:
    if type(value) is not int:
        raise ValueError
    return _within(value, 1, 256)


def _within(value: N, least: N, most: N) -> N:
    if not least <= value <= most:
        raise ValueError
    return value


def _bool(value: Any, environ: Mapping[str, str]) -> bool:
    if not isinstance(value, bool):
        raise ValueError
    return value


def _bool_of_text(text: str) -> bool:
    words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if text.strip().lower() not in words:
        raise ValueError
    return words[text.strip().lower()]


def as_path(value: Any, environ: Mapping[str, str]) -> Path:
    """Relative paths are refused in files: what they would be relative to is a guess."""
    if not isinstance(value, str) or "\0" in value:
        raise ValueError
    if value.startswith("~/"):
        return paths.home_dir(environ) / value[2:]
    if not value.startswith("/"):
        raise ValueError
    return Path(value)


def absolute(text: str) -> str:
    """On the command line and in the environment a path may be relative to the working directory."""
    return text if text.startswith("~/") or not text else str(Path(text).absolute())


def _urls(value: Any, environ: Mapping[str, str]) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError
    for url in value:
        if not isinstance(url, str) or not url.startswith((*_SCHEMES, "/")) or not url.isprintable():
            raise ValueError
        if "://" in url and "@" in url.split("://", 1)[1].split("/", 1)[0]:
            raise ValueError
    return tuple(value)


def _endpoint(value: Any, environ: Mapping[str, str]) -> str:
    if not isinstance(value, str) or not _ENDPOINT.fullmatch(value):
        raise ValueError
    return value.rstrip("/")


def _etcd(value: Any, environ: Mapping[str, str]) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError
    return tuple(_endpoint(url, environ) for url in value)


def _region(value: Any, environ: Mapping[str, str]) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9-]{1,60}", value):
        raise ValueError
    return value


def defaults(environ: Mapping[str, str]) -> dict[str, object]:
    return {
        "cache.directory": str(paths.cache_dir(environ)),
        "cache.size": "10%",
        "cache.min_free": "5%",
        "cache.verify": "mount",
        "cache.scrub": "7d",
        "fetch.connections": 8,
        "fetch.deadline": "60s",
        "fetch.memory": "256 MiB",
        "fetch.readahead": "64 MiB",
        "fetch.hydrate": "sequential",
        "fetch.hedge": False,
        "mount.engine": "auto",
        "mount.allow_other": False,
        "mount.poll": "30s",
        "policy.yanked": "warn",
        "log.level": "info",
        "log.format": "text",
    }


_SHARE = "a size like 200 GiB, or a part of the disk like 10%"
_A_PATH = "an absolute path, or one that begins with ~/"
KEYS: dict[str, Key] = {
    "cache.directory": Key(as_path, _A_PATH, absolute),
    "cache.size": Key(_share, _SHARE),
    "cache.min_free": Key(_share, _SHARE),
    "cache.verify": Key(*_one_of(Verify)),
    "cache.scrub": Key(_time(0.0), "a time up to 30d, like 7d, 0s for never"),
    "fetch.connections": Key(_connections, "a number from 1 to 256", int),
    "fetch.deadline": Key(_time(0.001), "a time from 1ms to 30d, like 60s"),
    "fetch.memory": Key(_size(16 * MiB), "a size of 16 MiB or more, like 256 MiB"),
    "fetch.readahead": Key(_size(0), "a size like 64 MiB, 0 for none"),
    "fetch.hydrate": Key(*_one_of(Hydrate)),
    "fetch.hedge": Key(_bool, "true, false", _bool_of_text),
    "mount.engine": Key(*_one_of(EngineChoice)),
    "mount.allow_other": Key(_bool, "true, false", _bool_of_text),
    "mount.poll": Key(_time(0.1), "a time from 100ms to 30d, like 30s"),
    "policy.yanked": Key(*_one_of(Yanked)),
    "log.level": Key(*_one_of(Level)),
    "log.format": Key(*_one_of(LogFormat)),
}
REMOTE_KEYS: dict[str, Key] = {
    "urls": Key(_urls, "a list of one or more of http://…, https://…, file://…, s3://…, gs://…, az://… or absolute "
                        "paths, without user names or passwords"),
    "token_file": Key(as_path, _A_PATH),
    "key_file": Key(as_path, _A_PATH),
    "passphrase_file": Key(as_path, _A_PATH),
    "endpoint": Key(_endpoint, "the http:// or https:// URL of an object store, without user name or password"),
    "region": Key(_region, "the name of a region, like eu-central-1"),
    "anonymous": Key(_bool, "true, false"),
    "ca_file": Key(as_path, _A_PATH),
    "client_cert": Key(as_path, _A_PATH),
    "client_key": Key(as_path, _A_PATH),
    "etcd": Key(_etcd, "a list of http:// or https:// URLs, like http://10.0.0.1:2379"),
}
FLAGS = {"cache.directory": "--cache-dir", "cache.size": "--cache-size", "cache.verify": "--verify",
         "fetch.deadline": "--deadline", "mount.engine": "--engine", "mount.poll": "--poll"}
SECTIONS = tuple(dict.fromkeys(key.split(".")[0] for key in KEYS))
