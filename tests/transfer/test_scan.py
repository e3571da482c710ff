"""What is pushed of a directory, and what is refused by name."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from transfer.pushed import write

from modelfs.errors import BadInput, NotFound
from modelfs.transfer.scan import scan


def paths(source: Path, follow_links: bool = False) -> list[str]:
    return [file.path for file in scan(source, follow_links)]


def test_files_are_sorted_by_the_parts_of_their_paths(tmp_path: Path) -> None:
    write(tmp_path, dict.fromkeys(("b", "a/z", "a.txt", "a/b/c", "Z"), b""))
    assert paths(tmp_path) == ["Z", "a/b/c", "a/z", "a.txt", "b"]


def test_one_file_is_pushed_under_its_name(tmp_path: Path) -> None:
    write(tmp_path, {"w.bin": b"123"})
    (found,) = scan(tmp_path / "w.bin", False)
    assert (found.path, found.size, found.mode) == ("w.bin", 3, 0o444)


def test_execute_bits_are_kept_and_no_other_bits(tmp_path: Path) -> None:
    write(tmp_path, {"run": b""})
    (tmp_path / "run").chmod(0o2710)
    assert scan(tmp_path, False)[0].mode == 0o554


def test_links_inside_are_followed(tmp_path: Path) -> None:
    write(tmp_path, {"d/w": b"1", "x": b""})
    (tmp_path / "file").symlink_to("d/w")
    (tmp_path / "directory").symlink_to("d")
    assert paths(tmp_path) == ["d/w", "directory/w", "file", "x"]


def test_a_source_that_is_a_link_is_no_link_out_of_itself(tmp_path: Path) -> None:
    write(tmp_path, {"real/w": b"1"})
    (tmp_path / "link").symlink_to("real")
    assert paths(tmp_path / "link") == ["w"]


@pytest.mark.parametrize("target", ["../out/w", "../out", "../source-2/w"])
def test_a_link_that_leads_out_is_refused_unless_it_is_to_be_followed(tmp_path: Path, target: str) -> None:
    write(tmp_path, {"out/w": b"1", "source-2/w": b"1", "source/x": b""})
    (tmp_path / "source" / "link").symlink_to(target)
    with pytest.raises(BadInput, match="--follow-links"):
        paths(tmp_path / "source")
    assert paths(tmp_path / "source", follow_links=True) == ["link/w" if target == "../out" else "link", "x"]


@pytest.mark.parametrize(("link", "target"), [("a/up", ".."), ("a/root", "../.."), ("a/self", "."), ("loop", "loop"),
                                              ("gone", "nowhere"), ("a/above", "../../..")])
@pytest.mark.parametrize("follow_links", [False, True])
def test_links_without_an_end_are_always_refused(tmp_path: Path, link: str, target: str, follow_links: bool) -> None:
    write(tmp_path / "source", {"a/w": b""})
    (tmp_path / "source" / link).symlink_to(target)
    with pytest.raises(BadInput, match=Path(link).name):
        paths(tmp_path / "source", follow_links)


def test_two_directories_that_link_to_each_other_are_refused(tmp_path: Path) -> None:
    write(tmp_path, {"a/w": b"", "b/w": b""})
    (tmp_path / "a" / "to").symlink_to("../b")
    (tmp_path / "b" / "to").symlink_to("../a")
    with pytest.raises(BadInput, match="above itself"):
        paths(tmp_path)


def test_what_is_no_file_is_refused_by_its_kind(tmp_path: Path) -> None:
    for kind in ("fifo", "socket"):
        directory = tmp_path / kind
        directory.mkdir()
        if kind == "fifo":
            os.mkfifo(directory / "it")
        else:
            socket.socket(socket.AF_UNIX).bind(str(directory / "it"))
        with pytest.raises(BadInput, match=f"(?i){kind}.*it"):
            paths(directory, True)


def test_a_name_that_is_not_utf8_is_refused_by_name(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")).write_bytes(b"")
    with pytest.raises(BadInput, match=r"caf\\xe9"):
        paths(tmp_path)


def test_a_source_that_is_missing_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="nowhere"):
        paths(tmp_path / "nowhere")


def test_paths_of_more_parts_than_python_calls_deep_are_scanned(tmp_path: Path) -> None:
    here, parts = os.getcwd(), 1100
    try:
        os.chdir(tmp_path)
        for _ in range(parts):
            os.mkdir("d")
            os.chdir("d")
        Path("w").write_bytes(b"1")
        assert paths(tmp_path) == ["d/" * parts + "w"]
        os.unlink("w")  # pytest's own cleaning calls itself once a part
        for _ in range(parts):
            os.chdir("..")
            os.rmdir("d")
    finally:
        os.chdir(here)
