"""Which packs a push finds that ended before its time, and which journals are left for a later one."""

from __future__ import annotations

from pathlib import Path

from transfer.pushed import in_background

from modelfs.ids import ModelName, ObjectId
from modelfs.transfer.journal import Journal

MODEL = ModelName("lab", "model")
PACKS = [ObjectId.of(bytes([n])) for n in range(5)]


def journal(state: Path, *packs: ObjectId, model: ModelName = MODEL) -> Journal:
    made = Journal(state, "r" * 32, model)
    for pack in packs:
        made.note(pack)
    return made


def dead(state: Path, *packs: ObjectId) -> None:
    journal(state, *packs).close()


def found(state: Path, model: ModelName = MODEL) -> list[ObjectId]:
    return Journal(state, "r" * 32, model).adopt()


def test_packs_of_a_push_that_ended_are_found_by_the_next(tmp_path: Path) -> None:
    dead(tmp_path, PACKS[0], PACKS[1])
    dead(tmp_path, PACKS[1], PACKS[2])
    assert sorted(found(tmp_path)) == sorted(PACKS[:3])
    assert found(tmp_path, ModelName("lab", "other")) == []


def test_packs_of_a_push_that_lives_are_left_alone(tmp_path: Path) -> None:
    living = journal(tmp_path, PACKS[0])
    assert found(tmp_path) == []
    living.close()
    assert found(tmp_path) == [PACKS[0]]


def test_nothing_is_left_of_a_push_that_finished(tmp_path: Path) -> None:
    dead(tmp_path, PACKS[0])
    done = journal(tmp_path)
    assert done.adopt() == [PACKS[0]]
    done.note(PACKS[1])
    done.finish()
    assert found(tmp_path) == []
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_push_of_something_else_leaves_what_can_still_be_resumed(tmp_path: Path) -> None:
    dead(tmp_path, PACKS[0], PACKS[1])
    dead(tmp_path, PACKS[2])
    other = journal(tmp_path)
    assert len(other.adopt()) == 3
    other.finish(unused={PACKS[1]})
    assert found(tmp_path) == PACKS[:2]


def test_a_line_that_was_being_written_is_no_pack(tmp_path: Path) -> None:
    dead(tmp_path, PACKS[0], PACKS[1])
    (path,) = tmp_path.rglob("*.packs")
    path.write_bytes(path.read_bytes()[:-10])
    assert found(tmp_path) == [PACKS[0]]


def test_packs_noted_by_many_threads_are_all_there_in_one_journal(tmp_path: Path) -> None:
    made = journal(tmp_path)
    packs = [ObjectId.of(b"%d" % n) for n in range(200)]
    notes = [in_background(lambda part=part: [made.note(pack) for pack in part])
             for part in (packs[n::8] for n in range(8))]
    assert all(isinstance(note.result(), list) for note in notes)
    assert len(list(tmp_path.rglob("*.packs"))) == 1
    made.close()
    assert sorted(found(tmp_path)) == sorted(packs)


def test_a_state_directory_that_cannot_be_used_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    made = journal(tmp_path / "file", PACKS[0])
    assert made.adopt() == []
    made.finish()
