"""`verify` of stores whose servers hash for themselves: what reading all of it finds is found, and nothing is read."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from faultproxy import FaultProxy
from repository.builder import CHUNK, Builder
from results import Result
from servers import nginx, own_server
from transfer.pushed import make_repository, noise, packs, push_files, soon

from modelfs.ids import ModelName, ModelRef
from modelfs.maintenance.agreement import contradictions
from modelfs.maintenance.auditing import Question, consult
from modelfs.maintenance.gc import GcOptions, collect
from modelfs.maintenance.verify import Report, verify
from modelfs.repository import keys, layout
from modelfs.repository.repository import Repository
from modelfs.stores.file_store import FileStore
from modelfs.stores.opening import open_store
from modelfs.stores.retrying import RetryingStore
from modelfs.transfer.replicate import replicate

ROW_BY_ROW = "import modelfs.maintenance.auditing as a; a.MOST_ROWS = 1"
LYING = """
import modelfs.maintenance.auditing as a
a.Marking.row = lambda self, name, size: (True, a.digest_row(name, size, bytes(32), True))
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """lab/model v1 to v6, a pack each, and acme/other with v1's bytes again."""
    root = tmp_path_factory.mktemp("audited") / "made"
    repository = make_repository(root)
    files: dict[str, bytes] = {}
    for number in range(6):
        files[f"{number}.bin"] = noise(number, 200_000)
        push_files(repository, files)
    push_files(repository, {"0.bin": files["0.bin"]}, "acme/other")
    return root


@pytest.fixture(scope="module")
def served(made: Path) -> Iterator[str]:
    """By a server whose answers come row by row."""
    with own_server(made, before=ROW_BY_ROW) as url:
        yield url


def replica(of: Path, root: Path, *models: str) -> Path:
    replicate(Repository.open(FileStore(of), soon()), FileStore(root), soon,
              models=[ModelName.parse(model) for model in models])
    return root


@contextmanager
def watched(root: Path) -> Iterator[FaultProxy]:
    """Behind a proxy that counts."""
    with own_server(root) as url, FaultProxy(upstream=url) as proxy:
        yield proxy


def opened(spec: object) -> Repository:
    return Repository.open(RetryingStore(open_store(str(spec))), soon())


def check(*specs: object, part: float | None = None, read_here: bool = False) -> list[Report]:
    """As the command does: the stores at once, and with what they say compared."""
    repositories = [opened(spec) for spec in specs]
    question = None if read_here else Question.fresh("digests", 1.0 if part is None else part)
    words = [consult(one.store, question, deadline_s=20) if question else None for one in repositories]
    reports = [verify(one, read_data=part is None, sample=part, question=question, word=word, deadline_s=20)
               for one, word in zip(repositories, words, strict=True)]
    if question is None:
        return reports
    found = contradictions(repositories, [report.marks for report in reports], question, deadline_s=20)
    return [replace(report, faults=(*report.faults, *more)) for report, more in zip(reports, found, strict=True)]


def flip(path: Path, offset: int = 1000) -> Path:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    return path


def reads(proxy: FaultProxy) -> list[str]:
    return [seen.path for seen in proxy.seen("^/packs/") if seen.method == "GET"]


def test_servers_hash_their_own_bytes_and_no_pack_is_asked_for(made: Path, served: str, tmp_path: Path,
                                                              modelfs: Callable[..., Result]) -> None:
    replica(made, tmp_path / "replica")
    with FaultProxy(upstream=served) as one, watched(tmp_path / "replica") as other:
        done = modelfs("verify", one.url, other.url, "--read-data", "--json")
        assert done.code == 0, done.out + done.err
        assert not one.seen("^/packs/") and not other.seen("^/packs/"), "neither GET nor HEAD"
        assert len(one.seen("^/audit/sizes/")) == len(one.seen("^/audit/digests/")) == 1
        first, second = json.loads(done.out)["repositories"]
        assert first["hashed_by"] == second["hashed_by"] == "server"
        assert first["root"] == second["root"] and re.fullmatch("[0-9a-f]{64}", first["root"])
        assert modelfs("verify", one.url, "--json").code == 0
        assert not one.seen("^/packs/") and len(one.seen("^/audit/digests/")) == 1, "sizes are all it takes"
        here = json.loads(modelfs("verify", one.url, "--read-data", "--read-here", "--json").out)["repositories"][0]
        assert (here["hashed_by"], here["root"]) == ("client", None) and len(reads(one)) == len(packs(made))
        for field in ("ok", "versions", "chunks_checked", "bytes_checked", "faults"):
            assert here[field] == first[field], field


