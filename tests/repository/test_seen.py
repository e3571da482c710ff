"""The memory of catalogs' serials."""

from __future__ import annotations

from pathlib import Path

from modelfs.repository.seen import SeenSerials

ID = "0f" * 16


def test_the_highest_serial_is_remembered_by_the_next_process(tmp_path: Path) -> None:
    SeenSerials(tmp_path).note(ID, 7)
    SeenSerials(tmp_path).note(ID, 3)
    assert SeenSerials(tmp_path).highest(ID) == 7
    assert SeenSerials(tmp_path).highest("00" * 16) == 0


def test_junk_in_its_place_and_a_directory_that_cannot_be_made_remember_nothing(tmp_path: Path) -> None:
    SeenSerials(tmp_path).note(ID, 7)
    (tmp_path / "serials" / ID).write_text("junk")
    assert SeenSerials(tmp_path).highest(ID) == 0
    (tmp_path / "file").touch()
    SeenSerials(tmp_path / "file").note(ID, 1)
    assert SeenSerials(tmp_path / "file").highest(ID) == 0
