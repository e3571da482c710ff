"""Commands and mounts with a real nginx that asks for certificates, and through a proxy, as a site would have them."""

from __future__ import annotations

import json
import signal
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import etcdservers
import pytest
from connectproxy import ConnectProxy
from mount.mounting import Mounter, reader, until
from servers import own_server
from tlsservers import Authority, TlsServer, tls_nginx
from transfer.pushed import make_repository, noise, write

from modelfs.units import KiB, MiB

DATA = noise(50, 3 * MiB)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "pki")


@pytest.fixture
def front(tmp_path: Path, authority: Authority) -> Iterator[TlsServer]:
    """nginx that asks for certificates, in front of a server that may be written to."""
    make_repository(tmp_path / "repository")
    shown = authority.issue("server", ["127.0.0.1", "models.example.org"])
    with (own_server(tmp_path / "repository", writable=True) as behind,
          tls_nginx(tmp_path / "front", behind, shown, clients=authority.ca) as server):
        yield server


def remote(tmp_path: Path, url: str, **keys: Path) -> Path:
    """A configuration with the remote `lab`."""
    path = tmp_path / "config.toml"
    path.write_text(f"[remotes.lab]\nurls = ['{url}']\n" + "".join(f"{key} = '{at}'\n" for key, at in keys.items()))
    return path


@pytest.fixture
def config(tmp_path: Path, authority: Authority, front: TlsServer) -> Path:
    client = authority.issue("client")
    return remote(tmp_path, front.url, ca_file=authority.ca, client_cert=client.cert, client_key=client.key)


