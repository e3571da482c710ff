"""The catalog: what is signed stays byte for byte, what a later modelfs wrote is kept, what is false is Malformed."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from repository.builder import WHEN

from modelfs.errors import Malformed
from modelfs.ids import Digest, ModelName, ObjectId
from modelfs.repository import catalog
from modelfs.repository.catalog import Catalog
from modelfs.repository.records import canonical

digest = st.builds(ObjectId, st.binary(min_size=32, max_size=32))
name = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_]{0,8}", fullmatch=True)
models = st.dictionaries(st.builds(ModelName, name, name), digest, max_size=5)
text = st.text(st.characters(codec="utf-8"), max_size=12)
catalogs = st.builds(
    Catalog, text, st.integers(0, 2**63 - 2), text, models, models, st.lists(digest, max_size=3).map(tuple),
    st.dictionaries(text, text, max_size=3), st.none() | text, st.none() | text)


@given(catalogs)
def test_what_was_written_is_read(written: Catalog) -> None:
    data = written.serialise()
    found = catalog.parse(data)
    assert replace(found, payload="") == written
    assert found.serialise() == data


@given(catalogs, models)
def test_the_next_one_names_the_payload_before_it_and_drops_its_signatures(written: Catalog, new: Any) -> None:
    first = catalog.parse(replace(written, signatures=("by someone",)).serialise())
    assert first.signatures == ("by someone",)
    second = catalog.parse(first.next(WHEN, models=new).serialise())
    assert (second.serial, second.parent) == (first.serial + 1, Digest.of(first.payload.encode()).hex())
    assert (second.signatures, second.models, second.removed) == ((), new, first.removed)
    assert second.indexes == first.indexes


def a_catalog(**outer: Any) -> dict[str, Any]:
    one = Catalog("ab" * 16, 3, WHEN, {ModelName("a", "b"): ObjectId(bytes(32))})
    fields: dict[str, Any] = json.loads(one.serialise())
    return fields | outer


def payload(**inner: Any) -> dict[str, Any]:
    return a_catalog(payload=canonical(json.loads(a_catalog()["payload"]) | inner).decode())


def test_the_payload_is_kept_to_the_byte_though_another_program_would_write_it_otherwise() -> None:
    odd = json.dumps(json.loads(a_catalog()["payload"]), indent=3)
    found = catalog.parse(canonical(a_catalog(payload=odd, signatures=[{"key": "k"}])))
    moved = catalog.parse(replace(found, indexes=(ObjectId(bytes(32)),)).serialise())
    assert (moved.payload, moved.signatures) == (odd, ({"key": "k"},))


def test_fields_of_a_later_modelfs_are_kept_inside_and_outside_of_the_payload() -> None:
    found = catalog.parse(canonical(payload(later=[1]) | {"also": {"x": None}}))
    again = json.loads(found.next(WHEN).serialise())
    assert again["also"] == {"x": None}
    assert json.loads(again["payload"])["later"] == [1]


FALSE: dict[str, bytes] = {
    "nothing": b"",
    "a page": b"<html></html>",
    "UTF-16": canonical(a_catalog()).decode().encode("utf-16"),
    "no UTF-8": b'{"a":"\xff"}',
    "half a surrogate pair": canonical(a_catalog()).replace(b'"dropped":{}', b'"dropped":{"\\ud800":"x"}'),
    "a list": b"[]",
    "nested without end": b"[" * 200_000,
    "no payload": canonical(a_catalog(payload=None)),
    "a payload that is an object": canonical(a_catalog(payload={})),
    "a payload that is no JSON": canonical(a_catalog(payload="{")),
    "half a surrogate pair in the payload": canonical(a_catalog(payload='{"created":"\\ud800"}')),
    "a serial below zero": canonical(payload(serial=-1)),
    "a serial beyond all": canonical(payload(serial=2**63)),
    "a serial that is a word": canonical(payload(serial="3")),
    "models that are a list": canonical(payload(models=[])),
    "a model that leaves its directory": canonical(payload(models={"../x": "ab" * 32})),
    "a model without an organisation": canonical(payload(models={"x": "ab" * 32})),
    "a model with a control character": canonical(payload(models={"a/b\n": "ab" * 32})),
    "a history that is no digest": canonical(payload(models={"a/b": "zz" * 32})),
    "a history that is null": canonical(payload(models={"a/b": None})),
    "a removed model that is false": canonical(payload(removed={"a": "ab" * 32})),
    "indexes that are no digests": canonical(a_catalog(indexes=[1])),
    "no indexes": canonical(a_catalog(indexes=None)),
    "dropped that are no times": canonical(a_catalog(dropped={"a": 1})),
}


@pytest.mark.parametrize("what", FALSE)
def test_a_false_catalog_is_malformed(what: str) -> None:
    assert catalog.parse(canonical(a_catalog())).serial == 3
    with pytest.raises(Malformed):
        catalog.parse(FALSE[what])


@given(st.data())
def test_any_flipped_or_missing_bytes_are_malformed_or_a_catalog(data: st.DataObject) -> None:
    raw = bytearray(canonical(a_catalog()))
    if data.draw(st.booleans()):
        del raw[data.draw(st.integers(0, len(raw) - 1)):]
    for _ in range(data.draw(st.integers(0, 3))):
        if raw:
            raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        found = catalog.parse(bytes(raw))
    except Malformed:
        return
    assert catalog.parse(found.serialise()) == found
