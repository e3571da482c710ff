"""Node ids: computed from what they name, and understood by any worker of the same mount."""

from __future__ import annotations

import os
import string
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from repository.builder import Builder

from modelfs.engines.native.nodes import NodeIds, file_of, is_passthrough
from modelfs.engines.native.protocol import ROOT_ID
from modelfs.errors import BadInput, NotFound
from modelfs.view.tree import File, Link, Node
from modelfs.view.view import View

Show = Callable[..., View]
NAMES = st.text(string.ascii_lowercase + "ü .-", min_size=1, max_size=6).filter(lambda name: name.strip(" .") == name)
PATHS = st.lists(NAMES, min_size=1, max_size=5).map("/".join)


@pytest.fixture
def log() -> Iterator[int]:
    made = os.memfd_create("nodes")
    yield made
    os.close(made)


def nodes(view: View) -> list[Node]:
    found, waiting = [], [view.root()]
    while waiting:
        node = waiting.pop()
        found.append(node)
        if not isinstance(node, File | Link):
            waiting += [view.lookup(node, entry.name) for entry in view.readdir(node)]
    return found


def without_conflicts(paths: list[str]) -> dict[str, bytes]:
    """No file stands where another has its directory."""
    return {path: b"" for path in paths if not any(other.startswith(path + "/") for other in paths)}


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(paths=st.lists(PATHS, min_size=1, max_size=20, unique=True))
def test_every_node_has_one_id_that_leads_back_to_it_also_in_the_next_worker(
        tmp_path_factory: pytest.TempPathFactory, show: Show, paths: list[str]) -> None:
    built = Builder(tmp_path_factory.mktemp("repository"))
    for model in ("acme/base", "acme/other"):
        built.push(model, without_conflicts(paths))
    view, log = show(None, built.repository), os.memfd_create("nodes")
    try:
        first, all_nodes = NodeIds(view, log), nodes(view)
        half = all_nodes[:len(all_nodes) // 2]
        early = {node: first.id_of(node) for node in half}
        second = NodeIds(view, log)
        ids = {node: second.id_of(node) for node in all_nodes}
        assert len(set(ids.values())) == len(all_nodes)
        assert ids.items() >= early.items()
        third = NodeIds(view, log)
        for node, id in ids.items():
            assert (third.node_of(id, view), third.id_of(node)) == (node, id)
    finally:
        os.close(log)


def test_the_ids_of_a_file_for_passthrough_name_the_same_file_and_differ(built: Builder, show: Show, log: int) -> None:
    built.push("acme/base", {"d/a.bin": b"1", "b.bin": b"2"})
    view = show()
    ids, node = NodeIds(view, log), view.resolve("acme/base/v1/d/a.bin")
    base = ids.id_of(node)
    others = [file_of(base).passthrough(generation) for generation in range(128)]
    assert len({base, *others}) == 129 and not is_passthrough(base)
    assert all(id < 1 << 64 and is_passthrough(id) and file_of(id) == file_of(base) for id in others)
    assert {ids.node_of(id, view) for id in others} == {node}


def test_the_root_is_the_kernels_and_what_was_never_given_out_is_not_found(built: Builder, show: Show,
                                                                           log: int) -> None:
    built.push("acme/base", {"a.bin": b"1"})
    view = show()
    ids = NodeIds(view, log)
    assert (ids.id_of(view.root()), ids.node_of(ROOT_ID, view)) == (ROOT_ID, view.root())
    version = ids.id_of(view.resolve("acme/base/v1"))
    for id in (5 << 36, version | 7 << 10 | 1023, version | 7 << 10 | 1, (1 << 64) - 1):
        with pytest.raises(NotFound):
            ids.node_of(id, view)


def test_a_directory_that_is_too_deep_for_an_id_is_refused(built: Builder, show: Show, log: int) -> None:
    built.push("acme/base", {"/".join(["d"] * 1023) + "/f": b"1"})
    view = show()
    ids = NodeIds(view, log)
    deepest = view.resolve("acme/base/v1/" + "/".join(["d"] * 1022))
    assert ids.node_of(ids.id_of(deepest), view) == deepest
    with pytest.raises(BadInput, match="too deep"):
        ids.id_of(view.resolve("acme/base/v1/" + "/".join(["d"] * 1023)))


def test_an_id_outlives_a_removed_model_as_not_found(built: Builder, show: Show, log: int, tmp_path: Path) -> None:
    built.push("acme/base", {"a.bin": b"1"})
    view = show()
    ids = NodeIds(view, log)
    id = ids.id_of(view.resolve("acme/base"))
    other = Builder(tmp_path / "other")
    other.push("acme/another", {"a.bin": b"1"})
    with pytest.raises(NotFound):
        ids.node_of(id, show(None, other.repository))
