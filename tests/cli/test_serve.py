"""`modelfs serve` and its clients as processes: who may read, who may push, and that tokens stay where they are."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests
from faultproxy import FaultProxy
from results import Result

SECRET, READER = "n0t-f0r-readers", "0nly-f0r-reading"
Run = Callable[..., Result]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    source = tmp_path / "source"
    source.mkdir()
    (source / "w.bin").write_bytes(os.urandom(100_000))
    return source


@pytest.fixture
def repository(tmp_path: Path, modelfs: Run) -> Path:
    assert modelfs("init", tmp_path / "repository").code == 0
    return tmp_path / "repository"


def token_file(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    texts = {"server": f"# all\n{SECRET}\n{READER} read\n", "writer": SECRET, "reader": READER, "wrong": "wr0ng"}
    return {name: token_file(tmp_path / name, text) for name, text in texts.items()}


@contextmanager
def serving(environ: Mapping[str, str], *arguments: object) -> Iterator[tuple[str, subprocess.Popen[str], list[str]]]:
    """The URL, the process, and the lines that it wrote, once it has ended."""
    lines: list[str] = []
    process = subprocess.Popen([sys.executable, "-m", "modelfs", "serve", *map(str, arguments), "--port", "0"],
                               env={**environ, "PYTHONPATH": str(Path(__file__).parents[2])}, text=True,
                               stderr=subprocess.PIPE)
    assert process.stderr
    try:
        while "serving" not in (line := process.stderr.readline()):
            assert line, lines
            lines.append(line)
        yield line.split()[-1], process, lines
    finally:
        process.send_signal(signal.SIGTERM)
        lines += process.communicate(timeout=15)[1].splitlines()


def models(modelfs: Run, where: object) -> object:
    return json.loads(modelfs("ls", where, "--json").out)["models"]


def by(file: Path) -> dict[str, str]:
    return {"MODELFS_TOKEN_FILE": str(file)}


def test_a_token_file_says_who_reads_and_who_pushes(environ: dict[str, str], modelfs: Run, repository: Path,
                                                    source: Path, files: dict[str, Path]) -> None:
    with serving(environ, repository, "--token-file", files["server"], "--debug") as (url, process, lines):
        for env, says in (({}, "without a token: name its file by MODELFS_TOKEN_FILE"),
                          (by(files["wrong"]), f"not known here. It was asked with the token in {files['wrong']}")):
            for command in (("ls", url), ("push", source, url, "acme/one")):
                refused = modelfs(*command, env=env)
                assert (refused.code, says in refused.err, refused.err.count("\n")) == (6, True, 1), refused.err
        refused = modelfs("push", source, url, "acme/one", env=by(files["reader"]))
        assert refused.code == 6 and "this token may only read" in refused.err and str(files["reader"]) in refused.err
        pushed = modelfs("push", source, url, "acme/one", "--debug", env=by(files["writer"]))
        listed = modelfs("ls", url, "--debug", env=by(files["reader"]))
        for done in (pushed, listed):
            assert done.code == 0 and SECRET not in done.out + done.err and READER not in done.out + done.err
        for method in ("GET", "HEAD", "PUT", "POST", "PATCH", "DELETE", "OPTIONS"):
            for path in ("", "modelfs.json", "catalog.json", "x"):
                answer = requests.request(method, f"{url}/{path}", timeout=20)
                assert answer.status_code == 401 and answer.headers["WWW-Authenticate"] == "Bearer"
        for name in ("Bad Header", "Authorization "):
            requests.get(url, headers={"Authorization": f"Bearer {SECRET}", name: f"Bearer {SECRET}"}, timeout=20)
        requests.get(f"{url}/%zz", headers={"Authorization": f"Bearer {SECRET}"}, timeout=20)
        requests.put(f"{url}/x", data=iter([b"x"]), timeout=20,
                     headers={"Authorization": f"Bearer {SECRET}", "Content-Length": SECRET})
        shown = Path(f"/proc/{process.pid}/cmdline").read_bytes()
    assert any("request.malformed" in line for line in lines)
    assert not any(secret in "".join(lines) for secret in (SECRET, READER, "wr0ng"))
    assert SECRET.encode() not in shown


def test_anonymous_readers_read_and_only_tokens_push(environ: dict[str, str], modelfs: Run, repository: Path,
                                                     source: Path, files: dict[str, Path]) -> None:
    with serving(environ, repository, "--token-file", files["server"], "--anonymous-read") as (url, _, _):
        for env in ({}, by(files["wrong"]), by(files["reader"])):
            assert modelfs("ls", url, env=env).code == 0
            assert modelfs("push", source, url, "acme/one", env=env).code == 6
        assert modelfs("push", source, url, "acme/one", env=by(files["writer"])).code == 0


def test_anonymous_reading_without_tokens_only_reads(environ: dict[str, str], modelfs: Run, repository: Path,
                                                     source: Path) -> None:
    with serving(environ, repository, "--anonymous-read") as (url, _, _):
        assert modelfs("ls", url).code == 0
        refused = modelfs("push", source, url, "acme/one")
    assert refused.code == 6 and "this server only reads" in refused.err
    assert models(modelfs, repository) == []


def test_who_serves_this_machine_alone_answers_by_its_own_names_alone(environ: dict[str, str],
                                                                      repository: Path) -> None:
    """A page of evil.example can have its name lead to 127.0.0.1, and would then read as a page of the server's own."""
    with serving(environ, repository, "--host", "localhost") as (url, _, _):
        def status(host: str) -> int:
            return requests.get(f"{url}/modelfs.json", headers={"Host": host}, timeout=20).status_code
        for host in ("127.0.0.1:8750", "[::1]:8750", "[::1]", "localhost", "LOCALHOST:1", "localhost.", "10.0.0.7"):
            assert status(host) == 200, host
        for host in ("evil.example", "evil.example:8750", "localhost.evil.example", "127.0.0.1.evil.example", "x"):
            assert status(host) == 403, host
        answer = requests.get(f"{url}/modelfs.json", headers={"Host": "evil.example"}, timeout=20)
    assert "--token-file or --anonymous-read" in answer.text


