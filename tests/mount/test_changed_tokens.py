"""A mount whose token is taken away while it lives, and that gets another one without a remount."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from mount.mounting import ROOT, Mounter, until

from modelfs.units import KiB

OLD, NEW = "the-0ld-token", "the-n3w-token"


@contextmanager
def serving(repository: Path, tokens: Path, environ: Mapping[str, str]) -> Iterator[str]:
    """Our own server with a token file; its URL."""
    process = subprocess.Popen([sys.executable, "-m", "modelfs", "serve", str(repository), "--token-file", str(tokens),
                                "--port", "0"], env=environ, text=True, stderr=subprocess.PIPE, cwd=ROOT)
    assert process.stderr
    try:
        line = next(line for line in process.stderr if "serving" in line)
        yield line.split()[-1]
    finally:
        process.terminate()
        process.communicate(timeout=15)


def replace(path: Path, text: str) -> None:
    """By a rename, as its owner is told to."""
    fresh = path.with_suffix(".new")
    fresh.touch(mode=0o600)
    fresh.write_text(text)
    fresh.rename(path)


def test_a_mount_reads_on_with_the_token_that_its_file_has_after_the_old_one_is_refused(
        mount: Mounter, tmp_path: Path, repository: Path, source: Path) -> None:
    server, client, config = (tmp_path / name for name in ("server.tokens", "client.token", "config.toml"))
    replace(server, f"{OLD} read\n")
    replace(client, f"{OLD}\n")
    wanted = (source / "big.bin").read_bytes()
    with serving(repository, server, mount.environ) as url:
        config.write_text(f'[fetch]\nhydrate = "off"\nmemory = "16 MiB"\n[remotes.lab]\nurls = ["{url}"]\n'
                          f'token_file = "{client}"\n')
        mounted = mount("lab", "--config", config, "--cache-size", "0", "--poll", "200ms")
        fd = os.open(mounted / "acme/base/v1/big.bin", os.O_RDONLY)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)

            def read(number: int) -> bool:
                at = number * 256 * KiB
                try:
                    return os.pread(fd, 4096, at) == wanted[at:at + 4096]
                except OSError:
                    return False

            assert all(map(read, range(3)))
            replace(server, f"{NEW} read\n")
            until(lambda: not read(10), 10)
            assert "403" in mounted.log.read_text() or "401" in mounted.log.read_text()
            replace(client, f"{NEW}\n")
            until(lambda: read(10))
            assert all(map(read, range(11, 30)))
        finally:
            os.close(fd)
        (source / "run.sh").write_text("#!/bin/sh\ntrue\n")
        assert mount.run("push", source, repository, "acme/base").returncode == 0
        until(lambda: os.readlink(mounted / "acme/base/latest") == "v2")
        assert (mounted / "acme/base/latest/run.sh").read_text() == "#!/bin/sh\ntrue\n"
        assert (mounted / "acme/base/latest/big.bin").read_bytes() == wanted
        assert OLD not in mounted.log.read_text() and NEW not in mounted.log.read_text()