@pytest.mark.parametrize("spoil", [flip, lambda path: flip(path, path.stat().st_size - 70), Path.unlink,
                                   lambda path: path.write_bytes(path.read_bytes()[:70_000]),
                                   lambda path: path.write_bytes(path.read_bytes() + b"more")],
                         ids=["chunk", "tail", "gone", "short", "long"])
def test_what_a_server_finds_is_what_reading_finds(made: Path, tmp_path: Path, spoil: Callable[[Path], object]) -> None:
    root = replica(made, tmp_path / "replica")
    spoilt = packs(root)[2]
    spoil(spoilt)
    with watched(root) as proxy:
        (report,) = check(proxy.url)
        assert set(reads(proxy)) <= {f"/packs/{spoilt.name[:2]}/{spoilt.name}"}, "the others are not read"
        (read,) = check(proxy.url, read_here=True)
    assert report.faults == read.faults != ()
    assert (report.chunks_checked, report.bytes_checked) == (read.chunks_checked, read.bytes_checked)
    assert (report.hashed_by, read.hashed_by) == ("server", "client")


def test_a_static_store_is_read_here_and_compares_with_what_a_server_says(made: Path, served: str,
                                                                         tmp_path: Path) -> None:
    root = replica(made, tmp_path / "replica")
    with nginx(root, tmp_path / "nginx") as static:
        reports = check(served, static, root)
        assert [report.hashed_by for report in reports] == ["server", "client", "client"]
        assert all(report.ok for report in reports)
        assert len({report.root for report in reports}) == 1 and reports[0].root


def test_a_server_that_lies_is_caught_by_another_store_and_by_reading_here(made: Path, served: str,
                                                                          tmp_path: Path) -> None:
    root = replica(made, tmp_path / "replica")
    spoilt = flip(packs(root)[0])
    with own_server(root, before=LYING) as liar:
        assert check(liar)[0].ok, "alone it is taken at its word"
        honest, lying = check(served, liar)
        assert honest.ok and not lying.ok
        assert {(fault.kind, fault.object) for fault in lying.faults} == {
            ("corrupt", keys.PACKS + f"{pack.name[:2]}/{pack.name}") for pack in packs(root)}
        assert not check(made, liar)[1].ok, "of a store that is read here, too"
        assert {fault.object for fault in check(liar, read_here=True)[0].faults} == {
            keys.PACKS + f"{spoilt.name[:2]}/{spoilt.name}"}


@pytest.mark.parametrize("rule", [{"kind": "status", "code": 404}, {"kind": "status", "code": 403},
                                  {"kind": "flip", "offset": 9}, {"kind": "flip", "offset": 80}], ids=str)
def test_where_no_server_of_ours_answers_all_is_read_here(made: Path, served: str, rule: dict[str, object]) -> None:
    with FaultProxy(upstream=served) as proxy:
        proxy.add(match="^/audit/", **rule)  # type: ignore[arg-type]
        (report,) = check(proxy.url)
        assert report.ok and report.hashed_by == "client"
        assert len(reads(proxy)) == len(packs(made))