@pytest.mark.parametrize("flag", ["--anonymous-read", "--token-file"])
def test_who_reads_with_a_token_or_like_everybody_uses_any_name(environ: dict[str, str], repository: Path, flag: str,
                                                                files: dict[str, Path]) -> None:
    more = [files["server"]] if flag == "--token-file" else []
    with serving(environ, repository, flag, *more) as (url, _, _):
        headers = {"Host": "models.example.org", "Authorization": f"Bearer {READER}"}
        assert requests.get(f"{url}/modelfs.json", headers=headers, timeout=20).status_code == 200


def test_a_token_file_that_changes_is_read_again_on_both_sides(
        environ: dict[str, str], modelfs: Run, repository: Path, files: dict[str, Path]) -> None:
    with serving(environ, repository, "--token-file", files["server"]) as (url, _, lines):
        assert modelfs("ls", url, env=by(files["writer"])).code == 0
        token_file(files["server"], "n3w")
        assert modelfs("ls", url, env=by(files["writer"])).code == 6
        token_file(files["writer"], "n3w")
        assert modelfs("ls", url, env=by(files["writer"])).code == 0
        files["server"].chmod(0o644)
        assert modelfs("ls", url, env=by(files["writer"])).code == 0
    assert any("token_file.bad" in line and "0644" in line for line in lines)


@pytest.mark.parametrize("mode", [0o644, 0o640])
def test_a_token_file_that_others_can_read_is_exit_6_by_name(modelfs: Run, repository: Path, files: dict[str, Path],
                                                             mode: int) -> None:
    files["server"].chmod(mode)
    files["writer"].chmod(mode)
    for result, name in ((modelfs("serve", repository, "--token-file", files["server"]), "server"),
                         (modelfs("ls", "http://127.0.0.1:9", env=by(files["writer"])), "writer")):
        assert result.code == 6 and str(files[name]) in result.err and f"{mode:04o}" in result.err


def test_a_token_file_that_is_missing_is_exit_2_by_name(modelfs: Run, repository: Path, tmp_path: Path) -> None:
    for result in (modelfs("serve", repository, "--token-file", tmp_path / "none"),
                   modelfs("ls", "http://127.0.0.1:9", env=by(tmp_path / "none"))):
        assert result.code == 2 and str(tmp_path / "none") in result.err


