"""Token files: what is refused, what is noticed, and that a token never shows."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

import pytest

from modelfs.errors import BadInput, Forbidden
from modelfs.tokens import ClientToken, Role, TokenFile, _Stamp


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path / "tokens", "# who may what\nwriter-1\n\n  reader-1 read  # the CI\nwriter-2\n")


def test_a_line_is_a_token_and_perhaps_read(file: Path) -> None:
    tokens = TokenFile(file)
    roles = {"writer-1": Role.WRITE, "reader-1": Role.READ, "writer-2": Role.WRITE}
    assert {token: tokens.role_of(token) for token in roles} == roles
    for unknown in ("", "writer", "writer-11", "WRITER-1", "#", "read", "writer-1 ", "wrïter", "\udcff"):
        assert tokens.role_of(unknown) is None


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620, 0o602])
def test_a_file_that_others_can_use_is_forbidden_by_name(file: Path, mode: int) -> None:
    file.chmod(mode)
    for kind in (TokenFile, ClientToken):
        with pytest.raises(Forbidden, match=f"{file}.*mode is 0{mode:o}.*chmod 600"):
            kind(file)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_somebody_else_is_forbidden(file: Path) -> None:
    os.chown(file, 12345, -1)
    with pytest.raises(Forbidden, match="uid 12345"):
        TokenFile(file)


@pytest.mark.parametrize("text", ["secret-1 write\n", "secret-1 read more\n", "", "# only words\n", "secrét-1\n",
                                  "secret-1\nsecret-1 read\n", "secret-1" + "x" * 600 + "\n", "\0secret-1\n"])
def test_what_holds_no_tokens_is_bad_input_and_shows_none(tmp_path: Path, text: str) -> None:
    with pytest.raises(BadInput, match="tokens") as caught:
        TokenFile(write(tmp_path / "tokens", text))
    assert "secr" not in str(caught.value)


def test_what_is_no_file_is_bad_input(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo", 0o600)
    for path in (tmp_path / "none", tmp_path, tmp_path / "fifo", Path("a\0b"),
                 write(tmp_path / "huge", "#" * (2 << 20))):
        with pytest.raises(BadInput):
            TokenFile(path)


def test_a_change_is_noticed_in_place_and_by_rename(file: Path, tmp_path: Path) -> None:
    tokens = TokenFile(file)
    for n in range(20):  # of the same size, and within one tick of the clock
        write(file, f"new-{n:02}")
        assert tokens.role_of(f"new-{n:02}") is Role.WRITE and tokens.role_of(f"new-{n - 1:02}") is None
    os.replace(write(tmp_path / "next", "renamed read"), file)
    assert tokens.role_of("renamed") is Role.READ and tokens.role_of("new-19") is None


def test_what_is_written_within_one_tick_of_the_file_clock_is_noticed(file: Path,
                                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = _Stamp(1, 2, 3, time.time_ns(), time.time_ns())  # a clock that stands still
    monkeypatch.setattr(_Stamp, "of", lambda _: ticks)
    tokens = TokenFile(write(file, "one"))
    write(file, "two")
    assert tokens.role_of("two") is Role.WRITE and tokens.role_of("one") is None


def test_a_settled_file_is_not_read_again_until_it_changes(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelfs.tokens._SETTLED_S", -1e9)
    tokens = TokenFile(file)
    monkeypatch.setattr("modelfs.tokens._read_private", None)
    assert tokens.role_of("writer-1") is Role.WRITE
    file.chmod(0o400)
    with pytest.raises(TypeError):
        tokens.tokens()


@pytest.mark.parametrize("spoil", ["mode", "content", "no file"])
def test_a_file_that_became_bad_keeps_the_last_good_tokens_and_is_logged_once(
        file: Path, spoil: str, caplog: pytest.LogCaptureFixture) -> None:
    tokens = TokenFile(file)
    match spoil:
        case "mode":
            file.chmod(0o644)
        case "content":
            write(file, "two words-of-secret\n")
        case _:
            file.unlink()
            file.mkdir(0o700)
    with caplog.at_level(logging.INFO, "modelfs"):
        for _ in range(3):
            assert tokens.role_of("writer-1") is Role.WRITE
    assert [record.message for record in caplog.records] == ["token_file.bad"]
    if file.is_dir():
        file.rmdir()
    write(file, "fresh")
    with caplog.at_level(logging.INFO, "modelfs"):
        assert tokens.role_of("fresh") is Role.WRITE and tokens.role_of("writer-1") is None
    told = "".join(str(vars(record)) for record in caplog.records)
    assert not any(secret in told for secret in ("writer-1", "words-of-secret", "'fresh'"))


@pytest.mark.parametrize(("spoil", "event"), [("missing", "token_file.bad"), ("empty", "token_file.read"),
                                              ("comments", "token_file.read")])
def test_a_file_without_tokens_or_no_file_refuses_everybody_until_there_are_some(
        file: Path, spoil: str, event: str, caplog: pytest.LogCaptureFixture) -> None:
    tokens = TokenFile(file)
    file.unlink() if spoil == "missing" else write(file, "# none\n" if spoil == "comments" else "")
    with caplog.at_level(logging.INFO, "modelfs"):
        assert [tokens.role_of(token) for token in ("writer-1", "writer-2", "reader-1")] == [None] * 3
    assert [(record.message, record.levelname) for record in caplog.records] == [(event, "WARNING")]
    write(file, "writer-2")
    assert (tokens.role_of("writer-2"), tokens.role_of("writer-1")) == (Role.WRITE, None)


def test_a_file_that_went_and_came_back_has_its_tokens_again(file: Path, tmp_path: Path,
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelfs.tokens._SETTLED_S", -1e9)
    tokens = TokenFile(file)
    file.rename(tmp_path / "aside")
    assert tokens.role_of("writer-1") is None
    (tmp_path / "aside").rename(file)
    assert tokens.role_of("writer-1") is Role.WRITE


def test_a_number_sign_within_a_token_is_part_of_it(file: Path) -> None:
    tokens = TokenFile(write(file, "a#Xk29-long\nb read #Xk29\n#c\n\t# d\n"))
    assert [tokens.role_of(token) for token in ("a#Xk29-long", "b", "a", "#c", "c", "d")] == [
        Role.WRITE, Role.READ, None, None, None, None]
    with pytest.raises(BadInput):
        TokenFile(write(file, "a read#x\n"))


@pytest.mark.parametrize("spoil", ["missing", "empty"])
def test_a_client_goes_on_with_its_token_when_its_file_holds_none_any_more(file: Path, spoil: str) -> None:
    token = ClientToken(write(file, "abc"))
    file.unlink() if spoil == "missing" else write(file, "")
    assert token.headers() == {"Authorization": "Bearer abc"}
    write(file, "def")
    assert token.headers() == {"Authorization": "Bearer def"}


def test_a_client_has_one_token_and_sends_the_one_that_is_there_now(file: Path) -> None:
    with pytest.raises(BadInput, match="holds 3 tokens"):
        ClientToken(file)
    token = ClientToken(write(file, "# mine\nabc read\n"))
    assert token.headers() == {"Authorization": "Bearer abc"}
    write(file, "def")
    assert token.headers() == {"Authorization": "Bearer def"}


def test_a_token_does_not_show_where_objects_are_printed(file: Path) -> None:
    assert "writer" not in repr(TokenFile(file).tokens()) + str(TokenFile(file)) + str(vars(ClientToken(
        write(file, "writer-9"))))
