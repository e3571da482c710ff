"""The commands on s3://, az:// and gs://, from init to gc and a mount that reads, on servers that speak these."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import azureservers
import cloudservers
import pytest
import s3servers
from faultproxy import FaultProxy
from mount.mounting import Mounter, until

from modelfs.units import Deadline, KiB, MiB


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


@pytest.mark.parametrize("server", ["seaweedfs"], indirect=True)
def test_a_directory_is_replicated_to_a_bucket_and_both_are_verified(server: str, mount: Mounter,
                                                                     tmp_path: Path) -> None:
    prefix = cloudservers.new_prefix()
    bucket = cloudservers.url(server, prefix)
    done(mount.run("init", "here", "--chunk-size", "64KiB"))
    done(mount.run("push", source(tmp_path, "one", MiB), "here", "acme/one"))
    done(mount.run("replicate", "here", bucket))
    paths = (path for path in (tmp_path / "here").rglob("*") if path.is_file() and not path.name.startswith("."))
    assert keys(server, prefix) == {str(path.relative_to(tmp_path / "here")) for path in paths}
    report = json.loads(done(mount.run("verify", "here", bucket, "--read-data", "--json")))
    assert report["ok"] and [each["versions"] for each in report["repositories"]] == [1, 1]
    assert all(each["bytes_checked"] > MiB for each in report["repositories"])
    pack = next(key for key in keys(server, prefix) if key.startswith("packs/"))
    cloudservers.bucket(server, prefix).delete(pack, Deadline(30))
    report = json.loads(mount.run("verify", "here", bucket, "--json").stdout)
    assert [each["ok"] for each in report["repositories"]] == [True, False]
    assert {(fault["kind"], fault["object"]) for fault in report["repositories"][1]["faults"]} == {("missing", pack)}


@pytest.mark.parametrize("server", ["moto"], indirect=True)
def test_reads_fail_over_from_a_bucket_to_an_http_mirror_and_back(server: str, mount: Mounter, tmp_path: Path) -> None:
    """moto takes what was signed for a proxy before it. Each read is of a chunk that was not read before."""
    repository = cloudservers.url(server, cloudservers.new_prefix())
    weights = source(tmp_path, "one", 8 * MiB) / "weights.bin"
    wanted, chunk = weights.read_bytes(), 256 * KiB
    done(mount.run("init", "here", "--chunk-size", "256KiB"))
    done(mount.run("push", weights.parent, "here", "acme/one"))
    done(mount.run("replicate", "here", repository))
    unread = iter(random.Random(1).sample(range(32), 32))
    with FaultProxy(upstream=s3servers.endpoint(server)) as bucket, FaultProxy(tmp_path / "here") as mirror:
        config = tmp_path / "config.toml"
        config.write_text(f'[fetch]\nhydrate = "off"\n[remotes.lab]\nurls = ["{repository}", "{mirror.url}"]\n'
                          f'endpoint = "{bucket.url}"\n')
        mounted = mount("lab", "--config", config, "--model", "acme/one")
        fd = os.open(mounted / "weights.bin", os.O_RDONLY)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
            for gone, there in ((bucket, mirror), (mirror, bucket)):
                gone.down()
                there.forget()
                for _ in range(4):
                    at = next(unread) * chunk
                    assert os.pread(fd, 4096, at) == wanted[at:at + 4096]
                assert there.requests("packs/") >= 4
                gone.up()
                until(lambda: all(store["state"] == "ok" for store in mounted.status()["stores"]))
        finally:
            os.close(fd)
        counters = mounted.status()["counters"]
        assert counters["failovers"] >= 1 and counters["errors"] == 0


def test_a_public_bucket_is_listed_pulled_and_mounted_without_credentials(mount: Mounter, tmp_path: Path) -> None:
    mount.environ.update(cloudservers.environ("seaweedfs"))
    prefix, model = cloudservers.new_prefix(), source(tmp_path, "one", MiB)
    public, private = (f"s3://{bucket}/{prefix}" for bucket in (s3servers.PUBLIC, s3servers.BUCKET))
    done(mount.run("init", public))
    done(mount.run("push", model, public, "acme/one"))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        del mount.environ[name]
    mount.environ["AWS_EC2_METADATA_DISABLED"] = "true"
    assert [each["model"] for each in json.loads(done(mount.run("ls", public, "--json")))["models"]] == ["acme/one"]
    done(mount.run("pull", public, "acme/one", "pulled"))
    mounted = mount(public, "--model", "acme/one")
    for place in (tmp_path / "pulled", mounted):
        assert (place / "weights.bin").read_bytes() == (model / "weights.bin").read_bytes()
        assert (place / "sub/config.json").read_bytes() == (model / "sub/config.json").read_bytes()
    refused = (mount.run("ls", private), mount.run("push", model, public, "acme/two"))
    assert [each.returncode for each in refused] == [6, 6]
    assert all("without credentials" in each.stderr for each in refused)
