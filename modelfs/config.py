"""Configuration: built in, /etc, the user's file, --config, environment, flags; what comes later wins.

Rule: a `Config` is valid as a whole, and each of its settings knows where it came from; whatever is wrong is
one BadInput that names the place, the key, the value and what is allowed. The environment is an argument.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, get_args

from modelfs import paths
from modelfs.errors import BadInput, Forbidden, ModelfsError
from modelfs.logs import Level
from modelfs.units import DiskShare, MiB, parse_size, parse_time

Verify = Literal["mount", "changed", "always"]
Hydrate = Literal["off", "sequential", "file", "model"]
EngineChoice = Literal["auto", "native", "fusepy"]
LogFormat = Literal["text", "json"]

MAX_FILE_BYTES = 1 << 20
_MAX_SIZE = (1 << 63) - 1
_ENDPOINT = re.compile(r"https?://[A-Za-z0-9.:_/\[\]-]{1,300}")
_MAX_SECONDS = 30 * 86400.0
N = TypeVar("N", int, float)
_SCHEMES = ("http://", "https://", "file://", "s3://", "gs://", "az://")


@dataclass(frozen=True, slots=True)
class CacheConfig:
    """min_free: what the disk that holds directory keeps free. scrub_s: 0: never."""

    directory: Path
    size: DiskShare
    min_free: DiskShare
    verify: Verify
    scrub_s: float


@dataclass(frozen=True, slots=True)
class FetchConfig:
    """memory_bytes: ceiling of fetch and decode buffers. readahead_bytes: largest window of one stream."""

    connections: int
    deadline_s: float
    memory_bytes: int
    readahead_bytes: int
    hydrate: Hydrate


@dataclass(frozen=True, slots=True)
class MountConfig:
    engine: EngineChoice
    allow_other: bool
    poll_s: float


@dataclass(frozen=True, slots=True)
class LogConfig:
    level: Level
    format: LogFormat


@dataclass(frozen=True, slots=True)
class RemoteConfig:
    """urls: at least one; mirrors of the same repository, in order of preference. endpoint, region, anonymous: of
    object stores; None: what the environment says."""

    name: str
    urls: tuple[str, ...]
    token_file: Path | None = None
    key_file: Path | None = None
    passphrase_file: Path | None = None
    endpoint: str | None = None
    region: str | None = None
    anonymous: bool = False


@dataclass(frozen=True, slots=True)
class Setting:
    """value: as people write it. source: "default", a file's path, "env NAME" or "flag"."""

    value: str | int | bool | list[str]
    source: str


@dataclass(frozen=True, slots=True)
class Config:
    """token_file: of MODELFS_TOKEN_FILE, for every URL that is no remote with one of its own."""

    cache: CacheConfig
    fetch: FetchConfig
    mount: MountConfig
    log: LogConfig
    remotes: Mapping[str, RemoteConfig]
    settings: Mapping[str, Setting] = field(repr=False)
    token_file: Path | None = None

    def show(self) -> dict[str, dict[str, object]]:
        """{key: {value, source}} of every setting, the remotes' too."""
        return {key: {"value": at.value, "source": at.source} for key, at in self.settings.items()}


def load_config(*, file: Path | None, flags: Mapping[str, str], environ: Mapping[str, str],
                etc: Path = paths.SYSTEM_CONFIG) -> Config:
    """The configuration that holds now.

    file: --config, which must exist. flags: by key ("cache.size"), values as typed.
    Raises BadInput; Forbidden where a file may not be read.
    """
    found = {key: _read_value(key, _KEYS[key], value, "default", environ) for key, value in _defaults(environ).items()}
    remotes: dict[str, _Value] = {}
    for path, required in ((etc, False), (paths.config_file(environ), False), (file, True)):
        if path is not None and (document := _load_file(path, required)) is not None:
            _apply_document(document, str(path), found, remotes, environ)
    for variable, key in _environment_keys(environ):
        found[key] = _read_text(key, environ[variable], f"env {variable}", environ)
    for key, text in flags.items():
        found[key] = _read_text(key, text, "flag", environ)
    return _assemble(found, remotes, environ)


@dataclass(frozen=True, slots=True)
class _Value:
    parsed: Any
    setting: Setting


@dataclass(frozen=True, slots=True)
class _Key:
    """parse: a TOML value to the value of the dataclass; raises ValueError or ModelfsError. from_text: what an
    environment variable or a flag says, as the TOML value it stands for."""

    parse: Callable[[Any, Mapping[str, str]], Any]
    allowed: str
    from_text: Callable[[str], object] = lambda text: text