def run(mount: Mounter, config: Path, *words: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = mount.run(*words, "--config", config)
    assert done.returncode == code and "Traceback" not in done.stderr, (words, done.stderr)
    return done


def test_a_certificate_carries_pushes_pulls_and_mounts(mount: Mounter, tmp_path: Path, config: Path) -> None:
    tree = write(tmp_path / "tree", {"w.bin": DATA})
    run(mount, config, "push", tree, "lab", "lab/model")
    run(mount, config, "pull", "lab", "lab/model", tmp_path / "out")
    assert (tmp_path / "out" / "w.bin").read_bytes() == DATA
    mounted = mount("lab", "--config", config, "--model", "lab/model")
    assert (mounted / "w.bin").read_bytes() == DATA
    assert [store["state"] for store in mounted.status()["stores"]] == ["ok"]


def test_etcd_members_prove_themselves_and_ask_who_pushes_for_a_certificate(
        mount: Mounter, tmp_path: Path, authority: Authority) -> None:
    client, tree = authority.issue("client"), write(tmp_path / "tree", {"w.bin": DATA[:MiB]})
    shown = {"ca_file": authority.ca, "client_cert": client.cert, "client_key": client.key}
    with etcdservers.cluster(tmp_path / "etcd", authority=authority) as etcd:
        config = remote(tmp_path, f"file://{tmp_path}/repository", **shown)
        config.write_text(config.read_text() + f"etcd = {json.dumps(etcd.urls)}\n")
        run(mount, config, "init", "lab")
        run(mount, config, "push", tree, "lab", "lab/model")
        assert any(key.endswith("/catalog") for key in etcd.held())
        for missing, why in (("ca_file", "its certificate does not hold"), ("client_cert", "certificate")):
            told = {key: at for key, at in shown.items() if not key.startswith(missing.removesuffix("_cert"))}
            config = remote(tmp_path, f"file://{tmp_path}/repository", **told)
            config.write_text(config.read_text() + f"etcd = {json.dumps(etcd.urls)}\n[fetch]\ndeadline = '3s'\n")
            done = mount.run("tag", "lab", "lab/model:v1", "prod", "--config", config)
            assert done.returncode in (5, 6) and why in done.stderr.splitlines()[-1], done.stderr


def test_without_a_certificate_it_is_exit_6_and_files_of_no_use_are_named(
        mount: Mounter, tmp_path: Path, authority: Authority, front: TlsServer) -> None:
    client = authority.issue("client")
    said = run(mount, remote(tmp_path, front.url, ca_file=authority.ca), "ls", "lab", code=6).stderr
    assert "No required SSL certificate was sent. client_cert" in said and said.count("\n") == 1
    said = run(mount, remote(tmp_path, front.url), "ls", "lab", code=5).stderr
    assert "a store does not answer as itself" in said and "tried" not in said
    keys = {"ca_file": authority.ca, "client_cert": client.cert, "client_key": tmp_path / "none.key"}
    said = run(mount, remote(tmp_path, front.url, **keys), "ls", "lab", code=2).stderr
    assert f"{tmp_path}/none.key" in said and "remotes.lab.client_key" in said
    client.key.chmod(0o644)
    said = run(mount, remote(tmp_path, front.url, **{**keys, "client_key": client.key}), "ls", "lab", code=6).stderr
    assert f"{client.key}: its mode is 0644; remotes.lab.client_key names it. chmod 600" in said


def expired(server: TlsServer) -> int:
    """0, or 1 where what it shows now has expired: as somebody sees who does not check it."""
    port = int(server.url.rsplit(":", 1)[1])
    text = ssl.get_server_certificate(("127.0.0.1", port), timeout=5)
    done = subprocess.run(["openssl", "x509", "-noout", "-checkend", "0"], input=text, text=True, check=False,
                          capture_output=True)
    return done.returncode


def test_a_server_certificate_that_expires_is_no_hang_for_readers_and_a_new_one_is_taken(
        mount: Mounter, tmp_path: Path, authority: Authority, front: TlsServer, config: Path) -> None:
    tree = write(tmp_path / "tree", {"w.bin": DATA})
    run(mount, config, "push", tree, "lab", "lab/model")
    mounted = mount("lab", "--config", config, "--model", "lab/model", "--deadline", "10m", "--cache-size", "0")
    assert (mounted / "w.bin").stat().st_size == len(DATA)

    def renewed(days: tuple[int, int], wanted: int) -> None:
        authority.issue("server", ["127.0.0.1"], days=days)
        front.process.send_signal(signal.SIGHUP)
        until(lambda: all(expired(front) == wanted for _ in range(3)))

    renewed((-9, -2), 1)
    reading = reader(mounted / "w.bin", 0, 64 * KiB)  # in a process of its own: the mount would have ten minutes
    assert reading.communicate(timeout=60)[0].strip() == "5"
    assert "certificate has expired" in mounted.log.read_text()
    renewed((-1, 1), 0)

    def reads() -> bool:
        reading = reader(mounted / "w.bin", 0, 64 * KiB)
        return reading.communicate(timeout=60)[0].strip() == "read"
    until(reads)


def test_a_proxy_is_used_and_its_password_told_to_nobody(mount: Mounter, tmp_path: Path, authority: Authority,
                                                         front: TlsServer) -> None:
    client, port = authority.issue("client"), int(front.url.rsplit(":", 1)[1])
    config = remote(tmp_path, "https://models.example.org", ca_file=authority.ca, client_cert=client.cert,
                    client_key=client.key)
    tree = write(tmp_path / "tree", {"w.bin": DATA})
    with ConnectProxy({"models.example.org:443": port}, password="ann:s3cret") as proxy:
        mount.environ["HTTPS_PROXY"] = proxy.url
        run(mount, config, "push", tree, "lab", "lab/model")
        mounted = mount("lab", "--config", config, "--model", "lab/model")
        assert (mounted / "w.bin").read_bytes() == DATA
        assert proxy.heads and not any(head.startswith("GET") for head in proxy.heads)
        mount.environ["HTTPS_PROXY"] = proxy.url.replace("s3cret", "s3kret")
        wrong = run(mount, config, "ls", "lab", code=6).stderr
        mount.environ["HTTPS_PROXY"] = proxy.url
    mount.environ["MODELFS_FETCH_DEADLINE"] = "1s"
    dead = mount.run("ls", "lab", "--config", config, "--debug")
    assert dead.returncode == 5
    for said, what in ((wrong, "a proxy refuses"), (dead.stderr, "a proxy does not answer")):
        assert f"{what}, http://{proxy.host}" in said.splitlines()[-1], said
    told = [wrong, dead.stderr, mounted.log.read_text(), json.dumps(mounted.status())]
    assert not any(secret in text for text in told for secret in ("s3cret", "s3kret", "ann:"))
