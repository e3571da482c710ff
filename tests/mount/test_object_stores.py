"""The commands on s3://, az:// and gs://, from init to gc and a mount that reads, on servers that speak these."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import azureservers
import cloudservers
import pytest
import s3servers
from mount.mounting import Mounter

from modelfs.units import Deadline, MiB


@pytest.fixture(params=cloudservers.SERVERS)
def server(request: pytest.FixtureRequest, environ: dict[str, str]) -> str:
    """Its name; `environ` leads to it."""
    environ.update(cloudservers.environ(request.param))
    return str(request.param)


def source(tmp_path: Path, name: str, size: int) -> Path:
    (tmp_path / name / "sub").mkdir(parents=True)
    (tmp_path / name / "weights.bin").write_bytes(random.Random(name).randbytes(size))
    (tmp_path / name / "sub" / "config.json").write_text(f'{{"name": "{name}"}}')
    return tmp_path / name


def done(finished: subprocess.CompletedProcess[str]) -> str:
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def keys(server: str, prefix: str, below: str = "") -> set[str]:
    return {info.key for info in cloudservers.bucket(server, prefix).list(below, Deadline(30))}


def test_a_repository_in_an_object_store_is_made_pushed_to_read_mounted_and_collected(
        server: str, mount: Mounter, tmp_path: Path) -> None:
    prefix = cloudservers.new_prefix()
    repository = cloudservers.url(server, prefix)
    one, two = source(tmp_path, "one", 9 * MiB + 123), source(tmp_path, "two", 5 * MiB)
    assert "warning" not in mount.run("init", repository, "--chunk-size", "256KiB").stderr
    assert mount.run("init", repository, "--chunk-size", "256KiB").returncode == 7
    assert keys(server, prefix) == {"modelfs.json", "catalog.json"}

    pushes = [subprocess.Popen([sys.executable, "-m", "modelfs", "push", str(path), repository, f"acme/{path.name}"],
                               env=mount.environ, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
              for path in (one, two)]
    for push in pushes:
        said = push.communicate(timeout=120)[1]
        assert push.returncode == 0, said
    models = json.loads(done(mount.run("ls", repository, "--json")))["models"]
    assert [(model["model"], model["latest"]) for model in models] == [("acme/one", "v1"), ("acme/two", "v1")]

    done(mount.run("pull", repository, "acme/two", tmp_path / "pulled"))
    mounted = mount.daemon(repository)
    for path in (one, two):
        for file in ("weights.bin", "sub/config.json"):
            assert (mounted / f"acme/{path.name}/latest/{file}").read_bytes() == (path / file).read_bytes()
    assert (tmp_path / "pulled" / "weights.bin").read_bytes() == (two / "weights.bin").read_bytes()
    assert mounted.status()["repository"] == f"{repository}?endpoint={cloudservers.endpoint(server)}"
    mounted.umount()

    done(mount.run("rm", repository, "acme/one", "--yes"))
    before = keys(server, prefix)
    report = json.loads(done(mount.run("gc", repository, "--grace", "0s", "--json")))
    after = keys(server, prefix)
    assert report["bytes_freed"] > 9 * MiB and len(before) - len(after) == report["objects_deleted"] > 0
    assert not keys(server, prefix, "probes/")
    verified = json.loads(done(mount.run("verify", repository, "--read-data", "--json")))
    assert verified["ok"] and verified["repositories"][0]["bytes_checked"] >= 5 * MiB


def test_who_writes_where_conditions_are_ignored_is_warned(server: str, mount: Mounter, tmp_path: Path) -> None:
    repository = cloudservers.url(server, cloudservers.new_prefix())
    model, endpoint = source(tmp_path, "one", 1000), cloudservers.endpoint(server)
    if server == "azurite":  # a key signs the conditions, too
        del mount.environ["AZURE_STORAGE_ACCOUNT_KEY"]
        mount.environ["AZURE_STORAGE_SAS_TOKEN"] = azureservers.shared_access("racwdl")
    with s3servers.stripping(endpoint, "if-", "x-goog-if-") as proxy:
        mount.environ[cloudservers.endpoint_variable(server)] = proxy.url + urlsplit(endpoint).path
        for command in (("init", repository), ("push", model, repository, "acme/one")):
            finished = mount.run(*command)
            assert finished.returncode == 0, finished.stderr
            assert finished.stderr.count("two pushes at once may lose one") == 1
        assert mount.run("init", repository).returncode == 7
        assert "acme/one" in done(mount.run("ls", repository))


@pytest.mark.parametrize("server", s3servers.SERVERS, indirect=True)
def test_a_remote_names_endpoint_and_region(server: str, mount: Mounter, tmp_path: Path) -> None:
    endpoint = mount.environ.pop("AWS_ENDPOINT_URL")
    repository = f"s3://{s3servers.BUCKET}/{s3servers.new_prefix()}"
    (tmp_path / "config.toml").write_text(f'[remotes.lab]\nurls = ["{repository}"]\nendpoint = "{endpoint}"\n'
                                          'region = "eu-central-1"\n')
    config = ("--config", tmp_path / "config.toml")
    done(mount.run("init", "lab", *config))
    done(mount.run("push", source(tmp_path, "one", 1000), "lab", "acme/one", *config))
    mounted = mount("lab", *config)
    assert (mounted / "acme/one/latest/weights.bin").read_bytes() == (tmp_path / "one/weights.bin").read_bytes()
    report = json.loads(done(mount.run("gc", "lab", "--json", *config)))
    assert report["objects_deleted"] == 0
