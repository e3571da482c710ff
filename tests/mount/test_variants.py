"""Variants, and fine-tunes that are differences to a base: found, mounted and pulled like any other version, also when
the base has been removed, lies damaged on one mirror, or is gone."""

from __future__ import annotations

import errno
import json
import mmap
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from faultproxy import FaultProxy
from modelfiles import weights
from mount.mounting import Mounter
from safetensors.numpy import save_file
from transfer.pushed import CHUNK, make_repository, packs, repository_root
from transfer.test_differences import BASE, TUNED, layout_of, push, safetensors, spoil

from modelfs.ids import ModelRef
from modelfs.repository.repository import Repository

FILE, TUNED_FILE = "model.safetensors", safetensors({"w": TUNED})
DAMAGED = 3
PAGE = mmap.PAGESIZE


def done(mount: Mounter, *arguments: object) -> str:
    finished = mount.run(*arguments)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_a_variant_is_found_and_mounted_like_any_other_version(mount: Mounter, tmp_path: Path) -> None:
    source, repository = tmp_path / "source", tmp_path / "repository"
    source.mkdir()
    save_file({"a.weight": weights(512, 512), "norm": weights(9)}, source / FILE)
    done(mount, "init", repository)
    done(mount, "push", source, repository, "acme/base")
    done(mount, "push", source, repository, "acme/base@int8", "--recipe", "int8")
    done(mount, "compress", source, "small", "--recipe", "int8")
    small, before = (tmp_path / "small" / FILE).read_bytes(), (source / FILE).read_bytes()
    assert len(small) == len(before) and small != before
    assert json.loads(done(mount, "ls", repository, "--json"))["models"][0]["tags"] == {"latest": "v1", "int8": "v2"}
    whole = mount(repository)
    assert sorted(os.listdir(whole / "acme/base")) == ["int8", "latest", "v1", "v2"]
    assert os.readlink(whole / "acme/base/int8") == "v2"
    assert (whole / "acme/base/int8" / FILE).read_bytes() == small
    assert (whole / "acme/base/latest" / FILE).read_bytes() == before
    one = mount(repository, "--model", "acme/base@int8", name="one")
    assert os.listdir(one.place) == [FILE] and (one / FILE).read_bytes() == small


@pytest.fixture
def tuned(tmp_path: Path) -> Repository:
    """lab/tuned, all of it differences to lab/model."""
    repository = make_repository(tmp_path / "repository")
    push(repository, BASE)
    assert push(repository, TUNED_FILE, "lab/tuned", differences=True,
                base=ModelRef.parse("lab/model")).difference_chunks == 8
    return repository


def remove_pack(repository: Repository) -> None:
    """With all chunks of the base."""
    gone = layout_of(repository, "lab/model").place(DAMAGED).pack.hex()
    next(path for path in packs(repository_root(repository)) if path.name == gone).unlink()


def spoil_base(repository: Repository) -> None:
    spoil(repository, "lab/model", DAMAGED)


def test_a_fine_tune_is_whole_when_its_base_was_removed_and_swept(mount: Mounter, tmp_path: Path,
                                                                  tuned: Repository) -> None:
    at = tmp_path / "repository"
    before = mount(at, "--model", "lab/tuned", "--cache-size", "0", name="before")
    done(mount, "rm", at, "lab/model", "--yes")
    for _ in range(2):
        done(mount, "gc", at, "--grace", "0s")
    assert (before / FILE).read_bytes() == TUNED_FILE, "mounted all the while"
    assert (mount(at, "--model", "lab/tuned") / FILE).read_bytes() == TUNED_FILE
    done(mount, "pull", at, "lab/tuned", "pulled")
    assert (tmp_path / "pulled" / FILE).read_bytes() == TUNED_FILE


def test_a_base_that_is_damaged_everywhere_is_eio_for_its_pages_alone_and_named(mount: Mounter, tmp_path: Path,
                                                                               tuned: Repository) -> None:
    at, base = tmp_path / "repository", layout_of(tuned, "lab/tuned").place(DAMAGED).base
    assert base is not None
    spoil_base(tuned)
    mounted = mount(at, "--model", "lab/tuned")
    end = len(TUNED_FILE) - TUNED.nbytes + DAMAGED * CHUNK  # the header is a chunk
    pages = end - CHUNK & -PAGE, end + PAGE & -PAGE
    with (mounted / FILE).open("rb", buffering=0) as file:
        with pytest.raises(OSError) as caught:
            os.pread(file.fileno(), 1, end - CHUNK)
        assert caught.value.errno == errno.EIO
        assert os.pread(file.fileno(), pages[0], 0) == TUNED_FILE[:pages[0]]
        assert os.pread(file.fileno(), len(TUNED_FILE), pages[1]) == TUNED_FILE[pages[1]:]
    assert base.id.hex()[:16] in mounted.log.read_text()
    pulled = mount.run("pull", at, "lab/tuned", "pulled")
    assert pulled.returncode == 4 and base.id.hex()[:16] in pulled.stderr
    assert not (tmp_path / "pulled" / FILE).exists()


def test_a_base_that_is_gone_everywhere_is_eio_and_named(mount: Mounter, tmp_path: Path, tuned: Repository) -> None:
    at, pack = tmp_path / "repository", layout_of(tuned, "lab/model").place(DAMAGED).pack.hex()
    remove_pack(tuned)
    mounted = mount(at, "--model", "lab/tuned")
    with pytest.raises(OSError) as caught:
        (mounted / FILE).read_bytes()
    assert caught.value.errno == errno.EIO and pack in mounted.log.read_text()
    pulled = mount.run("pull", at, "lab/tuned", "pulled")
    assert pulled.returncode == 4 and pack[:16] in pulled.stderr and not (tmp_path / "pulled" / FILE).exists()


@pytest.fixture
def lab(tmp_path: Path, tuned: Repository) -> Iterator[list[FaultProxy]]:
    """Two mirrors, and the configuration that names them; the first one's repository is `tuned`."""
    copy = Path(shutil.copytree(tmp_path / "repository", tmp_path / "second"))
    with ExitStack() as stack:
        mirrors = [stack.enter_context(FaultProxy(root)) for root in (tmp_path / "repository", copy)]
        (tmp_path / "config.toml").write_text(
            f"[remotes.lab]\nurls = {json.dumps([mirror.url for mirror in mirrors])}\n")
        yield mirrors


@pytest.mark.parametrize("harm", [spoil_base, remove_pack])
def test_a_base_that_one_mirror_has_lost_or_has_damaged_comes_from_the_other(
        mount: Mounter, tmp_path: Path, tuned: Repository, lab: list[FaultProxy],
        harm: Callable[[Repository], None]) -> None:
    harm(tuned)
    mounted = mount("lab", "--config", tmp_path / "config.toml", "--model", "lab/tuned")
    assert (mounted / FILE).read_bytes() == TUNED_FILE
    assert mounted.status()["counters"]["failovers"] >= 1
    assert lab[0].requests("packs/"), "the first was asked first"
    for mirror in lab:
        mirror.forget()
    done(mount, "pull", "lab", "lab/tuned", "pulled", "--config", tmp_path / "config.toml")
    assert (tmp_path / "pulled" / FILE).read_bytes() == TUNED_FILE
    assert lab[0].requests("packs/") and lab[1].requests("packs/")
