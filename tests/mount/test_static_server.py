"""A repository behind a plain nginx that cannot list and knows nothing of modelfs."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from mount.mounting import Mounter, until
from servers import nginx


def test_nginx_serves_ls_log_inspect_pull_and_both_kinds_of_mount(mount: Mounter, repository: Path, source: Path,
                                                                tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    with nginx(repository, tmp_path / "scratch") as url:
        listed = json.loads(mount.run("ls", url, "--json").stdout)
        assert [(model["model"], model["latest"]) for model in listed["models"]] == [("acme/base", "v1")]
        assert len(json.loads(mount.run("log", url, "acme/base", "--json").stdout)["versions"]) == 1
        assert json.loads(mount.run("inspect", url, "acme/base", "--json").stdout)["version"] == "v1"
        assert mount.run("pull", url, "acme/base", tmp_path / "pulled").returncode == 0
        assert subprocess.run(["diff", "-r", str(source), str(tmp_path / "pulled")], check=False).returncode == 0
        whole = mount(url, name="whole")
        assert sorted(os.listdir(whole / "acme/base")) == ["latest", "v1"]
        one = mount(url, "--model", "acme/base", name="one")
        for place in (whole / "acme/base/latest", one.place):
            assert subprocess.run(["diff", "-r", str(source), str(place)], check=False).returncode == 0
        assert mount.run("push", source, url, "acme/base:other").returncode == 6, "it takes no uploads"
        assert mount.run("verify", url, "--read-data").returncode == 0


def test_a_version_pushed_behind_nginx_is_seen_though_its_catalog_is_as_long_and_as_new(mount: Mounter,
                                                                                      repository: Path,
                                                                                      tmp_path: Path) -> None:
    """nginx makes ETags of size and whole seconds of mtime, so two catalogs of one second must differ in them."""
    (tmp_path / "scratch").mkdir()
    with nginx(repository, tmp_path / "scratch") as url:
        mounted = mount(url, "--poll", "100ms")
        for number in range(2, 5):
            (tmp_path / "file").write_text(f"content {number}")
            assert mount.run("push", tmp_path / "file", repository, "acme/base").returncode == 0
            until(lambda n=number: os.readlink(mounted / "acme/base/latest") == f"v{n}")