def _read_value(key: str, spec: _Key, value: object, source: str, environ: Mapping[str, str]) -> _Value:
    try:
        parsed = spec.parse(value, environ)
    except (ValueError, TypeError, OverflowError, ModelfsError):
        raise _bad_value(key, value, source, spec.allowed) from None
    shown = str(parsed) if isinstance(parsed, Path) else value
    return _Value(parsed, Setting(cast(Any, shown), source))


def _read_text(key: str, text: str, source: str, environ: Mapping[str, str]) -> _Value:
    spec = _KEYS.get(key)
    if spec is None:
        raise _unknown("key", key, source, _KEYS)
    try:
        value = spec.from_text(text)
    except ValueError:
        raise _bad_value(key, text, source, spec.allowed) from None
    return _read_value(key, spec, value, source, environ)


def _load_file(path: Path, required: bool) -> dict[str, Any] | None:
    """None where the file is not there and need not be."""
    try:
        with path.open("rb") as stream:
            raw = stream.read(MAX_FILE_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        if not required:
            return None
        raise BadInput("no configuration file", where=str(path), advice="Check --config.") from None
    except OSError as error:
        kind = Forbidden if isinstance(error, PermissionError) else BadInput
        raise kind("cannot read the configuration", where=str(path), why=error.strerror or str(error)) from error
    if len(raw) > MAX_FILE_BYTES:
        raise BadInput("not a configuration file", where=str(path), why="it has more than 1 MiB")
    try:
        return tomllib.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise BadInput("not valid TOML", where=f"{path} line {line}", why="it is not UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise BadInput("not valid TOML", where=str(path), why=str(error)) from error
    except RecursionError as error:
        raise BadInput("not valid TOML", where=str(path), why="nested too deeply") from error


def _apply_document(document: dict[str, Any], source: str, found: dict[str, _Value], remotes: dict[str, _Value],
                    environ: Mapping[str, str]) -> None:
    for section, keys in document.items():
        if section not in _SECTIONS and section != "remotes":
            raise _unknown("section", section, source, [*_SECTIONS, "remotes"])
        for name, value in _table(section, keys, source).items():
            key = f"{section}.{name}"
            if section == "remotes":
                _apply_remote(key, name, _table(key, value, source), source, remotes, environ)
            elif key in _KEYS:
                found[key] = _read_value(key, _KEYS[key], value, source, environ)
            else:
                raise _unknown("key", key, source, _KEYS)


def _apply_remote(key: str, name: str, table: dict[str, Any], source: str, remotes: dict[str, _Value],
                  environ: Mapping[str, str]) -> None:
    if not name or "/" in name or ":" in name or not name.isprintable():
        raise BadInput(f"not a name of a remote {name[:80]!r}", where=source, why="it has no / or : and is printable")
    for part, value in table.items():
        if part not in _REMOTE_KEYS:
            raise _unknown("key", f"{key}.{part}", source, [f"{key}.{known}" for known in _REMOTE_KEYS])
        remotes[f"{key}.{part}"] = _read_value(f"{key}.{part}", _REMOTE_KEYS[part], value, source, environ)


def _environment_keys(environ: Mapping[str, str]) -> Iterable[tuple[str, str]]:
    """The variables that are settings, and their keys. An empty one counts as not set, as everywhere in XDG."""
    known = {f"MODELFS_{key.replace('.', '_').upper()}": key for key in _KEYS}
    for variable in sorted(environ):
        if variable in known:
            if environ[variable]:
                yield variable, known[variable]
        elif variable.startswith(tuple(f"MODELFS_{section.upper()}_" for section in _SECTIONS)):
            raise _unknown("variable", variable, "the environment", known)


def _assemble(found: Mapping[str, _Value], remotes: Mapping[str, _Value], environ: Mapping[str, str]) -> Config:
    get = {key: value.parsed for key, value in found.items()}
    return Config(
        cache=CacheConfig(get["cache.directory"], get["cache.size"], get["cache.min_free"], get["cache.verify"],
                          get["cache.scrub"]),
        fetch=FetchConfig(get["fetch.connections"], get["fetch.deadline"], get["fetch.memory"],
                          get["fetch.readahead"], get["fetch.hydrate"]),
        mount=MountConfig(get["mount.engine"], get["mount.allow_other"], get["mount.poll"]),
        log=LogConfig(get["log.level"], get["log.format"]),
        remotes=_assemble_remotes(remotes),
        settings={key: value.setting for key, value in (*found.items(), *remotes.items())},
        token_file=_path(_path_of_text(text), environ) if (text := environ.get("MODELFS_TOKEN_FILE")) else None,
    )


def _assemble_remotes(values: Mapping[str, _Value]) -> dict[str, RemoteConfig]:
    parts: dict[str, dict[str, _Value]] = {}
    for key, value in values.items():
        name, part = key.removeprefix("remotes.").rsplit(".", 1)
        parts.setdefault(name, {})[part] = value
    for name, given in parts.items():
        source = next(iter(given.values())).setting.source
        if "urls" not in given:
            raise BadInput(f"remotes.{name}.urls is missing", where=source, why=f"it is {_REMOTE_KEYS['urls'].allowed}")
        if "key_file" in given and "passphrase_file" in given:
            raise BadInput(f"remotes.{name} has a key_file and a passphrase_file", where=source, why="allowed: one")
    return {name: RemoteConfig(name, **{part: value.parsed for part, value in given.items()})
            for name, given in parts.items()}


def _table(key: str, value: object, source: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _bad_value(key, value, source, f"a section, written [{key}]")
    return value


def _bad_value(key: str, value: object, source: str, allowed: str) -> BadInput:
    # a URL with a password in it is refused, and must not be printed for that
    shown = "(not shown)" if "@" in str(value) else f"{value!r}"[:120]
    name, where = (FLAGS.get(key, key), "") if source == "flag" else (key, source)
    return BadInput(f"{name} cannot be {shown}", where=where, why=f"allowed: {allowed}")


def _unknown(kind: str, name: str, source: str, known: Iterable[str]) -> BadInput:
    from difflib import get_close_matches

    names = list(known)
    near = get_close_matches(name, names, n=1)
    return BadInput(f"unknown {kind} {name[:120]}", where=source, why="" if near else f"known: {', '.join(names)}",
                    advice=f"Did you mean {near[0]}?" if near else "")


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


def _path(value: Any, environ: Mapping[str, str]) -> Path:
    """Relative paths are refused in files: what they would be relative to is a guess."""
    if not isinstance(value, str) or "\0" in value:
        raise ValueError
    if value.startswith("~/"):
        return paths.home_dir(environ) / value[2:]
    if not value.startswith("/"):
        raise ValueError
    return Path(value)


def _path_of_text(text: str) -> str:
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


def _region(value: Any, environ: Mapping[str, str]) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9-]{1,60}", value):
        raise ValueError
    return value


def _defaults(environ: Mapping[str, str]) -> dict[str, object]:
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
        "mount.engine": "auto",
        "mount.allow_other": False,
        "mount.poll": "30s",
        "log.level": "info",
        "log.format": "text",
    }


_SHARE = "a size like 200 GiB, or a part of the disk like 10%"
_A_PATH = "an absolute path, or one that begins with ~/"
_KEYS: dict[str, _Key] = {
    "cache.directory": _Key(_path, _A_PATH, _path_of_text),
    "cache.size": _Key(_share, _SHARE),
    "cache.min_free": _Key(_share, _SHARE),
    "cache.verify": _Key(*_one_of(Verify)),
    "cache.scrub": _Key(_time(0.0), "a time up to 30d, like 7d, 0s for never"),
    "fetch.connections": _Key(_connections, "a number from 1 to 256", int),
    "fetch.deadline": _Key(_time(0.001), "a time from 1ms to 30d, like 60s"),
    "fetch.memory": _Key(_size(16 * MiB), "a size of 16 MiB or more, like 256 MiB"),
    "fetch.readahead": _Key(_size(0), "a size like 64 MiB, 0 for none"),
    "fetch.hydrate": _Key(*_one_of(Hydrate)),
    "mount.engine": _Key(*_one_of(EngineChoice)),
    "mount.allow_other": _Key(_bool, "true, false", _bool_of_text),
    "mount.poll": _Key(_time(0.1), "a time from 100ms to 30d, like 30s"),
    "log.level": _Key(*_one_of(Level)),
    "log.format": _Key(*_one_of(LogFormat)),
}
_REMOTE_KEYS: dict[str, _Key] = {
    "urls": _Key(_urls, "a list of one or more of http://…, https://…, file://…, s3://…, gs://…, az://… or absolute "
                        "paths, without user names or passwords"),
    "token_file": _Key(_path, _A_PATH),
    "key_file": _Key(_path, _A_PATH),
    "passphrase_file": _Key(_path, _A_PATH),
    "endpoint": _Key(_endpoint, "the http:// or https:// URL of an object store, without user name or password"),
    "region": _Key(_region, "the name of a region, like eu-central-1"),
    "anonymous": _Key(_bool, "true, false"),
}
FLAGS = {"cache.directory": "--cache-dir", "cache.size": "--cache-size", "cache.verify": "--verify",
         "fetch.deadline": "--deadline", "mount.engine": "--engine", "mount.poll": "--poll"}
_SECTIONS = tuple(dict.fromkeys(key.split(".")[0] for key in _KEYS))