def test_a_directory_needs_no_token(modelfs: Run, repository: Path, tmp_path: Path) -> None:
    assert modelfs("ls", repository, env=by(tmp_path / "none")).code == 0


def test_a_remote_has_a_token_file_of_its_own(environ: dict[str, str], modelfs: Run, repository: Path,
                                              files: dict[str, Path]) -> None:
    with serving(environ, repository, "--token-file", files["server"]) as (url, _, _):
        config = Path(environ["XDG_CONFIG_HOME"]) / "modelfs/config.toml"
        config.parent.mkdir()
        config.write_text(f'[remotes.own]\nurls = ["{url}"]\ntoken_file = "{files["writer"]}"\n'
                          f'[remotes.bare]\nurls = ["{url}"]\n')
        for name, env, code in (("own", {}, 0), ("own", by(files["wrong"]), 0), ("bare", {}, 6),
                                ("bare", by(files["reader"]), 0), (url, {}, 6)):
            assert modelfs("ls", name, env=env).code == code, (name, env)


def test_a_redirect_to_another_host_does_not_get_the_token(modelfs: Run, repository: Path,
                                                           files: dict[str, Path]) -> None:
    with FaultProxy(repository) as first, FaultProxy(repository) as other:
        first.add("redirect", target=other.url)
        assert modelfs("ls", first.url, env=by(files["writer"])).code == 0
        assert [seen.headers["authorization"] for seen in first.seen()] == [f"Bearer {SECRET}"] * first.requests()
        assert other.requests() and not any("authorization" in seen.headers for seen in other.seen())


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_an_address_that_others_reach_needs_a_token_file_or_reads_only(modelfs: Run, repository: Path,
                                                                       host: str) -> None:
    refused = modelfs("serve", repository, "--host", host, "--port", 0)
    assert refused.code == 2 and "--token-file" in refused.err and "--anonymous-read" in refused.err


@pytest.mark.parametrize("more", [["--anonymous-read"], ["--token-file", "server"]])
def test_with_either_an_address_that_others_reach_is_served(environ: dict[str, str], repository: Path,
                                                            files: dict[str, Path], more: list[str]) -> None:
    arguments = [files.get(word, word) for word in more]
    with serving(environ, repository, "--host", "0.0.0.0", *arguments) as (url, _, _):
        status = requests.get(url.replace("0.0.0.0", "127.0.0.1") + "/modelfs.json", timeout=20).status_code
    assert status == (200 if "--anonymous-read" in more else 401)


def test_an_empty_directory_becomes_a_repository_over_http(environ: dict[str, str], modelfs: Run, tmp_path: Path,
                                                           source: Path) -> None:
    (tmp_path / "empty").mkdir()
    with serving(environ, tmp_path / "empty") as (url, _, lines):
        assert modelfs("ls", url).code == 3
        assert modelfs("init", url).code == 0
        assert modelfs("init", url).code == 7
        assert modelfs("push", source, url, "acme/one").code == 0
    assert "is empty" in lines[0]
    assert modelfs("verify", tmp_path / "empty", "--read-data").code == 0
    assert modelfs("serve", tmp_path / "source").code == 3


def test_a_push_to_a_full_disk_is_exit_8_and_shows_nothing(environ: dict[str, str], modelfs: Run, repository: Path,
                                                           tmp_path: Path) -> None:
    big = tmp_path / "big"
    big.mkdir()
    (big / "w.bin").write_bytes(os.urandom(3 << 20))
    limited = f"""
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
sys.argv = ["modelfs", "serve", {str(repository)!r}, "--port", "0"]
runpy.run_module("modelfs", run_name="__main__")
"""
    process = subprocess.Popen([sys.executable, "-c", limited], stderr=subprocess.PIPE, text=True,
                               env={**environ, "PYTHONPATH": str(Path(__file__).parents[2])})
    try:
        assert process.stderr
        url = process.stderr.readline().split()[-1]
        failed = modelfs("push", big, url, "acme/one")
        assert failed.code == 8 and "no space" in failed.err
        assert models(modelfs, url) == []
    finally:
        process.terminate()
        process.communicate(timeout=15)
