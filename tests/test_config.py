"""The configuration: which place wins, what each setting becomes, and what is refused, by name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from modelfs.config import Config, RemoteConfig, load_config
from modelfs.errors import BadInput
from modelfs.units import DiskShare, MiB

KEYS = ["cache.directory", "cache.size", "cache.min_free", "cache.verify", "cache.scrub", "fetch.connections",
        "fetch.deadline", "fetch.memory", "fetch.readahead", "fetch.hydrate", "fetch.hedge", "mount.engine",
        "mount.allow_other", "mount.poll", "policy.yanked", "log.level", "log.format"]


class Places:
    """The places of a configuration, as real files in a directory."""

    def __init__(self, root: Path) -> None:
        self.etc, self.user, self.own = root / "etc.toml", root / "xdg" / "modelfs" / "config.toml", root / "own.toml"
        self.user.parent.mkdir(parents=True)
        self.environ = {"HOME": str(root / "home"), "XDG_CONFIG_HOME": str(root / "xdg"),
                        "XDG_CACHE_HOME": str(root / "cache")}

    def load(self, *, own: bool = False, **flags: str) -> Config:
        return load_config(file=self.own if own else None, environ=self.environ, etc=self.etc,
                           flags={name.replace("_", ".", 1): value for name, value in flags.items()})


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(tmp_path)


def refusal(places: Places, text: str) -> str:
    places.own.write_text(text)
    with pytest.raises(BadInput) as caught:
        places.load(own=True)
    line = str(caught.value)
    assert "\n" not in line and str(places.own) in line
    return line


def test_without_any_file_every_key_has_its_default(places: Places) -> None:
    config = places.load()
    assert list(config.show()) == KEYS
    assert {setting["source"] for setting in config.show().values()} == {"default"}
    cache = Path("/var/cache/modelfs") if os.geteuid() == 0 else Path(places.environ["XDG_CACHE_HOME"]) / "modelfs"
    assert config.cache.directory == cache
    assert config.cache.size == DiskShare(fraction=0.1) and config.cache.min_free == DiskShare(fraction=0.05)
    assert (config.cache.scrub_s, config.fetch.connections, config.fetch.deadline_s) == (7 * 86400.0, 8, 60.0)
    assert (config.fetch.memory_bytes, config.fetch.readahead_bytes) == (256 * MiB, 64 * MiB)
    assert (config.cache.verify, config.fetch.hydrate, config.mount.engine) == ("mount", "sequential", "auto")
    assert (config.mount.allow_other, config.mount.poll_s) == (False, 30.0)
    assert (config.fetch.hedge, config.policy.yanked) == (False, "warn")
    assert (config.log.level, config.log.format, config.remotes) == ("info", "text", {})


def test_each_place_wins_over_those_before_it_and_is_named_as_the_source(places: Places) -> None:
    def now(**flags: str) -> tuple[int | None, object]:
        config = places.load(own=places.own.exists(), **flags)
        return config.cache.size.size_bytes, config.show()["cache.size"]["source"]

    places.etc.write_text('[cache]\nsize = "1 MiB"\n')
    assert now() == (1 * MiB, str(places.etc))
    places.user.write_text('[cache]\nsize = "2 MiB"\n')
    assert now() == (2 * MiB, str(places.user))
    places.own.write_text('[cache]\nsize = "3 MiB"\n')
    assert now() == (3 * MiB, str(places.own))
    places.environ["MODELFS_CACHE_SIZE"] = "4MiB"
    assert now() == (4 * MiB, "env MODELFS_CACHE_SIZE")
    assert now(cache_size="5MiB") == (5 * MiB, "flag")


def test_a_file_changes_only_the_keys_that_it_names(places: Places) -> None:
    places.etc.write_text('[cache]\nsize = "1 MiB"\nverify = "always"\n[fetch]\nconnections = 3\n')
    places.user.write_text('[cache]\nsize = "2 MiB"\n')
    config = places.load()
    assert (config.cache.size.size_bytes, config.cache.verify, config.fetch.connections) == (2 * MiB, "always", 3)


def test_values_are_shown_as_they_were_written(places: Places) -> None:
    places.own.write_text('[cache]\nsize = "1.5 GiB"\nmin_free = 4096\n[fetch]\ndeadline = "90s"\n'
                          '[mount]\nallow_other = true\n[remotes.lab]\nurls = ["https://models.example.org/a"]\n')
    shown = {key: setting["value"] for key, setting in places.load(own=True).show().items()}
    assert (shown["cache.size"], shown["cache.min_free"], shown["fetch.deadline"]) == ("1.5 GiB", 4096, "90s")
    assert shown["mount.allow_other"] is True
    assert shown["remotes.lab.urls"] == ["https://models.example.org/a"]


@pytest.mark.parametrize(("variable", "text", "key", "value"), [
    ("MODELFS_FETCH_CONNECTIONS", "3", "fetch.connections", 3),
    ("MODELFS_MOUNT_ALLOW_OTHER", "yes", "mount.allow_other", True),
    ("MODELFS_MOUNT_ALLOW_OTHER", "0", "mount.allow_other", False),
    ("MODELFS_CACHE_MIN_FREE", "10%", "cache.min_free", "10%"),
    ("MODELFS_CACHE_SCRUB", "0s", "cache.scrub", "0s"),
    ("MODELFS_LOG_FORMAT", "json", "log.format", "json"),
    ("MODELFS_CACHE_DIRECTORY", "/srv/cache", "cache.directory", "/srv/cache"),
])
def test_the_environment_sets_a_key_in_its_own_type(places: Places, variable: str, text: str, key: str,
                                                   value: object) -> None:
    places.environ[variable] = text
    assert places.load().show()[key] == {"value": value, "source": f"env {variable}"}


def test_an_empty_variable_counts_as_not_set(places: Places) -> None:
    places.environ["MODELFS_CACHE_SIZE"] = ""
    assert places.load().show()["cache.size"]["source"] == "default"


def test_variables_that_are_no_settings_are_left_alone(places: Places) -> None:
    places.environ |= {"MODELFS_TOKEN_FILE": "/t", "MODELFS_KEY_FILE": "/k", "MODELFS_PASSPHRASE_FILE": "/p",
                       "MODELFS_OTHER": "1"}
    assert list(places.load().show()) == KEYS


def test_relative_paths_are_taken_from_the_command_line_and_made_absolute(places: Places) -> None:
    assert places.load(cache_directory="some/where").cache.directory == Path.cwd() / "some/where"


def test_a_tilde_is_the_home_of_the_environment_given(places: Places) -> None:
    places.own.write_text('[cache]\ndirectory = "~/models"\n')
    assert places.load(own=True).cache.directory == Path(places.environ["HOME"]) / "models"


def test_remotes_are_merged_key_by_key_over_the_files(places: Places) -> None:
    places.etc.write_text('[remotes.lab]\nurls = ["https://a.example.org", "/srv/b"]\n[remotes.other]\nurls = ["/x"]\n')
    places.user.write_text('[remotes.lab]\ntoken_file = "/t"\n')
    config = places.load()
    assert config.remotes["lab"] == RemoteConfig("lab", ("https://a.example.org", "/srv/b"), Path("/t"))
    assert config.remotes["other"] == RemoteConfig("other", ("/x",))
    assert config.show()["remotes.lab.token_file"] == {"value": "/t", "source": str(places.user)}


def test_a_remote_says_where_an_object_store_is(places: Places) -> None:
    places.own.write_text('[remotes.lab]\nurls = ["s3://bucket/models"]\nendpoint = "http://127.0.0.1:9000/"\n'
                          'region = "eu-central-1"\nanonymous = true\n')
    config = places.load(own=True)
    assert config.remotes["lab"] == RemoteConfig("lab", ("s3://bucket/models",), endpoint="http://127.0.0.1:9000",
                                                 region="eu-central-1", anonymous=True)
    assert config.show()["remotes.lab.anonymous"]["value"] is True


def test_a_remote_says_whom_it_trusts_what_it_shows_and_who_keeps_its_serial(places: Places) -> None:
    places.own.write_text('[remotes.lab]\nurls = ["https://m"]\nca_file = "/ca"\nclient_cert = "/c"\n'
                          'client_key = "/k"\netcd = ["http://a:2379/", "https://b:2379"]\n')
    assert places.load(own=True).remotes["lab"] == RemoteConfig(
        "lab", ("https://m",), ca_file=Path("/ca"), client_cert=Path("/c"), client_key=Path("/k"),
        etcd=("http://a:2379", "https://b:2379"))


@pytest.mark.parametrize(("text", "named"), [
    ('[cache]\nsized = "1 GiB"\n', ["cache.sized", "cache.size?"]),
    ('[casche]\nsize = "1 GiB"\n', ["casche", "cache?"]),
    ('size = "1 GiB"\n', ["size"]),
    ('cache = 5\n', ["cache", "5", "[cache]"]),
    ('[cache]\nsize = "lots"\n', ["cache.size", "'lots'", "200 GiB", "10%"]),
    ('[cache]\nsize = -5\n', ["cache.size", "-5"]),
    ('[cache]\nsize = 1.5\n', ["cache.size", "1.5"]),
    ('[cache]\nsize = true\n', ["cache.size", "True"]),
    ('[cache]\nsize = "101%"\n', ["cache.size", "101%"]),
    (f'[cache]\nsize = "{"9" * 400} PiB"\n', ["cache.size"]),
    ('[cache]\nsize = "9999999 PiB"\n', ["cache.size", "'9999999 PiB'"]),
    ('[cache.size]\nx = 1\n', ["cache.size", "'x': 1"]),
    ('[cache]\nmin_free = "some"\n', ["cache.min_free", "'some'"]),
    ('[cache]\nverify = "never"\n', ["cache.verify", "'never'", "mount, changed, always"]),
    ('[cache]\ndirectory = "relative/path"\n', ["cache.directory", "relative/path", "absolute"]),
    ('[cache]\ndirectory = 3\n', ["cache.directory", "3"]),
    ('[cache]\ndirectory = "/a\\u0000b"\n', ["cache.directory"]),
    ('[fetch]\nconnections = "many"\n', ["fetch.connections", "'many'"]),
    ('[fetch]\nconnections = 0\n', ["fetch.connections", " 0", "1 to 256"]),
    ('[fetch]\nconnections = 257\n', ["fetch.connections", "257"]),
    ('[fetch]\nconnections = true\n', ["fetch.connections", "True"]),
    ('[fetch]\ndeadline = "soon"\n', ["fetch.deadline", "'soon'", "60s"]),
    ('[fetch]\ndeadline = "0s"\n', ["fetch.deadline", "'0s'"]),
    ('[fetch]\ndeadline = "999999d"\n', ["fetch.deadline", "'999999d'"]),
    ('[fetch]\ndeadline = 60\n', ["fetch.deadline", "60"]),
    ('[fetch]\nmemory = "15 MiB"\n', ["fetch.memory", "'15 MiB'", "16 MiB"]),
    ('[fetch]\nreadahead = "-1"\n', ["fetch.readahead", "'-1'"]),
    ('[fetch]\nhydrate = "all"\n', ["fetch.hydrate", "'all'", "off, sequential, file, model"]),
    ('[mount]\nengine = "warp"\n', ["mount.engine", "'warp'", "auto, native, fusepy"]),
    ('[mount]\nallow_other = "perhaps"\n', ["mount.allow_other", "'perhaps'", "true, false"]),
    ('[mount]\npoll = "0s"\n', ["mount.poll", "'0s'"]),
    ('[log]\nlevel = "loud"\n', ["log.level", "'loud'", "debug, info, warning, error"]),
    ('[log]\nformat = "xml"\n', ["log.format", "'xml'", "text, json"]),
    ('[remotes.lab]\nurl = "http://x"\n', ["remotes.lab.url", "remotes.lab.urls?"]),
    ('[remotes.lab]\nurls = "http://x"\n', ["remotes.lab.urls", "'http://x'", "a list"]),
    ('[remotes.lab]\nurls = []\n', ["remotes.lab.urls", "[]"]),
    ('[remotes.lab]\nurls = ["gopher://x"]\n', ["remotes.lab.urls", "gopher://x"]),
    ('[remotes.lab]\nurls = [7]\n', ["remotes.lab.urls", "[7]"]),
    ('[remotes.lab]\ntoken_file = "/t"\n', ["remotes.lab.urls", "missing"]),
    ('[remotes.lab]\nurls = ["/x"]\ntoken_file = "t"\n', ["remotes.lab.token_file", "'t'"]),
    ('[remotes.lab]\nurls = ["/x"]\nkey_file = "/k"\npassphrase_file = "/p"\n', ["key_file", "passphrase_file"]),
    ('[remotes.lab]\nurls = ["s3://k:secret@bucket"]\n', ["remotes.lab.urls", "not shown"]),
    ('[remotes.lab]\nurls = ["s3://b"]\nendpoint = "host:9000"\n', ["remotes.lab.endpoint", "'host:9000'", "https://"]),
    ('[remotes.lab]\nurls = ["s3://b"]\nendpoint = "http://k:s@h"\n', ["remotes.lab.endpoint", "not shown"]),
    ('[remotes.lab]\nurls = ["s3://b"]\nendpoint = 9000\n', ["remotes.lab.endpoint", "9000"]),
    ('[remotes.lab]\nurls = ["s3://b"]\nregion = "a b"\n', ["remotes.lab.region", "'a b'", "eu-central-1"]),
    ('[remotes.lab]\nurls = ["s3://b"]\nanonymous = "yes"\n', ["remotes.lab.anonymous", "'yes'", "true, false"]),
    ('[remotes.lab]\nurls = ["https://m"]\nclient_key = "/k"\n', ["remotes.lab", "client_key", "client_cert"]),
    ('[remotes.lab]\nurls = ["s3://b"]\netcd = ["10.0.0.1:2379"]\n', ["remotes.lab.etcd", "10.0.0.1", "https://"]),
    ('[policy]\nyanked = "no"\n', ["policy.yanked", "'no'", "warn, deny"]),
    ('[remotes]\nlab = 1\n', ["remotes.lab", "1"]),
    ('[remotes."a/b"]\nurls = ["/x"]\n', ["a/b"]),
    ('[cache\nsize = 1\n', ["TOML", "line 1"]),
    ('[cache]\n\nsize = \n', ["TOML", "line 3"]),
    ('[cache]\nsize = "1 MiB"\nsize = "2 MiB"\n', ["TOML", "line 3"]),
    ("x = " + "[" * 100_000, ["TOML"]),
])
def test_what_is_wrong_in_a_file_is_one_line_with_file_key_value_and_what_is_allowed(
        places: Places, text: str, named: list[str]) -> None:
    line = refusal(places, text)
    assert [word for word in named if word not in line] == []


def test_bytes_that_are_not_utf8_are_refused_with_their_line(places: Places) -> None:
    places.own.write_bytes(b'[cache]\nsize = "\xff"\n')
    with pytest.raises(BadInput, match=r"own\.toml line 2: it is not UTF-8"):
        places.load(own=True)


def test_a_password_in_a_url_is_refused_and_not_repeated(places: Places) -> None:
    line = refusal(places, '[remotes.lab]\nurls = ["https://user:hunter2@models.example.org"]\n')
    assert "remotes.lab.urls" in line and "hunter2" not in line


@pytest.mark.parametrize(("variable", "text"), [
    ("MODELFS_CACHE_SIZE", "plenty"), ("MODELFS_FETCH_CONNECTIONS", "0"), ("MODELFS_FETCH_CONNECTIONS", "x"),
    ("MODELFS_MOUNT_ALLOW_OTHER", "perhaps"), ("MODELFS_FETCH_DEADLINE", "60"), ("MODELFS_LOG_LEVEL", "loud"),
])
def test_a_bad_value_of_a_variable_names_the_variable_and_the_value(places: Places, variable: str, text: str) -> None:
    places.environ[variable] = text
    with pytest.raises(BadInput) as caught:
        places.load()
    assert f"env {variable}" in str(caught.value) and f"{text}" in str(caught.value) and "allowed" in str(caught.value)


@pytest.mark.parametrize("variable", ["MODELFS_CACHE_SIZES", "MODELFS_FETCH_X", "MODELFS_MOUNT_", "MODELFS_LOG_LEVELS"])
def test_a_variable_that_looks_like_a_setting_and_is_none_is_refused(places: Places, variable: str) -> None:
    places.environ[variable] = "1"
    with pytest.raises(BadInput, match=f"unknown variable {variable}"):
        places.load()


def test_a_bad_flag_is_named_as_it_was_typed(places: Places) -> None:
    with pytest.raises(BadInput, match=r"^--cache-size cannot be 'lots': allowed: a size"):
        places.load(cache_size="lots")
    with pytest.raises(BadInput, match=r"^--deadline cannot be '5x': allowed: a time"):
        places.load(fetch_deadline="5x")


def test_a_missing_file_is_refused_only_where_it_was_asked_for(places: Places) -> None:
    with pytest.raises(BadInput, match=r"no configuration file, .*own\.toml"):
        places.load(own=True)
    places.user.parent.rmdir()
    assert places.load().show()["cache.size"]["source"] == "default"


def test_a_directory_or_an_endless_file_in_place_of_the_configuration_is_refused(places: Places) -> None:
    places.own.mkdir()
    with pytest.raises(BadInput, match="cannot read the configuration"):
        places.load(own=True)
    with pytest.raises(BadInput, match="more than 1 MiB"):
        load_config(file=Path("/dev/zero"), flags={}, environ=places.environ, etc=places.etc)