def test_an_audit_that_breaks_off_goes_on_where_it_was(served: str) -> None:
    with FaultProxy(upstream=served) as proxy:
        proxy.add("truncate", "^/audit/digests/", times=2, after=40 + 3 * 90)
        (report,) = check(proxy.url)
        assert report.ok and report.hashed_by == "server" and not reads(proxy)
        asked = [seen.path.rpartition("/")[2] for seen in proxy.seen("^/audit/digests/")]
    assert len(asked) == 3 and asked[0] == "0" * 64 and asked == sorted(set(asked)), "nothing is hashed twice"


def test_a_server_that_breaks_off_for_good_leaves_the_rest_to_be_read(made: Path, served: str) -> None:
    with FaultProxy(upstream=served) as proxy:
        proxy.add("truncate", "^/audit/digests/", times=1, after=40 + 3 * 90)
        proxy.add("truncate", "^/audit/digests/", after=50)
        (report,) = check(proxy.url)
        assert report.ok and report.hashed_by == "server"
        assert 0 < len(reads(proxy)) < len(packs(made))
    assert report.chunks_checked == check(made, read_here=True)[0].chunks_checked


def test_a_layout_that_is_false_is_found_though_every_pack_is_right(tmp_path: Path) -> None:
    made = Builder(tmp_path / "repo")
    made.push("acme/base", {"a.bin": noise(1, 3 * CHUNK), "b.bin": noise(2, CHUNK)})
    made.push("acme/next", {"a.bin": noise(3, 3 * CHUNK)})
    catalog = made.repository.catalog(soon()).catalog
    id = made.repository.resolve(catalog, ModelRef.parse("acme/base"), soon()).version.manifest
    found = made.repository.manifest(id, soon())
    places = [made.repository.layout(found, soon()).place(row) for row in range(4)]
    made.put(keys.layout(id), layout.serialise(id, [places[1], places[0], *places[2:]], set()))
    with watched(made.store.root) as proxy:
        (report,) = check(proxy.url)
        assert len(reads(proxy)) == 1, "of the pack that it names, and no other"
    assert report.faults == check(made.store.root, read_here=True)[0].faults
    assert {(fault.kind, fault.version, fault.path) for fault in report.faults} == {("corrupt", "v1", "a.bin")}


def test_what_gc_and_replication_made_is_hashed_by_its_server_alone(made: Path, tmp_path: Path) -> None:
    """Every place of theirs is one that an index names."""
    whole = replica(made, tmp_path / "whole")
    repository = Repository.open(FileStore(whole), soon())
    collect(repository, GcOptions(0.0, False, soon, 2))
    part = replica(made, tmp_path / "part", "acme/other")
    for root in (whole, part):
        with watched(root) as proxy:
            (report,) = check(proxy.url)
            assert report.ok and report.chunks_checked and not proxy.seen("^/packs/")


def test_servers_hash_the_same_sample(made: Path, served: str, tmp_path: Path,
                                      monkeypatch: pytest.MonkeyPatch) -> None:
    root = replica(made, tmp_path / "replica")
    monkeypatch.setattr("secrets.token_bytes", random.Random(3).randbytes)
    with FaultProxy(upstream=served) as one, own_server(root) as url:
        first, second = check(one.url, url, part=0.5)
        assert first.ok and first.root == second.root is not None
        assert 0 < first.chunks_checked < check(root, read_here=True)[0].chunks_checked
        assert not reads(one)
        (least,) = check(one.url, part=1e-15)
        assert least.chunks_checked == 1 == len(reads(one)), "a part that holds no pack is still a chunk"


def test_a_pack_that_came_after_the_server_was_asked_is_read(made: Path, tmp_path: Path) -> None:
    root = replica(made, tmp_path / "replica")
    late = packs(root)[1]
    data = late.read_bytes()
    late.unlink()
    with watched(root) as proxy:
        repository, question = opened(proxy.url), Question.fresh("digests")
        word = consult(repository.store, question, deadline_s=20)
        assert word is not None
        word.digests(lambda hashed: None)
        late.write_bytes(data)
        report = verify(repository, read_data=True, question=question, word=word, deadline_s=20)
        assert report.ok and len(reads(proxy)) == 1
