"""`verify` of several stores: that they agree, where they do not, and what one can mend from another."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from faultproxy import FaultProxy
from results import Result
from transfer.pushed import soon

from modelfs.ids import ModelName
from modelfs.maintenance.agreement import differences
from modelfs.repository import keys
from modelfs.repository.repository import Repository
from modelfs.stores.opening import open_store

Run = Callable[..., Result]


@pytest.fixture
def stores(modelfs: Run, tmp_path: Path) -> list[Path]:
    """a, and its replicas b and c: acme/one v1 with its tag, acme/two v1."""
    for name, size in (("one", 3_000_000), ("two", 1_000_000)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "w.bin").write_bytes(bytes(range(256)) * (size // 256))
    assert modelfs("init", "a", "--chunk-size", "64KiB").code == 0
    for name in ("one", "two"):
        assert modelfs("push", name, "a", f"acme/{name}").code == 0
    assert modelfs("replicate", "a", "b", "c").code == 0
    return [tmp_path / name for name in "abc"]


def verified(modelfs: Run, *arguments: object, code: int = 0) -> list[dict[str, Any]]:
    done = modelfs("verify", *arguments, "--json")
    assert done.code == code, done.err
    document = json.loads(done.out)
    assert document["ok"] is (code == 0)
    return list(document["repositories"])


def kinds(report: dict[str, Any]) -> set[tuple[str, str | None, str | None]]:
    return {(fault["kind"], fault["model"], fault["version"]) for fault in report["faults"]}


def objects(root: Path, kind: str) -> list[Path]:
    return sorted(path for path in (root / kind).rglob("*") if path.is_file())


def test_equal_stores_agree_by_a_request_for_the_catalog_each(modelfs: Run, stores: list[Path]) -> None:
    with FaultProxy(stores[1]) as proxy:
        assert all(report["ok"] for report in verified(modelfs, "a", proxy.url, "c"))
        assert [seen.method for seen in proxy.seen("packs/")] == ["HEAD"] * len(objects(stores[1], "packs"))


def test_stores_are_compared_by_a_request_each_and_by_histories_only_of_models_that_differ(
        modelfs: Run, stores: list[Path], tmp_path: Path) -> None:
    def asked() -> list[list[str]]:
        return [[seen.path[1:] for seen in proxy.seen()] for proxy in proxies]

    def history_of_one(store: Repository) -> str:
        return keys.history(store.catalog(soon()).catalog.models[ModelName.parse("acme/one")])

    with FaultProxy(stores[0]) as first, FaultProxy(stores[1]) as second:
        proxies = [first, second]
        opened = [Repository.open(open_store(proxy.url), soon()) for proxy in proxies]
        for proxy in proxies:
            proxy.forget()
        assert differences(opened) == [[], []]
        assert asked() == [["catalog.json"], ["catalog.json"]]
        (tmp_path / "one" / "more.bin").write_bytes(b"more")
        modelfs("push", "one", "a", "acme/one")
        named = [history_of_one(store) for store in opened]
        opened = [Repository.open(open_store(proxy.url), soon()) for proxy in proxies]
        for proxy in proxies:
            proxy.forget()
        assert [[fault.model for fault in faults] for faults in differences(opened)] == [[], ["acme/one"] * 2]
        assert asked() == [["catalog.json", name] for name in named]

        for proxy in proxies:
            proxy.forget()
        verified(modelfs, *(proxy.url for proxy in proxies), code=4)
        for proxy, name in zip(proxies, named, strict=True):
            counts = Counter(seen.path[1:] for seen in proxy.seen("^/(histories|manifests|catalog)"))
            twice = {path for path, count in counts.items() if count > 1}
            assert twice == {"catalog.json", name} and max(counts.values()) == 2, "to compare, and to check"


def test_one_that_lags_lacks_what_the_other_has(modelfs: Run, stores: list[Path], tmp_path: Path) -> None:
    (tmp_path / "one" / "more.bin").write_bytes(b"more")
    modelfs("push", "one", "a", "acme/one")
    modelfs("push", "two", "a", "acme/three")
    first, second, _ = verified(modelfs, "a", "b", "c", code=4)
    assert first["ok"] and ("missing", "acme/one", "v2") in kinds(second) and ("missing", "acme/three", "v1") in kinds(
        second)
    details = " ".join(fault["detail"] for fault in second["faults"])
    assert "serial 3" in details and "serial 5" in details


def test_two_that_both_took_changes_have_diverged(modelfs: Run, stores: list[Path], tmp_path: Path) -> None:
    modelfs("promote", "b")
    for store in "ab":
        (tmp_path / "one" / "more.bin").write_bytes(store.encode())
        modelfs("push", "one", store, "acme/one")
    first, second = verified(modelfs, "a", "b", code=4)
    assert ("diverged", "acme/one", "v2") in kinds(second) and first["faults"] == []


def test_a_tag_that_moved_and_a_version_that_was_removed_are_differences(modelfs: Run, stores: list[Path]) -> None:
    modelfs("tag", "a", "acme/one", "prod")
    modelfs("rm", "a", "acme/two", "--yes")
    first, second = verified(modelfs, "a", "b", code=4)
    assert ("diverged", "acme/two", "v1") in kinds(first)
    assert any("tag prod" in fault["detail"] for fault in second["faults"])


def test_a_replica_of_some_models_is_compared_by_those(modelfs: Run, stores: list[Path]) -> None:
    assert modelfs("replicate", "a", "part", "--model", "acme/two").code == 0
    verified(modelfs, "a", "part", "--read-data")


def test_other_repositories_do_not_agree(modelfs: Run, stores: list[Path]) -> None:
    modelfs("init", "other")
    assert [kinds(report) for report in verified(modelfs, "a", "other", code=4)] == [set(), {("diverged", None, None)}]


@pytest.mark.parametrize("kind", ["packs", "manifests", "histories", "indexes", "layouts"])
@pytest.mark.parametrize("how", ["gone", "spoilt"])
def test_what_one_has_lost_is_mended_from_another(modelfs: Run, stores: list[Path], kind: str, how: str) -> None:
    lost = objects(stores[1], kind)[0]
    right = lost.read_bytes()
    if how == "gone":
        lost.unlink()
    else:
        lost.chmod(0o644)
        lost.write_bytes(right[:40] + bytes([right[40] ^ 1]) + right[41:])
    verified(modelfs, "a", "b", "c", "--read-data", code=4)
    reports = verified(modelfs, "a", "b", "c", "--read-data", "--repair")
    assert reports[1]["repaired"] and not reports[0]["repaired"]
    verified(modelfs, "b", "--read-data")
    if kind != "layouts" and kind != "indexes":
        assert lost.read_bytes() == right


def test_a_wrong_copy_mends_nothing(modelfs: Run, stores: list[Path]) -> None:
    for store in stores[1:]:
        pack = objects(store, "packs")[0]
        data = bytearray(pack.read_bytes())
        data[10] ^= 1
        pack.chmod(0o644)
        pack.write_bytes(data)
    reports = verified(modelfs, "b", "c", "--read-data", "--repair", code=4)
    assert all(("corrupt", None, None) in kinds(report) for report in reports)
    shutil.rmtree(stores[1] / "packs")
    verified(modelfs, "a", "b", "c", "--read-data", "--repair")
