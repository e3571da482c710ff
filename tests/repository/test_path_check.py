"""Paths looked at all at once: exactly those pass that pass one by one, wherever a slab ends."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelfs.repository import path_check
from modelfs.repository.manifest import check_path, path_key

LONG = b"a" * 255
piece = st.sampled_from([b"a", b"b", b"/", b"/", b".", b"..", b"-", b"0", b"\x01", b"\0", b"\xff", "ä".encode(),
                         b"\xc3", b"\xa4", b"\xed\xa0\x80", "\U0001f600".encode(), b"abcdefgh", b"abcdefg/", LONG,
                         LONG[1:]])
paths = st.lists(st.lists(piece, max_size=6).map(b"".join), min_size=1, max_size=7)


def sound(paths: list[bytes]) -> bool:
    return path_check.sound(np.frombuffer(b"".join(paths), np.uint8),
                            np.cumsum([len(path) for path in paths], dtype=np.uint64))


def sound_one_by_one(paths: list[bytes]) -> bool:
    keys = [path_key(path) for path in paths]
    return not any(map(check_path, paths)) and all(
        old < new and not new.startswith(old + b"\0") for old, new in pairwise(keys))


def fit(paths: list[bytes]) -> list[bytes]:
    return sorted({path for path in paths if not check_path(path)}, key=path_key)


@pytest.fixture(params=[1, 2, 3, 1 << 14])
def slab_files(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(path_check, "_SLAB_FILES", request.param)


@pytest.mark.usefixtures("slab_files")
def test_all_paths_are_sound_where_each_is() -> None:
    @given(st.one_of(paths, paths.map(fit).filter(bool)))
    def check(paths: list[bytes]) -> None:
        assert sound(paths) == sound_one_by_one(paths)
    check()


@pytest.mark.usefixtures("slab_files")
@pytest.mark.parametrize("paths", [
    [b"a", b"a/b"], [b"abcdefgh", b"abcdefgh/x"], [b"abcdefg", b"abcdefg/x"], [b"a", b"a"], [b"abcdefgh", b"abcdefgh"],
    [b"b", b"a"], [b"a.x", b"a/x"], [b"abcdefgh.x", b"abcdefgh/x"], [b"a/", b"b"], [b"a", b"/b"], [b"a", b"", b"b"],
    [b"a\xc3", b"\xa4b"], ["ä".encode(), b"\xa4"], [b"a" * 256], [LONG + b"/" + b"a" * 256], [b"b/" * 2047 + b"bb"],
    [b"a/.", b"b"], [b"a/..", b"b"], [b"./a"], [b"a/../b"], [b"a\0b"],
], ids=repr)
def test_paths_that_are_wrong_among_those_that_are_right(paths: list[bytes]) -> None:
    assert not sound_one_by_one(paths)
    before = [b"%06d/x" % number for number in range(5)]
    assert sound(before) and not sound(before + paths)
    after = [b"~/%06d" % number for number in range(5)]
    assert sound(after) and not sound(paths + after)


@pytest.mark.usefixtures("slab_files")
def test_what_may_stand_stands() -> None:
    right = fit([b"a/x", b"a.x", b"a/y", b"a0", b"a/...", b"a/.b", b"a/..b", b"a/b.", LONG, LONG[1:] + b"/x", b"\x01/x",
                 b"q", b"q\x01", b"r/x", b"r\x01x", b"\x7f", "ä/ö".encode(), "ä.".encode(), "\U0001f600".encode(),
                 "/".join(["a" * 203] * 20).encode()])
    assert len(right) == 20 and sound_one_by_one(right) and sound(right)


def test_a_slab_ends_where_it_has_bytes_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(path_check, "_SLAB_BYTES", 10)
    many = [b"%03d/%s" % (number, b"x" * (number % 20 + 1)) for number in range(200)]
    assert sound(many)
    for number in range(1, 200):
        assert not sound([*many[:number], many[number - 1], *many[number:]])
