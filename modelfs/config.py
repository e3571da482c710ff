"""Configuration: built in, /etc, the user's file, --config, environment, flags; what comes later wins.

Rule: a `Config` is valid as a whole, and each of its settings knows where it came from; whatever is wrong is
one BadInput that names the place, the key, the value and what is allowed. The environment is an argument.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from modelfs import paths
from modelfs.errors import BadInput, Forbidden, ModelfsError
from modelfs.logs import Level
from modelfs.settings import (
    FLAGS,
    KEYS,
    REMOTE_KEYS,
    SECTIONS,
    EngineChoice,
    Hydrate,
    Key,
    LogFormat,
    Verify,
    Yanked,
    absolute,
    as_path,
    defaults,
)
from modelfs.units import DiskShare

MAX_FILE_BYTES = 1 << 20


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
    """memory_bytes: ceiling of fetch and decode buffers. readahead_bytes: largest window of one stream. hedge: whether
    a second mirror is asked for what takes longer than 19 of 20 requests did."""

    connections: int
    deadline_s: float
    memory_bytes: int
    readahead_bytes: int
    hydrate: Hydrate
    hedge: bool = False


@dataclass(frozen=True, slots=True)
class MountConfig:
    engine: EngineChoice
    allow_other: bool
    poll_s: float


@dataclass(frozen=True, slots=True)
class PolicyConfig:
    """yanked: whether a version that was withdrawn is read with a warning, or not at all."""

    yanked: Yanked


@dataclass(frozen=True, slots=True)
class LogConfig:
    level: Level
    format: LogFormat


@dataclass(frozen=True, slots=True)
class RemoteConfig:
    """urls: at least one; mirrors of the same repository, in order of preference. endpoint, region, anonymous: of
    object stores; None: what the environment says. ca_file, client_cert, client_key: PEM, for https://; a
    certificate may hold its key. etcd: URLs of the members that keep the catalog's serial; none: the store itself."""

    name: str
    urls: tuple[str, ...]
    token_file: Path | None = None
    key_file: Path | None = None
    passphrase_file: Path | None = None
    endpoint: str | None = None
    region: str | None = None
    anonymous: bool = False
    ca_file: Path | None = None
    client_cert: Path | None = None
    client_key: Path | None = None
    etcd: tuple[str, ...] = ()


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
    policy: PolicyConfig
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
    found = {key: _read_value(key, KEYS[key], value, "default", environ) for key, value in defaults(environ).items()}
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


def _read_value(key: str, spec: Key, value: object, source: str, environ: Mapping[str, str]) -> _Value:
    try:
        parsed = spec.parse(value, environ)
    except (ValueError, TypeError, OverflowError, ModelfsError):
        raise _bad_value(key, value, source, spec.allowed) from None
    shown = str(parsed) if isinstance(parsed, Path) else value
    return _Value(parsed, Setting(cast(Any, shown), source))


def _read_text(key: str, text: str, source: str, environ: Mapping[str, str]) -> _Value:
    spec = KEYS.get(key)
    if spec is None:
        raise _unknown("key", key, source, KEYS)
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
        if section not in SECTIONS and section != "remotes":
            raise _unknown("section", section, source, [*SECTIONS, "remotes"])
        for name, value in _table(section, keys, source).items():
            key = f"{section}.{name}"
            if section == "remotes":
                _apply_remote(key, name, _table(key, value, source), source, remotes, environ)
            elif key in KEYS:
                found[key] = _read_value(key, KEYS[key], value, source, environ)
            else:
                raise _unknown("key", key, source, KEYS)


def _apply_remote(key: str, name: str, table: dict[str, Any], source: str, remotes: dict[str, _Value],
                  environ: Mapping[str, str]) -> None:
    if not name or "/" in name or ":" in name or not name.isprintable():
        raise BadInput(f"not a name of a remote {name[:80]!r}", where=source, why="it has no / or : and is printable")
    for part, value in table.items():
        if part not in REMOTE_KEYS:
            raise _unknown("key", f"{key}.{part}", source, [f"{key}.{known}" for known in REMOTE_KEYS])
        remotes[f"{key}.{part}"] = _read_value(f"{key}.{part}", REMOTE_KEYS[part], value, source, environ)


def _environment_keys(environ: Mapping[str, str]) -> Iterable[tuple[str, str]]:
    """The variables that are settings, and their keys. An empty one counts as not set, as everywhere in XDG."""
    known = {f"MODELFS_{key.replace('.', '_').upper()}": key for key in KEYS}
    for variable in sorted(environ):
        if variable in known:
            if environ[variable]:
                yield variable, known[variable]
        elif variable.startswith(tuple(f"MODELFS_{section.upper()}_" for section in SECTIONS)):
            raise _unknown("variable", variable, "the environment", known)


def _assemble(found: Mapping[str, _Value], remotes: Mapping[str, _Value], environ: Mapping[str, str]) -> Config:
    get = {key: value.parsed for key, value in found.items()}
    return Config(
        cache=CacheConfig(get["cache.directory"], get["cache.size"], get["cache.min_free"], get["cache.verify"],
                          get["cache.scrub"]),
        fetch=FetchConfig(get["fetch.connections"], get["fetch.deadline"], get["fetch.memory"],
                          get["fetch.readahead"], get["fetch.hydrate"], get["fetch.hedge"]),
        mount=MountConfig(get["mount.engine"], get["mount.allow_other"], get["mount.poll"]),
        policy=PolicyConfig(get["policy.yanked"]),
        log=LogConfig(get["log.level"], get["log.format"]),
        remotes=_assemble_remotes(remotes),
        settings={key: value.setting for key, value in (*found.items(), *remotes.items())},
        token_file=as_path(absolute(text), environ) if (text := environ.get("MODELFS_TOKEN_FILE")) else None,
    )


def _assemble_remotes(values: Mapping[str, _Value]) -> dict[str, RemoteConfig]:
    parts: dict[str, dict[str, _Value]] = {}
    for key, value in values.items():
        name, part = key.removeprefix("remotes.").rsplit(".", 1)
        parts.setdefault(name, {})[part] = value
    for name, given in parts.items():
        source = next(iter(given.values())).setting.source
        if "urls" not in given:
            raise BadInput(f"remotes.{name}.urls is missing", where=source, why=f"it is {REMOTE_KEYS['urls'].allowed}")
        if "key_file" in given and "passphrase_file" in given:
            raise BadInput(f"remotes.{name} has a key_file and a passphrase_file", where=source, why="allowed: one")
        if "client_key" in given and "client_cert" not in given:
            raise BadInput(f"remotes.{name} has a client_key without a client_cert", where=source)
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
